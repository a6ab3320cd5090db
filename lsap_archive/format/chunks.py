"""How the values of a run's array lie in its objects: rows of a chunk, and how chunks are compressed.

A run declares both, so whoever reads, verifies or repairs it needs no rule; the rules here are for new runs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import zarr
from zarr.abc.codec import BytesBytesCodec
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, ShardingCodec
from zarr.core.array import AsyncArray
from zarr.core.array_spec import ArraySpec
from zarr.core.buffer import Buffer
from zarr.core.metadata import ArrayV3Metadata

from lsap_archive.format.arrays import DTYPES, LZ4_BITS, NO_COMPRESSION, ZSTD_BYTES, RunArray
from lsap_archive.format.layout import INNER_CHUNK_BYTES, INNER_CHUNK_ROWS, LARGEST_ITEM_BYTES

PADDED_SHARE = 8
"""Rows that only fill up chunks are at most one for so many rows of the run."""

BLOSC_HEADER_BYTES = 16
_Shuffle = Literal["bitshuffle", "shuffle"]
_BLOSC: dict[str, tuple[Literal["lz4", "zstd"], _Shuffle]] = {
    LZ4_BITS: ("lz4", "bitshuffle"),
    ZSTD_BYTES: ("zstd", "shuffle"),
}
_LEVEL = 5
_PAYS = {"float32": LZ4_BITS, "float16": ZSTD_BYTES, "uint8": ZSTD_BYTES}
"""By type, what saves most for the processor time it takes: `benchmarks/bench_compression.py` measures it."""

_SHARE_LEFT = {LZ4_BITS: 0.9, ZSTD_BYTES: 0.85}
"""Of noise maps, by the same script; codes keep 0.92 of their bytes."""
_ROW_BYTES = 900
"""A row, and its share of plan, manifest and copies."""


def expected_bytes(arrays: Iterable[RunArray], num_images: int) -> int:
    """About how many bytes so many good images of a new run take, with their rows.

    Args:
        arrays: what the run keeps of each image.
        num_images: N.
    """
    each = sum(item_bytes(array) * _SHARE_LEFT[_PAYS[array.dtype]] for array in arrays)
    return round(num_images * (each + _ROW_BYTES))


def laid_out(arrays: Iterable[RunArray], num_rows: int, shard_rows: int) -> tuple[RunArray, ...]:
    """Arrays of a new run with their chunks and their compression; what an array says of either stays."""
    return tuple(
        replace(
            array,
            compression=_PAYS[array.dtype] if array.compression == NO_COMPRESSION else array.compression,
            chunk_rows=array.chunk_rows or _fitting_rows(array, num_rows, shard_rows),
        )
        for array in arrays
    )


def chunk_rows(array: RunArray, shard_rows: int) -> int:
    """Rows of an inner chunk: as declared; before version 6 there were 16, or fewer where 16 were too large."""
    if array.chunk_rows is not None:
        return array.chunk_rows
    rows = min(INNER_CHUNK_ROWS, shard_rows)
    while rows > 1 and rows * item_bytes(array) > INNER_CHUNK_BYTES:
        rows = rows // 2 if rows % 2 == 0 else 1
    return rows


def rows_of_object(array: RunArray, num_rows: int, shard_rows: int) -> int:
    """Rows that there is room for in the object of a shard: a run of a single shard has a smaller one."""
    if array.chunk_rows is None or num_rows > shard_rows:
        return shard_rows
    return array.chunk_rows * math.ceil(num_rows / array.chunk_rows)


def stored_rows(array: RunArray, num_rows: int, shard_rows: int) -> int:
    """Rows of all chunks that a run of good images writes, with those that only fill up the last chunk of a shard."""
    rows = chunk_rows(array, shard_rows)
    whole, last = divmod(num_rows, shard_rows)
    return rows * (whole * math.ceil(shard_rows / rows) + math.ceil(last / rows))


def item_bytes(array: RunArray) -> int:
    """Bytes of one image's part, before compression."""
    return np.dtype(array.dtype).itemsize * math.prod(array.item_shape)


def compressors(array: RunArray) -> list[BytesBytesCodec]:
    """The codecs that an array's chunks go through; a checksum of what is stored comes last."""
    if array.compression == NO_COMPRESSION:
        return [Crc32cCodec()]
    name, shuffle = _BLOSC[array.compression]
    size = np.dtype(array.dtype).itemsize
    return [BloscCodec(typesize=size, cname=name, clevel=_LEVEL, shuffle=shuffle), Crc32cCodec()]


def guarded(array: zarr.Array[Any]) -> zarr.Array[Any]:
    """The array, if it has the codecs of this archive; what its chunks would unpack to is looked at before.

    An archive may come from anybody, and codecs can be asked to make gigabytes of a few bytes.

    Raises:
        ValueError: its metadata ask for other codecs or larger chunks than this archive writes.
    """
    metadata = array.metadata
    codecs = metadata.codecs if isinstance(metadata, ArrayV3Metadata) else ()
    sharding = codecs[0] if len(codecs) == 1 and isinstance(codecs[0], ShardingCodec) else None
    inner = (None,) if sharding is None else sharding.codecs
    is_ours = all(isinstance(codec, BytesCodec | BloscCodec | Crc32cCodec) for codec in inner)
    if array.dtype.name not in DTYPES or not is_ours:
        raise ValueError(f"it is {array.dtype} by other codecs than sharded {' or '.join(DTYPES)} with checksums")
    chunk_bytes = array.dtype.itemsize * math.prod(array.chunks)
    if chunk_bytes > LARGEST_ITEM_BYTES:
        raise ValueError(f"its chunks have {chunk_bytes} bytes")
    if not any(isinstance(codec, BloscCodec) for codec in inner):
        return array
    assert isinstance(metadata, ArrayV3Metadata) and sharding is not None
    looked_at = replace(
        sharding, codecs=tuple(_Guarded.of(one) if isinstance(one, BloscCodec) else one for one in sharding.codecs)
    )
    return zarr.Array(AsyncArray(replace(metadata, codecs=(looked_at,)), array.store_path))


class _Guarded(BloscCodec):
    """Blosc, which believes no header: it would make room for what one says, and read as far."""

    @classmethod
    def of(cls, codec: BloscCodec) -> _Guarded:
        names = ("typesize", "cname", "clevel", "shuffle", "blocksize")
        return cls(**{name: getattr(codec, name) for name in names})

    def _decode_sync(self, chunk_bytes: Buffer, chunk_spec: ArraySpec) -> Buffer:
        wanted = chunk_spec.dtype.to_native_dtype().itemsize * math.prod(chunk_spec.shape)
        found = np.frombuffer(chunk_bytes.to_bytes()[:BLOSC_HEADER_BYTES], dtype="<u4")
        if len(found) < 4 or (found[1], found[3]) != (wanted, len(chunk_bytes)):
            raise ValueError(f"a chunk does not unpack to the {wanted} bytes that it holds")
        return super()._decode_sync(chunk_bytes, chunk_spec)


def _fitting_rows(array: RunArray, num_rows: int, shard_rows: int) -> int:
    """The most rows of a chunk that pad little: 16 but in small runs, and fewer where 16 are too large."""
    most = min(INNER_CHUNK_ROWS, shard_rows, num_rows, max(1, INNER_CHUNK_BYTES // item_bytes(array)))
    for rows in range(most, 1, -1):
        padded = stored_rows(replace(array, chunk_rows=rows), num_rows, shard_rows) - num_rows
        if padded * PADDED_SHARE <= num_rows and (num_rows <= shard_rows or shard_rows % rows == 0):
            return rows
    return 1
