"""The one way to a file system: by URL, with what the clients read from their usual environment.

Endpoint, region, credentials, profile, retries and timeouts are the clients' own affair; docs/storage.md has them.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from lsap_archive.errors import ArchiveError, ArchiveMismatchError, ArchiveNotFoundError, StoreUnavailableError
from lsap_archive.stores.credentials import Secrets, credential_in, host_of
from lsap_archive.stores.local_files import special_file
from lsap_archive.stores.store_errors import as_unavailable, describe, is_missing

_CLIENTS = {"s3": "s3fs", "gs": "gcsfs", "az": "adlfs"}
_ENDPOINT_VARIABLES = {"s3": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"), "gs": ("STORAGE_EMULATOR_HOST",)}
_ALIASES = {"local": "file", "s3a": "s3", "gcs": "gs", "abfs": "az", "abfss": "az"}


def scheme_of(url: str) -> str:
    """The kind of storage of a URL: "file", "memory", "s3", "gs" or "az"; any other scheme as it is written.

    Example:
        >>> scheme_of("/data/faces"), scheme_of("abfs://container/faces")
        ('file', 'az')
    """
    scheme, separator, _ = url.partition("://")
    return _ALIASES.get(scheme, scheme) if separator else "file"


def refuse_credentials(url: str) -> None:
    """Make sure that a URL may be shown and kept.

    Raises:
        ArchiveMismatchError: it carries a password or a signed query; neither is repeated.
    """
    if found := credential_in(url):
        raise ArchiveMismatchError(
            f"a {scheme_of(url)}:// URL carries {found}: credentials would end up in logs and archives; give them "
            "to the storage's client by the environment or a profile (docs/storage.md)"
        )


def open_file_system(url: str, storage_options: Mapping[str, Any] | None = None) -> tuple[Any, str]:
    """The file system of a URL, an fsspec one without a cache of listings, and the path on it.

    Args:
        url: a local path, file://, memory:// (this process alone), s3://, gs:// or az:// (also abfs://); any other
            that fsspec knows, where its client is installed.
        storage_options: what the client takes; without, all comes from the environment.

    Raises:
        ArchiveMismatchError: the URL carries a credential, or is none.
        StoreUnavailableError: the client is not installed, finds no credentials, or refuses the options.
    """
    refuse_credentials(url)
    if "\0" in url:
        raise ArchiveMismatchError(f"{url!r} has a NUL character, which no path or URL can have: leave it out")
    scheme = scheme_of(url)
    options = dict(storage_options or {})
    if scheme in _CLIENTS:
        options["use_listings_cache"] = False
    if scheme == "s3":
        _prepare_s3()
    if scheme == "gs":  # else gcsfs asks by gRPC for the kind of each bucket, a minute where only HTTP gets through
        os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    secrets = Secrets(options)
    try:
        fs, path = fsspec.core.url_to_fs(url, **options)
    except ImportError as error:
        if scheme not in _CLIENTS:  # fsspec says which package, by the name that it is installed by
            raise StoreUnavailableError(
                f"{scheme}:// cannot be opened here: {' '.join(str(error).split())}; or take a local path, s3://, "
                "gs:// or az://"
            ) from error
        package = _CLIENTS[scheme]
        raise StoreUnavailableError(
            f"{scheme}:// needs the package {package}, which is not installed: pip install {package}"
        ) from error
    except Exception as error:  # every client has its own errors for options and credentials
        what = " ".join(secrets.hide(f"{type(error).__name__}: {error}").split())
        if isinstance(error, ValueError) and scheme not in _CLIENTS:
            raise ArchiveMismatchError(
                f"{url} is no readable address ({what}); wanted a local path, file://, memory://, s3://, gs:// or "
                "az://: check the spelling"
            ) from None
        raise StoreUnavailableError(
            f"{url} cannot be opened ({what}): check the address, the options and the credentials (docs/storage.md)"
        ) from secrets.safe_cause(error)
    return fs, str(path)


def _prepare_s3() -> None:
    """What every other client of S3 does with its variables, and this one does not."""
    if "AWS_REGION" in os.environ:  # containers have it; botocore knows its older name alone
        os.environ.setdefault("AWS_DEFAULT_REGION", os.environ["AWS_REGION"])
    for name in _ENDPOINT_VARIABLES["s3"]:
        if credential_in(os.environ.get(name, "")):
            raise ArchiveMismatchError(
                f"{name} carries a password, which no S3 client uses: leave user and password out of it, and set "
                "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            )


def read_file(url: str, storage_options: Mapping[str, Any] | None = None, *, max_bytes: int | None = None) -> bytes:
    """The bytes of one file.

    Args:
        url: as for `open_file_system`.
        storage_options: as for `open_file_system`.
        max_bytes: refuse a larger one, of which no more is read.

    Raises:
        ArchiveMismatchError: the URL carries a credential, or is none; at it lies a pipe, a device or a socket, or a
            file that is larger than wanted.
        ArchiveNotFoundError: nothing is there, or a folder.
        StoreUnavailableError: the storage does not answer or refuses.
    """
    fs, path = open_file_system(url, storage_options)
    refuse_special_file(fs, path)
    with storage_errors("read", url, storage_options):
        try:
            if max_bytes is not None and (fs.size(path) or 0) > max_bytes:
                raise ArchiveMismatchError(f"{url} has {fs.size(path):,} bytes; wanted at most {max_bytes:,}")
            data: bytes = fs.cat_file(path)
        except FileNotFoundError:
            if fs.isdir(path):
                raise IsADirectoryError(url) from None
            raise
    return data


def refuse_special_file(fs: Any, path: str) -> None:
    """Make sure that reading a file of this machine comes to an end.

    Raises:
        ArchiveMismatchError: it is a pipe, a device or a socket.
    """
    if isinstance(fs, LocalFileSystem) and (found := special_file(path)):
        raise ArchiveMismatchError(f"{path} is {found}; wanted a file: write what it gives into one, and name that")


@contextlib.contextmanager
def storage_errors(verb: str, url: str, storage_options: Mapping[str, Any] | None = None) -> Iterator[None]:
    """What a file system raises, as an ArchiveError that says what to do and tells no credential.

    Raises:
        ArchiveNotFoundError: nothing is at the URL, or a folder.
        StoreRefusedError: this process may not do that.
        StoreUnavailableError: everything else that its client raises.
    """
    try:
        yield
    except ArchiveError:
        raise
    except Exception as error:  # every client has errors of its own
        secrets = Secrets(storage_options)
        if is_missing(error):
            found = "is a folder" if isinstance(error, IsADirectoryError) else "does not exist"
            raise ArchiveNotFoundError(f"{url} {found}: name a file that is there") from None
        scheme = scheme_of(url)
        text = f"cannot {verb} {url}: {describe(error, scheme, endpoint_of(scheme, storage_options))}"
        raise as_unavailable(error, secrets.hide(text)) from secrets.safe_cause(error)


def endpoint_of(scheme: str, storage_options: Mapping[str, Any] | None = None) -> str:
    """Where a storage is, as far as this process was told, without user and password."""
    options = storage_options or {}
    client = options.get("client_kwargs")
    given = options.get("endpoint_url") or (client.get("endpoint_url") if isinstance(client, Mapping) else None)
    told = [given, *(os.environ.get(name) for name in _ENDPOINT_VARIABLES.get(scheme, ()))]
    return next((host for url in told if url and (host := host_of(str(url)))), "the object store")
