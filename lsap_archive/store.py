"""A folder of objects behind one URL: local disk, memory or S3, with the same promises.

- `put` and `copy` are atomic: a reader sees the whole old object or the whole new one.
- `create` is create-only: of any number of writers, in any processes, exactly one is told True.
- No key leaves the root. No message, repr or document holds a credential.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

import fsspec
from fsspec.implementations.local import LocalFileSystem

from lsap_archive.errors import (
    ArchiveError,
    ArchiveMismatchError,
    ArchiveNotFoundError,
    StoreUnavailableError,
)

T = TypeVar("T")

_TEMPORARY = ".tmp-"
_BLOCK_BYTES = 16 * 2**20
_CONFLICT_TRIES = 8
_MEMORY_LOCK = threading.RLock()  # fsspec's memory is one per process and has no lock of its own
_PASSWORD_IN_URL = re.compile(r"[a-z0-9+]+://[^/@:]*:(.+)@")
_SECRET_WORDS = ("secret", "password", "token", "credential")


class Store:
    """Objects under one URL. Build it with `Store.from_url`.

    Attributes:
        url: the root, without a trailing slash and without credentials.
    """

    def __init__(self, url: str, kind: str, fs: Any, root: str, storage_options: Mapping[str, Any]) -> None:
        self.url = url
        self._kind = kind
        self._fs = fs
        self._root = root
        self._secrets = tuple(_secrets(storage_options))
        self._endpoint = _endpoint(storage_options)

    def __repr__(self) -> str:
        return f"Store({self.url!r})"

    @classmethod
    def from_url(cls, url: str | os.PathLike[str], storage_options: Mapping[str, Any] | None = None) -> Store:
        """The store at `url`; nothing is read or written yet.

        Args:
            url: a local path, or file://, memory:// or s3://bucket/prefix.
            storage_options: for s3, what s3fs takes (key, secret, endpoint_url, client_kwargs, ...). Without,
                the credentials come from the environment, as for any S3 client.

        Raises:
            ArchiveMismatchError: another scheme, no bucket, or credentials inside the URL.
            StoreUnavailableError: the package for the scheme is not installed, or refuses the options.
        """
        text = os.fspath(url)
        scheme, separator, rest = text.partition("://")
        if not separator or scheme == "file":
            path = unquote(urlsplit(text).path) if separator else text
            if not path:
                raise ArchiveMismatchError(f"{text!r} names no folder: give a path")
            root = str(Path(path).expanduser().absolute())
            return cls(root, "file", LocalFileSystem(auto_mkdir=False), root, {})
        if "@" in rest.partition("/")[0]:
            raise ArchiveMismatchError(
                f"a {scheme}:// URL holds credentials before an '@': pass them as storage_options or environment"
            )
        if scheme not in ("memory", "s3"):
            raise ArchiveMismatchError(f"{scheme}:// is not known: use a local path, file://, memory:// or s3://")
        if "?" in rest or "#" in rest:
            raise ArchiveMismatchError(f"a {scheme}:// URL holds '?' or '#': give bucket and prefix only")
        root = rest.strip("/")
        if not root or any(part in ("", ".", "..") for part in root.split("/")):
            raise ArchiveMismatchError(f"{scheme}://{root} names no bucket and prefix: give {scheme}://name/prefix")
        options = dict(storage_options or {}) if scheme == "s3" else {}
        try:
            extra = {"use_listings_cache": False} if scheme == "s3" else {}
            fs = fsspec.filesystem(scheme, **{**options, **extra})
        except ImportError as error:
            raise StoreUnavailableError(f"{scheme}:// needs the package s3fs: pip install s3fs") from error
        except (TypeError, ValueError) as error:
            raise StoreUnavailableError(
                f"the storage_options for {scheme}://{root} were refused ({type(error).__name__}): "
                "give those that s3fs takes (key, secret, endpoint_url, client_kwargs)"
            ) from None
        return cls(f"{scheme}://{root}", scheme, fs, root, options)

    def join(self, key: str) -> str:
        """URL of an object."""
        self._path(key)
        return f"{self.url}/{key}"

    def get(self, key: str, start: int | None = None, end: int | None = None) -> bytes:
        """The bytes of an object, or of the range [start, end); a negative start counts from the end.

        Raises:
            ArchiveNotFoundError: no such object.
            StoreUnavailableError: the store does not answer or refuses.
        """
        path = self._path(key)
        data: bytes = self._guard("read", key, lambda: self._fs.cat_file(path, start=start, end=end))
        return data

    def size(self, key: str) -> int:
        """Size of an object, in bytes.

        Raises:
            ArchiveNotFoundError: no such object.
            StoreUnavailableError: the store does not answer or refuses.
        """
        path = self._path(key)
        info = self._guard("read", key, lambda: self._fs.info(path))
        if info["type"] != "file":
            raise self._not_found(key)
        return int(info["size"])

    def exists(self, key: str) -> bool:
        """Whether there is such an object.

        Raises:
            StoreUnavailableError: the store does not answer or refuses.
        """
        try:
            self.size(key)
        except ArchiveNotFoundError:
            return False
        return True

    def digest(self, key: str, size: int | None = None) -> tuple[int, str]:
        """Size in bytes and SHA-256 of an object, read block by block.

        Args:
            key: the object.
            size: its size, where a listing told it; saves a request.

        Raises:
            ArchiveNotFoundError: no such object.
            StoreUnavailableError: the store does not answer or refuses.
        """
        size = self.size(key) if size is None else size
        digest = hashlib.sha256()
        for start in range(0, size, _BLOCK_BYTES):
            digest.update(self.get(key, start, min(start + _BLOCK_BYTES, size)))
        return size, digest.hexdigest()

    def put(self, key: str, data: bytes) -> None:
        """Write an object, in the place of an older one.

        Raises:
            StoreUnavailableError: the store does not answer or refuses.
        """
        path = self._path(key)
        self._refuse_secrets(key, data)
        if self._kind == "file":
            self._guard("write", key, lambda: _write_local(path, data))
        else:
            self._guard("write", key, lambda: self._fs.pipe_file(path, data))

    def create(self, key: str, data: bytes) -> bool:
        """Write an object only if there is none of that key.

        Returns:
            True for the one writer that made it, False for every other.

        Raises:
            StoreUnavailableError: the store does not answer, refuses or cannot write create-only.
        """
        path = self._path(key)
        self._refuse_secrets(key, data)
        if self._kind == "file":
            return self._guard("write", key, lambda: _create_local(path, data))
        for attempt in range(_CONFLICT_TRIES):
            try:
                self._guard("write", key, lambda: self._fs.pipe_file(path, data, mode="create"), raw=_LOST_RACE)
            except _LOST_RACE as error:
                if _is_taken(error):
                    return False
                if _http_status(error) == 501:
                    raise StoreUnavailableError(
                        f"{self.url} cannot write create-only objects (If-None-Match): use a store that can, "
                        "such as AWS S3, MinIO, Ceph, or a local disk"
                    ) from error
                if _http_status(error) != 409:  # 409: another conditional write of this key is under way
                    raise self._translated("write", key, error) from self._safe(error)
                time.sleep(0.05 * 2**attempt)
            else:
                return True
        raise StoreUnavailableError(f"{self.join(key)} stayed busy with other writers: try again")

    def copy(self, source: str, target: str) -> None:
        """Copy an object inside the store, without moving its bytes through this process.

        Raises:
            ArchiveNotFoundError: no such source.
            StoreUnavailableError: the store does not answer or refuses.
        """
        paths = self._path(source), self._path(target)
        if self._kind == "file":
            self._guard("copy", source, lambda: _copy_local(*paths))
        else:
            self._guard("copy", source, lambda: self._fs.cp_file(*paths))

    def delete(self, key: str) -> None:
        """Remove an object; none of that key is fine.

        Raises:
            StoreUnavailableError: the store does not answer or refuses.
        """
        path = self._path(key)
        with contextlib.suppress(ArchiveNotFoundError):
            self._guard("delete", key, lambda: self._fs.rm_file(path))

    def delete_folder(self, prefix: str) -> None:
        """Remove every object under `prefix/`; none is fine, and so is another process doing the same.

        Raises:
            StoreUnavailableError: the store does not answer or refuses.
        """
        path = self._path(prefix)
        if self._kind == "file":
            self._guard("delete", prefix, lambda: _delete_local(path))
        elif self._kind == "memory":
            for key in self.keys(prefix):
                self.delete(key)
        else:
            with contextlib.suppress(ArchiveNotFoundError):
                self._guard("delete", prefix, lambda: self._fs.rm(path, recursive=True))

    def keys(self, prefix: str = "") -> list[str]:
        """Keys of all objects under `prefix/`, sorted.

        Raises:
            StoreUnavailableError: the store does not answer or refuses.
        """
        return sorted(self.sizes(prefix))

    def sizes(self, prefix: str = "") -> dict[str, int]:
        """Key and size in bytes of all objects under `prefix/`.

        Raises:
            StoreUnavailableError: the store does not answer or refuses.
        """
        path = self._path(prefix) if prefix else self._root
        if self._kind == "file":
            found = self._guard("list", prefix, lambda: dict(_list_local(path)))
        else:
            nothing: dict[str, Any] = {}
            infos = self._guard("list", prefix, lambda: self._fs.find(path, detail=True), missing=nothing)
            found = {name: int(info["size"]) for name, info in infos.items()}
        start = len(self._root.strip("/")) + 1
        keys = {name.strip("/")[start:]: size for name, size in found.items()}
        return {key: size for key, size in keys.items() if key.startswith(f"{prefix}/" if prefix else "")}

    def folders(self, prefix: str) -> list[str]:
        """Names of the folders directly under `prefix/`, sorted.

        Raises:
            StoreUnavailableError: the store does not answer or refuses.
        """
        path = self._path(prefix)
        nothing: list[dict[str, Any]] = []
        infos = self._guard("list", prefix, lambda: self._fs.ls(path, detail=True), missing=nothing)
        return sorted(info["name"].rstrip("/").rsplit("/", 1)[1] for info in infos if info["type"] == "directory")

    def _path(self, key: str) -> str:
        parts = key.split("/")
        if any(part in ("", ".", "..") or part.startswith(_TEMPORARY) for part in parts):
            raise ArchiveMismatchError(f"key {key!r} would leave {self.url}: name an object below it")
        if any(character in "\\?#*" or not character.isprintable() for character in key):
            raise ArchiveMismatchError(f"key {key!r} holds a character that not every store keeps: leave it out")
        return f"{self._root}/{key}"

    def _guard(
        self,
        verb: str,
        key: str,
        call: Callable[[], T],
        *,
        raw: tuple[type[BaseException], ...] = (),
        missing: T | None = None,
    ) -> T:
        """Run `call`; its errors become ours, except `raw`. `missing` is given back for a missing object."""
        try:
            with _MEMORY_LOCK if self._kind == "memory" else contextlib.nullcontext():
                return call()
        except raw:
            raise
        except Exception as error:
            translated = self._translated(verb, key, error)
            if missing is not None and isinstance(translated, ArchiveNotFoundError):
                return missing
            raise translated from self._safe(error)

    def _not_found(self, key: str) -> ArchiveNotFoundError:
        return ArchiveNotFoundError(f"{self.url}/{key} does not exist: check the URL, or write it first")

    def _translated(self, verb: str, key: str, error: BaseException) -> ArchiveError:
        where = f"{self.url}/{key}" if key else self.url
        name = type(error).__name__
        code = _error_code(error)
        if code == "NoSuchBucket":
            text = f"bucket {self._root.split('/')[0]} of {self.url} does not exist: create it or correct the URL"
        elif isinstance(error, (FileNotFoundError, IsADirectoryError)):
            return self._not_found(key)
        elif isinstance(error, PermissionError):
            text = f"cannot {verb} {where}: permission denied; check the credentials and what they may do there"
        elif "Credentials" in name:
            text = f"cannot {verb} {where}: no credentials found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        elif "Connect" in name or "Timeout" in name or isinstance(error, TimeoutError):
            text = f"cannot {verb} {where}: {self._endpoint} does not answer; check the network and endpoint_url"
        else:
            detail = code or getattr(error, "strerror", None) or str(error)
            text = f"cannot {verb} {where}: the store answered {name} ({detail}); check the store and try again"
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return StoreUnavailableError(text)

    def _safe(self, error: BaseException) -> BaseException | None:
        """The error as a cause to show, or None if it tells a secret, as an endpoint with a password may."""
        told = "".join(traceback.format_exception_only(error)) + repr(error.__cause__)
        return None if any(secret in told for secret in self._secrets) else error

    def _refuse_secrets(self, key: str, data: bytes) -> None:
        if not key.endswith(".json"):
            return
        for secret in self._secrets:
            if len(secret) >= 8 and (secret.encode() in data or json.dumps(secret)[1:-1].encode() in data):
                raise ArchiveMismatchError(
                    f"{self.url}/{key} would hold a credential of storage_options: "
                    "take it out of the run's config and provenance"
                )


_LOST_RACE = (FileExistsError, OSError)


def _is_taken(error: BaseException) -> bool:
    """Whether a create-only write was refused because the object is there (HTTP 412)."""
    return isinstance(error, FileExistsError) or _http_status(error) == 412


def _response(error: BaseException) -> dict[str, Any]:
    for candidate in (error, error.__cause__):
        response = getattr(candidate, "response", None)
        if isinstance(response, dict):
            return response
    return {}


def _http_status(error: BaseException) -> int:
    return int(_response(error).get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _error_code(error: BaseException) -> str:
    return str(_response(error).get("Error", {}).get("Code", ""))


def _secrets(options: Mapping[str, Any]) -> Iterator[str]:
    """Values of options whose names say that they are secret, and passwords inside URLs, at any depth."""
    for name, value in options.items():
        if isinstance(value, Mapping):
            yield from _secrets(value)
        elif isinstance(value, str) and value:
            if any(word in str(name).lower() for word in _SECRET_WORDS):
                yield value
            password = _PASSWORD_IN_URL.match(value)
            if password:
                yield password[1]


def _endpoint(options: Mapping[str, Any]) -> str:
    client = options.get("client_kwargs")
    url = options.get("endpoint_url") or (client.get("endpoint_url") if isinstance(client, Mapping) else None)
    parts = urlsplit(str(url)) if url else None
    if parts is None or not parts.hostname:
        return "the object store"
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


@contextlib.contextmanager
def _temporary(path: str) -> Iterator[str]:
    """Name of a temporary file beside `path`, in a folder that exists; removed at the end if still there."""
    folder = os.path.dirname(path)
    os.makedirs(folder, exist_ok=True)
    name = os.path.join(folder, f"{_TEMPORARY}{uuid.uuid4().hex}")
    try:
        yield name
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)


def _write_synced(path: str, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _write_local(path: str, data: bytes) -> None:
    with _temporary(path) as name:
        _write_synced(name, data)
        os.replace(name, path)


def _create_local(path: str, data: bytes) -> bool:
    with _temporary(path) as name:
        _write_synced(name, data)
        try:
            os.link(name, path)
        except FileExistsError:
            return False
    return True


def _copy_local(source: str, target: str) -> None:
    with open(source, "rb") as file, _temporary(target) as name:
        with open(name, "wb") as copy:
            shutil.copyfileobj(file, copy, _BLOCK_BYTES)
            copy.flush()
            os.fsync(copy.fileno())
        os.replace(name, target)


def _list_local(path: str) -> Iterator[tuple[str, int]]:
    """Path and size of every file below; what vanishes meanwhile is left out, what is unreadable is not."""
    try:
        entries = sorted(os.scandir(path), key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):
        return
    for entry in entries:
        if entry.is_dir():
            yield from _list_local(entry.path)
        elif not entry.name.startswith(_TEMPORARY):
            with contextlib.suppress(FileNotFoundError):
                yield entry.path, entry.stat().st_size


def _delete_local(path: str) -> None:
    for folder, _, names in os.walk(path, topdown=False):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(folder, name))
        with contextlib.suppress(OSError):  # another process removed it, or is just writing into it
            os.rmdir(folder)
