"""Zarr v3 as this archive uses it: arrays sized up front, one object per array and shard, made in memory."""

from __future__ import annotations

import json
import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import Crc32cCodec
from zarr.core.buffer import Buffer, default_buffer_prototype
from zarr.storage import MemoryStore

from lsap_archive.errors import HOW_TO_REPAIR, CorruptArchiveError
from lsap_archive.format.layout import (
    INNER_CHUNK_BYTES,
    INNER_CHUNK_ROWS,
    TRACE,
    W_PLUS,
    Geometry,
    chunk_name,
    noise_name,
)
from lsap_archive.format.manifest import Manifest
from lsap_archive.format.plan import RunPlan

Floats = NDArray[np.float32]

CHECKSUM_BYTES = 4
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
    index = np.frombuffer(blob[-_index_bytes(array) : -CHECKSUM_BYTES], dtype="<u8").reshape(-1, 2)
    present = [(int(start), int(size)) for start, size in index if start != _NO_CHUNK]
    found = [blob[start + size - CHECKSUM_BYTES : start + size] for start, size in present]
    return b"".join([blob[-CHECKSUM_BYTES:], *found]).hex()


def _index_bytes(array: zarr.Array[Any]) -> int:
    """Size of a shard's index, its checksum included: offset and size of each inner chunk."""
    return 16 * (_shard_rows(array) // int(array.chunks[0])) + CHECKSUM_BYTES


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
        raise CorruptArchiveError(f"{name} cannot be decoded ({first_line(error)}): {HOW_TO_REPAIR}") from error


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


def first_line(error: BaseException) -> str:
    """The first line of what an error says, or its name."""
    return (str(error).splitlines() or [type(error).__name__])[0]
