"""Single objects of an archive, compared with what is said of them: header, manifests, tables, any published one."""

from __future__ import annotations

from typing import TypeVar

import pyarrow as pa

from lsap_archive.errors import HOW_TO_REPAIR, ArchiveNotFoundError, CorruptArchiveError
from lsap_archive.format.coordinates import COORDINATE_CHUNKS
from lsap_archive.format.documents import sha256_of
from lsap_archive.format.layout import (
    ARCHIVE_KEY,
    IMAGES_NAME,
    MANIFEST_NAME,
    PLAN_NAME,
    Geometry,
    prefix_of,
    run_prefix,
)
from lsap_archive.format.manifest import Published, StoredObject, decode_header
from lsap_archive.format.rows import ROW_SCHEMA, from_parquet
from lsap_archive.stores.concurrency import in_threads
from lsap_archive.stores.store import Store

P = TypeVar("P", bound=Published)


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
    return decode_header(data, store.join(ARCHIVE_KEY))


def read_manifest(store: Store, manifest_type: type[P], name: str) -> P:
    """The manifest of a published run or evaluation, also of a retired one.

    Args:
        store: the archive.
        manifest_type: `Manifest` of runs, or `EvaluationInfo`.
        name: its id.

    Raises:
        ArchiveNotFoundError: it is not published.
        CorruptArchiveError: the manifest is damaged, or that of another one.
        ArchiveMismatchError: a newer version of the format wrote it, or it names files outside its folder.
    """
    key = f"{prefix_of(manifest_type.kind, name)}/{MANIFEST_NAME}"
    return manifest_type.decode(store.get(key), store.join(key), name)


def read_row_files(
    store: Store, run_id: str, files: list[StoredObject], columns: list[str] | None = None
) -> list[pa.Table]:
    """Rows of a published run, a table for each of some of its files in the order of their shards, all checked.

    Args:
        store: the archive.
        run_id: the run.
        files: as the manifest names them.
        columns: names from ROW_SCHEMA; None for all.

    Raises:
        CorruptArchiveError: a file is missing or altered.
    """

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
    """Whether a whole run hangs on the object of that name: plan, images, coordinates, or metadata of an array."""
    return name in (PLAN_NAME, IMAGES_NAME, *COORDINATE_CHUNKS) or name.rsplit("/", 1)[-1] == "zarr.json"


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
