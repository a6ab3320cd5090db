"""What readers of other kinds find below `published/`: the files that count, and SQL that makes of them what counts.

    published/rows.parquet              a row for each file of rows that readers see, in LISTED_ROWS
    published/measurements.parquet      likewise of measurements, in LISTED_MEASUREMENTS
    published/no_rows.parquet           an empty file, the first of either list: whoever takes the columns of the first
    published/no_measurements.parquet   file has all that there are now, and there is at least one file
    published/latest.sql                a query of DuckDB: of each method and image the newest row
    published/measurements.sql          likewise: every measure of the newest rows once
    published/all_measurements.sql      likewise: also what was measured again since

All of it follows from what is published and what is retired, and is written anew by whoever changes either.
"""

from __future__ import annotations

import re

import pyarrow as pa

from lsap_archive.errors import ArchiveMismatchError
from lsap_archive.format.columns import column
from lsap_archive.format.layout import PUBLISHED_PREFIX
from lsap_archive.format.manifest import Published
from lsap_archive.format.measurements import MEASUREMENT_SCHEMA
from lsap_archive.format.rows import DUPLICATE, FAILED, ROW_SCHEMA

ROWS_LIST = f"{PUBLISHED_PREFIX}/rows.parquet"
MEASUREMENTS_LIST = f"{PUBLISHED_PREFIX}/measurements.parquet"
NO_ROWS = f"{PUBLISHED_PREFIX}/no_rows.parquet"
NO_MEASUREMENTS = f"{PUBLISHED_PREFIX}/no_measurements.parquet"


def _list_of(kind: pa.DataType) -> pa.DataType:
    """A list whose part has the name that it has in Parquet, so that a file is read as what was written."""
    return pa.list_(pa.field("element", kind))


_FILE = column(
    "file",
    pa.string(),
    "Parquet file, relative to the archive; the first one is empty and has all columns",
    is_needed=True,
)
_AGE = "sorts {} as text, the newest last"
_SHARD = column("shard", pa.int32(), "shard that the file holds, as its rows tell; null of the empty file")
_SHARD_ROWS = column(
    "shard_rows", pa.int64(), "rows of a shard: row / shard_rows, rounded down, is the shard", values="from 1"
)

LISTED_ROWS = pa.schema(
    [
        _FILE,
        column("run_id", pa.string(), "the run; null of the empty file"),
        column("method", pa.string(), "its method"),
        column("method_digest", pa.string(), "digest of everything that decides its results"),
        column("lineage", _list_of(pa.string()), "the run, and those that it is made of, the inversion last"),
        column("age", pa.string(), _AGE.format("runs")),
        _SHARD,
        _SHARD_ROWS,
        column("left_out", _list_of(pa.int64()), "rows of the file that count in an older run", is_needed=True),
    ]
)
LISTED_MEASUREMENTS = pa.schema(
    [
        _FILE,
        column("evaluation_id", pa.string(), "the evaluation; null of the empty file"),
        column("run_id", pa.string(), "the measured run; null for synthetic images"),
        column("subject", pa.string(), "what was measured; of a measure of one subject the newest evaluation counts"),
        column("age", pa.string(), _AGE.format("evaluations")),
        _SHARD,
        _SHARD_ROWS,
        column(
            "left_out", _list_of(pa.int64()), "rows of the measured run that readers do not see there", is_needed=True
        ),
    ]
)

_LATEST = f"""\
-- Of each method and image the newest row; a copy of an image that failed is failed, too.
with listed as (
    select run_id, shard, age, left_out
    from read_parquet(getvariable('archive') || '/{ROWS_LIST}')),
stored as (
    from read_parquet(getvariable('row_files'), union_by_name = true)),
original as (
    select run_id, image_id as duplicate_of, status, reason, message from stored where status = '{FAILED}'),
seen as (
    select stored.* replace (
        coalesce(original.status, stored.status) as status,
        if(original.status is null, stored.reason, original.reason) as reason,
        if(original.status is null, stored.message, original.message) as message), age
    from stored join listed using (run_id, shard)
    left join original on stored.status = '{DUPLICATE}' and original.run_id = stored.run_id
        and original.duplicate_of = stored.duplicate_of
    where not list_contains(left_out, "row"))
select * exclude (age) from seen
qualify row_number() over (partition by method, image_id order by age desc, "row" desc) = 1
"""
_SQL = {
    "latest": _LATEST,
    "all_measurements": f"""\
-- Every measurement of what readers see, also what was measured again since.
with listed as (
    select evaluation_id, shard, left_out
    from read_parquet(getvariable('archive') || '/{MEASUREMENTS_LIST}'))
select stored.*
from read_parquet(getvariable('measurement_files'), union_by_name = true) as stored
join listed using (evaluation_id, shard)
where not list_contains(left_out, "row")
""",
    "measurements": f"""\
-- Every measure of the newest rows, and of synthetic images, once: that of the newest evaluation.
with latest as (
{_LATEST}),
listed as (
    select evaluation_id, shard, age, subject, left_out
    from read_parquet(getvariable('archive') || '/{MEASUREMENTS_LIST}')),
newest as (
    select stored.*
    from read_parquet(getvariable('measurement_files'), union_by_name = true) as stored
    join listed using (evaluation_id, shard)
    where not list_contains(left_out, "row")
    qualify age = max(age) over (partition by subject, measure, "by"))
from newest
where run_id is null or exists (from latest where latest.run_id = newest.run_id and latest."row" = newest."row")
""",
}
_LIST_OF = {
    "latest": {"row_files": ROWS_LIST},
    "measurements": {"row_files": ROWS_LIST, "measurement_files": MEASUREMENTS_LIST},
    "all_measurements": {"measurement_files": MEASUREMENTS_LIST},
}


def sql_key(table: str) -> str:
    """Key of the query that gives a table."""
    return f"{PUBLISHED_PREFIX}/{table}.sql"


SQL_TEXTS = {sql_key(table): text.encode() for table, text in _SQL.items()}
"""The queries, by key."""

EMPTY_SCHEMAS = {NO_ROWS: ROW_SCHEMA, NO_MEASUREMENTS: MEASUREMENT_SCHEMA}
"""Columns of the empty files, by key; a table of pyarrow would load pandas, where it is, at import: a second."""


def duckdb_view(url: str, table: str, name: str | None = None) -> str:
    """Statements of DuckDB (1.2 or newer), without anything of this package, that make a view of an archive.

    The archive tells them what is published when they are run, so they stay as they are.

    Args:
        url: of the archive, as DuckDB is to open it.
        table: "latest", "measurements" or "all_measurements".
        name: of the view, by default that of the table.

    Raises:
        ArchiveMismatchError: there is no such table.
    """
    if table not in _SQL:
        raise ArchiveMismatchError(f"there is no published query {table!r}: one of {', '.join(_SQL)} is wanted")
    literal = re.sub(r"[\[*?]", r"[\g<0>]", url.rstrip("/")).replace("'", "''")  # DuckDB takes paths for patterns
    return "; ".join(
        (
            f"set variable archive = '{literal}'",
            *(
                f"set variable {variable} = (select list(getvariable('archive') || '/' || file) "
                f"from read_parquet(getvariable('archive') || '/{listed}'))"
                for variable, listed in _LIST_OF[table].items()
            ),
            f"set variable {table} = (select content from read_text(getvariable('archive') || '/{sql_key(table)}'))",
            f"create view {name or table} as from query(getvariable('{table}'))",
        )
    )


def order_text(one: Published) -> str:
    """A text that sorts manifests as `Published.order` does: a space comes before all that names consist of."""
    sequence, created, name = one.order
    return " ".join(filter(None, (f"{sequence:010d}", created, name)))
