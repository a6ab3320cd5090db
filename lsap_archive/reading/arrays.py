"""Arrays of a published run, whose every chunk has to be what the manifest says."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Iterable
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, SuffixByteRequest
from zarr.abc.store import Store as ZarrStore
from zarr.core.buffer import Buffer, BufferPrototype

from lsap_archive.errors import (
    HOW_TO_REPAIR,
    ArchiveNotFoundError,
    CorruptArchiveError,
    StoreUnavailableError,
    first_line,
)
from lsap_archive.format.chunks import guarded
from lsap_archive.format.manifest import StoredObject
from lsap_archive.format.shards import CHECKSUM_BYTES
from lsap_archive.reading.checked import read_checked
from lsap_archive.stores.store import Store


def read_rows(array: zarr.Array[Any], rows: NDArray[np.int64], name: str) -> NDArray[Any]:
    """Rows of an array, all of one shard, in the order asked for.

    Raises:
        CorruptArchiveError: the shard's object is missing or damaged.
    """
    try:
        first, last = int(rows.min()), int(rows.max())
        if 2 * len(rows) > last - first:  # reading all between them takes less than half the time of choosing
            return np.asarray(array[first : last + 1])[rows - first]
        return np.asarray(array.oindex[rows])
    except CorruptArchiveError:
        raise
    except (ValueError, IndexError, RuntimeError) as error:
        raise CorruptArchiveError(f"{name} cannot be decoded ({first_line(error)}): {HOW_TO_REPAIR}") from error


class PublishedObjects(ZarrStore):
    """The Zarr group of a published run, read-only: exactly the objects of its manifest.

    Zarr takes a missing object for one that holds only the fill value; here an object that the manifest names
    and the store lacks is an error instead. What is read is compared with the manifest: a whole object with its
    SHA-256, a part of a shard with the checksums of its chunks, so that a sound object in another's place is noticed.

    Attributes:
        files: what the manifest says of each object, by its name relative to the run's folder.
    """

    def __init__(self, store: Store, prefix: str, files: Iterable[StoredObject]) -> None:
        super().__init__(read_only=True)
        self._store = store
        self._prefix = prefix
        self.files = {file.name: file for file in files}

    def __eq__(self, value: object) -> bool:
        if not isinstance(value, PublishedObjects):
            return False
        return (value._store.url, value._prefix) == (self._store.url, self._prefix)

    def __hash__(self) -> int:
        return hash((self._store.url, self._prefix))

    def __repr__(self) -> str:
        return f"PublishedObjects({self._store.url}/{self._prefix})"

    def has_chunks_of(self, array: str) -> bool:
        """Whether anything of an array is kept."""
        return any(name.startswith(f"{array}/c/") for name in self.files)

    supports_writes = False
    supports_deletes = False
    supports_listing = True

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """The object or a range of it; None if the manifest does not name it."""
        if key not in self.files:
            return None
        data = await asyncio.to_thread(self._read, key, byte_range)
        return prototype.buffer.from_bytes(data)

    def _read(self, key: str, byte_range: ByteRequest | None) -> bytes:
        stored = self.files[key]
        if byte_range is None:
            return read_checked(self._store, f"{self._prefix}/{key}", stored)
        start: int | None = None
        end: int | None = None
        if isinstance(byte_range, RangeByteRequest):
            start, end = byte_range.start, byte_range.end
        elif isinstance(byte_range, OffsetByteRequest):
            start = byte_range.offset
        elif isinstance(byte_range, SuffixByteRequest):
            start = max(stored.size - byte_range.suffix, 0)
        where = f"{self._store.url}/{self._prefix}/{key}"
        try:
            data = self._store.get(f"{self._prefix}/{key}", start, end)
        except ArchiveNotFoundError as error:
            raise CorruptArchiveError(f"{where} is missing, the run's manifest names it: {HOW_TO_REPAIR}") from error
        if stored.checksums and data[-CHECKSUM_BYTES:].hex() not in _split(stored.checksums):
            raise CorruptArchiveError(
                f"{where} holds a chunk of checksum {data[-CHECKSUM_BYTES:].hex()}, which the run's manifest does not "
                f"name: {HOW_TO_REPAIR}"
            )
        return data

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """Ranges of several objects."""
        return await asyncio.gather(*(self.get(key, prototype, part) for key, part in key_ranges))

    async def exists(self, key: str) -> bool:
        """Whether the manifest names the object."""
        return key in self.files

    async def set(self, key: str, value: Buffer) -> None:
        """Refused: what is published does not change."""
        self._check_writable()

    async def delete(self, key: str) -> None:
        """Refused: what is published does not change."""
        self._check_writable()

    async def list(self) -> AsyncIterator[str]:
        """Names of all objects."""
        for key in sorted(self.files):
            yield key

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        """Names that begin so."""
        for key in sorted(self.files):
            if key.startswith(prefix):
                yield key

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """Names of what lies directly in a folder."""
        folder = prefix.rstrip("/") + "/" if prefix.rstrip("/") else ""
        inside = {key[len(folder) :].split("/")[0] for key in self.files if key.startswith(folder)}
        for name in sorted(inside):
            yield name


@functools.lru_cache(maxsize=256)
def _split(checksums: str) -> frozenset[str]:
    return frozenset(checksums[start : start + 8] for start in range(0, len(checksums), 8))


def open_published(objects: PublishedObjects, name: str) -> zarr.Array[Any]:
    """An array of a published run, read-only.

    Raises:
        CorruptArchiveError: its zarr.json is missing or damaged.
    """
    try:
        return guarded(zarr.open_array(objects, path=name, mode="r", zarr_format=3))
    except (CorruptArchiveError, StoreUnavailableError):
        raise
    except Exception as error:  # zarr has no one error for metadata that it cannot read
        raise CorruptArchiveError(
            f"{objects} {name}/zarr.json cannot be read ({first_line(error)}): {HOW_TO_REPAIR}"
        ) from error
