"""Values of published arrays, and kept images, wherever in the runs they stand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from lsap_archive.errors import ArchiveKeyError
from lsap_archive.format.layout import W_PLUS, chunk_name, image_name, rows_of_shard, run_prefix
from lsap_archive.reading.arrays import open_published, read_rows
from lsap_archive.reading.checked import read_checked
from lsap_archive.reading.code_places import Place
from lsap_archive.reading.nearest.stored import StoredCodes
from lsap_archive.reading.published_runs import PublishedRuns
from lsap_archive.reading.whole_shards import decoded_shard


class ArrayValues:
    """Reads arrays of an archive's runs, each opened once.

    Args:
        runs: of the archive.
    """

    def __init__(self, runs: PublishedRuns) -> None:
        self._runs = runs
        self._arrays: dict[tuple[int, str], zarr.Array[Any]] = {}

    def array(self, run: int, name: str) -> zarr.Array[Any]:
        """An array of a run, lazily.

        Raises:
            ArchiveKeyError: the run declares no such array.
        """
        if (run, name) not in self._arrays:
            manifest = self._runs.manifests[run]
            if name not in {array.name for array in manifest.arrays}:
                raise ArchiveKeyError(f"run {manifest.run_id} has no array {name}")
            self._arrays[run, name] = open_published(self._runs.objects[run], name)
        return self._arrays[run, name]

    def gather(self, places: Sequence[Place], name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Values of an array at some places, [N, *shape], each shard opened once.

        Raises:
            ArchiveKeyError: a run has no such array, or kept none for a shard.
            CorruptArchiveError: an object is missing or damaged.
        """
        values = np.empty((len(places), *shape), dtype=np.float32)
        runs = np.array([run for run, _ in places], dtype=np.int64)
        rows = np.array([row for _, row in places], dtype=np.int64)
        for run in np.unique(runs).tolist():
            of_run = np.flatnonzero(runs == run)
            for shard, part in self._by_shard(run, rows[of_run]):
                values[of_run[part]] = self._read(run, name, shard, rows[of_run[part]])
        return values

    def stored_codes(self, method: str) -> StoredCodes:
        """The newest code of each image of a method, to be read block by block.

        Raises:
            ArchiveKeyError: an unknown method.
        """
        runs = self._runs.of_method(method)
        about = {run: self._runs.manifests[run] for run in runs}
        return StoredCodes(
            *self._runs.rows.newest_ok(runs),
            run_ids={run: manifest.run_id for run, manifest in about.items()},
            shard_rows={run: manifest.shard_rows for run, manifest in about.items()},
            read=self._codes_of_shard,
        )

    def has_image(self, place: Place) -> bool:
        """Whether the run kept the image of a row."""
        return image_name(place[1]) in self._runs.objects[place[0]].files

    def image(self, place: Place) -> bytes:
        """The kept image of a row, a PNG file.

        Raises:
            ArchiveKeyError: none was kept.
            CorruptArchiveError: it is missing or altered.
        """
        run, row = place
        run_id, name = self._runs.manifests[run].run_id, image_name(row)
        if not self.has_image(place):
            raise ArchiveKeyError(f"run {run_id} kept no image of row {row}: edit again with keep_images: true")
        return read_checked(self._runs.store, f"{run_prefix(run_id)}/{name}", self._runs.objects[run].files[name])

    def _codes_of_shard(self, run: int, shard: int, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Codes of rows that lie in one shard; of most of its rows, by reading it whole."""
        manifest, array = self._runs.manifests[run], self.array(run, W_PLUS)
        name, files = chunk_name(W_PLUS, shard, array.ndim), self._runs.objects[run].files
        num_rows = len(rows_of_shard(shard, manifest.shard_rows, manifest.num_rows))
        if name in files and 2 * len(rows) > num_rows:
            key = f"{run_prefix(manifest.run_id)}/{name}"
            data = read_checked(self._runs.store, key, files[name])
            if (values := decoded_shard(array, data, self._runs.store.join(key))) is not None:
                return values[rows - shard * manifest.shard_rows]
        return self._read(run, W_PLUS, shard, rows)

    def _by_shard(self, run: int, rows: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.int64]]]:
        """Shards, and the places in `rows` that lie in each, in their order."""
        shards = rows // self._runs.manifests[run].shard_rows
        order = np.argsort(shards, kind="stable")
        numbers, starts = np.unique(shards[order], return_index=True)
        parts = np.split(order, starts[1:]) if len(rows) else []
        yield from zip(numbers.tolist(), parts, strict=True)

    def _read(self, run: int, name: str, shard: int, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        array = self.array(run, name)
        run_id = self._runs.manifests[run].run_id
        chunk = chunk_name(name, shard, array.ndim)
        if chunk not in self._runs.objects[run].files:
            raise ArchiveKeyError(f"run {run_id} kept no {name} for shard {shard}: ask for a run that did")
        return read_rows(array, rows, self._runs.store.join(f"{run_prefix(run_id)}/{chunk}"))
