"""Images inside Parquet, as `datasets` of Hugging Face keeps them: a column of {bytes, path}, or of bytes."""

import io
import itertools
import json
import posixpath
import re
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Final
from urllib.parse import quote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tasks.errors import BadImageError, SourceError
from tasks.sources.items import stored_name
from tasks.sources.names import file_name
from tasks.sources.shard_index import Member, ShardIndex, index_of
from tasks.sources.storage import StoredFiles, storage_errors

KEPT_BYTES = 128 * 2**20  # of images unpacked last: those of a row group of usual size
MAX_ROWS = 10_000_000  # of a file; a footer alone can tell of any number
_ROWS_AT_ONCE = 16  # unpacked together
_OPEN_FILES = 4
_BLOCK_BYTES = 2 * 2**20  # of a request
_LONGEST_NAME = 4096  # bytes; longer paths are none
# PNG, JPEG, GIF, WebP, BMP, TIFF, PNM, AVIF and HEIC, JPEG 2000, JPEG XL
_BEGINNING = re.compile(
    rb"\x89PNG|\xff\xd8\xff|GIF8|RIFF....WEBP|BM|II\*\0|MM\0\*|P[1-7]\s|....ftyp"
    rb"|\0\0\0\x0c(?:jP  |JXL )|\xff[\x4f\x0a]",
    re.DOTALL,
)


class NoImageColumnError(SourceError):
    """A Parquet file that is no shard of images, but perhaps a manifest or a table beside images."""


class SeveralImageColumnsError(SourceError):
    """A Parquet file of which nobody said which column is meant."""


@dataclass(frozen=True)
class ImageColumn:
    """Where the images of a file are.

    Attributes:
        name: of the column.
        content: dotted path of its bytes.
        path: dotted path of the names that files had, or None.
    """

    name: str
    content: str
    path: str | None


def image_column(
    schema: pa.Schema, wanted: str | None, shown: str, begins_as_images: Callable[[ImageColumn], bool]
) -> ImageColumn:
    """The column of images, by its type: {bytes, path}, else bytes that begin as those of images do.

    Where a file says which of its columns are images, as those of `datasets` do, no others are looked at. One with a
    column `uri` is a manifest, unless a column is wanted.

    Args:
        schema: of the file.
        wanted: a name, or None to find it.
        shown: how the file is called in messages.
        begins_as_images: whether the first values of a column may be image files.

    Raises:
        NoImageColumnError: there is none.
        SourceError: there are several and none is wanted, or the wanted one is none of images.
    """
    found = byte_columns(schema)
    told = f"{shown} has the columns {', '.join(f'{field.name} ({_kind_of(field)})' for field in schema)}"
    if wanted is not None:
        if wanted not in found:
            raise SourceError(f"{told}; {wanted!r} was wanted as images, bytes or {{bytes, path}}: name another column")
        return found[wanted]
    declared = [name for name in _declared_images(schema) if name in found]
    structs = [name for name, column in found.items() if column.path is not None]
    names = declared or structs or [name for name, column in found.items() if begins_as_images(column)]
    if not names or "uri" in schema.names:
        raise NoImageColumnError(f"{told}; one of images was wanted, bytes or {{bytes, path}}")
    if len(names) > 1:
        raise SeveralImageColumnsError(
            f"{told}; {' and '.join(names)} may all be images, one column was wanted: name it behind the source, as in "
            f"{shown}#{names[0]}"
        )
    return found[names[0]]


def byte_columns(schema: pa.Schema) -> dict[str, ImageColumn]:
    """The columns that may hold files, by name."""
    return {field.name: column for field in schema if (column := _as_images(field))}


def _as_images(field: pa.Field) -> ImageColumn | None:
    if _is_bytes(field.type):
        return ImageColumn(field.name, field.name, None)
    if not pa.types.is_struct(field.type):
        return None
    parts = {part.name: part.type for part in field.type}
    if "bytes" not in parts or not _is_bytes(parts["bytes"]):
        return None
    has_path = "path" in parts and (pa.types.is_string(parts["path"]) or pa.types.is_large_string(parts["path"]))
    return ImageColumn(field.name, f"{field.name}.bytes", f"{field.name}.path" if has_path else None)


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _kind_of(field: pa.Field) -> str:
    kind = str(field.type)
    return kind if len(kind) <= 60 else f"{kind[:57]}..."


def _declared_images(schema: pa.Schema) -> list[str]:
    """Columns that `datasets` calls images in what it writes into the schema."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return [name for name, feature in features.items() if feature["_type"] == "Image"]
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        return []  # written by something else


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
            return index_of(self._members(file, file_name(stem).text), {})

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
        self._handle = _Watched(files.fs.open(path, "rb", block_size=_BLOCK_BYTES))
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
        values = [value for value in first if isinstance(value, bytes)]
        return not values or any(_BEGINNING.match(value) for value in values)

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
            for value in self._values(self.column.path, group, 4096, _LONGEST_NAME):
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
                    message = (
                        f"row {row} of {self.shown} has no bytes, those of an image were wanted: the file it names was "
                        "not put into the table; write it with its images embedded"
                    )
                    yield row, BadImageError("no_bytes", message)
                elif isinstance(value, int):
                    message = f"row {row} of {self.shown} has {value} bytes, at most {limit} were wanted: shrink it"
                    yield row, BadImageError("too_large", message)
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
            yield from _values_of(batch.column(0), limit)

    @contextmanager
    def _storage_or_damage(self) -> Iterator[None]:
        """A broken network is not a broken file."""
        try:
            yield
        except SourceError:
            raise
        except Exception as error:  # each client of a storage has its own
            if (failure := self._handle.failure) is not None:
                self._handle.failure = None
                with storage_errors(self.shown, self._files.secrets):
                    raise failure from None
            if not isinstance(error, pa.ArrowException | OSError | ValueError | KeyError | RecursionError):
                raise
            raise SourceError(
                f"{self.shown} is not a complete Parquet file without encryption ({error}): copy it again, or write it "
                "in the clear"
            ) from None

    def close(self) -> None:
        self._handle.close()


def _values_of(column: pa.Array, limit: int) -> Iterator[bytes | int | None]:
    if pa.types.is_struct(column.type):
        column = column.flatten()[0]  # null where the struct is
    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    values = column.dictionary.cast(pa.large_binary())  # also of texts, which may not be UTF-8
    lengths = pc.binary_length(values).to_pylist()
    unpacked: dict[int, bytes] = {}
    for index in column.indices.to_pylist():
        if index is None or lengths[index] is None:
            yield None
        elif lengths[index] > limit:
            yield lengths[index]
        else:
            if index not in unpacked:
                unpacked[index] = values[index].as_py()
            yield unpacked[index]


class _Watched(io.RawIOBase):
    """A file that remembers what failed in it: Arrow tells no more than that something did."""

    def __init__(self, file: Any) -> None:
        super().__init__()
        self._file = file
        self.failure: BaseException | None = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        try:
            return bytes(self._file.read(size))
        except Exception as error:
            self.failure = error
            raise

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()
