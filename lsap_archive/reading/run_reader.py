"""Reading one published run part by part: for workers, which look at a shard and not at an archive."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import zarr
from numpy.typing import NDArray

from lsap_archive.errors import HOW_TO_REPAIR, ArchiveKeyError, ArchiveMismatchError, CorruptArchiveError
from lsap_archive.format.layout import (
    IMAGES_NAME,
    TRACE,
    W_PLUS,
    Geometry,
    noise_name,
    rows_name,
    rows_of_shard,
    run_prefix,
)
from lsap_archive.format.manifest import Manifest
from lsap_archive.format.rows import DUPLICATE, FAILED, IMAGES_SCHEMA, conform_rows
from lsap_archive.reading.arrays import PublishedObjects, open_published, read_rows
from lsap_archive.reading.checked import read_checked_table, read_header, read_manifest, read_row_files
from lsap_archive.reading.retirement import hidden_shards
from lsap_archive.stores.concurrency import in_threads
from lsap_archive.stores.store import Store

RETIRED = "retired"
_WHY = ("status", "reason", "message")


class RunReader:
    """One published run, opened for reading; light enough to open in every worker.

    Attributes:
        store: the archive's objects.
        manifest: what the run is, and what it consists of.
        geometry: sizes of the generator's inputs.
        hidden: retired shards. Their images are there, as failed ones of reason "retired", without codes: whoever
            works through the run finds nothing to do in them.
    """

    def __init__(self, store: Store, run_id: str, geometry: Geometry) -> None:
        self.store = store
        self.manifest = read_manifest(store, Manifest, run_id)
        self.geometry = geometry
        self.hidden = hidden_shards(store, [self.manifest])[run_id]
        self._objects = PublishedObjects(store, run_prefix(run_id), self.manifest.files)
        self._arrays: dict[str, zarr.Array[Any]] = {}

    def __repr__(self) -> str:
        return f"RunReader({self.store.url!r}, {self.manifest.run_id!r})"

    @classmethod
    def open(cls, url: str, run_id: str, storage_options: Mapping[str, Any] | None = None) -> RunReader:
        """A published run, from the archive's URL alone.

        Raises:
            ArchiveNotFoundError: no such archive, or no such published run.
            StoreUnavailableError: the store does not answer or refuses.
        """
        store = Store.from_url(url, storage_options)
        _, geometry = read_header(store)
        return cls(store, run_id, geometry)

    def rows(self, part: range) -> pa.Table:
        """Consecutive rows of the run, in ROW_SCHEMA; the duplicate of an image that failed is shown as failed.

        Raises:
            ArchiveMismatchError: the run has not these rows.
            CorruptArchiveError: a file is missing or altered.
        """
        self._check(part)
        size = self.manifest.shard_rows
        shards = range(part.start // size, -(-part.stop // size))
        table = pa.concat_tables([self._rows_of(shard) for shard in shards])
        return self._with_failed_copies(table.slice(part.start - shards.start * size, len(part)))

    def array(self, name: str, part: range) -> NDArray[Any]:
        """Values of consecutive rows in an array of the run, [n, ...]; NaN, or 0 of integers, where a row is not ok.

        Raises:
            ArchiveKeyError: the run declares no such array.
            ArchiveMismatchError, CorruptArchiveError: as `rows`.
        """
        self._check(part)
        if name not in self._arrays:
            if name not in {array.name for array in self.manifest.arrays}:
                raise ArchiveKeyError(f"run {self.manifest.run_id} has no array {name}")
            self._arrays[name] = open_published(self._objects, name)
        array, size = self._arrays[name], self.manifest.shard_rows
        values = np.full((len(part), *array.shape[1:]), array.fill_value, dtype=array.dtype)
        for shard in range(part.start // size, -(-part.stop // size)):
            if self._is_hidden(shard):
                continue
            of_shard = rows_of_shard(shard, size, self.manifest.num_rows)
            rows = np.arange(max(part.start, of_shard.start), min(part.stop, of_shard.stop), dtype=np.int64)
            where = self.store.join(f"{run_prefix(self.manifest.run_id)}/{name} of shard {shard}")
            values[rows - part.start] = read_rows(array, rows, where)
        return values

    def codes(self, part: range) -> NDArray[np.float32]:
        """W+ codes of consecutive rows, [n, K, D]; NaN where a row is not ok.

        Raises:
            ArchiveMismatchError, CorruptArchiveError: as `rows`.
        """
        return self.array(W_PLUS, part)

    def noise(self, part: range) -> list[NDArray[np.float32]] | None:
        """Noise maps of consecutive rows, one float32 array [n, r, r] for each convolution; those of the inversion.

        Returns:
            The maps, or None where images have none of their own: they belong to the generator's constant ones.

        Raises:
            ArchiveMismatchError, CorruptArchiveError: as `rows`.
            ArchiveNotFoundError: the inversion of a refinement or an edit is gone.
        """
        if self._inversion is not None:
            return self._inversion.noise(part)
        if not self._objects.has_chunks_of(noise_name(0)):
            return None
        names = (noise_name(index) for index in range(len(self.geometry.noise_sides)))
        return [self.array(name, part).astype(np.float32, copy=False) for name in names]

    def refined(self, part: range) -> dict[str, NDArray[Any]] | None:
        """What a refinement keeps of consecutive rows, its codes among it; of an edit what its refinement does.

        Returns:
            The arrays that it declares, by name, each [n, ...]; None where images are not refined.

        Raises:
            ArchiveMismatchError, CorruptArchiveError: as `rows`.
            ArchiveNotFoundError: the refinement of an edit is gone.
        """
        run_id = self.manifest.refinement
        if run_id is None:
            return None
        reader = self if run_id == self.manifest.run_id else self._refinement
        return {one.name: reader.array(one.name, part) for one in reader.manifest.arrays if one.name != TRACE}

    @cached_property
    def _refinement(self) -> RunReader:
        assert self.manifest.refinement is not None
        return RunReader(self.store, self.manifest.refinement, self.geometry)

    @cached_property
    def _inversion(self) -> RunReader | None:
        manifest = self.manifest
        return None if manifest.subject is None else RunReader(self.store, manifest.inversion, self.geometry)

    @cached_property
    def images(self) -> pa.Table:
        """The planned images in IMAGES_SCHEMA.

        Raises:
            CorruptArchiveError: the file is missing or altered.
        """
        key = f"{run_prefix(self.manifest.run_id)}/{IMAGES_NAME}"
        return read_checked_table(self.store, key, self.manifest.file(IMAGES_NAME), IMAGES_SCHEMA)

    def _is_hidden(self, shard: int) -> bool:
        return shard in self.hidden or shard not in self.manifest.own_shards

    def _rows_of(self, shard: int) -> pa.Table:
        run_id, size = self.manifest.run_id, self.manifest.shard_rows
        if not self._is_hidden(shard):
            name = rows_name(shard)
            files = [file for file in self.manifest.files if file.name == name]
            if not files:
                where = self.store.join(f"{run_prefix(run_id)}/{name}")
                raise CorruptArchiveError(f"{where} is not in the run's manifest: {HOW_TO_REPAIR}")
            return read_row_files(self.store, run_id, files)[0]
        planned = self.images.slice(shard * size, size)
        constants = {"status": FAILED, "reason": RETIRED, "message": "its shard is retired"}
        rows = pa.table({name: [value] * planned.num_rows for name, value in constants.items()})
        manifest = self.manifest
        return conform_rows(
            rows,
            planned=planned,
            run_id=run_id,
            method=manifest.method,
            shard=shard,
            attempt=RETIRED,
            subject=manifest.subject,
        )

    def _with_failed_copies(self, rows: pa.Table) -> pa.Table:
        """Rows with what became of the originals of duplicates, wherever in the run these are."""
        copied = rows.filter(pc.equal(rows.column("status"), DUPLICATE)).column("duplicate_of")
        if not len(copied) or not (self.manifest.rows_by_status[FAILED] or self.hidden):
            return rows
        place_of = pc.index_in(copied.unique(), self.images.column("image_id").combine_chunks()).drop_null()
        shards = sorted({row // self.manifest.shard_rows for row in place_of.to_pylist()})
        told: dict[str, dict[str, Any]] = {}
        for table in in_threads(self._rows_of, shards):
            failed = table.filter(pc.equal(table.column("status"), FAILED)).select(["image_id", *_WHY])
            told |= {one.pop("image_id"): one for one in failed.to_pylist()}
        records = rows.to_pylist()
        for record in records:
            if record["status"] == DUPLICATE:
                record |= told.get(record["duplicate_of"], {})
        return pa.Table.from_pylist(records, schema=rows.schema)

    def _check(self, part: range) -> None:
        if part.step != 1 or not 0 <= part.start < part.stop <= self.manifest.num_rows:
            raise ArchiveMismatchError(
                f"run {self.manifest.run_id} has rows 0 to {self.manifest.num_rows - 1}, not {part.start} to "
                f"{part.stop - 1}"
            )
