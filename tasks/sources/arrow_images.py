"""Images inside Arrow files, as `save_to_disk` of Hugging Face `datasets` writes them: one record batch at a time."""

from __future__ import annotations

import itertools
import posixpath
import re
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any, Final
from urllib.parse import quote

import pyarrow as pa

from tasks.errors import BadImageError, SourceError
from tasks.sources.image_columns import (
    LONGEST_NAME,
    MAX_ROWS,
    ImageColumn,
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

INCOMPLETE = "{shown} is not a complete Arrow file ({error}): copy it again"
_BLOCK_BYTES = 2 * 2**20  # of a request
_FILE_FORMAT = b"ARROW1\0\0"  # before what is a stream otherwise, with an index behind it that is not needed
_PLACE = re.compile(r"(?P<column>[^:]*):(?P<offset>\d+)\+(?P<row>\d+)")


class ArrowShard:
    """Reads images by the place of their record batch and their row there; the last batch is kept."""

    kind: Final = "arrow"

    def __init__(self, files: StoredFiles, column: str | None) -> None:
        self._files = files
        self._wanted = column
        self._lock = threading.Lock()
        self._path = ""  # of the one that is open
        self._file: _File | None = None
        self._offset = -1  # of the batch that is kept
        self._batch: pa.RecordBatch | None = None

    def index(self, path: str) -> ShardIndex:
        """A member for each row. The whole file is gone through: nothing in it tells where its batches are.

        Raises:
            NoImageColumnError, SourceError: as `image_column`; it is damaged or promises too much, or the storage does
                not answer.
        """
        file = _File(self._files, path, self._wanted)
        try:
            stem = file_name(posixpath.splitext(posixpath.basename(path))[0]).text
            return index_of(self._members(file, stem), {}, note=file.column.note)
        finally:
            file.close()

    def _members(self, file: _File, stem: str) -> Iterator[Member]:
        column, total = quote(file.column.name, safe=""), 0
        for offset, batch in file.batches():
            for row, written in enumerate(file.paths(batch)):
                name, problem = stored_name(written or f"{stem}-{total:06d}".encode(), "path")
                yield Member(name.text, f"{column}:{offset}+{row}", problem, is_guessed=name.is_guessed)
                total += 1
                if total > MAX_ROWS:
                    raise SourceError(f"{file.shown} has more than {MAX_ROWS} rows: write more files")

    def read(self, path: str, place: str) -> bytes:
        """The bytes in a row.

        Raises:
            BadImageError: the place is none ("unsafe_name"), there are no bytes ("no_bytes"), they are too large, or
                the file is damaged or another one ("unreadable").
            SourceError: the storage does not answer.
        """
        match = _PLACE.fullmatch(place)
        if match is None:
            raise BadImageError("unsafe_name", f"{path}#{place} is no place in an Arrow file: plan the run anew")
        offset, row = int(match["offset"]), int(match["row"])
        with self._lock:
            try:
                file = self._opened(path)
                if quote(file.column.name, safe="") != match["column"]:
                    raise BadImageError("unreadable", f"{path} has no image at {place} any more: plan the run anew")
                if offset != self._offset:
                    self._batch, self._offset = file.batch_at(offset), offset
            except SourceError as error:
                if error.is_transient:
                    raise
                raise BadImageError("unreadable", str(error)) from None
            batch = self._batch
        if batch is None or row >= batch.num_rows:
            raise BadImageError("unreadable", f"{path} has no image at {place} any more: plan the run anew")
        limit, where = self._files.max_bytes, f"row {row} of the batch at byte {offset} of {file.shown}"
        (value,) = values_of(file.contents(batch).slice(row, 1), limit)
        if value is None:
            raise no_bytes(where)
        if isinstance(value, int):
            raise too_many_bytes(where, value, limit)
        return value

    def _opened(self, path: str) -> _File:
        if self._file is None or self._path != path:
            self._close()
            self._path, self._file = path, _File(self._files, path, self._wanted)
        return self._file

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
        self._path, self._file, self._offset, self._batch = "", None, -1, None

    def close(self) -> None:
        """Let go of the open file."""
        with self._lock:
            self._close()


class _File:
    """One open Arrow file."""

    def __init__(self, files: StoredFiles, path: str, wanted: str | None) -> None:
        self._files = files
        self.shown = files.secrets.hide(path)
        if problem := files.special_file(path):
            raise SourceError(problem)
        self._handle = WatchedFile(files.fs.open(path, "rb", block_size=_BLOCK_BYTES), files.fs.size(path))
        try:
            with self._storage_or_damage():
                is_file_format = self._handle.read(len(_FILE_FORMAT)) == _FILE_FORMAT
                self._handle.seek(len(_FILE_FORMAT) if is_file_format else 0)
                self._schema = pa.ipc.read_schema(pa.ipc.read_message(self._handle))
                self._begin = self._handle.tell()
            if any(pa.types.is_dictionary(field.type) for field in self._schema):
                raise SourceError(f"{self.shown} has dictionaries, plain columns were wanted: write it as Parquet")
            self.column = image_column(self._schema, wanted, self.shown, self._begins_as_images)
        except BaseException:
            self._handle.close()
            raise

    def _begins_as_images(self, column: ImageColumn) -> bool:
        _, first = next(self.batches(), (0, None))
        if first is None:
            return True
        return may_be_images(values_of(_part(first, column.content).slice(0, 16), self._files.max_bytes))

    def batches(self) -> Iterator[tuple[int, pa.RecordBatch]]:
        """Every record batch and the byte that it begins at."""
        offset = self._begin
        while (batch := self.batch_at(offset)) is not None:
            yield offset, batch
            offset = self._handle.tell()

    def batch_at(self, offset: int) -> pa.RecordBatch | None:
        """The record batch that begins at a byte; None at the end mark, or at the end of the file.

        Raises:
            SourceError: none begins there, or it is cut short.
        """
        with self._storage_or_damage():
            self._handle.seek(offset)
            try:
                message = pa.ipc.read_message(self._handle)
            except EOFError:  # the end mark, or none
                return None
            return pa.ipc.read_record_batch(message, self._schema)

    def contents(self, batch: pa.RecordBatch) -> pa.Array:
        """The bytes of each image."""
        return _part(batch, self.column.content)

    def paths(self, batch: pa.RecordBatch) -> Iterator[bytes | None]:
        """What each row says its file was called, None where it says nothing."""
        if self.column.path is None:
            return itertools.repeat(None, batch.num_rows)
        found = values_of(_part(batch, self.column.path), LONGEST_NAME)
        return (value if isinstance(value, bytes) else None for value in found)

    def _storage_or_damage(self) -> AbstractContextManager[None]:
        damaged = (pa.ArrowException, OSError, ValueError, EOFError)
        return storage_or_damage(self._handle, self.shown, self._files.secrets, damaged, INCOMPLETE)

    def close(self) -> None:
        """Let go of the file."""
        self._handle.close()


def _part(batch: pa.RecordBatch, dotted: str) -> Any:
    """A column, or a part of one of structs, which is null where the struct is."""
    if dotted in batch.schema.names:
        return batch.column(dotted)
    name, _, part = dotted.rpartition(".")
    column = batch.column(name)
    return column.flatten()[column.type.get_field_index(part)]
