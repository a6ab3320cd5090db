"""Reading an archive: rows, SQL, codes by image id, nearest codes. Needs no torch and no cluster."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import zarr
from numpy.typing import NDArray

from lsap_archive.errors import ArchiveKeyError, ArchiveMismatchError
from lsap_archive.format.arrays import trace_of
from lsap_archive.format.evaluations import EvaluationInfo
from lsap_archive.format.layout import TRACE, W_PLUS, Geometry, noise_name
from lsap_archive.format.manifest import Manifest
from lsap_archive.format.rows import ROW_SCHEMA
from lsap_archive.reading.array_values import ArrayValues
from lsap_archive.reading.code_places import CodePlaces
from lsap_archive.reading.dataset import run_dataset
from lsap_archive.reading.files import files_of
from lsap_archive.reading.holdings import holdings
from lsap_archive.reading.measured import Measured
from lsap_archive.reading.nearest.answers import answer_table
from lsap_archive.reading.nearest.search import NearestCodes
from lsap_archive.reading.nearest.spaces import Metric, Space
from lsap_archive.reading.previews import KeptPreviews
from lsap_archive.reading.published_runs import PublishedRuns
from lsap_archive.reading.published_tables import runs_table
from lsap_archive.reading.queries import Queries
from lsap_archive.reading.run_info import RunInfo, Trace
from lsap_archive.reading.run_reader import RunReader
from lsap_archive.reading.sets import ImageSet
from lsap_archive.stores.concurrency import in_threads
from lsap_archive.stores.store import Store

if TYPE_CHECKING:
    import xarray


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
        self._runs = PublishedRuns(store, manifests)  # oldest first
        self._codes = CodePlaces(self._runs)
        self._values = ArrayValues(self._runs)
        self._measured = Measured(self._runs)

    def __repr__(self) -> str:
        return f"Archive({self.url!r}, {len(self._runs.manifests)} runs)"

    @property
    def runs(self) -> list[RunInfo]:
        """Published runs, the oldest first."""
        names = RunInfo.__dataclass_fields__
        return [RunInfo(**{name: getattr(manifest, name) for name in names}) for manifest in self._runs.manifests]

    @property
    def methods(self) -> list[str]:
        """Names of the methods with published inversions, refined ones such as "lsap_e/pti" among them, sorted."""
        return self._runs.methods

    @property
    def edits(self) -> list[str]:
        """Names of the methods with a published edit, such as "lsap_e/slant", sorted."""
        return self._runs.edits

    @property
    def evaluations(self) -> list[EvaluationInfo]:
        """Evaluations that are published when this is first asked for, the oldest first.

        Of several by one network of a method the newest has the number of all images that readers see in its `summary`,
        if it is known, and the others have none: see `sets`.
        """
        return self._measured.evaluations

    @property
    def sets(self) -> list[ImageSet]:
        """Set-level numbers, such as a Fréchet distance: one for each method and network, over all that readers see.

        Where one is not known, as after a shard was retired, `problem` says why; `lsap run evaluate` finds it again.

        Raises:
            CorruptArchiveError: an evaluation's manifest or a kept number is damaged.
        """
        return self._measured.sets

    def states(self, of: ImageSet) -> Iterator[bytes]:
        """The sums that make up a set, a shard at a time; bytes of .npz files, to be added up.

        Raises:
            CorruptArchiveError: one is missing or altered.
        """
        return self._measured.states(of)

    def set_numbers(self) -> pa.Table:
        """`sets` as a table in SET_SCHEMA, one row for each; also the table `set_numbers` in `sql`."""
        return self._measured.set_numbers()

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
        return self._measured.table(columns, method=method, evaluations=evaluations)

    def measurement_parts(self, columns: Sequence[str], *, evaluations: Sequence[str]) -> Iterator[pa.Table]:
        """`measurements` of evaluations in parts of some shards, so that not all of them are in memory at once.

        Args:
            columns: names from MEASUREMENT_SCHEMA.
            evaluations: ids.

        Raises:
            ArchiveKeyError: an unknown column or evaluation.
            CorruptArchiveError: a file is missing or altered.
        """
        return self._measured.parts(columns, evaluations)

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
        return self._runs.rows.table(ROW_SCHEMA.names if columns is None else list(columns), history=history)

    def files(self, table: str) -> list[str]:
        """URLs of the Parquet files of what is published, for other readers, such as `polars.scan_parquet`.

        An empty file that has all columns comes first where the archive has one. Rows that count in another run are in
        the files, too; the list `published/rows.parquet` tells which these are.

        Args:
            table: "rows" or "measurements".

        Raises:
            ArchiveKeyError: another table.
        """
        return files_of(table, self._runs, self._measured.published)

    def rows_left_out(self, run_id: str) -> list[int]:
        """Rows of a published run that readers do not see, because an older one has them with the same content.

        Raises:
            ArchiveKeyError: no such published run.
        """
        rows: list[int] = self._runs.rows.twice_in(self._runs.number_of(run_id)).tolist()
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
    def _previews(self) -> KeptPreviews:
        return KeptPreviews(self._runs)

    @cached_property
    def _queries(self) -> Queries:
        runs, measured = self._runs, self._measured  # no circle: rows leave memory with the archive
        others = {
            "runs": lambda: runs_table(runs.manifests, runs.counts()),
            "evaluations": measured.evaluations_table,
            "measurements": lambda: measured.newest,
            "all_measurements": measured.all,
            "set_numbers": measured.set_numbers,
        }
        return Queries(self.url, runs.rows, others)

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
        places = self._codes.of_images(image_ids, method)
        return self._values.gather(places, W_PLUS, (self.geometry.num_ws, self.geometry.w_dim))

    def has_noise(self, image_ids: Sequence[str], method: str) -> list[bool]:
        """Whether images have noise maps of their own; the generator's constant ones belong to the others.

        Runs of one method differ in it where they were asked to keep noise in another way.

        Args:
            image_ids: N ids.
            method: name or digest of the method.

        Raises:
            ArchiveKeyError: as in `codes`.
        """
        places = self._codes.inverted(image_ids, method)
        has = {run: self._runs.objects[run].has_chunks_of(noise_name(0)) for run, _ in places}
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
        places = self._codes.inverted(image_ids, method)
        sizes = enumerate(self.geometry.noise_sizes)
        return [self._values.gather(places, noise_name(index), size) for index, size in sizes]

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
        places = self._codes.refined(image_ids, method)
        kinds = {
            tuple((one.name, one.item_shape) for one in self._runs.manifests[run].arrays if one.name != TRACE)
            for run, _ in places
        }
        if len(kinds) != 1:
            raise ArchiveMismatchError(
                f"{self.url}: the images come from runs that keep {len(kinds)} kinds of arrays: ask by method digest"
            )
        return {name: self._values.gather(places, name, shape) for name, shape in kinds.pop()}

    def images(self, image_ids: Sequence[str], method: str) -> list[bytes]:
        """Kept images of an edit or a refinement, as PNG files.

        Args:
            image_ids: N ids.
            method: name or digest of the edited method, such as "lsap_e/slant".

        Raises:
            ArchiveKeyError: as in `codes`, or the run kept no images.
            CorruptArchiveError: an object is missing or altered.
        """
        places = self._codes.of_images(image_ids, method)
        return in_threads(self._values.image, places)

    def kept_images(self, image_ids: Sequence[str], method: str) -> list[bytes | None]:
        """As `images`, with None where the run kept none.

        Args:
            image_ids: N ids.
            method: name or digest of a method, of an inversion too.

        Raises:
            ArchiveKeyError: as in `codes`.
            CorruptArchiveError: an object is missing or altered.
        """
        places = self._codes.of_images(image_ids, method)
        values = self._values
        return in_threads(lambda place: values.image(place) if values.has_image(place) else None, places)

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
        return self._previews.pictures(image_ids, self._runs.of_method(method))

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
        places = self._codes.of_images(image_ids, method)
        kinds = {trace_of(self._runs.manifests[run].arrays) for run, _ in places}
        if len(kinds) > 1:
            raise ArchiveMismatchError(
                f"{self.url}: the images come from {len(kinds)} runs with different traces: ask by method digest"
            )
        if not kinds:
            raise ArchiveKeyError(f"{self.url}: no image ids were given: a trace needs at least one")
        steps, terms = kinds.pop()
        return Trace(self._values.gather(places, TRACE, (len(steps), len(terms))), steps, terms)

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
        return answer_table(answer, k, self._runs.rows, asked)

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
        return answer_table(answer, k, self._runs.rows, list(image_ids))

    @cached_property
    def nearest_codes(self) -> NearestCodes:
        """What `nearest` asks, and `build_index` reads, as long as there is this archive."""
        return NearestCodes(self._runs.store, self.generator, self.geometry, self._values.stored_codes)

    def array(self, run_id: str, name: str) -> zarr.Array[Any]:
        """An array of a published run, lazily: "w_plus", "noise_00", ..., "trace".

        Raises:
            ArchiveKeyError: no such published run or array.
        """
        return self._values.array(self._runs.number_of(run_id), name)

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
        self._runs.number_of(run_id)
        return run_dataset(RunReader(self._runs.store, run_id, self.geometry))

    def describe(self) -> dict[str, Any]:
        """What the archive holds, as JSON values: generator, geometry, rows by method and status, set numbers.

        `num_bytes` are those that are stored, `preview_bytes` those of them that are previews. `noise` of a method says
        what its images are rendered with: maps of their own, as "float32" or "float16", or the generator's "constant"
        ones; the column of the rows tells of each image.
        `fits`, where its runs tell, is what they did with images of another shape: with several, the column `altered`
        tells of each image.
        """
        return holdings(self._runs, self._measured, self.generator, self.geometry)
