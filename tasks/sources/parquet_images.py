"""Images inside Parquet, as `datasets` of Hugging Face keeps them: a column of {bytes, path}, or of bytes."""

import itertools
import posixpath
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import AbstractContextManager
from itertools import accumulate
from typing import Final
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq

from tasks.errors import BadImageError, SourceError
from tasks.sources.image_columns import (
    LONGEST_NAME,
    MAX_ROWS,
    ImageColumn,
    byte_columns,
    image_column,
    may_be_images,
    no_bytes,
    too_many_bytes,
    values_of,
)
from tasks.sources.items import stored_name
from tasks.sources.names import file_name
from tasks.sources.shard_index import Member, ShardIndex, index_of
from tasks.sources.storage import StoredFiles
from tasks.sources.watched_files import WatchedFile, storage_or_damage

KEPT_BYTES = 128 * 2**20  # of images unpacked last: those of a row group of usual size
INCOMPLETE = (
    "{shown} is not a complete Parquet file without encryption ({error}): copy it again, or write it in the clear"
)
_ROWS_AT_ONCE = 16  # unpacked together
_OPEN_FILES = 4
_BLOCK_BYTES = 2 * 2**20  # of a request


class ParquetShard:
    """Reads images by their row. Pages are unpacked as they are come to, and the last images are kept for a while."""

    kind: Final = "parquet"

    def __init__(self, files: StoredFiles, column: str | None) -> None:
        self._files = files
        self._wanted = column
        self._lock = threading.Lock()
        self._open: OrderedDict[str, _File] = OrderedDict()
        self._kept: OrderedDict[tuple[str, int], bytes | BadImageError] = OrderedDict()
        self._kept_bytes = 0

    def column(self, path: str) -> ImageColumn:
        """The column of images of a file; as `image_column`."""
        with self._lock:
            return self._file(path).column

    def index(self, path: str) -> ShardIndex:
        """A member for each row; only the paths are read.

        Raises:
            NoImageColumnError, SourceError: as `image_column`; it is damaged, encrypted or promises too much, or the
                storage does not answer.
        """
        with self._lock:
            file = self._file(path)
            stem = posixpath.splitext(posixpath.basename(path))[0]
            return index_of(self._members(file, file_name(stem).text), {}, note=file.column.note)

    def _members(self, file: "_File", stem: str) -> Iterator[Member]:
        column = quote(file.column.name, safe="")
        for row, written in enumerate(file.paths()):
            name, problem = stored_name(written or f"{stem}-{row:06d}".encode(), "path")
            yield Member(name.text, f"{column}:{row}", problem, is_guessed=name.is_guessed)

    def read(self, path: str, place: str) -> bytes:
        """The bytes in a row.

        Raises:
            BadImageError: the place is none ("unsafe_name"), there are no bytes ("no_bytes"), they are too large, or
                cannot be unpacked ("corrupt").
            SourceError: the storage does not answer.
        """
        column, _, number = place.rpartition(":")
        with self._lock:
            if (path, int(number)) not in self._kept:
                try:
                    file = self._file(path)
                except SourceError as error:
                    if error.is_transient:
                        raise
                    raise BadImageError("unreadable", str(error)) from None
                if quote(file.column.name, safe="") != column or not 0 <= int(number) < file.num_rows:
                    raise BadImageError("unreadable", f"{path} has no image at {place} any more: plan the run anew")
                self._unpack(file, path, int(number))
            found = self._kept[path, int(number)]
            self._kept.move_to_end((path, int(number)))
        if isinstance(found, BadImageError):
            raise found
        return found

    def _unpack(self, file: "_File", path: str, wanted: int) -> None:
        """Keep an image and those unpacked before it, as far as they have room."""
        for row, value in file.from_row(wanted):
            if (path, row) not in self._kept:
                self._kept[path, row] = value
                self._kept_bytes += _bytes_of(value)
            while self._kept_bytes > KEPT_BYTES and len(self._kept) > 1:
                _, dropped = self._kept.popitem(last=False)
                self._kept_bytes -= _bytes_of(dropped)
            if row == wanted:
                return

    def _file(self, path: str) -> "_File":
        if path not in self._open:
            while len(self._open) >= _OPEN_FILES:
                self._open.popitem(last=False)[1].close()
            self._open[path] = _File(self._files, path, self._wanted)
        self._open.move_to_end(path)
        return self._open[path]

    def close(self) -> None:
        """Let go of open files."""
        with self._lock:
            while self._open:
                self._open.popitem()[1].close()
            self._kept.clear()
            self._kept_bytes = 0


def _bytes_of(value: bytes | BadImageError) -> int:
    return len(value) if isinstance(value, bytes) else 1000


class _File:
    """One open Parquet file."""

    def __init__(self, files: StoredFiles, path: str, wanted: str | None) -> None:
        self._files = files
        self.shown = files.secrets.hide(path)
        if problem := files.special_file(path):
            raise SourceError(problem)
        self._handle = WatchedFile(files.fs.open(path, "rb", block_size=_BLOCK_BYTES))
        try:
            with self._storage_or_damage():
                plain = pq.ParquetFile(self._handle)
                # Dictionaries stay dictionaries: a value that is in a million rows is in memory once.
                columns = byte_columns(plain.schema_arrow).values()
                dictionaries = [one for column in columns for one in (column.content, column.path) if one]
                self._parquet = pq.ParquetFile(
                    self._handle,
                    metadata=plain.metadata,
                    read_dictionary=dictionaries,
                    pre_buffer=False,
                    buffer_size=_BLOCK_BYTES,
                )
                metadata = plain.metadata
                counts = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
                self.column = image_column(plain.schema_arrow, wanted, self.shown, self._begins_as_images)
            if min(counts, default=0) < 0 or sum(counts) > MAX_ROWS:
                raise SourceError(
                    f"{self.shown} tells of {sum(counts)} rows, at most {MAX_ROWS} were wanted: write more files"
                )
        except BaseException:
            self._handle.close()
            raise
        self._starts = [0, *accumulate(counts)]
        self._ahead: Iterator[tuple[int, bytes | BadImageError]] = iter(())
        self._group = -1  # of which these are
        self._next = 0  # the row that comes then

    def _begins_as_images(self, column: ImageColumn) -> bool:
        if self._parquet.metadata.num_row_groups == 0:
            return True
        first = itertools.islice(self._values(column.content, 0, _ROWS_AT_ONCE, self._files.max_bytes), _ROWS_AT_ONCE)
        return may_be_images(first)

    @property
    def num_rows(self) -> int:
        return int(self._starts[-1])

    def paths(self) -> Iterator[bytes | None]:
        """What each row says its file was called, None where it says nothing."""
        if self.column.path is None:
            yield from (None for _ in range(self.num_rows))
            return
        num_rows = 0
        for group in range(len(self._starts) - 1):
            for value in self._values(self.column.path, group, 4096, LONGEST_NAME):
                num_rows += 1
                yield value if isinstance(value, bytes) else None
        if num_rows != self.num_rows:
            raise SourceError(f"{self.shown} has {num_rows} paths for {self.num_rows} images: copy it again")

    def from_row(self, wanted: int) -> Iterator[tuple[int, bytes | BadImageError]]:
        """Rows and their images, up to one and beyond: where the last call has come to, if that is on the way."""
        group = bisect_right(self._starts, wanted) - 1
        if group != self._group or self._next > wanted:
            self._ahead, self._group, self._next = self._images(group), group, self._starts[group]
        for row, value in self._ahead:
            self._next = row + 1
            yield row, value
        error = BadImageError("corrupt", f"{self.shown} has no row {wanted}, which it promised: copy it again")
        self._group = -1
        yield wanted, error

    def _images(self, group: int) -> Iterator[tuple[int, bytes | BadImageError]]:
        limit = self._files.max_bytes
        row = self._starts[group]
        try:
            for value in self._values(self.column.content, group, _ROWS_AT_ONCE, limit):
                if value is None:
                    yield row, no_bytes(f"row {row} of {self.shown}")
                elif isinstance(value, int):
                    yield row, too_many_bytes(f"row {row} of {self.shown}", value, limit)
                else:
                    yield row, value
                row += 1
        except SourceError as error:
            if error.is_transient:
                raise
            for lost in range(row, self._starts[group + 1]):
                yield lost, BadImageError("corrupt", f"row {lost} cannot be unpacked: {error}")

    def _values(self, column: str, group: int, rows_at_once: int, limit: int) -> Iterator[bytes | int | None]:
        """Each value of a column in a row group; the length alone of one that is longer than a limit."""
        with self._storage_or_damage():
            batches = self._parquet.iter_batches(rows_at_once, row_groups=[group], columns=[column], use_threads=False)
        while True:
            with self._storage_or_damage():
                batch = next(batches, None)
            if batch is None:
                return
            yield from values_of(batch.column(0), limit)

    def _storage_or_damage(self) -> AbstractContextManager[None]:
        damaged = (pa.ArrowException, OSError, ValueError, KeyError, RecursionError)
        return storage_or_damage(self._handle, self.shown, self._files.secrets, damaged, INCOMPLETE)

    def close(self) -> None:
        self._handle.close()
