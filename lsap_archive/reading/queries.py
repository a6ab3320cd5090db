"""SQL over an archive: its tables in a database that reads no file, writes none, and that no query can change.

The tables are views over columns in memory. A column that no query has named is not read: in its place stands an error,
which DuckDB drops with all columns that a query does not use. Where it meets one, all are read and it begins anew.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from lsap_archive.errors import QueryError
from lsap_archive.format.measurements import MEASUREMENT_SCHEMA
from lsap_archive.format.rows import ROW_SCHEMA
from lsap_archive.reading.published_tables import EVALUATIONS_SCHEMA, JSON_COLUMNS, RUNS_SCHEMA
from lsap_archive.reading.row_columns import MEMORY_LIMIT
from lsap_archive.reading.row_table import RowTable
from lsap_archive.reading.sets import SET_SCHEMA
from lsap_archive.reading.unnamed_by import MEASURED, ByCheck, UnnamedByError

ROWS = ("latest", "rows", "history")
OTHERS = {
    "runs": RUNS_SCHEMA,
    "evaluations": EVALUATIONS_SCHEMA,
    "measurements": MEASUREMENT_SCHEMA,
    "all_measurements": MEASUREMENT_SCHEMA,
    "set_numbers": SET_SCHEMA,
}
TABLES = (*ROWS, *OTHERS)
"""Names of all tables; `latest` has the newest row of each method and image, `rows` is the same, `history` has all."""

_ROWS_OF_A_BATCH = 2**16
_NOT_READ = "this column was not read: name it in the query"
_UNFORESEEN = {"query", "query_table", "try"}  # they hide what a query names, or what it runs into
_EXPLAIN = re.compile(r"\s*explain(\s+analyze\b|\s*\([^)]*\))?", re.IGNORECASE)


class Queries:
    """Answers SQL; several threads may ask at once."""

    def __init__(self, url: str, rows: RowTable, others: Mapping[str, Callable[[], pa.Table]]) -> None:
        """Nothing is read yet.

        Args:
            url: of the archive, for messages.
            rows: what the tables of ROWS show.
            others: the tables of OTHERS, each made when a query first names it.
        """
        self._url = url
        self._rows = rows
        self._others = dict(others)
        self._made: dict[str, pa.Table] = {}
        self._viewed: frozenset[str] | None = None  # columns that the views of rows have
        self._lock = threading.RLock()

    def table(self, query: str, params: Mapping[str, Any]) -> pa.Table:
        """The answer, in memory; an empty table for a query that asks nothing.

        Raises:
            QueryError: it does more than read, would mix networks, or DuckDB refuses it.
            CorruptArchiveError: a file is missing or altered.
        """
        with self._refusals():
            if not self._prepare(query, params):
                return pa.table({})
            try:
                with self._asked(query, params) as answer:
                    return answer.to_arrow_table()
            except duckdb.Error as error:
                if not self._read_all_for(error):
                    raise
            with self._asked(query, params) as answer:
                return answer.to_arrow_table()

    @contextlib.contextmanager
    def batches(self, query: str, params: Mapping[str, Any]) -> Iterator[pa.RecordBatchReader]:
        """The answer a batch at a time; raises as `table` does, also while it is read."""
        with self._refusals():
            if not self._prepare(query, params):
                yield pa.table({}).to_reader()
                return
            with contextlib.ExitStack() as stack:
                try:
                    reader, first = self._first_batch(stack, query, params)
                except (duckdb.Error, pa.ArrowException, OSError) as error:
                    if not self._read_all_for(error):
                        raise self._refused(str(error)) from error
                    stack.close()
                    reader, first = self._first_batch(stack, query, params)
                batches = itertools.chain(first, self._batches_of(reader))
                yield pa.RecordBatchReader.from_batches(reader.schema, batches)

    def _first_batch(
        self, stack: contextlib.ExitStack, query: str, params: Mapping[str, Any]
    ) -> tuple[pa.RecordBatchReader, list[pa.RecordBatch]]:
        reader = stack.enter_context(self._asked(query, params)).to_arrow_reader(_ROWS_OF_A_BATCH)
        return reader, list(itertools.islice(reader, 1))

    @contextlib.contextmanager
    def _asked(self, query: str, params: Mapping[str, Any]) -> Iterator[duckdb.DuckDBPyRelation]:
        """The answer, to be read before this ends."""
        with self._cursor() as cursor:
            cursor.begin()
            try:
                yield cursor.sql(query, params=dict(params)) if params else cursor.sql(query)
            finally:
                with contextlib.suppress(duckdb.Error):  # an error has ended it already
                    cursor.rollback()

    def _prepare(self, query: str, params: Mapping[str, Any]) -> bool:
        """See to it that a query can be answered; False if it asks nothing."""
        parsed = self._parsed(query)
        if parsed is None:
            return False
        words = set(re.findall(r"\w+", query.lower()))
        reads_all = not words.isdisjoint(_UNFORESEEN) or _has_star(parsed)
        self._make(words, reads_all)
        if not words.isdisjoint(MEASURED):
            self._check_by(parsed, params)
        return True

    def _read_all_for(self, error: Exception) -> bool:
        """Read all columns if an error says that one was not read; False for any other."""
        if _NOT_READ not in str(error) or self._viewed == frozenset(ROW_SCHEMA.names):
            return False
        self._show_rows(ROW_SCHEMA.names)
        return True

    def _batches_of(self, reader: pa.RecordBatchReader) -> Iterator[pa.RecordBatch]:
        """The batches; what DuckDB refuses only then comes as an error of Arrow, or of its files."""
        while True:
            try:
                batch = reader.read_next_batch()
            except StopIteration:
                return
            except (pa.ArrowException, OSError) as error:
                raise QueryError(f"{self._url}: the query was refused: {error}") from error
            yield batch

    @contextlib.contextmanager
    def _refusals(self) -> Iterator[None]:
        try:
            yield
        except duckdb.Error as error:
            raise QueryError(f"{self._url}: the query was refused: {error}") from error
        except UnnamedByError as error:
            raise QueryError(f"{self._url}: the query was refused: {error}") from error

    @cached_property
    def _database(self) -> duckdb.DuckDBPyConnection:
        """With all tables by name, and nothing else that can be named."""
        spill = Path(tempfile.gettempdir()) / f"lsap-query-{uuid.uuid4().hex}"  # made when needed, removed at the end
        database = duckdb.connect(
            config={
                "memory_limit": MEMORY_LIMIT,
                "temp_directory": str(spill),
                "python_enable_replacements": False,
                "autoinstall_known_extensions": False,
                "autoload_known_extensions": False,
            }
        )
        database.execute("set global TimeZone = 'UTC'")
        database.execute("set enable_external_access = false")
        database.execute("set lock_configuration = true")
        empty = database.from_arrow(ROW_SCHEMA.empty_table())
        for name in ROWS:
            empty.create_view(name)
        for name, schema in OTHERS.items():
            self._show(database, name, schema.empty_table())
        return database

    def _cursor(self) -> duckdb.DuckDBPyConnection:
        with self._lock:
            return self._database.cursor()

    def _parsed(self, query: str) -> dict[str, Any] | None:
        """The query as DuckDB understands it; None for one that is empty.

        Raises:
            QueryError: it is none that reads, or several.
        """
        explained = _EXPLAIN.match(query)
        asked = query[explained.end() :] if explained else query
        with self._cursor() as cursor:
            found = cursor.execute("select json_serialize_sql($query::varchar)", {"query": asked}).fetchone()
            told: dict[str, Any] = json.loads(found[0]) if found else {}
            if not told.get("error"):
                statements = told.get("statements", [])
                if len(statements) > 1:
                    raise self._refused(f"it has {len(statements)} statements, and one select is wanted")
                return told if statements else None
            statements = cursor.extract_statements(asked)  # raises where it is no SQL
        kinds = ", ".join(one.type.name.lower() for one in statements) or "nothing"
        if not statements:
            return None
        raise self._refused(
            f"an archive is only read, and one select is wanted, not {kinds} (a pivot says which columns it makes: "
            "on ... in (...)); `lsap-archive export` writes answers into files"
        )

    def _refused(self, reason: str) -> QueryError:
        return QueryError(f"{self._url}: the query was refused: {reason}")

    def _make(self, words: set[str], reads_all: bool) -> None:
        """See to it that the tables and columns that a query names are there."""
        hides_tables = not words.isdisjoint(_UNFORESEEN)
        for name, make in self._others.items():
            if (name in words or hides_tables) and name not in self._made:
                made = make()
                with self._lock:
                    self._made[name] = made
                    self._show(self._database, name, made)
        if hides_tables or not words.isdisjoint(ROWS):
            self._show_rows([name for name in ROW_SCHEMA.names if reads_all or name in words])

    def _show_rows(self, names: Sequence[str]) -> None:
        """Let the tables of rows have these columns, and those that they have already."""
        with self._lock:
            viewed = frozenset(names) | (self._viewed or frozenset())
            if viewed == self._viewed:
                return
            shown = [name for name in ROW_SCHEMA.names if name in viewed] or ["row"]  # what is counted has to be there
            read = self._rows.columns(shown, newest=True)
            masks = {"latest": self._rows.newest, "rows": self._rows.newest, "history": self._rows.shown}
            marks = {"is_newest": pa.array(self._rows.newest), "is_shown": pa.array(self._rows.shown)}
            columns_read = dict(zip(shown, read.columns, strict=True))
            relation = self._database.from_arrow(pa.table({**marks, **columns_read}))
            columns = ", ".join(_column(field, field.name in viewed) for field in ROW_SCHEMA)
            for name, mask in masks.items():
                seen = relation if mask.all() else relation.filter("is_shown" if name == "history" else "is_newest")
                seen.project(columns).create_view(name, replace=True)
            self._viewed = viewed

    def _show(self, database: duckdb.DuckDBPyConnection, name: str, table: pa.Table) -> None:
        columns = (f'"{one}"::json as "{one}"' if one in JSON_COLUMNS else f'"{one}"' for one in table.column_names)
        database.from_arrow(table).project(", ".join(columns)).create_view(name, replace=True)

    def _check_by(self, parsed: Mapping[str, Any], params: Mapping[str, Any]) -> None:
        networks: dict[str, dict[str, list[str]]] = {}
        for name in (one for one in MEASURED if one in self._made):
            pairs = self._made[name].select(["measure", "by"]).group_by(["measure", "by"]).aggregate([])
            by_measure: dict[str, list[str]] = {}
            for pair in pairs.to_pylist():
                by_measure.setdefault(pair["measure"], []).append(pair["by"] or "")
            networks[name] = {measure: sorted(by_measure[measure]) for measure in sorted(by_measure)}
        ByCheck(networks, self._aggregates, params).check(parsed)

    @cached_property
    def _aggregates(self) -> frozenset[str]:
        query = "select distinct lower(function_name) from duckdb_functions() where function_type = 'aggregate'"
        with self._cursor() as cursor:
            return frozenset(name for (name,) in cursor.execute(query).fetchall())


def _has_star(part: Any) -> bool:
    """Whether a parsed query asks for all columns; `order by all` does not."""
    if isinstance(part, list):
        return any(map(_has_star, part))
    if not isinstance(part, dict):
        return False
    return part.get("class") == "STAR" or any(_has_star(one) for name, one in part.items() if name != "orders")


def _column(field: pa.Field, is_read: bool) -> str:
    if is_read:
        return f'"{field.name}"'
    kind = {"string": "varchar", "int64": "bigint", "int32": "integer", "float": "float", "double": "double"}[
        str(field.type)
    ]
    return f"error('{_NOT_READ}')::{kind} as \"{field.name}\""
