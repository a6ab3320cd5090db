"""Reading previews: whole files, one a shard, compared with their manifests, the last ones kept in memory."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future

from lsap_archive.errors import HOW_TO_REPAIR, ArchiveNotFoundError, CorruptArchiveError
from lsap_archive.format.layout import PREVIEWS_FOLDER, previews_name, rows_of_shard, run_prefix
from lsap_archive.format.manifest import Manifest, StoredObject
from lsap_archive.format.previews import KeptPreview, decode_previews, largest_previews
from lsap_archive.format.rows import OK
from lsap_archive.reading.checked import read_checked
from lsap_archive.reading.originals import last_originals
from lsap_archive.reading.published_runs import PublishedRuns
from lsap_archive.stores.concurrency import in_threads
from lsap_archive.stores.store import Store

KEPT_BYTES = 64 * 2**20
_NOTHING = KeptPreview(None, None)
_File = tuple[int, int]  # number of the run, and of the shard


def preview_bytes(manifest: Manifest) -> int:
    """Bytes of a run's previews, as they are stored."""
    return sum(file.size for file in manifest.files if file.name.startswith(f"{PREVIEWS_FOLDER}/"))


def read_previews(store: Store, manifest: Manifest, shard: int) -> Mapping[int, KeptPreview]:
    """The previews of a shard by row; none where none were kept, or where they were taken away since.

    Raises:
        CorruptArchiveError: they are altered, or larger than previews of such a shard can be.
    """
    name = previews_name(shard)
    stored = next((file for file in manifest.files if file.name == name), None)
    if stored is None:
        return {}
    rows = rows_of_shard(shard, manifest.shard_rows, manifest.num_rows)
    key = f"{run_prefix(manifest.run_id)}/{name}"
    try:
        data = previews_of_manifest(store, key, stored, len(rows))
    except ArchiveNotFoundError:
        return {}
    return decode_previews(data, rows, store.join(key))


def previews_of_manifest(store: Store, key: str, stored: StoredObject, num_rows: int) -> bytes:
    """The bytes of a shard's previews, which have to be what the manifest says; their size is looked at before.

    Raises:
        ArchiveNotFoundError: they are gone; nothing depends on them.
        CorruptArchiveError: they are altered, or larger than previews of such a shard can be.
    """
    where = store.join(key)
    if stored.size > (largest := largest_previews(num_rows)):
        raise CorruptArchiveError(
            f"{where} has {stored.size} bytes, previews of {num_rows} images have {largest} at most: {HOW_TO_REPAIR}"
        )
    if (size := store.size(key)) != stored.size:
        raise CorruptArchiveError(f"{where} has {size} bytes, the manifest says {stored.size}: {HOW_TO_REPAIR}")
    return read_checked(store, key, stored)


class KeptPreviews:
    """Previews of an archive's images; may be asked from several threads at once.

    Args:
        runs: of the archive.
        kept_bytes: of files that are held in memory, at most; the last ones that were asked for.
    """

    def __init__(self, runs: PublishedRuns, *, kept_bytes: int = KEPT_BYTES) -> None:
        self._runs = runs
        self._sizes = {
            (run, shard): file.size
            for run, manifest in enumerate(runs.manifests)
            for shard, file in _files_of(manifest).items()
        }
        self._kept_bytes = kept_bytes
        self._lock = threading.Lock()
        self._files: OrderedDict[_File, Future[Mapping[int, KeptPreview]]] = OrderedDict()

    def pictures(self, image_ids: Sequence[str], runs: Sequence[int]) -> list[bytes | None]:
        """What some runs of a method made of images, the newest row counting; None where nothing is kept."""
        if not self._with_previews(runs):
            return [None] * len(image_ids)
        places = self._places(image_ids, runs)
        newest = [places[image_id][-1] if places[image_id] else None for image_id in image_ids]
        found = self._read(newest)
        return [found[place].picture if place in found else None for place in newest]

    def originals(self, image_ids: Sequence[str]) -> list[bytes | None]:
        """What was inverted, from the newest run that kept it; None where none did."""
        runs = [run for run, one in enumerate(self._runs.manifests) if one.subject is None]
        places = self._places(image_ids, self._with_previews(runs))
        found: dict[str, bytes | None] = {}
        while asked := {image_id: of_image.pop() for image_id, of_image in places.items() if of_image}:
            kept = self._read(asked.values())
            found |= {image_id: kept[place].original for image_id, place in asked.items() if place in kept}
            places = {image_id: places[image_id] for image_id in asked if found.get(image_id) is None}
        return [found.get(image_id) for image_id in image_ids]

    def _with_previews(self, runs: Iterable[int]) -> list[int]:
        kept = {run for run, _ in self._sizes}
        return [run for run in runs if run in kept]

    def _places(self, image_ids: Sequence[str], runs: Sequence[int]) -> dict[str, list[tuple[int, int] | None]]:
        """Of each image, oldest first, run and row where its code stands in these runs; None for a row without one."""
        if not runs:
            return {image_id: [] for image_id in image_ids}
        found = self._runs.rows.of_images(image_ids, runs)
        of_all = (row for of_image in found.values() for row in of_image)
        settled = last_originals(self._runs.rows, of_all, runs)
        places = {place: (one.run, one.row) if one.status == OK else None for place, one in settled.items()}
        return {image_id: [places[row.place] for row in found.get(image_id, ())] for image_id in image_ids}

    def _read(self, places: Iterable[tuple[int, int] | None]) -> dict[tuple[int, int], KeptPreview]:
        """What is kept at places; each file is read once, several at a time."""
        by_file: dict[_File, list[tuple[int, int]]] = {}
        for place in {one for one in places if one is not None}:
            file = (place[0], place[1] // self._runs.manifests[place[0]].shard_rows)
            if file in self._sizes:
                by_file.setdefault(file, []).append(place)
        files = list(by_file)
        with self._lock:
            is_warm = all(file in self._files and self._files[file].done() for file in files)
        read = map(self._file, files) if is_warm or len(files) == 1 else in_threads(self._file, files)
        return {
            place: kept.get(place[1], _NOTHING)
            for file, kept in zip(files, read, strict=True)
            for place in by_file[file]
        }

    def _file(self, file: _File) -> Mapping[int, KeptPreview]:
        """One file's previews, from memory or read now; whoever asks for it meanwhile waits for the same."""
        with self._lock:
            future = self._files.get(file)
            is_mine = future is None
            if future is None:
                future = self._files[file] = Future()
            self._files.move_to_end(file)
        if is_mine:
            try:
                future.set_result(read_previews(self._runs.store, self._runs.manifests[file[0]], file[1]))
            except BaseException as error:
                with self._lock:
                    self._files.pop(file, None)
                future.set_exception(error)
            else:
                self._forget_oldest()
        return future.result()

    def _forget_oldest(self) -> None:
        with self._lock:
            total = sum(self._sizes[file] for file in self._files)
            for file in list(self._files):
                if total <= self._kept_bytes:
                    return
                if self._files[file].done():
                    del self._files[file]
                    total -= self._sizes[file]


def _files_of(manifest: Manifest) -> dict[int, StoredObject]:
    """Previews of a run by shard."""
    files = {file.name: file for file in manifest.files if file.name.startswith(f"{PREVIEWS_FOLDER}/")}
    names = {shard: previews_name(shard) for shard in manifest.own_shards} if files else {}
    return {shard: files[name] for shard, name in names.items() if name in files}
