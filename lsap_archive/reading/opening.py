"""Opening an archive: what is published in it, in its order, and refused where something of it is lost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lsap_archive.format.layout import ARCHIVE_KEY, RUNS_PREFIX
from lsap_archive.format.manifest import Manifest
from lsap_archive.reading.archive import Archive
from lsap_archive.reading.checked import read_header
from lsap_archive.reading.kept import read_kept_anchor
from lsap_archive.reading.lost import refuse_lost, refuse_vanished
from lsap_archive.reading.retirement import visible_manifest
from lsap_archive.stores.concurrency import in_threads
from lsap_archive.stores.store import Store


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
    return Archive(store, generator, geometry, _published(store))


def _published(store: Store) -> list[Manifest]:
    """Manifests of the runs that readers see, the oldest first."""
    names = store.folders(RUNS_PREFIX)
    found = in_threads(lambda run_id: visible_manifest(store, Manifest, run_id), names)
    manifests = [one for one in found if one]
    refuse_lost(store, Manifest.kind, set(names) - {one.run_id for one in manifests})
    refuse_vanished(store, {one.sequence for one in manifests})
    order = {one.run_id: one.order for one in manifests}

    def age(one: Manifest) -> list[tuple[Any, ...]]:  # as old as what it is made of: of an image the newest counts
        return [order.get(run_id, one.order) for run_id in reversed(one.lineage)]

    return sorted(manifests, key=age)
