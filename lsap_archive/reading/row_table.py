"""The rows that readers see, in a database that moves to a temporary folder when it grows: memory stays bounded."""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lsap_archive.format.rows import DUPLICATE, FAILED, HOW_FITTED, IS_SETTLED, OK, ROW_SCHEMA

MEMORY_LIMIT = "512MB"
_FAILED_COPIES = f"""
    update places set status = original.status, reason = original.reason, message = original.message
    from (select run, image_id, status, reason, message from places where status = '{FAILED}') as original
    where places.status = '{DUPLICATE}' and places.run = original.run and places.duplicate_of = original.image_id
"""
_TOGETHER = 32 * 1024  # rows put in at once: one shard at a time would take most of the time
_TWICE = f"""
    create table twice as select run, "row", place from (
        select place, run, "row", digest, may_be_twice, {HOW_FITTED} as fitted,
            lag(digest) over ordered as digest_before,
            lag({IS_SETTLED}) over ordered as was_settled, lag({HOW_FITTED}) over ordered as fitted_before
        from places join methods using (run)
        window ordered as (partition by method_digest, image_id order by place))
    where may_be_twice and was_settled and digest = digest_before and fitted = fitted_before
"""


class RowPlace(NamedTuple):
    """A row, and where its values lie.

    Attributes:
        place: number of the row, the oldest run first.
        run: number of the run.
        row: its row in the run's arrays.
        image_id, digest, status, reason, message, duplicate_of, run_id: as in ROW_SCHEMA.
    """

    place: int
    run: int
    row: int
    image_id: str
    digest: str
    status: str
    reason: str | None
    message: str | None
    duplicate_of: str | None
    run_id: str


class Suspect(NamedTuple):
    """A run of a method of which some runs have the same images.

    Attributes:
        method_digest: of its method.
        may_be_twice: whether its rows count in older runs that have them too.
    """

    method_digest: str
    may_be_twice: bool


class RowTable:
    """Rows of many runs, filled once.

    A row that was written as the duplicate of one that failed, as all copies of bad images were before schema version
    4, is shown as failed with the same reason.

    Attributes:
        database: with the table `rows` in ROW_SCHEMA, `latest`, which has the newest of each method and image, and
            `places`, which also has place and run of each row.
    """

    def __init__(self, tables: Iterable[tuple[int, pa.Table]], suspects: Mapping[int, Suspect] | None = None) -> None:
        """Copy every row, without those that are there twice.

        Args:
            tables: number of the run and rows in ROW_SCHEMA, the oldest run first.
            suspects: by number, runs that may have rows of older ones once more, and those older ones.
        """
        spill = Path(tempfile.gettempdir()) / f"lsap-rows-{uuid.uuid4().hex}"  # made when needed, removed at the end
        self.database = duckdb.connect(
            config={"memory_limit": MEMORY_LIMIT, "temp_directory": str(spill), "python_enable_replacements": False}
        )
        self._columns = ", ".join(f'"{name}"' for name in ROW_SCHEMA.names)
        self.database.register("empty", ROW_SCHEMA.empty_table())
        self.database.execute("create table places as select 0::bigint as place, 0::integer as run, * from empty")
        self.database.unregister("empty")
        self.database.execute(f"create view rows as select {self._columns} from places")
        self._num_rows = 0
        waiting: list[pa.Table] = []
        for run, table in tables:
            waiting.append(table.add_column(0, "run", pa.array([run] * table.num_rows, pa.int32())))
            if sum(one.num_rows for one in waiting) >= _TOGETHER:
                self._insert(waiting)
                waiting = []
        self._insert(waiting)
        self.database.execute(_FAILED_COPIES)
        self._leave_out_twice(suspects or {})
        self.database.execute(
            f"create view latest as select {self._columns} from places semi join "
            "(select max(place) as place from places group by method, image_id) using (place)"
        )

    def _leave_out_twice(self, suspects: Mapping[int, Suspect]) -> None:
        """Leave out what an older run has with the same content, as it was published by two commands at once."""
        self.database.execute("create table methods (run integer, method_digest text, may_be_twice boolean)")
        for run, one in suspects.items():
            self.database.execute("insert into methods values (?, ?, ?)", [run, *one])
        self.database.execute(_TWICE)
        self.database.execute("delete from places where place in (select place from twice)")

    def twice_in(self, run: int) -> NDArray[np.int64]:
        """Rows of a run that were left out, because an older one has them."""
        found = self.database.cursor().execute('select "row" from twice where run = ?', [run]).fetchnumpy()
        return np.asarray(found["row"], dtype=np.int64)

    def _insert(self, tables: Sequence[pa.Table]) -> None:
        if not tables:
            return
        table = pa.concat_tables(tables)
        places = pa.array(range(self._num_rows, self._num_rows + table.num_rows), pa.int64())
        self.database.register("arrived", table.add_column(0, "place", places))
        self.database.execute("insert into places select * from arrived")
        self.database.unregister("arrived")
        self._num_rows += table.num_rows

    def table(self, columns: Sequence[str]) -> pa.Table:
        """All rows, in memory, the oldest run first."""
        names = ", ".join(f'"{name}"' for name in columns)
        found = self.database.cursor().sql(f"select {names} from places order by place").to_arrow_table()
        return found.cast(pa.schema([ROW_SCHEMA.field(name) for name in columns]))

    def of_images(self, image_ids: Collection[str], runs: Sequence[int]) -> dict[str, list[RowPlace]]:
        """Rows of images in some runs, by id, the newest last."""
        names = ", ".join(RowPlace._fields)
        cursor = self.database.cursor()
        cursor.register("asked", pa.table({"image_id": pa.array(sorted(set(image_ids)), pa.string())}))
        rows = cursor.execute(
            f"select {names} from places semi join asked using (image_id) where list_contains(?, run) order by place",
            [list(runs)],
        ).fetchall()
        found: dict[str, list[RowPlace]] = {}
        for row in rows:
            one = RowPlace(*row)
            found.setdefault(one.image_id, []).append(one)
        return found

    def newest_ok(self, runs: Sequence[int]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Place, run and row of each image's newest row in some runs, where that is ok; in the order of places."""
        found = (
            self.database.cursor()
            .execute(
                "with newest as (select max(place) as place from places where list_contains(?, run) group by image_id) "
                'select place, run, "row" from places semi join newest using (place) where status = ? order by place',
                [list(runs), OK],
            )
            .fetchnumpy()
        )
        place, run, row = (np.asarray(found[name], dtype=np.int64) for name in ("place", "run", "row"))
        return place, run, row

    def at(self, places: Collection[int], columns: Sequence[str]) -> pa.Table:
        """Rows by their places, with the column place."""
        cursor = self.database.cursor()
        cursor.register("asked", pa.table({"place": pa.array(sorted(places), pa.int64())}))
        names = ", ".join(f'"{name}"' for name in columns)
        return cursor.sql(f"select place, {names} from places semi join asked using (place)").to_arrow_table()
