"""Columns of the rows of all published runs: each is read when somebody first asks for it, from files that are checked.

A data set has many columns and many small files, and a question names few columns. What was read stays in memory up to
a limit; beyond it, in a file without a name, which the system takes away with the process.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from typing import NamedTuple

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lsap_archive.errors import HOW_TO_REPAIR, CorruptArchiveError
from lsap_archive.format.manifest import StoredObject
from lsap_archive.format.rows import ROW_SCHEMA
from lsap_archive.reading.checked import read_checked, read_checked_table
from lsap_archive.stores.concurrency import in_threads
from lsap_archive.stores.store import Store

MEMORY_LIMIT = "512MB"  # of each database
KEPT_IN_MEMORY = 256 * 2**20  # bytes of columns
_FILES_TOGETHER = 256
_BATCHES = 2  # such parts that are read at once: one by itself leaves a second core idle
_FEW_FILES = 16  # a database is no quicker for so few


class RowFile(NamedTuple):
    """A Parquet file with the rows of one shard.

    Attributes:
        run: number of the run.
        key: where it is.
        stored: what the manifest says of it.
        rows: its rows in the run's arrays.
    """

    run: int
    key: str
    stored: StoredObject
    rows: range


class RowColumns:
    """The rows of some files, one after the other; a row's number among them is its place.

    Attributes:
        num_rows: how many there are, which no file is read for.
        files: the files, in order.
    """

    def __init__(self, store: Store, files: Sequence[RowFile]) -> None:
        self.files = tuple(files)
        self._starts = np.cumsum([0, *(len(file.rows) for file in files)], dtype=np.int64)
        self.num_rows = int(self._starts[-1])
        self._store = store
        self._columns: dict[str, pa.ChunkedArray] = {}
        self._lock = threading.RLock()

    @cached_property
    def runs(self) -> NDArray[np.int32]:
        """Number of the run of each row."""
        return np.repeat(np.array([file.run for file in self.files], dtype=np.int32), np.diff(self._starts))

    @cached_property
    def rows(self) -> NDArray[np.int64]:
        """Each row in its run's arrays."""
        return np.concatenate(
            [np.empty(0, np.int64), *(np.arange(file.rows.start, file.rows.stop) for file in self.files)]
        )

    @property
    def names(self) -> frozenset[str]:
        """Columns that were read."""
        return frozenset(self._columns)

    def read(self, names: Sequence[str]) -> pa.Table:
        """All rows of some columns; those that nobody asked for before are read.

        Args:
            names: from ROW_SCHEMA.

        Raises:
            CorruptArchiveError: a file is missing or altered, or has another number of rows than its shard.
        """
        with self._lock:
            if missing := [name for name in dict.fromkeys(names) if name not in self._columns]:
                if self._store.local_path("archive.json") is None:  # there every file is fetched once
                    missing = [name for name in ROW_SCHEMA.names if name not in self._columns]
                in_memory = sum(column.nbytes for column in self._columns.values())
                with _Kept(missing, max(KEPT_IN_MEMORY - in_memory, 0)) as kept:
                    for part in self._parts(missing):
                        kept.add(part)
                    self._columns |= dict(zip(missing, kept.table().columns, strict=True))
            return pa.table({name: self._columns[name] for name in names}, _schema(names))

    def at(self, places: NDArray[np.int64], names: Sequence[str]) -> pa.Table:
        """Some rows, in the order of the places; of columns that were not read, only their files are.

        Raises:
            CorruptArchiveError: a file is missing or altered.
        """
        with self._lock:
            if self.names.issuperset(names):
                return self.read(names).take(pa.array(places))
        numbers = np.searchsorted(self._starts, places, side="right") - 1
        wanted = np.unique(numbers)
        parts = in_threads(lambda number: self._one(self.files[number], names), wanted.tolist())
        offsets = np.cumsum([0, *(part.num_rows for part in parts)], dtype=np.int64)
        within = offsets[np.searchsorted(wanted, numbers)] + places - self._starts[numbers]
        return pa.concat_tables([_schema(names).empty_table(), *parts]).take(pa.array(within))

    def _parts(self, names: Sequence[str]) -> Iterator[pa.Table]:
        """The columns, some files at a time."""
        if len(self.files) <= _FEW_FILES or self._store.local_path("archive.json") is None:
            for part in _batches(self.files):
                yield pa.concat_tables(in_threads(lambda file: self._one(file, names), part)).combine_chunks()
            return
        with duckdb.connect(config={"memory_limit": MEMORY_LIMIT}) as database, ThreadPoolExecutor(_BATCHES) as pool:
            waiting: deque[Future[pa.Table]] = deque()
            for part in _batches(self.files):
                waiting.append(pool.submit(self._by_database, database.cursor(), part, names))
                if len(waiting) > _BATCHES:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

    def _by_database(
        self, database: duckdb.DuckDBPyConnection, files: Sequence[RowFile], names: Sequence[str]
    ) -> pa.Table:
        """As `_one` of each, several times as quick: DuckDB reads the files, once they were found to be the right ones.

        Files of other versions lack columns, and names may look like patterns to it: then they are read one by one.
        """
        in_threads(lambda file: len(read_checked(self._store, file.key, file.stored)), files)
        paths = [self._store.local_path(file.key) for file in files]
        columns = ", ".join(f'"{name}"' for name in names)
        try:
            query = f"select {columns} from read_parquet($paths, hive_partitioning = false)"
            found = database.sql(query, params={"paths": paths}).to_arrow_table()
        except duckdb.Error:
            found = None
        if found is None or found.num_rows != sum(len(file.rows) for file in files):
            return pa.concat_tables(in_threads(lambda file: self._one(file, names), files)).combine_chunks()
        return found.cast(_schema(names))

    def _one(self, file: RowFile, names: Sequence[str]) -> pa.Table:
        found = read_checked_table(self._store, file.key, file.stored, ROW_SCHEMA, list(names))
        if found.num_rows != len(file.rows):
            raise CorruptArchiveError(
                f"{self._store.join(file.key)} has {found.num_rows} rows, its shard has {len(file.rows)}: "
                f"{HOW_TO_REPAIR}"
            )
        return found


class _Kept:
    """Parts of a table as they come: in memory as long as they are within a limit, then in a file that has no name."""

    def __init__(self, names: Sequence[str], limit: int) -> None:
        self._schema = _schema(names)
        self._limit = limit
        self._parts: list[pa.Table] = []
        self._bytes = 0
        self._path: str | None = None
        self._open = contextlib.ExitStack()

    def __enter__(self) -> _Kept:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()
        if self._path is not None:
            os.unlink(self._path)  # what is mapped stays

    def add(self, part: pa.Table) -> None:
        self._parts.append(part)
        self._bytes += part.nbytes
        if self._bytes > self._limit:
            self._write()

    def table(self) -> pa.Table:
        if self._path is None:
            return pa.concat_tables([self._schema.empty_table(), *self._parts])
        self._open.close()
        return pa.ipc.open_file(pa.memory_map(self._path)).read_all()

    def _write(self) -> None:
        if self._path is None:
            descriptor, self._path = tempfile.mkstemp(prefix="lsap-rows-")
            os.close(descriptor)
            file = self._open.enter_context(pa.OSFile(self._path, "wb"))
            self._writer = self._open.enter_context(pa.ipc.new_file(file, self._schema))
        for part in self._parts:
            self._writer.write_table(part)
        self._parts = []


def _batches(files: Sequence[RowFile]) -> Iterator[Sequence[RowFile]]:
    for start in range(0, len(files), _FILES_TOGETHER):
        yield files[start : start + _FILES_TOGETHER]


def _schema(names: Sequence[str]) -> pa.Schema:
    return pa.schema([ROW_SCHEMA.field(name) for name in names])
