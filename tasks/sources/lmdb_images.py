"""Images in an LMDB, a key and an encoded image each, as LSUN is shipped and StyleGAN2's `prepare_data` writes them."""

from __future__ import annotations

import importlib
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from fsspec.implementations.local import LocalFileSystem

from tasks.errors import BadImageError, SourceError
from tasks.sources.image_columns import IMAGE_BEGINNING, MAX_ROWS, NoImageColumnError
from tasks.sources.items import stored_name
from tasks.sources.ranges import fetch
from tasks.sources.shard_index import Member, ShardIndex, index_of
from tasks.sources.storage import StoredFiles

DATA_FILE = "data.mdb"
_MAGIC = b"\xde\xc0\xef\xbe"  # at byte 16, in the order of the machine that wrote it
_LARGEST_NOTE = 64  # bytes; a shorter value that begins as no image does is a count or the like

# LMDB opens a file once in a process, whoever asks; so all readers of a process share what is open.
_lock = threading.Lock()
_open: dict[str, tuple[Any, int]] = {}


class LmdbShard:
    """Reads values by their keys. The file is mapped into memory, so the system reads what is asked for and no more."""

    kind: Final = "lmdb"

    def __init__(self, files: StoredFiles, beginning: str | None) -> None:
        """`beginning`: of the keys that are wanted, such as "256-" where a file has images of several sizes."""
        self._files = files
        self._beginning = (beginning or "").encode()

    def index(self, path: str) -> ShardIndex:
        """An image for each key whose value is one, and its problem where it is none.

        Raises:
            NoImageColumnError: it is no LMDB: others have files of this suffix too.
            SourceError: it lies on no disk, is damaged or is of another kind, or the package lmdb is not installed.
        """
        shown = self._files.secrets.hide(path)
        other_files: Counter[str] = Counter()
        with self._transaction(path) as (environment, transaction):
            if environment.open_db(txn=transaction, create=False).flags(transaction)["dupsort"]:
                raise SourceError(f"{shown} has several values for a key, one was wanted: write each under its own")
            if transaction.stat()["entries"] > MAX_ROWS:
                raise SourceError(f"{shown} has more than {MAX_ROWS} keys: write more files")
            return index_of(self._members(transaction.cursor(), other_files), other_files)

    def _members(self, cursor: Any, other_files: Counter[str]) -> Iterator[Member]:
        is_there = cursor.set_range(self._beginning) if self._beginning else cursor.first()
        while is_there and (key := bytes(cursor.key())).startswith(self._beginning):
            value = cursor.value()
            is_image = IMAGE_BEGINNING.match(value[:16]) is not None
            if not is_image and (key.startswith(b"__") or 0 < len(value) <= _LARGEST_NOTE):
                other_files[""] += 1
            else:
                name, problem = stored_name(key, "key")
                yield Member(name.text, key.hex(), problem, is_guessed=name.is_guessed)
            is_there = cursor.next()

    def read(self, path: str, place: str) -> bytes:
        """The value of a key, which is given in hexadecimal digits.

        Raises:
            BadImageError: there is none, or the file is gone ("unreadable"), or it is too large.
        """
        try:
            with self._transaction(path) as (_, transaction):
                value = transaction.get(bytes.fromhex(place))
                if value is None:
                    raise BadImageError("unreadable", f"{path} has no key {place} any more: plan the run anew")
                self._files.check_size(f"{path}#{place}", len(value))
                return bytes(value)
        except SourceError as error:
            raise BadImageError("unreadable", str(error)) from None

    @contextmanager
    def _transaction(self, path: str) -> Iterator[tuple[Any, Any]]:
        """A look at a file, whose values are only valid within it."""
        shown = self._files.secrets.hide(path)
        if problem := self._files.special_file(path):
            raise SourceError(problem)
        if fetch(self._files, path, 16, 20) not in (_MAGIC, _MAGIC[::-1]):
            raise NoImageColumnError(f"{shown} is no LMDB, one with an image under each key was wanted: copy it again")
        lmdb = _package(self._files, shown)
        try:
            environment = _opened(lmdb, path)
            try:
                _refuse_cut_off(environment, path, shown)
                with environment.begin(buffers=True) as transaction:
                    yield environment, transaction
            finally:
                _closed(path)
        except lmdb.Error as error:
            raise SourceError(f"{shown} is no complete LMDB ({error}): copy it again, with its {DATA_FILE}") from None

    def close(self) -> None:
        """Nothing is open between two reads."""


def _package(files: StoredFiles, shown: str) -> Any:
    if not isinstance(files.fs, LocalFileSystem):
        raise SourceError(
            f"{shown} is an LMDB, which is read by mapping it into memory; a disk was wanted: copy it to one, or pack "
            "its images into .tar shards"
        )
    try:
        return importlib.import_module("lmdb")
    except ImportError as error:
        raise SourceError(
            f"{shown} is an LMDB, and the package lmdb is not installed ({error}): pip install 'lsap[lmdb]' on every "
            "machine that reads images"
        ) from None


def _opened(lmdb: Any, path: str) -> Any:
    with _lock:
        environment, count = _open.get(path, (None, 0))
        if environment is None:
            environment = lmdb.open(path, subdir=False, readonly=True, lock=False, create=False, readahead=False)
        _open[path] = environment, count + 1
        return environment


def _closed(path: str) -> None:
    with _lock:
        environment, count = _open.pop(path)
        if count > 1:
            _open[path] = environment, count - 1
        else:
            environment.close()


def _refuse_cut_off(environment: Any, path: str, shown: str) -> None:
    """Whoever touches a mapped page behind the end of a file is ended by the system."""
    wanted = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
    found = Path(path).stat().st_size
    if found < wanted:
        raise SourceError(f"{shown} ends at byte {found} of {wanted}: copy it again")
