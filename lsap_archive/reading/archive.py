"""Reading an archive: rows, SQL, codes by image id, nearest codes. Needs no torch and no cluster."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import zarr
from numpy.typing import NDArray

from lsap_archive.errors import (
    HOW_TO_REPAIR,
    ArchiveKeyError,
    ArchiveMismatchError,
    CorruptArchiveError,
)
from lsap_archive.format.arrays import trace_of
from lsap_archive.format.documents import decode_document
from lsap_archive.format.evaluations import EvaluationInfo
from lsap_archive.format.layout import (
    ARCHIVE_KEY,
    EVALUATIONS_PREFIX,
    RUNS_PREFIX,
    TRACE,
    W_PLUS,
    Geometry,
    chunk_name,
    image_name,
    noise_name,
    rows_name,
    rows_of_shard,
    run_prefix,
)
from lsap_archive.format.manifest import Manifest
from lsap_archive.format.measurements import MEASUREMENT_SCHEMA
from lsap_archive.format.rows import DUPLICATE, OK, ROW_SCHEMA, STATUSES
from lsap_archive.format.subject import Subject
from lsap_archive.reading.arrays import PublishedObjects, open_published, read_rows
from lsap_archive.reading.checked import read_checked, read_header
from lsap_archive.reading.dataset import run_dataset
from lsap_archive.reading.evaluations import measurement_parts, newest_measurements, read_evaluations
from lsap_archive.reading.files import files_of
from lsap_archive.reading.kept import read_kept_anchor
from lsap_archive.reading.lost import refuse_lost, refuse_vanished
from lsap_archive.reading.nearest.answers import answer_table
from lsap_archive.reading.nearest.search import NearestCodes
from lsap_archive.reading.nearest.spaces import Metric, Space
from lsap_archive.reading.nearest.stored import StoredCodes
from lsap_archive.reading.previews import KeptPreviews, preview_bytes
from lsap_archive.reading.published_tables import evaluations_table, runs_table
from lsap_archive.reading.queries import Queries
from lsap_archive.reading.retirement import (
    RetiredShards,
    hidden_of,
    may_be_twice,
    retired_by_run,
    visible_manifest,
)
from lsap_archive.reading.row_columns import RowColumns, RowFile
from lsap_archive.reading.row_table import RowPlace, RowTable, Suspect
from lsap_archive.reading.run_reader import RunReader
from lsap_archive.reading.sets import SET_SCHEMA, ImageSet, image_sets, read_states, with_set_numbers
from lsap_archive.reading.whole_shards import decoded_shard
from lsap_archive.stores.concurrency import in_threads
from lsap_archive.stores.store import Store

if TYPE_CHECKING:
    import xarray


@dataclass(frozen=True)
class RunInfo:
    """A published run.

    Attributes:
        run_id: its name.
        method: published name of the method.
        method_digest: digest of everything that decides its results.
        created: UTC time of publication by the clock of whoever published it, ISO 8601.
        order: sorts runs, the newest last.
        num_rows: images in it.
        num_bytes: of all that is stored of it.
        rows_by_status: number of rows of each status, those of retired shards included.
        config: the configuration.
        provenance: versions, digests, seeds.
        summary: what the flow had to say.
        subject: of a refinement or an edit, what it is made of; None for an inversion.
    """

    run_id: str
    method: str
    method_digest: str
    created: str
    order: tuple[int, str, str]
    num_rows: int
    num_bytes: int
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

    values: NDArray[np.float32]
    steps: tuple[int, ...]
    terms: tuple[str, ...]


def is_archive(url: str, storage_options: Mapping[str, Any] | None = None) -> bool:
    """Whether there is an archive at `url`.

    Raises:
        StoreUnavailableError: the store does not answer or refuses.
    """
    return Store.from_url(url, storage_options).exists(ARCHIVE_KEY)


def read_anchor(url: str, digest: str, storage_options: Mapping[str, Any] | None = None) -> bytes:
    """A kept anchor of the archive at `url`, the bytes of an .npz file.

    Raises:
        ArchiveNotFoundError: the archive does not have it.
        CorruptArchiveError: it or its copy is altered.
        StoreUnavailableError: the store does not answer or refuses.
    """
    return read_kept_anchor(Store.from_url(url, storage_options), digest)


def open_archive(url: str, storage_options: Mapping[str, Any] | None = None) -> Archive:
    """The archive at `url`, as it is published now; runs published later need another call.

    Args:
        url: a local path, or file://, memory:// or s3://bucket/prefix.
        storage_options: for s3, what s3fs takes.

    Raises:
        ArchiveNotFoundError: no archive is there.
        ArchiveMismatchError: it is of another version of the format.
        CorruptArchiveError: archive.json or a manifest is damaged, or something that was published is gone.
        StoreUnavailableError: the store does not answer or refuses.

    Example:
        >>> import numpy as np, pyarrow as pa
        >>> from lsap_archive import ArchiveWriter, Geometry, PlannedRow, RunPlan, code_arrays
        >>> geometry = Geometry(num_ws=2, w_dim=3, noise_sides=())
        >>> writer = ArchiveWriter.open("memory://doctest", generator_digest="9f", generator_name="tiny",
        ...                             geometry=geometry)
        >>> images = (PlannedRow(0, "anna", "/anna.png", "d0"), PlannedRow(1, "bert", "/bert.png", "d1"))
        >>> run = writer.start_run(RunPlan("first", "lsap_e", "4a", {}, {}, images, code_arrays(geometry)))
        >>> rows = pa.table({"status": ["ok", "ok"], "lpips": [0.25, 0.5]})
        >>> codes = np.arange(12, dtype=np.float32).reshape(2, 2, 3)
        >>> run.write_shard(0, {"w_plus": codes}, rows, attempt="1"), run.publish({})
        (True, True)
        >>> archive = open_archive("memory://doctest")
        >>> archive.codes(["bert"], "lsap_e")[0]
        array([[ 6.,  7.,  8.],
               [ 9., 10., 11.]], dtype=float32)
        >>> archive.sql("SELECT image_id FROM latest WHERE lpips < $bound", bound=0.4).to_pylist()
        [{'image_id': 'anna'}]
    """
    store = Store.from_url(url, storage_options)
    generator, geometry = read_header(store)

    names = store.folders(RUNS_PREFIX)
    found = in_threads(lambda run_id: visible_manifest(store, Manifest, run_id), names)
    manifests = [one for one in found if one]
    refuse_lost(store, Manifest.kind, set(names) - {one.run_id for one in manifests})
    refuse_vanished(store, {one.sequence for one in manifests})
    order = {one.run_id: one.order for one in manifests}

    def age(one: Manifest) -> list[tuple[Any, ...]]:  # as old as what it is made of: of an image the newest counts
        return [order.get(run_id, one.order) for run_id in reversed(one.lineage)]

    return Archive(store, generator, geometry, sorted(manifests, key=age))


class Archive:
    """Published results, read-only. Build it with `open_archive`.

    A method is named by its name ("lsap_e": all its runs) or by its digest (only runs of that configuration).
    Where several runs of it hold an image, because its content changed or it was run again, the run published
    last counts: `rows` shows that one, with `history=True` all, as the tables `latest` and `history` of `sql` do. What
    two commands at once put there twice, with the same content, is shown once. A duplicate has the code of the image it
    duplicates. An edit is named after its method ("lsap_e/slant"), a refinement after its inversion ("lsap_e/pti");
    their noise is that of the inversion.

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
        self._objects = [PublishedObjects(store, run_prefix(one.run_id), one.files) for one in self._manifests]
        self._arrays: dict[tuple[int, str], zarr.Array[Any]] = {}

    def __repr__(self) -> str:
        return f"Archive({self.url!r}, {len(self._manifests)} runs)"

    @property
    def runs(self) -> list[RunInfo]:
        """Published runs, the oldest first."""
        names = RunInfo.__dataclass_fields__
        return [RunInfo(**{name: getattr(manifest, name) for name in names}) for manifest in self._manifests]

    @property
    def methods(self) -> list[str]:
        """Names of the methods with published inversions, refined ones such as "lsap_e/pti" among them, sorted."""
        return sorted({manifest.method for manifest in self._manifests if not manifest.is_edit})

    @property
    def edits(self) -> list[str]:
        """Names of the methods with a published edit, such as "lsap_e/slant", sorted."""
        return sorted({manifest.method for manifest in self._manifests if manifest.is_edit})

    @cached_property
    def evaluations(self) -> list[EvaluationInfo]:
        """Evaluations that are published when this is first asked for, the oldest first.

        Of several by one network of a method the newest has the number of all images that readers see in its `summary`,
        if it is known, and the others have none: see `sets`.
        """
        return with_set_numbers(self._published_evaluations, self.sets)

    @cached_property
    def sets(self) -> list[ImageSet]:
        """Set-level numbers, such as a Fréchet distance: one for each method and network, over all that readers see.

        Where one is not known, as after a shard was retired, `problem` says why; `lsap run evaluate` finds it again.

        Raises:
            CorruptArchiveError: an evaluation's manifest or a kept number is damaged.
        """
        twice = {
            manifest.run_id: self._rows.twice_in(run).tolist()
            for run, manifest in enumerate(self._manifests)
            if may_be_twice(manifest, self._retired)
        }
        return image_sets(self._store, self._manifests, self._published_evaluations, self._hidden, twice)

    def states(self, of: ImageSet) -> Iterator[bytes]:
        """The sums that make up a set, a shard at a time; bytes of .npz files, to be added up.

        Raises:
            CorruptArchiveError: one is missing or altered.
        """
        return read_states(self._store, of, self._published_evaluations)

    def set_numbers(self) -> pa.Table:
        """`sets` as a table in SET_SCHEMA, one row for each; also the table `set_numbers` in `sql`."""
        return pa.Table.from_pylist([one.to_row() for one in self.sets], SET_SCHEMA)

    def measurements(
        self,
        columns: Sequence[str] | None = None,
        *,
        method: str | None = None,
        evaluations: Sequence[str] | None = None,
    ) -> pa.Table:
        """What evaluations have measured of the newest row of each method and image, once: what the newest one has.

        Args:
            columns: names from MEASUREMENT_SCHEMA; None for all.
            method: only of this method or edit, by name.
            evaluations: ids; all that these have measured, also of rows that are not the newest, and if it was measured
                again since.

        Raises:
            ArchiveKeyError: an unknown column or evaluation.
            CorruptArchiveError: a file is missing or altered.
        """
        self._check_measured(columns or ())
        table = self._measurements if evaluations is None else self._measured_by(evaluations)
        if method is not None:
            table = table.filter(pc.equal(table.column("method"), method))
        return table if columns is None else table.select(list(columns))

    def measurement_parts(self, columns: Sequence[str], *, evaluations: Sequence[str]) -> Iterator[pa.Table]:
        """`measurements` of evaluations in parts of some shards, so that not all of them are in memory at once.

        Args:
            columns: names from MEASUREMENT_SCHEMA.
            evaluations: ids.

        Raises:
            ArchiveKeyError: an unknown column or evaluation.
            CorruptArchiveError: a file is missing or altered.
        """
        self._check_measured(columns)
        for info in self._evaluations_of(evaluations):
            yield from self._parts_of(info, columns)

    def rows(self, columns: Sequence[str] | None = None, *, history: bool = False) -> pa.Table:
        """The newest row of each method and image, the oldest run first.

        They are in memory then, about 300 bytes each; `sql` and reading by id need bounded memory however many there
        are.

        Args:
            columns: names from ROW_SCHEMA; None for all.
            history: all published rows instead, also of images that were inverted again since.

        Raises:
            ArchiveKeyError: an unknown column.
            CorruptArchiveError: a file is missing or altered.
        """
        unknown = [name for name in columns or () if name not in ROW_SCHEMA.names]
        if unknown:
            raise ArchiveKeyError(f"no column {', '.join(unknown)}: the rows have {', '.join(ROW_SCHEMA.names)}")
        return self._rows.table(ROW_SCHEMA.names if columns is None else list(columns), history=history)

    def files(self, table: str) -> list[str]:
        """URLs of the Parquet files of what is published, for other readers, such as `polars.scan_parquet`.

        An empty file that has all columns comes first where the archive has one. Rows that count in another run are in
        the files, too; the list `published/rows.parquet` tells which these are.

        Args:
            table: "rows" or "measurements".

        Raises:
            ArchiveKeyError: another table.
        """
        return files_of(table, self._store, self._manifests, self._hidden, self._published_evaluations)

    def rows_left_out(self, run_id: str) -> list[int]:
        """Rows of a published run that readers do not see, because an older one has them with the same content.

        Raises:
            ArchiveKeyError: no such published run.
        """
        rows: list[int] = self._rows.twice_in(self._published_run(run_id)).tolist()
        return rows

    def sql(self, query: str, **params: Any) -> pa.Table:
        """Answer of DuckDB to a query, which reads these tables and nothing else; several threads may ask at once.

        `latest` has the newest row of each method and image (`rows` is the same), `history` all published rows; both
        have run_id and row to be joined by. `measurements` has what evaluations measured of `latest`, and of synthetic
        images, whose run_id is null, as `measurements()`; `all_measurements` also what was measured again since, and of
        other rows, told apart by evaluation_id. `runs` and `evaluations` have dates and settings, `set_numbers` what is
        no mean over images, such as a Fréchet distance. Only what a query names is read.

        Args:
            query: SQL, one select; parameters are written $name.
            params: value of each parameter.

        Raises:
            QueryError: DuckDB refuses the query, and says why; it does more than read; or it uses `value` of a measure
                that several networks measured, and does not name `by`.
            CorruptArchiveError: a file is missing or altered.
        """
        return self._queries.table(query, params)

    def sql_batches(self, query: str, **params: Any) -> AbstractContextManager[pa.RecordBatchReader]:
        """The answer of `sql` a batch at a time, for answers that need not fit into memory.

        Args:
            query: as in `sql`.
            params: value of each parameter.

        Raises:
            QueryError: as `sql`, also while the answer is read.
            CorruptArchiveError: a file is missing or altered.

        Example:
            with archive.sql_batches("select image_id, lpips from latest") as batches:
                for batch in batches:
                    ...
        """
        return self._queries.batches(query, params)

    @cached_property
    def _queries(self) -> Queries:
        others = {
            "runs": lambda: runs_table(self._manifests, [self._counts_of(one) for one in self._manifests]),
            "evaluations": self._evaluations_table,
            "measurements": lambda: self._measurements,
            "all_measurements": lambda: pa.concat_tables(self._measurement_tables),
            "set_numbers": self.set_numbers,
        }
        return Queries(self.url, self._rows, others)

    def _evaluations_table(self) -> pa.Table:
        measured = [
            {(measure, by or "") for part in self._parts_of(one, ["measure", "by"]) for measure, by in _pairs_of(part)}
            for one in self._published_evaluations
        ]
        return evaluations_table(self.evaluations, measured)

    def codes(self, image_ids: Sequence[str], method: str) -> NDArray[np.float32]:
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
        places = self._places(image_ids, method)
        return self._gather(places, W_PLUS, (self.geometry.num_ws, self.geometry.w_dim))

    def has_noise(self, image_ids: Sequence[str], method: str) -> list[bool]:
        """Whether images have noise maps of their own; the generator's constant ones belong to the others.

        Runs of one method differ in it where they were asked to keep noise in another way.

        Args:
            image_ids: N ids.
            method: name or digest of the method.

        Raises:
            ArchiveKeyError: as in `codes`.
        """
        places = self._inverted_at(image_ids, method)
        has = {run: self._objects[run].has_chunks_of(noise_name(0)) for run, _ in places}
        return [has[run] for run, _ in places]

    def noise(self, image_ids: Sequence[str], method: str) -> list[NDArray[np.float32]]:
        """Noise maps of images; those of an edit are the inversion's.

        Args:
            image_ids: N ids.
            method: name or digest of the method.

        Returns:
            One array [N, h, w] for each of `geometry.noise_sizes`, float32, whatever they are kept as.

        Raises:
            ArchiveKeyError: as in `codes`, or the run kept no noise maps.
            CorruptArchiveError: an object is missing or damaged.
        """
        places = self._inverted_at(image_ids, method)
        sizes = enumerate(self.geometry.noise_sizes)
        return [self._gather(places, noise_name(index), size) for index, size in sizes]

    def _inverted_at(self, image_ids: Sequence[str], method: str) -> list[tuple[int, int]]:
        """Number of the inversion, and row in its arrays, that images of a method come from."""
        inversion_of = {one.run_id: one.inversion for one in self._manifests}
        return self._made_of(self._places(image_ids, method), inversion_of)

    def refined(self, image_ids: Sequence[str], method: str) -> dict[str, NDArray[np.float32]]:
        """What a refinement keeps of images, its codes among it; of an edit what its refinement does.

        Args:
            image_ids: N ids, at least one.
            method: name or digest of a refinement ("lsap_e/pti"), or of an edit of one.

        Returns:
            The arrays that it declares, by name, each [N, ...], float32.

        Raises:
            ArchiveKeyError: as in `codes`, or the images are not refined.
            ArchiveMismatchError: the images come from runs that keep other arrays.
            CorruptArchiveError: an object is missing or damaged.
        """
        refinement_of = {one.run_id: one.refinement for one in self._manifests}
        places = self._made_of(self._places(image_ids, method), refinement_of)
        kinds = {
            tuple((one.name, one.item_shape) for one in self._manifests[run].arrays if one.name != TRACE)
            for run, _ in places
        }
        if len(kinds) != 1:
            raise ArchiveMismatchError(
                f"{self.url}: the images come from runs that keep {len(kinds)} kinds of arrays: ask by method digest"
            )
        return {name: self._gather(places, name, shape) for name, shape in kinds.pop()}

    def images(self, image_ids: Sequence[str], method: str) -> list[bytes]:
        """Kept images of an edit or a refinement, as PNG files.

        Args:
            image_ids: N ids.
            method: name or digest of the edited method, such as "lsap_e/slant".

        Raises:
            ArchiveKeyError: as in `codes`, or the run kept no images.
            CorruptArchiveError: an object is missing or altered.
        """
        places = self._places(image_ids, method)
        return in_threads(lambda place: self._image(*place), places)

    def kept_images(self, image_ids: Sequence[str], method: str) -> list[bytes | None]:
        """As `images`, with None where the run kept none.

        Args:
            image_ids: N ids.
            method: name or digest of a method, of an inversion too.

        Raises:
            ArchiveKeyError: as in `codes`.
            CorruptArchiveError: an object is missing or altered.
        """
        places = self._places(image_ids, method)
        return in_threads(
            lambda place: self._image(*place) if image_name(place[1]) in self._objects[place[0]].files else None, places
        )

    def previews(self, image_ids: Sequence[str], method: str) -> list[bytes | None]:
        """Small pictures that runs kept of what a method made of images, as WebP files.

        Args:
            image_ids: N ids.
            method: name or digest of an inversion, a refinement or an edit.

        Returns:
            One file for each id; None where none was kept, or the image has no code of the method. Duplicates have that
            of their original.

        Raises:
            ArchiveKeyError: an unknown method.
            CorruptArchiveError: previews are altered.
        """
        return self._previews.pictures(image_ids, self._runs_of(method))

    def original_previews(self, image_ids: Sequence[str]) -> list[bytes | None]:
        """Small pictures of images before they were inverted, as WebP files, from the newest run that kept one.

        Args:
            image_ids: N ids.

        Returns:
            One file for each id; None where no run kept one.

        Raises:
            CorruptArchiveError: previews are altered.
        """
        return self._previews.originals(image_ids)

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
        places = self._places(image_ids, method)
        kinds = {trace_of(self._manifests[run].arrays) for run, _ in places}
        if len(kinds) > 1:
            raise ArchiveMismatchError(
                f"{self.url}: the images come from {len(kinds)} runs with different traces: ask by method digest"
            )
        if not kinds:
            raise ArchiveKeyError(f"{self.url}: no image ids were given: a trace needs at least one")
        steps, terms = kinds.pop()
        return Trace(self._gather(places, TRACE, (len(steps), len(terms))), steps, terms)

    def nearest(
        self,
        code: NDArray[Any],
        k: int,
        method: str,
        *,
        space: Space = "w_plus",
        metric: Metric = "euclidean",
        approximate: bool = False,
        stay: bool = True,
    ) -> pa.Table:
        """The images whose codes are nearest: exactly, unless an approximate answer is asked for.

        In "w_plus" all K x D values are compared, in "w" the mean of the K rows, in "s_n" the directions of the style
        vectors of the convolutions and the last ToRGB (of an edit in S: of its codes, without what it adds).
        "euclidean" is the length of the difference, "cosine" 1 - the cosine of the angle (in "s_n" the layers' mean).
        Answers are in float64, of codes in float32. Duplicates are left out: their code is that of another image.

        The first question reads the codes, which then stay in memory, if they take no more than half of what is free;
        else they are read again, block by block, each time. May be asked by several threads.

        Args:
            code: [K, D], or [D] in W, which stands for K equal rows; or several codes [N, K, D].
            k: how many, at least 1.
            method: name or digest of the method.
            space: what is compared.
            metric: how.
            approximate: whether the index of `lsap-archive index` proposes which codes are compared: sooner, and some
                may be missed.
            stay: False reads only what this question needs and keeps nothing, for whoever has but one.

        Returns:
            A pyarrow table of min(k, images) rows: image_id, distance (float64), uri, run_id, row; nearest
            first, equal distances in the order of the ids. For several codes as many of each, with a column `query`
            that counts them from 0. Its metadata say how it was found: `about_answer`.

        Raises:
            ArchiveKeyError: an unknown method.
            ArchiveMismatchError: another shape, a value that is not finite, k below 1, an unknown space or metric, or
                an index that the installed library cannot read.
            ArchiveNotFoundError: there is no index of just these codes, or for S^N the archive lacks the layers.
            CorruptArchiveError: an object is missing or damaged.
        """
        answer = self.nearest_codes.ask(code, k, method, space, metric, approximate=approximate, stay=stay)
        asked = range(len(answer.found)) if np.ndim(code) == 3 else None
        return answer_table(answer, k, self._rows, asked)

    def nearest_to_images(
        self,
        image_ids: Sequence[str],
        k: int,
        method: str,
        *,
        space: Space = "w_plus",
        metric: Metric = "euclidean",
        approximate: bool = False,
        stay: bool = True,
    ) -> pa.Table:
        """The images whose codes are nearest to those of some images, by the same method; each is its own nearest.

        Args:
            image_ids: at least one.
            k: as in `nearest`, like all that follows.
            method: name or digest of the method.
            space: what is compared.
            metric: how.
            approximate: whether an index may be used.
            stay: whether codes stay in memory.

        Returns:
            As of several codes in `nearest`, with the ids in the column `query`.

        Raises:
            ArchiveKeyError: as `codes`; the others as `nearest`.
        """
        codes = self.codes(image_ids, method)
        answer = self.nearest_codes.ask(codes, k, method, space, metric, approximate=approximate, stay=stay)
        return answer_table(answer, k, self._rows, list(image_ids))

    @cached_property
    def nearest_codes(self) -> NearestCodes:
        """What `nearest` asks, and `build_index` reads, as long as there is this archive."""
        archive = weakref.proxy(self)  # no circle: codes and rows leave memory with the archive
        return NearestCodes(self._store, self.generator, self.geometry, lambda method: archive._stored_codes(method))

    def array(self, run_id: str, name: str) -> zarr.Array[Any]:
        """An array of a published run, lazily: "w_plus", "noise_00", ..., "trace".

        Raises:
            ArchiveKeyError: no such published run or array.
        """
        return self._array(self._published_run(run_id), name)

    def dataset(self, run_id: str) -> xarray.Dataset:
        """A published run of any version as `xarray.open_zarr` opens those of this one, lazily and checked.

        Arrays along `image`, with `image_id` beside it, and `step` and `term` of a trace; no dimension has two sizes.
        Of rows that are not ok, and of retired shards, it holds NaN, or 0 of integers. Needs xarray.

        Raises:
            ArchiveKeyError: no such published run.
            ArchiveMismatchError: xarray is not installed.
            CorruptArchiveError: an object is missing or altered, also while values are read later.

        Example:
            codes = archive.dataset("lsap_e-1").set_xindex("image_id").w_plus.sel(image_id="anna").values
        """
        self._published_run(run_id)
        return run_dataset(RunReader(self._store, run_id, self.geometry))

    def describe(self) -> dict[str, Any]:
        """What the archive holds, as JSON values: generator, geometry, rows by method and status, set numbers.

        `num_bytes` are those that are stored, `preview_bytes` those of them that are previews. `noise` of a method says
        what its images are rendered with: maps of their own, as "float32" or "float16", or the generator's "constant"
        ones; the column of the rows tells of each image.
        `fits`, where its runs tell, is what they did with images of another shape: with several, the column `altered`
        tells of each image.
        """
        methods: dict[str, dict[str, Any]] = {}
        edits: dict[str, dict[str, Any]] = {}
        counts = [self._counts_of(manifest) for manifest in self._manifests]
        for manifest, by_status in zip(self._manifests, counts, strict=True):
            of_kind = edits if manifest.is_edit else methods
            about = of_kind.setdefault(manifest.method, {"runs": 0, **dict.fromkeys(STATUSES, 0)})
            about["runs"] += 1
            about["num_bytes"] = about.get("num_bytes", 0) + manifest.num_bytes
            about["preview_bytes"] = about.get("preview_bytes", 0) + preview_bytes(manifest)
            if manifest.subject is None:
                about["noise"] = sorted({*about.get("noise", ()), self._noise_of(manifest)})
            for status, number in by_status.items():
                about[status] += number
            if "fit" in manifest.config:
                about["fits"] = sorted({*about.get("fits", ()), manifest.config["fit"]})
        return {
            "url": self.url,
            "format_version": decode_document(self._store.get(ARCHIVE_KEY), ARCHIVE_KEY)["format_version"],
            "generator": dict(self.generator),
            "geometry": self.geometry.to_dict(),
            "num_runs": len(self._manifests),
            "num_rows": sum(sum(by_status.values()) for by_status in counts),
            "num_bytes": sum(manifest.num_bytes for manifest in self._manifests),
            "methods": {name: methods[name] for name in sorted(methods)},
            "edits": {name: edits[name] for name in sorted(edits)},
            "num_evaluations": len(self._published_evaluations),
            "set_numbers": [
                {name: row[name] for name in ("method", "measure", "by", "value", "num_images", "problem")}
                for row in self.set_numbers().to_pylist()
            ],
        }

    @staticmethod
    def _noise_of(manifest: Manifest) -> str:
        kept = {array.name: array.dtype for array in manifest.arrays}
        first = noise_name(0)  # versions before 4 declared maps that encoders never kept
        is_kept = any(file.name.startswith(f"{first}/c/") for file in manifest.files)
        return kept[first] if is_kept else "constant"

    def _counts_of(self, manifest: Manifest) -> dict[str, int]:
        """Rows of a run that readers see, by status; they are read only where some are not seen."""
        if not self._hidden[manifest.run_id] and not may_be_twice(manifest, self._retired):
            return manifest.rows_by_status
        return self._rows.counts_in(self._numbers[manifest.run_id])

    @cached_property
    def _published_evaluations(self) -> list[EvaluationInfo]:
        """As their manifests have them; raises if one that was published has none any more."""
        found = read_evaluations(self._store)
        names = set(self._store.folders(EVALUATIONS_PREFIX))
        refuse_lost(self._store, EvaluationInfo.kind, names - {one.evaluation_id for one in found})
        return found

    @cached_property
    def _previews(self) -> KeptPreviews:
        return KeptPreviews(self._store, self._manifests, lambda: self._rows)

    @cached_property
    def _rows(self) -> RowTable:
        twice = [may_be_twice(one, self._retired) for one in self._manifests]
        digests = {one.method_digest for one, is_twice in zip(self._manifests, twice, strict=True) if is_twice}
        suspects = {
            run: Suspect(manifest.method_digest, twice[run])
            for run, manifest in enumerate(self._manifests)
            if manifest.method_digest in digests
        }
        columns = RowColumns(self._store, list(self._row_files()))
        return RowTable(columns, [manifest.method for manifest in self._manifests], suspects)

    def _row_files(self) -> Iterator[RowFile]:
        for run, manifest in enumerate(self._manifests):
            files = {file.name: file for file in manifest.files if file.name.startswith("rows/")}
            for shard in manifest.own_shards:
                if shard not in self._hidden[manifest.run_id] and (name := rows_name(shard)) in files:
                    rows = rows_of_shard(shard, manifest.shard_rows, manifest.num_rows)
                    yield RowFile(run, f"{run_prefix(manifest.run_id)}/{name}", files[name], rows)

    @cached_property
    def _numbers(self) -> dict[str, int]:
        """Numbers of the runs, the oldest first."""
        return {one.run_id: run for run, one in enumerate(self._manifests)}

    @cached_property
    def _measurements(self) -> pa.Table:
        tables = self._measurement_tables[1:]
        return newest_measurements(self._published_evaluations, tables, self._of_newest).combine_chunks()

    def _of_newest(self, info: EvaluationInfo, measured: pa.Table) -> pa.Table:
        """What was measured of rows that are the newest of their image and method, or of synthetic images."""
        if info.run_id is None or not measured.num_rows:
            return measured
        rows = self._rows.newest_in(self._numbers[info.run_id])
        return measured.filter(pc.is_in(measured.column("row"), pa.array(rows)))

    @cached_property
    def _measurement_tables(self) -> list[pa.Table]:
        """An empty one, and that of each evaluation."""
        return [MEASUREMENT_SCHEMA.empty_table(), *(self._measured_in(one) for one in self._published_evaluations)]

    def _check_measured(self, columns: Sequence[str]) -> None:
        unknown = [name for name in columns if name not in MEASUREMENT_SCHEMA.names]
        if unknown:
            known = ", ".join(MEASUREMENT_SCHEMA.names)
            raise ArchiveKeyError(f"no column {', '.join(unknown)}: the measurements have {known}")

    def _measured_in(self, info: EvaluationInfo) -> pa.Table:
        return pa.concat_tables([MEASUREMENT_SCHEMA.empty_table(), *self._parts_of(info, MEASUREMENT_SCHEMA.names)])

    def _parts_of(self, info: EvaluationInfo, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Measurements of an evaluation, without those of rows of the run that it measured which readers do not see."""
        parts = measurement_parts(self._store, info, list(dict.fromkeys([*columns, "row"])))
        if info.run_id is None:
            yield from (part.select(columns) for part in parts)
            return
        run = self._numbers.get(info.run_id)
        if run is None:
            return
        manifest = self._manifests[run]
        hidden = pa.array(sorted(self._hidden[info.run_id]), pa.int64())
        is_twice = may_be_twice(manifest, self._retired)
        for part in parts:
            shards = pc.divide(part.column("row"), manifest.shard_rows)
            part = part.filter(pc.invert(pc.is_in(shards, hidden)))
            if is_twice:
                part = part.filter(pc.invert(pc.is_in(part.column("row"), pa.array(self._rows.twice_in(run)))))
            yield part.select(columns)

    def _measured_by(self, evaluation_ids: Sequence[str]) -> pa.Table:
        wanted = [self._measured_in(one) for one in self._evaluations_of(evaluation_ids)]
        return pa.concat_tables([MEASUREMENT_SCHEMA.empty_table(), *wanted])

    def _evaluations_of(self, evaluation_ids: Sequence[str]) -> list[EvaluationInfo]:
        known = {info.evaluation_id: info for info in self._published_evaluations}
        for evaluation_id in evaluation_ids:
            if evaluation_id not in known:
                raise ArchiveKeyError(f"{self.url} has no published evaluation {evaluation_id}: see evaluations")
        return [known[one] for one in dict.fromkeys(evaluation_ids)]

    @cached_property
    def _hidden(self) -> dict[str, frozenset[int]]:
        """Retired shards by run."""
        return {one.run_id: hidden_of(one, self._retired) for one in self._manifests}

    @cached_property
    def _retired(self) -> dict[str, RetiredShards]:
        return retired_by_run(self._store, self._manifests)

    def _runs_of(self, method: str) -> list[int]:
        runs = [i for i, one in enumerate(self._manifests) if method in (one.method, one.method_digest)]
        if not runs:
            known = ", ".join([*self.methods, *self.edits]) or "none"
            raise ArchiveKeyError(f"{self.url} has no published run of method {method}: it has {known}")
        return runs

    def _places(self, image_ids: Sequence[str], method: str) -> list[tuple[int, int]]:
        """Number of the run, and row in its arrays, where each image's code stands."""
        runs = self._runs_of(method)
        found = self._rows.of_images(image_ids, runs)
        for image_id in image_ids:
            if image_id not in found:
                raise ArchiveKeyError(
                    f"{self.url} has no image {image_id} of method {method}: its table latest has the ids"
                )
        places = {image_id: rows[-1] for image_id, rows in found.items()}
        seen = {image_id: {image_id} for image_id in places}
        while duplicates := {name: one for name, one in places.items() if one.status == DUPLICATE}:
            originals = self._rows.of_images([str(one.duplicate_of) for one in duplicates.values()], runs)
            for image_id, one in duplicates.items():
                original = self._original(one, originals.get(str(one.duplicate_of), []), method)
                if original.image_id in seen[image_id]:
                    raise CorruptArchiveError(f"{self.url}: image {image_id} is a duplicate of itself: run it again")
                seen[image_id].add(original.image_id)
                places[image_id] = original
        for image_id in image_ids:
            self._check_ok(image_id, places[image_id], method)
        return [(places[image_id].run, places[image_id].row) for image_id in image_ids]

    def _original(self, one: RowPlace, candidates: list[RowPlace], method: str) -> RowPlace:
        """The row that a duplicate's row stands for.

        In the same run if it is there, else the newest of the same content, else the newest.
        """
        if not candidates:
            raise ArchiveKeyError(
                f"image {one.image_id} is a duplicate of {one.duplicate_of}, of which {self.url} has "
                f"no row of method {method}: run that image"
            )
        in_run = [row for row in candidates if row.run == one.run]
        if in_run:
            return in_run[-1]
        digests = self._rows.digests([one, *candidates])
        same_content = [row for row in candidates if digests[row.place] == digests[one.place]]
        return (same_content or candidates)[-1]

    def _check_ok(self, image_id: str, row: RowPlace, method: str) -> None:
        if row.status == OK:
            return
        original = row.image_id if row.duplicate_of is None else row.duplicate_of
        also = "" if original == image_id else f" (it has the content of {original})"
        told = self._rows.at([row.place], ["reason", "message"]).to_pylist()[0]
        sentence = f": {told['message']}" if told["message"] else ""
        raise ArchiveKeyError(
            f"image {image_id}{also} has no code of method {method}: it {row.status} in run "
            f"{self._manifests[row.run].run_id}, reason {told['reason']}{sentence}"
        )

    def _made_of(self, places: list[tuple[int, int]], by_run: Mapping[str, str | None]) -> list[tuple[int, int]]:
        """The same rows in the runs that theirs are made of, by the id of each run."""
        number = {one.run_id: run for run, one in enumerate(self._manifests)}
        found = []
        for run, row in places:
            made_of = by_run[run_id := self._manifests[run].run_id]
            if made_of is None:
                raise ArchiveKeyError(
                    f"run {run_id} of method {self._manifests[run].method} is no refinement, nor of one"
                )
            if made_of not in number:
                raise CorruptArchiveError(
                    f"{self.url}: run {run_id} is made of run {made_of}, which is gone: {HOW_TO_REPAIR}"
                )
            found.append((number[made_of], row))
        return found

    def _image(self, run: int, row: int) -> bytes:
        run_id, name = self._manifests[run].run_id, image_name(row)
        if name not in self._objects[run].files:
            raise ArchiveKeyError(f"run {run_id} kept no image of row {row}: edit again with keep_images: true")
        return read_checked(self._store, f"{run_prefix(run_id)}/{name}", self._objects[run].files[name])

    def _stored_codes(self, method: str) -> StoredCodes:
        archive = weakref.proxy(self)
        runs = self._runs_of(method)
        about = {run: self._manifests[run] for run in runs}
        return StoredCodes(
            *self._rows.newest_ok(runs),
            run_ids={run: manifest.run_id for run, manifest in about.items()},
            shard_rows={run: manifest.shard_rows for run, manifest in about.items()},
            read=lambda run, shard, rows: archive._read_codes(run, shard, rows),
        )

    def _read_codes(self, run: int, shard: int, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Codes of rows that lie in one shard; of most of its rows, by reading it whole."""
        manifest, array = self._manifests[run], self._array(run, W_PLUS)
        name = chunk_name(W_PLUS, shard, array.ndim)
        if name in self._objects[run].files and 2 * len(rows) > len(
            rows_of_shard(shard, manifest.shard_rows, manifest.num_rows)
        ):
            key = f"{run_prefix(manifest.run_id)}/{name}"
            data = read_checked(self._store, key, self._objects[run].files[name])
            if (values := decoded_shard(array, data, self._store.join(key))) is not None:
                return values[rows - shard * manifest.shard_rows]
        return self._read(run, W_PLUS, shard, rows)

    def _gather(self, places: list[tuple[int, int]], name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Values of an array at (run, row) places, [N, *shape], each shard opened once."""
        values = np.empty((len(places), *shape), dtype=np.float32)
        runs = np.array([run for run, _ in places], dtype=np.int64)
        rows = np.array([row for _, row in places], dtype=np.int64)
        for run in np.unique(runs).tolist():
            of_run = np.flatnonzero(runs == run)
            for shard, part in self._by_shard(run, rows[of_run]):
                values[of_run[part]] = self._read(run, name, shard, rows[of_run[part]])
        return values

    def _by_shard(self, run: int, rows: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.int64]]]:
        """Shards, and the places in `rows` that lie in each, in their order."""
        shards = rows // self._manifests[run].shard_rows
        order = np.argsort(shards, kind="stable")
        numbers, starts = np.unique(shards[order], return_index=True)
        parts = np.split(order, starts[1:]) if len(rows) else []
        yield from zip(numbers.tolist(), parts, strict=True)

    def _read(self, run: int, name: str, shard: int, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        array = self._array(run, name)
        run_id = self._manifests[run].run_id
        chunk = chunk_name(name, shard, array.ndim)
        if chunk not in self._objects[run].files:
            raise ArchiveKeyError(f"run {run_id} kept no {name} for shard {shard}: ask for a run that did")
        return read_rows(array, rows, self._store.join(f"{run_prefix(run_id)}/{chunk}"))

    def _array(self, run: int, name: str) -> zarr.Array[Any]:
        if (run, name) not in self._arrays:
            if name not in {array.name for array in self._manifests[run].arrays}:
                raise ArchiveKeyError(f"run {self._manifests[run].run_id} has no array {name}")
            self._arrays[run, name] = open_published(self._objects[run], name)
        return self._arrays[run, name]

    def _published_run(self, run_id: str) -> int:
        run = next((i for i, one in enumerate(self._manifests) if one.run_id == run_id), None)
        if run is None:
            raise ArchiveKeyError(f"{self.url} has no published run {run_id}: it has {self._names_of_runs()}")
        return run

    def _names_of_runs(self) -> str:
        return ", ".join(manifest.run_id for manifest in self._manifests) or "none"


def _pairs_of(part: pa.Table) -> Iterator[tuple[str, str | None]]:
    """The different pairs of measure and by in some measurements."""
    for pair in part.group_by(["measure", "by"]).aggregate([]).to_pylist():
        yield pair["measure"], pair["by"]
