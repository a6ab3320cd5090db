"""A whole shard of an array at once: an eighth of the processor time that Zarr takes for its chunks one by one."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import zarr
from numcodecs.blosc import decompress
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, ShardingCodec
from zarr.core.metadata import ArrayV3Metadata

from lsap_archive.errors import HOW_TO_REPAIR, CorruptArchiveError, first_line
from lsap_archive.format.chunks import BLOSC_HEADER_BYTES
from lsap_archive.format.shards import CHECKSUM_BYTES

_NO_CHUNK = 2**64 - 1


def decoded_shard(array: zarr.Array[Any], data: bytes, name: str) -> NDArray[Any] | None:
    """All rows that there is room for in a shard, NaN where there are none; or None for codecs that Zarr has to read.

    Args:
        array: as `open_published` gives it.
        data: the shard's object, of which the digest was compared: checksums of chunks are not looked at.
        name: where it was, for the message.

    Raises:
        CorruptArchiveError: it does not hold what the array's metadata say.
    """
    sharding = _sharding_of(array)
    if sharding is None or array.shards is None:
        return None
    is_packed = isinstance(sharding.codecs[1], BloscCodec)
    values = np.full((array.shards[0], *array.shape[1:]), array.fill_value, dtype=array.dtype)
    rows = array.chunks[0]
    wanted = rows * math.prod(array.shape[1:]) * array.dtype.itemsize
    try:
        index = np.frombuffer(data[-16 * (len(values) // rows) - CHECKSUM_BYTES : -CHECKSUM_BYTES], "<u8")
        for number, (start, size) in enumerate(index.reshape(-1, 2).tolist()):
            if start != _NO_CHUNK:
                chunk = _unpacked(data[start : start + size - CHECKSUM_BYTES], is_packed, wanted)
                values[number * rows : (number + 1) * rows] = np.frombuffer(chunk, array.dtype).reshape(
                    rows, *array.shape[1:]
                )
    except (ValueError, RuntimeError, IndexError) as error:
        raise CorruptArchiveError(f"{name} cannot be decoded ({first_line(error)}): {HOW_TO_REPAIR}") from error
    return values


def _sharding_of(array: zarr.Array[Any]) -> ShardingCodec | None:
    """The codec of the array's objects, if what is in it is what this archive writes."""
    metadata = array.metadata
    sharding = metadata.codecs[0] if isinstance(metadata, ArrayV3Metadata) else None
    if not isinstance(sharding, ShardingCodec) or sharding.index_location.value != "end":
        return None
    inner = sharding.codecs
    kinds = [BytesCodec, *([BloscCodec] if len(inner) == 3 else []), Crc32cCodec]
    is_ours = len(inner) == len(kinds) and all(isinstance(one, kind) for one, kind in zip(inner, kinds, strict=True))
    is_little = isinstance(inner[0], BytesCodec) and inner[0].endian is not None and inner[0].endian.value == "little"
    is_checked = [type(one) for one in sharding.index_codecs] == [BytesCodec, Crc32cCodec]
    is_flat = array.chunks[1:] == array.shape[1:] and array.shards is not None and array.shards[1:] == array.shape[1:]
    return sharding if is_ours and is_little and is_checked and is_flat else None


def _unpacked(chunk: bytes, is_packed: bool, wanted: int) -> bytes:
    """The bytes of a chunk; what it claims to unpack to is looked at before anything is unpacked."""
    if is_packed:
        header = np.frombuffer(chunk[:BLOSC_HEADER_BYTES], dtype="<u4")
        if len(header) < 4 or (header[1], header[3]) != (wanted, len(chunk)):
            raise ValueError(f"a chunk does not unpack to the {wanted} bytes that it holds")
        chunk = decompress(chunk)
    if len(chunk) != wanted:
        raise ValueError(f"a chunk has {len(chunk)} bytes, {wanted} are wanted")
    return chunk
