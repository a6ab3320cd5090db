"""Reading an archive: rows, SQL, codes by image id, nearest codes. Needs no torch and no cluster."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import zarr
from numpy.typing import NDArray

from lsap_archive.documents import decode_document
from lsap_archive.errors import (
    ArchiveKeyError,
    ArchiveMismatchError,
    ArchiveNotFoundError,
    CorruptArchiveError,
    QueryError,
)
from lsap_archive.evaluations import EvaluationInfo, newest_measurements, read_evaluations, read_measurements
from lsap_archive.layout import (
    ARCHIVE_KEY,
    RUNS_PREFIX,
    TRACE,
    W_PLUS,
    Geometry,
    chunk_name,
    image_name,
    noise_name,
    run_prefix,
)
from lsap_archive.manifest import Manifest
from lsap_archive.measurements import MEASUREMENT_SCHEMA
from lsap_archive.published import in_threads, read_header, read_manifest, read_row_tables
from lsap_archive.schema import DUPLICATE, OK, ROW_SCHEMA, STATUSES
from lsap_archive.store import Store
from lsap_archive.subject import Subject
from lsap_archive.zarr_shards import Floats, PublishedObjects, open_published, read_rows

_BLOCK_VALUES = 4 * 2**20  # values compared at once by nearest: 16 MiB of float32


@dataclass(frozen=True)
class RunInfo:
    """A published run.

    Attributes:
        run_id: its name.
        method: published name of the method.
        method_digest: digest of everything that decides its results.
        created: UTC time of publication, ISO 8601.
        num_rows: images in it.
        rows_by_status: number of rows of each status.
        config: the configuration.
        provenance: versions, digests, seeds.
        summary: what the flow had to say.
        subject: of an edit run, what it edits; None for an inversion.
    """

    run_id: str
    method: str
    method_digest: str
    created: str
    num_rows: int
    rows_by_status: dict[str, int]
    config: dict[str, Any]
    provenance: dict[str, Any]
    summary: dict[str, Any]
    subject: Subject | None


@dataclass(frozen=True)
class Trace:
    """Objective terms along the optimization.

    Attributes:
        values: [N, steps, terms], float32; NaN where a step was not reached.
        steps: the steps, counted from 0.
        terms: names of the terms.
    """

    values: Floats
    steps: tuple[int, ...]
    terms: tuple[str, ...]


def open_archive(url: str, storage_options: Mapping[str, Any] | None = None) -> Archive:
    """The archive at `url`, as it is published now; runs published later need another call.

    Args:
        url: a local path, or file://, memory:// or s3://bucket/prefix.
        storage_options: for s3, what s3fs takes.

    Raises:
        ArchiveNotFoundError: no archive is there.
        ArchiveMismatchError: it is of another version of the format.
        CorruptArchiveError: archive.json or a manifest is damaged.
        StoreUnavailableError: the store does not answer or refuses.

    Example:
        >>> import numpy as np, pyarrow as pa
        >>> from lsap_archive import ArchiveWriter, Geometry, PlannedRow, RunPlan
        >>> writer = ArchiveWriter.open("memory://doctest", generator_digest="9f", generator_name="tiny",
        ...                             geometry=Geometry(num_ws=2, w_dim=3, noise_sides=()))
        >>> images = (PlannedRow(0, "anna", "/anna.png", "d0"), PlannedRow(1, "bert", "/bert.png", "d1"))
        >>> run = writer.start_run(RunPlan("first", "lsap_e", "4a", {}, {}, images, shard_rows=2))
        >>> rows = pa.table({"status": ["ok", "ok"], "lpips": [0.25, 0.5]})
        >>> codes = np.arange(12, dtype=np.float32).reshape(2, 2, 3)
        >>> run.write_shard(0, {"w_plus": codes}, rows, attempt="1"), run.publish({})
        (True, True)
        >>> archive = open_archive("memory://doctest")
        >>> archive.codes(["bert"], "lsap_e")[0]
        array([[ 6.,  7.,  8.],
               [ 9., 10., 11.]], dtype=float32)
        >>> archive.sql("SELECT image_id FROM rows WHERE lpips < $bound", bound=0.4).to_pylist()
        [{'image_id': 'anna'}]
    """
    store = Store.from_url(url, storage_options)
    generator, geometry = read_header(store)

    def manifest_or_none(run_id: str) -> Manifest | None:
        try:
            return read_manifest(store, run_id)
        except ArchiveNotFoundError:
            return None

    found = in_threads(manifest_or_none, store.folders(RUNS_PREFIX))
    manifests = sorted((one for one in found if one), key=lambda one: (one.created, one.run_id))
    created = {one.run_id: one.created for one in manifests}

    def age(one: Manifest) -> tuple[str, str, str]:  # an edit is as old as its subject: of an image the newest counts
        of_subject = one.created if one.subject is None else created.get(one.subject.run_id, one.created)
        return of_subject, one.created, one.run_id

    return Archive(store, generator, geometry, sorted(manifests, key=age))


class Archive:
    """Published results, read-only. Build it with `open_archive`.

    A method is named by its name ("lsap_e": all its runs) or by its digest (only runs of that configuration).
    Where several runs of it hold an image, because its content changed or it was run again, the run published
    last counts; `rows` and `sql` show them all. A duplicate has the code of the image it duplicates. An edit is
    named after its method ("lsap_e/slant"); its noise is that of the inversion.

    Attributes:
        url: where it is.
        generator: {"digest": ..., "name": ...}.
        geometry: sizes of the generator's inputs.
    """

    def __init__(
        self, store: Store, generator: dict[str, str], geometry: Geometry, manifests: Sequence[Manifest]
    ) -> None:
        self.url = store.url
        self.generator = generator
        self.geometry = geometry
        self._store = store
        self._manifests = list(manifests)  # oldest first
        self._objects = [
            PublishedObjects(store, run_prefix(one.run_id), {file.name: file.size for file in one.files})
            for one in self._manifests
        ]
        self._arrays: dict[tuple[int, str], zarr.Array[Any]] = {}
        self._indices: dict[str, dict[str, list[int]]] = {}

    def __repr__(self) -> str:
        return f"Archive({self.url!r}, {len(self._manifests)} runs)"

    @property
    def runs(self) -> list[RunInfo]:
        """Published runs, the oldest first."""
        names = RunInfo.__dataclass_fields__
        return [RunInfo(**{name: getattr(manifest, name) for name in names}) for manifest in self._manifests]

    @property
    def methods(self) -> list[str]:
        """Names of the methods with a published inversion, sorted."""
        return sorted({manifest.method for manifest in self._manifests if manifest.subject is None})

    @property
    def edits(self) -> list[str]:
        """Names of the methods with a published edit, such as "lsap_e/slant", sorted."""
        return sorted({manifest.method for manifest in self._manifests if manifest.subject is not None})

    @cached_property
    def evaluations(self) -> list[EvaluationInfo]:
        """Evaluations that are published when this is first asked for, the oldest first."""
        return read_evaluations(self._store)

    def measurements(
        self,
        columns: Sequence[str] | None = None,
        *,
        method: str | None = None,
        evaluations: Sequence[str] | None = None,
    ) -> pa.Table:
        """What evaluations have measured; of what was measured of a run again, the newest.

        Args:
            columns: names from MEASUREMENT_SCHEMA; None for all.
            method: only of this method or edit, by name.
            evaluations: ids; all that these have measured, also if it was measured again since.

        Raises:
            ArchiveKeyError: an unknown column or evaluation.
            CorruptArchiveError: a file is missing or altered.
        """
        unknown = [name for name in columns or () if name not in MEASUREMENT_SCHEMA.names]
        if unknown:
            known = ", ".join(MEASUREMENT_SCHEMA.names)
            raise ArchiveKeyError(f"no column {', '.join(unknown)}: the measurements have {known}")
        table = self._measurements if evaluations is None else self._measured_by(evaluations)
        if method is not None:
            table = table.filter(pc.equal(table.column("method"), method))
        return table if columns is None else table.select(list(columns))

    def rows(self, columns: Sequence[str] | None = None) -> pa.Table:
        """All published rows, the oldest run first.

        Args:
            columns: names from ROW_SCHEMA; None for all.

        Raises:
            ArchiveKeyError: an unknown column.
            CorruptArchiveError: a file is missing or altered.
        """
        if columns is None:
            return self._rows
        unknown = [name for name in columns if name not in ROW_SCHEMA.names]
        if unknown:
            raise ArchiveKeyError(f"no column {', '.join(unknown)}: the rows have {', '.join(ROW_SCHEMA.names)}")
        return self._rows.select(list(columns))

    def sql(self, query: str, **params: Any) -> pa.Table:
        """Answer of DuckDB to a query over the tables `rows`, all published rows, and `measurements`.

        Both have run_id and row to be joined by. Measurements are as in `measurements()`; `all_measurements` has also
        what was measured again since, told apart by evaluation_id. They are read only for a query that names them.

        Args:
            query: SQL; parameters are written $name.
            params: value of each parameter.

        Raises:
            QueryError: DuckDB refuses the query; the message is DuckDB's.
            CorruptArchiveError: a file is missing or altered.
        """
        with duckdb.connect(config={"python_enable_replacements": False}) as connection:
            connection.register("rows", self._rows)
            if "measurements" in query.lower():
                connection.register("measurements", self._measurements)
                connection.register("all_measurements", pa.concat_tables(self._measurement_tables))
            try:
                answer = connection.sql(query, params=params) if params else connection.sql(query)
                return pa.table({}) if answer is None else answer.to_arrow_table()
            except duckdb.Error as error:
                raise QueryError(f"{self.url}: the query was refused: {error}") from error

    def codes(self, image_ids: Sequence[str], method: str) -> Floats:
        """W+ codes of images.

        Args:
            image_ids: N ids, in any order, also repeated.
            method: name or digest of the method.

        Returns:
            [N, K, D], float32, in the order of the ids.

        Raises:
            ArchiveKeyError: an unknown method or image, or an image that failed; the message says why it did.
            CorruptArchiveError: an object is missing or damaged.
        """
        places = [self._place(image_id, method) for image_id in image_ids]
        return self._gather(places, W_PLUS, (self.geometry.num_ws, self.geometry.w_dim))

    def noise(self, image_ids: Sequence[str], method: str) -> list[Floats]:
        """Noise maps of images; those of an edit are the inversion's.

        Args:
            image_ids: N ids.
            method: name or digest of the method.

        Returns:
            One array [N, r, r] for each side r of `geometry.noise_sides`, float32.

        Raises:
            ArchiveKeyError: as in `codes`, or the run kept no noise maps.
            CorruptArchiveError: an object is missing or damaged.
        """
        places = [self._inverted(*self._place(image_id, method)) for image_id in image_ids]
        sides = self.geometry.noise_sides
        return [self._gather(places, noise_name(i), (side, side)) for i, side in enumerate(sides)]

    def images(self, image_ids: Sequence[str], method: str) -> list[bytes]:
        """Kept images of an edit, as PNG files.

        Args:
            image_ids: N ids.
            method: name or digest of the edited method, such as "lsap_e/slant".

        Raises:
            ArchiveKeyError: as in `codes`, or the run kept no images.
            CorruptArchiveError: an object is missing.
        """
        places = [self._place(image_id, method) for image_id in image_ids]
        return in_threads(lambda place: self._image(*place), places)

    def trace(self, image_ids: Sequence[str], method: str) -> Trace:
        """Objective terms of images along the optimization.

        Args:
            image_ids: N ids, at least one.
            method: name or digest of the method.

        Raises:
            ArchiveKeyError: as in `codes`, or no ids, or the run kept no trace.
            ArchiveMismatchError: the images come from runs with different steps or terms.
            CorruptArchiveError: an object is missing or damaged.
        """
        places = [self._place(image_id, method) for image_id in image_ids]
        kinds = {(self._manifests[run].trace_steps, self._manifests[run].trace_terms) for run, _ in places}
        if len(kinds) > 1:
            raise ArchiveMismatchError(
                f"{self.url}: the images come from {len(kinds)} runs with different traces: ask by method digest"
            )
        if not kinds:
            raise ArchiveKeyError(f"{self.url}: no image ids were given: a trace needs at least one")
        steps, terms = kinds.pop()
        return Trace(self._gather(places, TRACE, (len(steps), len(terms))), steps, terms)

    def nearest(self, code: NDArray[Any], k: int, method: str) -> pa.Table:
        """The images whose codes are nearest, by exact comparison with every code, shard by shard.

        The distance is the Euclidean one in W+, over all K x D values, in float64. Duplicates are left out:
        their code is that of another image.

        Args:
            code: [K, D], or [D] in W, which stands for K equal rows.
            k: how many, at least 1.
            method: name or digest of the method.

        Returns:
            A pyarrow table of min(k, images) rows: image_id, distance (float64), uri, run_id, row; nearest
            first, equal distances in the order of the ids.

        Raises:
            ArchiveKeyError: an unknown method.
            ArchiveMismatchError: another shape, a value that is not finite, or k below 1.
            CorruptArchiveError: an object is missing or damaged.
        """
        wanted = (self.geometry.num_ws, self.geometry.w_dim)
        target = np.asarray(code, dtype=np.float64)
        if target.shape not in (wanted, wanted[1:]) or not np.isfinite(target).all():
            raise ArchiveMismatchError(f"the code is {target.shape}: finite {wanted} or {wanted[1:]} is wanted")
        if k < 1:
            raise ArchiveMismatchError(f"k is {k}: at least 1 is wanted")
        best: list[tuple[float, str, int]] = []
        for indices, values in self._ok_codes(method):
            difference = values - target
            distances = np.sqrt(np.einsum("nkd,nkd->n", difference, difference))
            ids = self._rows.column("image_id").take(pa.array(indices)).to_pylist()
            best += zip(distances.tolist(), ids, indices, strict=True)
            best = sorted(best)[:k]
        found = self._rows.take(pa.array([index for _, _, index in best], pa.int64()))
        table = found.select(["image_id", "uri", "run_id", "row"])
        return table.add_column(1, "distance", pa.array([distance for distance, _, _ in best], pa.float64()))

    def array(self, run_id: str, name: str) -> zarr.Array[Any]:
        """An array of a published run, lazily: "w_plus", "noise_00", ..., "trace".

        Raises:
            ArchiveKeyError: no such published run or array.
        """
        run = next((i for i, one in enumerate(self._manifests) if one.run_id == run_id), None)
        if run is None:
            raise ArchiveKeyError(f"{self.url} has no published run {run_id}: it has {self._names_of_runs()}")
        return self._array(run, name)

    def describe(self) -> dict[str, Any]:
        """What the archive holds, as JSON values: generator, geometry, rows by method and status, bytes."""
        methods: dict[str, dict[str, Any]] = {}
        edits: dict[str, dict[str, Any]] = {}
        for manifest in self._manifests:
            of_kind = methods if manifest.subject is None else edits
            about = of_kind.setdefault(manifest.method, {"runs": 0, **dict.fromkeys(STATUSES, 0)})
            about["runs"] += 1
            for status in STATUSES:
                about[status] += manifest.rows_by_status[status]
        return {
            "url": self.url,
            "format_version": decode_document(self._store.get(ARCHIVE_KEY), ARCHIVE_KEY)["format_version"],
            "generator": dict(self.generator),
            "geometry": self.geometry.to_dict(),
            "num_runs": len(self._manifests),
            "num_rows": sum(manifest.num_rows for manifest in self._manifests),
            "num_bytes": sum(file.size for manifest in self._manifests for file in manifest.files),
            "methods": {name: methods[name] for name in sorted(methods)},
            "edits": {name: edits[name] for name in sorted(edits)},
            "num_evaluations": len(self.evaluations),
        }

    @cached_property
    def _rows(self) -> pa.Table:
        tables = [table for tables in self._tables for table in tables]
        return pa.concat_tables([ROW_SCHEMA.empty_table(), *tables]).combine_chunks()

    @cached_property
    def _measurements(self) -> pa.Table:
        return newest_measurements(self.evaluations, self._measurement_tables[1:]).combine_chunks()

    @cached_property
    def _measurement_tables(self) -> list[pa.Table]:
        """An empty one, and that of each evaluation."""
        return [MEASUREMENT_SCHEMA.empty_table(), *(read_measurements(self._store, one) for one in self.evaluations)]

    def _measured_by(self, evaluation_ids: Sequence[str]) -> pa.Table:
        known = {info.evaluation_id: info for info in self.evaluations}
        for evaluation_id in evaluation_ids:
            if evaluation_id not in known:
                raise ArchiveKeyError(f"{self.url} has no published evaluation {evaluation_id}: see evaluations")
        wanted = [read_measurements(self._store, known[one]) for one in dict.fromkeys(evaluation_ids)]
        return pa.concat_tables([MEASUREMENT_SCHEMA.empty_table(), *wanted])

    @cached_property
    def _tables(self) -> list[list[pa.Table]]:
        return [read_row_tables(self._store, manifest) for manifest in self._manifests]

    @cached_property
    def _run_of_row(self) -> NDArray[np.int64]:
        lengths = [sum(table.num_rows for table in tables) for tables in self._tables]
        return np.repeat(np.arange(len(lengths)), lengths)

    @cached_property
    def _row_in_run(self) -> NDArray[np.int64]:
        return np.asarray(self._rows.column("row").to_numpy(), dtype=np.int64)

    @cached_property
    def _status(self) -> list[str]:
        statuses: list[str] = self._rows.column("status").to_pylist()
        return statuses

    def _runs_of(self, method: str) -> list[int]:
        runs = [i for i, one in enumerate(self._manifests) if method in (one.method, one.method_digest)]
        if not runs:
            known = ", ".join([*self.methods, *self.edits]) or "none"
            raise ArchiveKeyError(f"{self.url} has no published run of method {method}: it has {known}")
        return runs

    def _indices_of(self, method: str) -> dict[str, list[int]]:
        """Image id to the indices of its rows of one method, the newest last."""
        if method not in self._indices:
            runs = self._runs_of(method)
            indices = np.flatnonzero(np.isin(self._run_of_row, runs))
            ids = self._rows.column("image_id").take(pa.array(indices)).to_pylist()
            found: dict[str, list[int]] = {}
            for image_id, index in zip(ids, indices.tolist(), strict=True):
                found.setdefault(image_id, []).append(index)
            self._indices[method] = found
        return self._indices[method]

    def _row(self, index: int) -> dict[str, Any]:
        row: dict[str, Any] = self._rows.slice(index, 1).to_pylist()[0]
        return row

    def _place(self, image_id: str, method: str) -> tuple[int, int]:
        """Number of the run, and row in its arrays, where an image's code stands."""
        indices = self._indices_of(method)
        if image_id not in indices:
            raise ArchiveKeyError(f"{self.url} has no image {image_id} of method {method}: see rows() for the ids")
        index, seen = indices[image_id][-1], {image_id}
        while self._status[index] == DUPLICATE:
            index = self._original(index, method)
            original = self._row(index)["image_id"]
            if original in seen:
                raise CorruptArchiveError(f"{self.url}: image {image_id} is a duplicate of itself: run it again")
            seen.add(original)
        if self._status[index] != OK:
            row = self._row(index)
            also = "" if row["image_id"] == image_id else f" (it has the content of {row['image_id']})"
            sentence = f": {row['message']}" if row["message"] else ""
            raise ArchiveKeyError(
                f"image {image_id}{also} has no code of method {method}: it {row['status']} in run "
                f"{row['run_id']}, "
                f"reason {row['reason']}{sentence}"
            )
        return int(self._run_of_row[index]), int(self._row_in_run[index])

    def _inverted(self, run: int, row: int) -> tuple[int, int]:
        """The place of the inversion: of an edit that of its subject, whose rows are its own."""
        subject = self._manifests[run].subject
        if subject is None:
            return run, row
        found = next((i for i, one in enumerate(self._manifests) if one.run_id == subject.run_id), None)
        if found is None:
            raise CorruptArchiveError(
                f"{self.url}: run {self._manifests[run].run_id} edits run {subject.run_id}, which is gone: "
                "restore it from a copy"
            )
        return found, row

    def _image(self, run: int, row: int) -> bytes:
        run_id, name = self._manifests[run].run_id, image_name(row)
        if name not in self._objects[run].sizes:
            raise ArchiveKeyError(f"run {run_id} kept no image of row {row}: make it from codes and noise")
        key = f"{run_prefix(run_id)}/{name}"
        try:
            return self._store.get(key)
        except ArchiveNotFoundError as error:
            raise CorruptArchiveError(f"{self._store.join(key)} is missing: restore it from a copy") from error

    def _original(self, index: int, method: str) -> int:
        """Index of the row that a duplicate's row stands for.

        In the same run if it is there, else the newest of the same content, else the newest.
        """
        row = self._row(index)
        candidates = self._indices_of(method).get(row["duplicate_of"], [])
        if not candidates:
            raise ArchiveKeyError(
                f"image {row['image_id']} is a duplicate of {row['duplicate_of']}, of which {self.url} has "
                "no row "
                f"of method {method}: run that image"
            )
        in_run = [one for one in candidates if self._run_of_row[one] == self._run_of_row[index]]
        same_content = [one for one in candidates if self._row(one)["digest"] == row["digest"]]
        return (in_run or same_content or candidates)[-1]

    def _ok_codes(self, method: str) -> Iterator[tuple[list[int], NDArray[np.float64]]]:
        """Row indices and codes of every image's newest ok row, block by block."""
        newest = sorted(indices[-1] for indices in self._indices_of(method).values())
        indices = np.array([index for index in newest if self._status[index] == OK], dtype=np.int64)
        rows = self._row_in_run[indices]
        block = max(_BLOCK_VALUES // (self.geometry.num_ws * self.geometry.w_dim), 1)
        for run in self._runs_of(method):
            of_run = self._run_of_row[indices] == run
            for shard, places in self._by_shard(run, rows[of_run]):
                for start in range(0, len(places), block):
                    part = places[start : start + block]
                    values = self._read(run, W_PLUS, shard, rows[of_run][part])
                    yield indices[of_run][part].tolist(), values.astype(np.float64)

    def _gather(self, places: list[tuple[int, int]], name: str, shape: tuple[int, ...]) -> Floats:
        """Values of an array at (run, row) places, [N, *shape], each shard opened once."""
        values = np.empty((len(places), *shape), dtype=np.float32)
        runs = np.array([run for run, _ in places], dtype=np.int64)
        rows = np.array([row for _, row in places], dtype=np.int64)
        for run in np.unique(runs).tolist():
            of_run = np.flatnonzero(runs == run)
            for shard, part in self._by_shard(run, rows[of_run]):
                values[of_run[part]] = self._read(run, name, shard, rows[of_run[part]])
        return values

    def _by_shard(self, run: int, rows: NDArray[np.int64]) -> Iterable[tuple[int, NDArray[np.int64]]]:
        shards = rows // self._manifests[run].shard_rows
        return [(shard, np.flatnonzero(shards == shard)) for shard in np.unique(shards).tolist()]

    def _read(self, run: int, name: str, shard: int, rows: NDArray[np.int64]) -> Floats:
        array = self._array(run, name)
        run_id = self._manifests[run].run_id
        chunk = chunk_name(name, shard, array.ndim)
        if chunk not in self._objects[run].sizes:
            raise ArchiveKeyError(f"run {run_id} kept no {name} for shard {shard}: ask for a run that did")
        return read_rows(array, rows, self._store.join(f"{run_prefix(run_id)}/{chunk}"))

    def _array(self, run: int, name: str) -> zarr.Array[Any]:
        if (run, name) not in self._arrays:
            if f"{name}/zarr.json" not in self._objects[run].sizes:
                raise ArchiveKeyError(f"run {self._manifests[run].run_id} has no array {name}")
            self._arrays[run, name] = open_published(self._objects[run], name)
        return self._arrays[run, name]

    def _names_of_runs(self) -> str:
        return ", ".join(manifest.run_id for manifest in self._manifests) or "none"
