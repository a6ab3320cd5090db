"""Reading what stands in an archive: its header, its runs' manifests, the rows that readers see; all of it checked."""

from __future__ import annotations

from collections.abc import Collection

import pyarrow as pa

from lsap_archive.errors import HOW_TO_REPAIR, ArchiveNotFoundError, CorruptArchiveError
from lsap_archive.format.documents import decode_document, sha256_of
from lsap_archive.format.layout import (
    ARCHIVE_KEY,
    IMAGES_NAME,
    PLAN_NAME,
    Geometry,
    manifest_key,
    rows_name,
    run_prefix,
)
from lsap_archive.format.manifest import Manifest, StoredObject, check_version
from lsap_archive.format.rows import ROW_SCHEMA, from_parquet
from lsap_archive.reading.retirement import hidden_shards
from lsap_archive.stores.concurrency import in_threads
from lsap_archive.stores.store import Store


def read_header(store: Store) -> tuple[dict[str, str], Geometry]:
    """Generator and geometry of the archive.

    Raises:
        ArchiveNotFoundError: no archive is there.
        ArchiveMismatchError: it is of another version of the format.
        CorruptArchiveError: archive.json is damaged.
    """
    try:
        data = store.get(ARCHIVE_KEY)
    except ArchiveNotFoundError as error:
        raise ArchiveNotFoundError(
            f"{store.url} is not an archive (it has no {ARCHIVE_KEY}): check the URL, or run a flow that writes it"
        ) from error
    values = decode_document(data, store.join(ARCHIVE_KEY))
    check_version(values, store.join(ARCHIVE_KEY))
    return dict(values["generator"]), Geometry.from_dict(values["geometry"])


def read_manifest(store: Store, run_id: str) -> Manifest:
    """Manifest of a published run.

    Raises:
        ArchiveNotFoundError: the run is not published.
        CorruptArchiveError: the manifest is damaged, or that of another run.
        ArchiveMismatchError: a newer version of the format wrote it, or it names files outside the run's folder.
    """
    key = manifest_key(run_id)
    return check_owner(Manifest.decode(store.get(key), store.join(key)), run_id, store.join(key))


def check_owner(manifest: Manifest, run_id: str, where: str) -> Manifest:
    """The manifest, if it is that of the run in whose folder it lies.

    Raises:
        CorruptArchiveError: it is that of another run.
    """
    if manifest.run_id != run_id:
        raise CorruptArchiveError(f"{where} is the manifest of run {manifest.run_id}: {HOW_TO_REPAIR}")
    return manifest


def read_row_tables(
    store: Store, manifest: Manifest, columns: list[str] | None = None, *, hidden: Collection[int] | None = None
) -> list[pa.Table]:
    """Rows of a published run, one table per shard in order, each file checked against the manifest.

    Args:
        store: the archive.
        manifest: of the run.
        columns: names from ROW_SCHEMA; None for all.
        hidden: shards that are left out, where `lsap_archive.reading.retirement.hidden_shards` was asked already.

    Raises:
        CorruptArchiveError: a file is missing or altered.
    """
    if hidden is None:
        hidden = hidden_shards(store, [manifest])[manifest.run_id]
    names = {rows_name(shard) for shard in manifest.own_shards if shard not in hidden}
    files = [file for file in manifest.files if file.name in names]
    return read_row_files(store, manifest.run_id, files, columns)


def read_row_files(
    store: Store, run_id: str, files: list[StoredObject], columns: list[str] | None = None
) -> list[pa.Table]:
    """Some files of rows of a published run, in the order of their shards; as `read_row_tables`."""

    def read(stored: StoredObject) -> pa.Table:
        return read_checked_table(store, f"{run_prefix(run_id)}/{stored.name}", stored, ROW_SCHEMA, columns)

    return in_threads(read, sorted(files, key=lambda one: (len(one.name), one.name)))


def read_checked_table(
    store: Store, key: str, stored: StoredObject, schema: pa.Schema, columns: list[str] | None = None
) -> pa.Table:
    """The table of a published Parquet file, which has to be what its manifest says.

    Raises:
        CorruptArchiveError: it is missing or altered.
    """
    return from_parquet(read_checked(store, key, stored), schema, store.join(key), columns)


def read_checked(store: Store, key: str, stored: StoredObject) -> bytes:
    """The bytes of a published object, which has to be what its manifest says.

    Raises:
        CorruptArchiveError: it is missing or altered.
    """
    try:
        data = store.get(key)
    except ArchiveNotFoundError as error:
        raise CorruptArchiveError(f"{store.join(key)} is missing, the manifest names it: {HOW_TO_REPAIR}") from error
    found = (len(data), sha256_of(data))
    if found != (stored.size, stored.sha256):
        raise CorruptArchiveError(
            f"{store.join(key)} is {describe(found)}, the manifest says {describe((stored.size, stored.sha256))}: "
            f"{HOW_TO_REPAIR}"
        )
    return data


def is_vital(name: str) -> bool:
    """Whether a whole run hangs on the object of that name: its plan, its images, or metadata of an array."""
    return name in (PLAN_NAME, IMAGES_NAME) or name.rsplit("/", 1)[-1] == "zarr.json"


def measured_object(store: Store, prefix: str, name: str) -> StoredObject:
    """Size and digest of the object `prefix/name`, as it is now."""
    size, sha256 = store.digest(f"{prefix}/{name}")
    return StoredObject(name=name, size=size, sha256=sha256)


def digest_or_none(store: Store, key: str, size: int | None = None) -> tuple[int, str] | None:
    """Size in bytes and SHA-256 of an object, or None if there is none; `size` as in Store.digest."""
    try:
        return store.digest(key, size)
    except ArchiveNotFoundError:
        return None


def describe(found: tuple[int, str] | None) -> str:
    """Size and digest in words, for a message."""
    return "missing" if found is None else f"{found[0]} bytes of sha256 {found[1][:16]}"
