"""Reading what stands in an archive: its header, its runs' manifests, their rows; every object checked."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import pyarrow as pa

from lsap_archive.documents import decode_document, sha256_of
from lsap_archive.errors import ArchiveNotFoundError, CorruptArchiveError
from lsap_archive.layout import ARCHIVE_KEY, Geometry, manifest_key, run_prefix
from lsap_archive.manifest import Manifest, StoredObject, check_version
from lsap_archive.schema import ROW_SCHEMA, from_parquet
from lsap_archive.store import Store

S = TypeVar("S")
T = TypeVar("T")

_CONCURRENT_REQUESTS = 8


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
        CorruptArchiveError: the manifest is damaged.
    """
    key = manifest_key(run_id)
    return Manifest.decode(store.get(key), store.join(key))


def read_row_tables(store: Store, manifest: Manifest, columns: list[str] | None = None) -> list[pa.Table]:
    """Rows of a published run, one table per shard in order, each file checked against the manifest.

    Raises:
        CorruptArchiveError: a file is missing or altered.
    """
    files = [file for file in manifest.files if file.name.startswith("rows/")]
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
    try:
        data = store.get(key)
    except ArchiveNotFoundError as error:
        raise CorruptArchiveError(
            f"{store.join(key)} is missing, the manifest names it: restore it from a copy"
        ) from error
    found = (len(data), sha256_of(data))
    if found != (stored.size, stored.sha256):
        raise CorruptArchiveError(
            f"{store.join(key)} is {describe(found)}, the manifest says {describe((stored.size, stored.sha256))}: "
            "restore it from a copy"
        )
    return from_parquet(data, schema, store.join(key), columns)


def in_threads(call: Callable[[S], T], items: Iterable[S]) -> list[T]:
    """`call` of each item, several at a time; the first error ends it."""
    with ThreadPoolExecutor(_CONCURRENT_REQUESTS) as pool:
        futures = [pool.submit(call, item) for item in items]
        try:
            return [future.result() for future in futures]
        finally:
            for future in futures:
                future.cancel()


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
