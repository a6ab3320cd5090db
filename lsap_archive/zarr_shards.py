"""Zarr v3 as this archive uses it: arrays sized up front, one object per array and shard, made in memory."""

from __future__ import annotations

import asyncio
import functools
import json
import math
from collections.abc import AsyncIterator, Collection, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, SuffixByteRequest
from zarr.abc.store import Store as ZarrStore
from zarr.codecs import BytesCodec, Crc32cCodec, ShardingCodec
from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype
from zarr.core.metadata import ArrayV3Metadata
from zarr.storage import MemoryStore

from lsap_archive.errors import HOW_TO_REPAIR, ArchiveNotFoundError, CorruptArchiveError, StoreUnavailableError
from lsap_archive.layout import (
    INNER_CHUNK_BYTES,
    INNER_CHUNK_ROWS,
    TRACE,
    W_PLUS,
    Geometry,
    chunk_name,
    noise_name,
)
from lsap_archive.manifest import Manifest, StoredObject
from lsap_archive.plan import RunPlan
from lsap_archive.published import read_checked
from lsap_archive.store import Store

Floats = NDArray[np.float32]

_CHECKSUM_BYTES = 4
_NO_CHUNK = 2**64 - 1


@dataclass(frozen=True)
class ArrayLayout:
    """One array of a run.

    Attributes:
        name: name in the Zarr group.
        item_shape: shape of one image's part, e.g. (K, D).
        dimension_names: names of all dimensions, the first being "image".
        attributes: what readers of the array want to know.
    """

    name: str
    item_shape: tuple[int, ...]
    dimension_names: tuple[str, ...]
    attributes: dict[str, Any]


def array_layouts(
    geometry: Geometry, trace_steps: tuple[int, ...], trace_terms: tuple[str, ...], *, has_noise: bool = True
) -> dict[str, ArrayLayout]:
    """The arrays of a run by name: w_plus, the noise maps, and the trace if it has steps and terms.

    An edit run has no noise maps: they are those of its subject.
    """
    codes = ArrayLayout(W_PLUS, (geometry.num_ws, geometry.w_dim), ("image", "layer", "channel"), {})
    layouts = {W_PLUS: codes}
    for index, side in enumerate(geometry.noise_sides if has_noise else ()):
        name = noise_name(index)
        layouts[name] = ArrayLayout(name, (side, side), ("image", "y", "x"), {})
    if trace_steps and trace_terms:
        shape = (len(trace_steps), len(trace_terms))
        attributes = {"steps": list(trace_steps), "terms": list(trace_terms)}
        layouts[TRACE] = ArrayLayout(TRACE, shape, ("image", "step", "term"), attributes)
    return layouts


def group_metadata(
    layouts: Collection[ArrayLayout], num_rows: int, shard_rows: int, attributes: dict[str, Any]
) -> dict[str, bytes]:
    """The zarr.json of the group and of each array, by key relative to the group.

    The group's also holds those of the arrays (consolidated metadata): one request opens a run, and no reader
    takes the other objects beside the arrays for a part of the group.
    """
    objects: dict[str, Buffer] = {}
    group = zarr.create_group(MemoryStore(store_dict=objects), zarr_format=3, attributes=attributes)
    for layout in layouts:
        group.create_array(
            name=layout.name,
            shape=(num_rows, *layout.item_shape),
            chunks=(_inner_rows(layout, shard_rows), *layout.item_shape),
            shards=(shard_rows, *layout.item_shape),
            dtype="float32",
            compressors=[Crc32cCodec()],
            fill_value=float("nan"),
            attributes=layout.attributes,
            dimension_names=layout.dimension_names,
        )
    documents = {key: json.loads(value.to_bytes()) for key, value in objects.items()}
    members = {layout.name: documents[f"{layout.name}/zarr.json"] for layout in layouts}
    documents["zarr.json"]["consolidated_metadata"] = {
        "kind": "inline",
        "must_understand": False,
        "metadata": members,
    }
    return {key: json.dumps(document, indent=2).encode() for key, document in documents.items()}


def encode_shard(metadata: bytes, shard: int, values: Floats) -> bytes | None:
    """The one Zarr object of a shard, the same bytes as zarr's own writer makes.

    Args:
        metadata: the array's zarr.json.
        shard: number of the shard.
        values: [rows of the shard, ...], float32.

    Returns:
        The object, or None if every value is NaN: Zarr keeps no object for what is only the fill value.
    """
    array, objects = _array_in_memory(metadata, {})
    start = shard * _shard_rows(array)
    array[start : start + len(values)] = values
    blobs = [value.to_bytes() for key, value in objects.items() if key != "zarr.json"]
    return blobs[0] if blobs else None


def run_metadata(run: RunPlan | Manifest, geometry: Geometry, generator_digest: str) -> dict[str, bytes]:
    """Every zarr.json of a run, by key relative to its folder: the same bytes from its plan and from its manifest."""
    layouts = array_layouts(geometry, run.trace_steps, run.trace_terms, has_noise=run.subject is None)
    attributes: dict[str, Any] = {
        "run_id": run.run_id,
        "method": run.method,
        "method_digest": run.method_digest,
        "generator_digest": generator_digest,
        "trace_steps": list(run.trace_steps),
        "trace_terms": list(run.trace_terms),
    }
    if run.subject is not None:
        attributes["subject"] = run.subject.to_dict()
    return group_metadata(layouts.values(), run.num_rows, run.shard_rows, attributes)


def shard_checksums(metadata: bytes, blob: bytes) -> str:
    """The CRC-32C of a shard's index and of each of its inner chunks, eight hexadecimal digits each.

    They stand in the object itself, so they tell that a chunk is whole, and not that it is this shard's: for that a
    manifest holds them as well. Chunks of nothing but NaN are not there.

    Args:
        metadata: the array's zarr.json.
        blob: the object.
    """
    array, _ = _array_in_memory(metadata, {})
    index = np.frombuffer(blob[-_index_bytes(array) : -_CHECKSUM_BYTES], dtype="<u8").reshape(-1, 2)
    present = [(int(start), int(size)) for start, size in index if start != _NO_CHUNK]
    found = [blob[start + size - _CHECKSUM_BYTES : start + size] for start, size in present]
    return b"".join([blob[-_CHECKSUM_BYTES:], *found]).hex()


def _index_bytes(array: zarr.Array[Any]) -> int:
    """Size of a shard's index, its checksum included: offset and size of each inner chunk."""
    return 16 * (_shard_rows(array) // int(array.chunks[0])) + _CHECKSUM_BYTES


def decode_shard(metadata: bytes, shard: int, blob: bytes | None, name: str) -> Floats:
    """The values of a shard, [rows of the shard, ...]; checksums are checked.

    Raises:
        CorruptArchiveError: the object is damaged.
    """
    array, _ = _array_in_memory(metadata, {} if blob is None else {shard: blob})
    start = shard * _shard_rows(array)
    try:
        return np.asarray(array[start : start + _shard_rows(array)], dtype=np.float32)
    except Exception as error:  # a damaged object can fail in any codec: checksum, index, shape
        raise CorruptArchiveError(f"{name} cannot be decoded ({_first_line(error)}): {HOW_TO_REPAIR}") from error


def read_rows(array: zarr.Array[Any], rows: NDArray[np.int64], name: str) -> Floats:
    """Rows of an array, all of one shard, in the order asked for.

    Raises:
        CorruptArchiveError: the shard's object is missing or damaged.
    """
    try:
        first, last = int(rows.min()), int(rows.max())
        if 2 * len(rows) > last - first:  # reading all between them takes less than half the time of choosing
            return np.asarray(array[first : last + 1], dtype=np.float32)[rows - first]
        return np.asarray(array.oindex[rows], dtype=np.float32)
    except CorruptArchiveError:
        raise
    except (ValueError, IndexError, RuntimeError) as error:
        raise CorruptArchiveError(f"{name} cannot be decoded ({_first_line(error)}): {HOW_TO_REPAIR}") from error


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
        if stored.checksums and data[-_CHECKSUM_BYTES:].hex() not in _split(stored.checksums):
            raise CorruptArchiveError(
                f"{where} holds a chunk of checksum {data[-_CHECKSUM_BYTES:].hex()}, which the run's manifest does not "
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
        array = zarr.open_array(objects, path=name, mode="r", zarr_format=3)
        _check_is_ours(array)
        return array
    except (CorruptArchiveError, StoreUnavailableError):
        raise
    except Exception as error:  # zarr has no one error for metadata that it cannot read
        raise CorruptArchiveError(
            f"{objects} {name}/zarr.json cannot be read ({_first_line(error)}): {HOW_TO_REPAIR}"
        ) from error


def _check_is_ours(array: zarr.Array[Any]) -> None:
    """Refuse metadata that ask for other codecs or larger chunks than this archive writes.

    An archive may come from anybody, and other codecs can be asked to make gigabytes of a few bytes.
    """
    codecs = array.metadata.codecs if isinstance(array.metadata, ArrayV3Metadata) else ()
    inner = codecs[0].codecs if len(codecs) == 1 and isinstance(codecs[0], ShardingCodec) else (None,)
    chunk_bytes = 4 * math.prod(array.chunks)
    if array.dtype != np.float32 or not all(isinstance(codec, BytesCodec | Crc32cCodec) for codec in inner):
        raise ValueError(f"it is {array.dtype} by other codecs than sharded float32 with checksums")
    if chunk_bytes > 16 * INNER_CHUNK_BYTES:
        raise ValueError(f"its chunks have {chunk_bytes} bytes")


def chunk_of(layout: ArrayLayout, shard: int) -> str:
    """Key of the shard's object of this array, relative to the run's folder."""
    return chunk_name(layout.name, shard, 1 + len(layout.item_shape))


def _inner_rows(layout: ArrayLayout, shard_rows: int) -> int:
    """Rows of an inner chunk: 16, or fewer where 16 would make it larger than INNER_CHUNK_BYTES."""
    rows = min(INNER_CHUNK_ROWS, shard_rows)
    while rows > 1 and rows * 4 * math.prod(layout.item_shape) > INNER_CHUNK_BYTES:
        rows = rows // 2 if rows % 2 == 0 else 1
    return rows


def _array_in_memory(metadata: bytes, blobs: dict[int, bytes]) -> tuple[zarr.Array[Any], dict[str, Buffer]]:
    make = default_buffer_prototype().buffer.from_bytes
    num_dimensions = len(json.loads(metadata)["shape"])
    objects = {"zarr.json": make(metadata)}
    for shard, blob in blobs.items():
        objects[chunk_name("", shard, num_dimensions).lstrip("/")] = make(blob)
    return zarr.open_array(MemoryStore(store_dict=objects), mode="r+", zarr_format=3), objects


def _shard_rows(array: zarr.Array[Any]) -> int:
    if array.shards is None:
        raise CorruptArchiveError(f"array {array.name} is not sharded: it is not of this archive's format")
    return int(array.shards[0])


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
