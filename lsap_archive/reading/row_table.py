"""The rows that readers see, and the newest of each method and image."""

from __future__ import annotations

import tempfile
import threading
import uuid
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from lsap_archive.format.rows import DUPLICATE, FAILED, HOW_FITTED, IS_SETTLED, OK, ROW_SCHEMA, STATUSES
from lsap_archive.reading.id_index import IdIndex, values_at
from lsap_archive.reading.row_columns import MEMORY_LIMIT, RowColumns

OUTCOME = ("status", "reason", "message")
_FAILED_COPIES = """
    select copies.place as place, originals.place as original from copies
    join originals on copies.run = originals.run and copies.duplicate_of = originals.image_id
"""
_TWICE = f"""
    select place from (
        select place, may_be_twice, {IS_SETTLED} as is_settled, {HOW_FITTED} as fitted, digest,
            lag(digest) over ordered as digest_before,
            lag({IS_SETTLED}) over ordered as was_settled, lag({HOW_FITTED}) over ordered as fitted_before
        from suspected join methods using (run)
        window ordered as (partition by method_digest, image_id order by place))
    where may_be_twice and was_settled and digest = digest_before and fitted = fitted_before
"""
_SUPERSEDED = """
    select place from placed join (
        select image_id, max(place) as newest from placed group by image_id having count(*) > 1) using (image_id)
    where place < newest
"""


class RowPlace(NamedTuple):
    """A row, and where its values lie.

    Attributes:
        place: number of the row, the oldest run first.
        run: number of the run.
        row: its row in the run's arrays.
        image_id, status, duplicate_of: as in ROW_SCHEMA.
    """

    place: int
    run: int
    row: int
    image_id: str
    status: str
    duplicate_of: str | None


class Suspect(NamedTuple):
    """A run of a method of which some runs have the same images.

    Attributes:
        method_digest: of its method.
        may_be_twice: whether its rows count in older runs that have them too.
    """

    method_digest: str
    may_be_twice: bool


class RowTable:
    """Rows of many runs, of which columns are read when they are first asked for; several threads may ask at once.

    A row that was written as the duplicate of one that failed, as all copies of bad images were before schema version
    4, is shown as failed with the same reason. What was published by two commands at once, with the same content, is
    shown once.
    """

    def __init__(
        self, columns: RowColumns, methods: Sequence[str], suspects: Mapping[int, Suspect] | None = None
    ) -> None:
        """Nothing is read yet.

        Args:
            columns: the rows as they are written, those of the oldest run first.
            methods: name of each run's method; an image is in a run at most once.
            suspects: by number, runs that may have rows of older ones once more, and those older ones.
        """
        self._columns = columns
        self._methods = list(methods)
        self._suspects = dict(suspects or {})
        self._corrected: dict[str, pa.ChunkedArray] = {}
        self._newest_by_runs: dict[tuple[int, ...], NDArray[np.bool_]] = {}
        self._newest: NDArray[np.bool_] | None = None
        self._shown: NDArray[np.bool_] | None = None
        self._copies: dict[str, NDArray[np.int64]] | None = None
        self._index: IdIndex | None = None
        self._is_asked_by_id = False
        self._lock = threading.RLock()

    @property
    def num_rows(self) -> int:
        """Rows that are written, those included that are not shown."""
        return self._columns.num_rows

    @property
    def read_columns(self) -> frozenset[str]:
        """Columns that were read already."""
        return self._columns.names

    def columns(self, names: Sequence[str], *, newest: bool = False) -> pa.Table:
        """Columns of all rows that are written, to be seen through `shown` or `newest`.

        Args:
            names: from ROW_SCHEMA.
            newest: whether `newest` will be asked as well, so that every file is opened once.

        Raises:
            CorruptArchiveError: a file is missing or altered.
        """
        with self._lock:
            needed = list(names)
            if not set(OUTCOME).isdisjoint(names):
                needed += ["status", "image_id", "duplicate_of"]
            if newest and len(set(self._methods)) < len(self._methods):
                needed.append("image_id")
            table = self._columns.read(list(dict.fromkeys(needed)))
            found = [self._outcome(name) if name in OUTCOME else table.column(name) for name in names]
            return pa.table(found, schema=pa.schema([ROW_SCHEMA.field(name) for name in names]))

    @property
    def shown(self) -> NDArray[np.bool_]:
        """Whether a row is shown: all are, but for what is there twice."""
        with self._lock:
            if self._shown is None:
                self._shown = self._without_twice()
            return self._shown

    def _without_twice(self) -> NDArray[np.bool_]:
        shown = np.ones(self.num_rows, dtype=bool)
        if any(one.may_be_twice for one in self._suspects.values()):
            of_suspects = np.isin(self._columns.runs, list(self._suspects))
            names = ("image_id", "digest", "altered", "status", "reason")
            places = np.flatnonzero(of_suspects)
            told = [(run, *one) for run, one in self._suspects.items()]
            methods = dict(
                zip(("run", "method_digest", "may_be_twice"), map(list, zip(*told, strict=True)), strict=True)
            )
            suspected = self.columns(names).filter(pa.array(of_suspects))
            suspected = suspected.append_column("place", pa.array(places))
            suspected = suspected.append_column("run", pa.array(self._columns.runs[places], pa.int32()))
            shown[_numbers(_TWICE, suspected=suspected, methods=pa.table(methods))["place"]] = False
        return shown

    @property
    def newest(self) -> NDArray[np.bool_]:
        """Whether a row is the newest of its image and method."""
        with self._lock:
            if self._newest is None:
                self._newest = self._newest_of_methods()
            return self._newest

    def _newest_of_methods(self) -> NDArray[np.bool_]:
        by_method: dict[str, list[int]] = {}
        for run, method in enumerate(self._methods):
            by_method.setdefault(method, []).append(run)
        newest = np.zeros(self.num_rows, dtype=bool)
        for runs in by_method.values():
            newest |= self._newest_of(runs)
        return newest

    def _newest_of(self, runs: Sequence[int]) -> NDArray[np.bool_]:
        """Whether a row is the newest of its image in some runs."""
        with self._lock:
            if (key := tuple(sorted(set(runs)))) not in self._newest_by_runs:
                chosen = np.isin(self._columns.runs, key) & self.shown
                if len(key) > 1:
                    image_ids = self._columns.read(["image_id"])
                    several = np.flatnonzero(chosen)[self._may_be_several(image_ids.filter(pa.array(chosen)))]
                    placed = image_ids.take(pa.array(several)).append_column("place", pa.array(several))
                    chosen[_numbers(_SUPERSEDED, placed=placed)["place"]] = False
                self._newest_by_runs[key] = chosen
            return self._newest_by_runs[key]

    @staticmethod
    def _may_be_several(image_ids: pa.Table) -> NDArray[np.bool_]:
        """Whether an id may be there again, by its hash: most images are there once, and texts are slow to group."""
        found = _numbers("select (hash(image_id) >> 1)::bigint as hash from image_ids", image_ids=image_ids)["hash"]
        ordered = np.sort(found)
        return np.isin(found, ordered[1:][ordered[1:] == ordered[:-1]])

    def _outcome(self, name: str) -> pa.ChunkedArray:
        """A column of OUTCOME, in which a copy of what failed has failed for the same reason."""
        if name not in self._corrected:
            column, copies = self._columns.read([name]).column(0), self._failed_copies
            if len(copies["place"]):
                tells = np.arange(self.num_rows)
                tells[copies["place"]] = copies["original"]
                column = column.take(pa.array(tells))
            self._corrected[name] = column
        return self._corrected[name]

    @property
    def _failed_copies(self) -> dict[str, NDArray[np.int64]]:
        """Places of duplicates of what failed, and of what they are duplicates of."""
        with self._lock:
            if self._copies is None:
                self._copies = self._find_failed_copies()
            return self._copies

    def _find_failed_copies(self) -> dict[str, NDArray[np.int64]]:
        status = self._columns.read(["status"]).column(0)
        tables = {}
        for name, kind, column in (("copies", DUPLICATE, "duplicate_of"), ("originals", FAILED, "image_id")):
            places = np.flatnonzero(np.asarray(pc.equal(status, kind)))
            values = self._columns.read([column]).column(0).take(pa.array(places))
            runs = pa.array(self._columns.runs[places], pa.int32())
            tables[name] = pa.table({"place": pa.array(places), "run": runs, column: values})
        if not all(table.num_rows for table in tables.values()):
            return {"place": np.empty(0, np.int64), "original": np.empty(0, np.int64)}
        return _numbers(_FAILED_COPIES, **tables)

    def twice_in(self, run: int) -> NDArray[np.int64]:
        """Rows of a run that are not shown, because an older one has them."""
        return self._rows_where((self._columns.runs == run) & ~self.shown)

    def newest_in(self, run: int) -> NDArray[np.int64]:
        """Rows of a run that are the newest of their image and method, in order."""
        return self._rows_where((self._columns.runs == run) & self.newest)

    def _rows_where(self, mask: NDArray[np.bool_]) -> NDArray[np.int64]:
        return np.asarray(self._columns.rows[mask], dtype=np.int64)

    def counts_in(self, run: int) -> dict[str, int]:
        """How many rows of a run that are shown have each status."""
        status = self.columns(["status"]).column(0).filter(pa.array((self._columns.runs == run) & self.shown))
        found = {one["values"]: one["counts"] for one in pc.value_counts(status).to_pylist()}
        return {one: found.get(one, 0) for one in STATUSES}

    def table(self, columns: Sequence[str], *, history: bool) -> pa.Table:
        """Rows in memory, the oldest run first: all that are shown, or only the newest of each image and method."""
        found = self.columns(columns, newest=not history)
        mask = self.shown if history else self.newest
        return found if mask.all() else found.filter(pa.array(mask))

    def of_images(self, image_ids: Collection[str], runs: Sequence[int]) -> dict[str, list[RowPlace]]:
        """Rows of images in some runs, by id, the newest last."""
        table = self.columns(["image_id", "status", "duplicate_of"])
        places = self._places_of(image_ids)
        places = places[np.isin(self._columns.runs[places], list(runs)) & self.shown[places]]
        numbers = [values[places].tolist() for values in (self._columns.runs, self._columns.rows)]
        texts = [values_at(column, places) for column in table.columns]
        found: dict[str, list[RowPlace]] = {}
        for one in map(RowPlace._make, zip(places.tolist(), *numbers, *texts, strict=True)):
            found.setdefault(one.image_id, []).append(one)
        return found

    def _places_of(self, image_ids: Collection[str]) -> NDArray[np.int64]:
        """All rows of images; who asks once does not wait for an index."""
        with self._lock:
            ids = self._columns.read(["image_id"]).column(0)
            is_first, self._is_asked_by_id = not self._is_asked_by_id, True
            if not is_first and self._index is None:
                self._index = IdIndex(ids)
        if self._index is not None:
            return self._index.places_of(image_ids)
        return np.flatnonzero(np.asarray(pc.is_in(ids, pa.array(sorted(set(image_ids)), pa.string()))))

    def digests(self, rows: Sequence[RowPlace]) -> dict[int, str]:
        """Digests of the content of some rows, by their places."""
        told = self.at([row.place for row in rows], ["digest"])
        return dict(zip(*(told.column(name).to_pylist() for name in ("place", "digest")), strict=True))

    def newest_ok(self, runs: Sequence[int]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Place, run and row of each image's newest row in some runs, where that is ok; in the order of places."""
        is_ok = np.asarray(pc.equal(self.columns(["status"]).column(0), OK))
        places = np.flatnonzero(self._newest_of(runs) & is_ok)
        return places, self._columns.runs[places].astype(np.int64), self._columns.rows[places]

    def at(self, places: Collection[int], columns: Sequence[str]) -> pa.Table:
        """Rows by their places, with the column place, in its order."""
        wanted = np.array(sorted(set(places)), dtype=np.int64)
        telling = wanted
        if not set(OUTCOME).isdisjoint(columns):
            self.columns(["status"])
            original = dict(zip(*(self._failed_copies[name].tolist() for name in ("place", "original")), strict=True))
            telling = np.array([original.get(place, place) for place in wanted.tolist()], dtype=np.int64)
        outcome = [name for name in columns if name in OUTCOME]
        others = [name for name in columns if name not in OUTCOME]
        found = dict(zip(others, self._columns.at(wanted, others).columns, strict=True)) if others else {}
        found |= dict(zip(outcome, self._columns.at(telling, outcome).columns, strict=True)) if outcome else {}
        return pa.table({"place": pa.array(wanted), **{name: found[name] for name in columns}})


def _numbers(query: str, **tables: pa.Table) -> dict[str, NDArray[np.int64]]:
    """What a query over some tables gives, by column; what does not fit into memory moves to a folder meanwhile."""
    spill = Path(tempfile.gettempdir()) / f"lsap-rows-{uuid.uuid4().hex}"  # made when needed, removed at the end
    with duckdb.connect(config={"memory_limit": MEMORY_LIMIT, "temp_directory": str(spill)}) as database:
        for name, table in tables.items():
            database.register(name, table)
        found = database.sql(query).fetchnumpy()
    return {name: np.asarray(values, dtype=np.int64) for name, values in found.items()}
