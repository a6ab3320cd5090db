"""A folder of objects behind one URL: local disk, memory, S3, Google Cloud Storage or Azure, with the same promises.

- `put` and `copy` are atomic: a reader sees the whole old object or the whole new one.
- `create` is create-only: of any number of writers, in any processes, exactly one is told True.
- No key leaves the root. No message, repr or document holds a credential.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

from fsspec.implementations.local import LocalFileSystem

from lsap_archive.errors import (
    ArchiveError,
    ArchiveMismatchError,
    ArchiveNotFoundError,
    StoreRefusedError,
    StoreUnavailableError,
)
from lsap_archive.stores.credentials import Secrets
from lsap_archive.stores.file_systems import endpoint_of, open_file_system, refuse_credentials, scheme_of
from lsap_archive.stores.local_files import (
    BLOCK_BYTES,
    TEMPORARY,
    copy_local,
    create_local,
    delete_local,
    delete_temporary,
    is_inside,
    list_local,
    special_file,
    unwritable_folder,
    write_local,
)
from lsap_archive.stores.store_errors import (
    as_unavailable,
    describe,
    http_status,
    is_missing,
    is_taken,
    names_no_bucket,
)

T = TypeVar("T")

_CONFLICT_TRIES = 8
_MEMORY_LOCK = threading.RLock()  # fsspec's memory is one per process and has no lock of its own


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
        self._secrets = Secrets(storage_options)
        self._endpoint = endpoint_of(kind, storage_options)

    def __repr__(self) -> str:
        return f"Store({self.url!r})"

    @classmethod
    def from_url(cls, url: str | os.PathLike[str], storage_options: Mapping[str, Any] | None = None) -> Store:
        """The store at `url`; nothing is read or written yet.

        Args:
            url: a local path, or file://, memory://, s3://bucket/prefix, gs://bucket/prefix or az://container/prefix.
            storage_options: what the client takes (for s3: key, secret, endpoint_url, client_kwargs, ...). Without,
                all comes from the environment, as for any client of that storage.

        Raises:
            ArchiveMismatchError: another scheme, no bucket, or credentials inside the URL.
            StoreUnavailableError: the package for the scheme is not installed, or refuses the options.
        """
        text = os.fspath(url)
        if "\0" in text:
            raise ArchiveMismatchError(f"{text!r} has a NUL character, which no path or URL can have: leave it out")
        kind, (scheme, separator, rest) = scheme_of(text), text.partition("://")
        if kind == "file":
            path = unquote(urlsplit(text).path) if separator else text
            if not path:
                raise ArchiveMismatchError(f"{text!r} names no folder: give a path")
            root = str(Path(path).expanduser().absolute())
            return cls(root, kind, LocalFileSystem(auto_mkdir=False), root, {})
        if kind not in ("memory", "s3", "gs", "az"):
            raise ArchiveMismatchError(
                f"{scheme}:// is not known: use a local path, file://, memory://, s3://, gs:// or az://"
            )
        refuse_credentials(text)
        if "?" in rest or "#" in rest:
            raise ArchiveMismatchError(f"a {scheme}:// URL holds '?' or '#': give bucket and prefix only")
        rest = rest.strip("/")
        if any(part in ("", ".", "..") for part in rest.split("/")):
            raise ArchiveMismatchError(f"{scheme}://{rest} names no bucket and prefix: give {scheme}://name/prefix")
        fs, path = open_file_system(f"{scheme}://{rest}", storage_options if kind != "memory" else None)
        root = rest if kind == "memory" else path.strip("/")
        return cls(f"{scheme}://{rest}", kind, fs, root, storage_options or {})

    def join(self, key: str) -> str:
        """URL of an object."""
        self._path(key)
        return f"{self.url}/{key}"

    def local_path(self, key: str) -> str | None:
        """Where an object lies on this machine, for libraries that read files by themselves; None in other storage."""
        return self._path(key) if self._kind == "file" else None

    def get(self, key: str, start: int | None = None, end: int | None = None) -> bytes:
        """The bytes of an object, or of the range [start, end); a negative start counts from the end.

        Raises:
            ArchiveNotFoundError: no such object.
            StoreUnavailableError: the store does not answer or refuses.
        """
        path = self._path(key)
        if start is not None and start < 0 and self._kind in ("gs", "az"):  # not every server there knows such ranges
            start, end = max(0, self.size(key) + start), None
        if self._kind == "file" and (found := special_file(path)):
            raise ArchiveNotFoundError(f"{self.url}/{key} is {found} and no object: take it away")
        one_request = {"max_concurrency": 1} if self._kind == "s3" else {}  # else s3fs first asks for the size
        data: bytes = self._guard("read", key, lambda: self._fs.cat_file(path, start=start, end=end, **one_request))
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
        for start in range(0, size, BLOCK_BYTES):
            digest.update(self.get(key, start, min(start + BLOCK_BYTES, size)))
        return size, digest.hexdigest()

    def check_writable(self) -> None:
        """Make sure that this process may write below the URL, before work is spent; nothing is left there.

        Raises:
            StoreRefusedError: it may not.
            StoreUnavailableError: the store does not answer.
        """
        if self._kind == "file":
            if found := unwritable_folder(self._root):
                what_to_do = "give it to this process, or name another place"
                raise StoreRefusedError(f"cannot write {self.url}: {found}; {what_to_do}")
        elif self._kind != "memory":
            key = f"writable-{uuid.uuid4().hex}"
            self.create(key, b"")
            self.delete(key)

    def free_bytes(self) -> int | None:
        """Room that is left below the URL for this process; None where the store does not tell."""
        if self._kind != "file":
            return None
        folder = self._root
        while not os.path.isdir(folder):
            folder = os.path.dirname(folder)
        return shutil.disk_usage(folder).free

    def put(self, key: str, data: bytes) -> None:
        """Write an object, in the place of an older one.

        Raises:
            StoreUnavailableError: the store does not answer or refuses.
        """
        path = self._path(key)
        self._refuse_secrets(key, data)
        if self._kind == "file":
            self._guard("write", key, lambda: write_local(path, data))
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
            return self._guard("write", key, lambda: create_local(path, data))
        for attempt in range(_CONFLICT_TRIES):
            try:
                self._guard("write", key, lambda: self._fs.pipe_file(path, data, mode="create"), raw=(Exception,))
            except Exception as error:  # each client says in its own way that the object is there
                if is_taken(error):
                    return False
                if http_status(error) == 501:
                    raise StoreUnavailableError(
                        f"{self.url} cannot write create-only objects (If-None-Match): use a store that can, "
                        "such as AWS S3, MinIO, Ceph, Google Cloud Storage, Azure, or a local disk"
                    ) from error
                if http_status(error) != 409:  # 409: another conditional write of this key is under way
                    raise self._translated("write", key, error) from self._secrets.safe_cause(error)
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
            self._guard("copy", source, lambda: copy_local(*paths))
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
            self._guard("delete", prefix, lambda: delete_local(path))
        elif self._kind == "memory":
            for key in self.keys(prefix):
                self.delete(key)
        else:
            with contextlib.suppress(ArchiveNotFoundError):
                self._guard("delete", prefix, lambda: self._fs.rm(path, recursive=True))

    def delete_temporary(self, prefix: str) -> None:
        """Remove half-written files that killed writers left under `prefix/`; who is writing there writes once more.

        Raises:
            StoreUnavailableError: the store does not answer or refuses.
        """
        if self._kind == "file":
            path = self._path(prefix)
            self._guard("delete", prefix, lambda: delete_temporary(path))

    def has_folder(self, prefix: str) -> bool:
        """Whether there is anything under `prefix/`, half-written files and empty folders of a local disk included.

        Raises:
            StoreUnavailableError: the store does not answer or refuses.
        """
        path = self._path(prefix)
        return os.path.isdir(path) if self._kind == "file" else bool(self.sizes(prefix))

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
            found = self._guard("list", prefix, lambda: dict(list_local(path)))
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
        if any(part in ("", ".", "..") or part.startswith(TEMPORARY) for part in parts):
            raise ArchiveMismatchError(f"key {key!r} would leave {self.url}: name an object below it")
        if not key.isprintable() or any(character in key for character in "\\?#*"):
            raise ArchiveMismatchError(f"key {key!r} holds a character that not every store keeps: leave it out")
        path = f"{self._root}/{key}"
        if self._kind == "file" and not is_inside(path, self._root):
            raise ArchiveMismatchError(
                f"{path} is a link that leads out of {self.url}: put a real file or folder in its place"
            )
        return path

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
            raise translated from self._secrets.safe_cause(error)

    def _not_found(self, key: str) -> ArchiveNotFoundError:
        return ArchiveNotFoundError(f"{self.url}/{key} does not exist: check the URL, or write it first")

    def _translated(self, verb: str, key: str, error: BaseException) -> ArchiveError:
        where = f"{self.url}/{key}" if key else self.url
        if names_no_bucket(error) or (is_missing(error) and verb == "write" and self._kind in ("gs", "az")):
            text = f"bucket {self._root.split('/')[0]} of {self.url} does not exist: create it or correct the URL"
        elif is_missing(error):
            return self._not_found(key)
        else:
            text = f"cannot {verb} {where}: {describe(error, self._kind, self._endpoint)}"
        return as_unavailable(error, self._secrets.hide(text))

    def _refuse_secrets(self, key: str, data: bytes) -> None:
        if key.endswith(".json") and self._secrets.in_document(data):
            raise ArchiveMismatchError(
                f"{self.url}/{key} would hold a credential of this process: "
                "take it out of the run's config and provenance"
            )
