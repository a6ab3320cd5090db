"""The explorer's own database: a copy of the tables of an archive, which no query can lead anywhere else.

Queries come over the web, from a page or from a link that somebody sent. So they run neither on the reader's
connection nor with any way to files, the network, settings or extensions; only what reads is run, and what takes too
long is ended.
"""

from __future__ import annotations

import contextlib
import tempfile
import threading
import uuid
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lsap_archive.errors import QueryError
from lsap_archive.explorer.columns import Column, images_sql, measured_columns, quoted, row_columns
from lsap_archive.format.rows import ROW_SCHEMA
from lsap_archive.reading.archive import Archive
from lsap_archive.reading.queries import TABLES

SECONDS_OF_A_QUERY = 20.0
_TOGETHER = 4  # queries
_KNOWN = 64  # queries whose columns are not asked for again
_AT_ONCE = ("latest", "rows", "measurements")
_ON_DEMAND = tuple(name for name in TABLES if name not in _AT_ONCE)  # copied for the first query that names one
_LOCKED: dict[str, str | int | float | list[str]] = {
    "memory_limit": "1GB",
    "max_temp_directory_size": "4GB",
    "python_enable_replacements": False,
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
}


class Tables:
    """`images`, with all columns of the newest row of each method and image, and the archive's tables beside it.

    Attributes:
        columns: of `images`, by name.
        num_rows: of `images`.
    """

    def __init__(self, archive: Archive, *, seconds: float = SECONDS_OF_A_QUERY) -> None:
        """Copy the rows of an archive, and what was measured of them.

        Args:
            archive: as it was published when it was opened.
            seconds: after which a query is ended.
        """
        self._archive = archive
        self._seconds = seconds
        self._slots = threading.BoundedSemaphore(_TOGETHER)
        self._copying = threading.Lock()
        spill = Path(tempfile.gettempdir()) / f"lsap-explorer-{uuid.uuid4().hex}"  # made when needed, gone at the end
        self._database = duckdb.connect(config={**_LOCKED, "temp_directory": str(spill)})
        self._database.execute("set enable_external_access = false")
        self._database.execute("set lock_configuration = true")
        self._copied: set[str] = set()
        self._known_columns = lru_cache(maxsize=_KNOWN)(self._columns_of)
        self._copy("latest")
        measurements = ["run_id", "row", "image_id", "method", "edit", "strength", "measure", "by", "value", "problem"]
        self._put("measurements", archive.measurements([*measurements, "evaluation_id"]))
        found = self._database.execute('select distinct measure, "by" from measurements where run_id is not null')
        columns = [*row_columns(), *measured_columns(found.fetchall())]
        self.columns: dict[str, Column] = {one.name: one for one in columns}
        self._database.execute(
            "create table images as select row_number() over (order by image_id, method) as place, * "
            f"from ({images_sql(columns)}) order by place"
        )
        self.num_rows: int = self._database.execute("select count(*) from images").fetchall()[0][0]
        names = ", ".join(map(quoted, ROW_SCHEMA.names))
        self._database.execute("drop table latest")
        for name in ("latest", "rows"):
            self._database.execute(f"create view {name} as select {names} from images")

    def ask(self, query: str, *, places: Sequence[int] | NDArray[np.int64] | None = None) -> pa.Table:
        """The answer to one query that reads.

        Args:
            query: over the tables.
            places: of rows of `images`; the query has them as `chosen`, with their number `at` in this order.

        Raises:
            QueryError: it is not one, DuckDB refuses it, it took too long, or too many are under way.
        """
        self._check(query)
        self._copy_named(query)
        if not self._slots.acquire(timeout=self._seconds):
            raise QueryError("too many queries are under way: try again when they have ended")
        try:
            with self._database.cursor() as connection, self._ended_in_time(connection) as is_late:
                try:
                    if places is not None:
                        numbers = pa.array(range(len(places)), pa.int64())
                        connection.register("chosen", pa.table({"place": pa.array(places, pa.int64()), "at": numbers}))
                    connection.execute("begin transaction read only")
                    return connection.sql(query).to_arrow_table()
                except duckdb.InterruptException:
                    assert is_late.is_set(), "nobody else ends queries"
                    raise QueryError(
                        f"the query took longer than {self._seconds:g} seconds and was ended: ask for less"
                    ) from None
                except (duckdb.Error, pa.ArrowException) as error:
                    raise QueryError(_sentence(error)) from error
        finally:
            self._slots.release()

    def columns_of(self, query: str) -> list[str]:
        """Names of the columns that a query gives.

        Raises:
            QueryError: as in `ask`, or the reader of archives would refuse it.
        """
        return self._known_columns(query)

    def _columns_of(self, query: str) -> list[str]:
        names = list(self.ask(f"select * from (\n{query}\n) limit 0").column_names)
        if "measurements" in query.lower():  # of which the reader lets none be mixed
            images = images_sql(self.columns.values())
            self._archive.sql(f"explain with images as (\n{images}\n) select * from (\n{query}\n)")
        return names

    @contextlib.contextmanager
    def _ended_in_time(self, connection: duckdb.DuckDBPyConnection) -> Iterator[threading.Event]:
        """Interrupts what the block runs on a connection when its time is over, then the event is set."""
        is_late, is_done = threading.Event(), threading.Event()

        def watch() -> None:
            if is_done.wait(self._seconds):
                return
            is_late.set()
            while not is_done.wait(0.2):
                connection.interrupt()

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield is_late
        finally:
            is_done.set()
            watcher.join()

    @staticmethod
    def _check(query: str) -> None:
        if "\0" in query:
            raise QueryError("NUL is in no query")
        try:
            statements = duckdb.extract_statements(query)
        except duckdb.Error as error:
            raise QueryError(_sentence(error)) from error
        if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
            raise QueryError("one query that reads is wanted: a single SELECT")

    def _copy_named(self, query: str) -> None:
        lowered = query.lower()
        for name in _ON_DEMAND:
            if name in lowered:
                with self._copying:
                    if name not in self._copied:
                        self._copy(name)

    def _copy(self, name: str) -> None:
        with self._archive.sql_batches(f"select * from {name}") as batches:
            self._put(name, batches)

    def _put(self, name: str, content: pa.Table | pa.RecordBatchReader) -> None:
        with self._database.cursor() as connection:
            connection.register("arrived", content)
            connection.execute(f"create table {name} as select * from arrived")
            connection.unregister("arrived")
        self._copied.add(name)


def _sentence(error: Exception) -> str:
    """What is wrong, without the line where it is: the query stands within another."""
    return str(error).partition("\n\nLINE ")[0]
