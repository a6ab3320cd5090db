"""Zarr v3 as this archive uses it: arrays sized up front, one object per array and shard, made in memory."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import Crc32cCodec
from zarr.core.buffer import Buffer, default_buffer_prototype
from zarr.storage import MemoryStore

from lsap_archive.errors import HOW_TO_REPAIR, CorruptArchiveError, first_line
from lsap_archive.format.arrays import RunArray, trace_of
from lsap_archive.format.chunks import chunk_rows, compressors, guarded, rows_of_object
from lsap_archive.format.coordinates import IMAGE, IMAGE_ID, coordinate_values, coordinates_of, dimension_names
from lsap_archive.format.layout import chunk_name
from lsap_archive.format.manifest import Manifest
from lsap_archive.format.plan import RunPlan

CHECKSUM_BYTES = 4
_NO_CHUNK = 2**64 - 1


def group_metadata(
    arrays: Collection[RunArray],
    num_rows: int,
    shard_rows: int,
    attributes: dict[str, Any],
    *,
    has_coordinates: bool = True,
) -> dict[str, bytes]:
    """The zarr.json of the group, of each array and of each coordinate, by key relative to the group.

    The group's also holds those of the others (consolidated metadata): one request opens a run, and no reader
    takes the other objects beside the arrays for a part of the group.

    Args:
        arrays: what is kept of each image.
        num_rows: N, images of the run.
        shard_rows: rows of a shard.
        attributes: of the group, JSON values.
        has_coordinates: False for the bytes of versions before 7, which had no coordinates, and arrays of several sizes
            along dimensions of one name.
    """
    objects: dict[str, Buffer] = {}
    coordinates = coordinates_of(arrays, num_rows) if has_coordinates else ()
    if has_coordinates:  # so xarray knows what is none along a dimension of its own name
        attributes = {**attributes, "coordinates": IMAGE_ID}
    group = zarr.create_group(MemoryStore(store_dict=objects), zarr_format=3, attributes=attributes)
    declared = {array.name: (IMAGE, *array.dimensions) for array in arrays}
    names = dimension_names(arrays) if has_coordinates else declared
    for one in coordinates:
        group.create_array(
            name=one.name,
            shape=(one.size,),
            chunks=(one.size,),
            dtype=one.dtype,
            compressors=[Crc32cCodec()],
            fill_value="" if one.dtype == "string" else 0,
            dimension_names=(one.dimension,),
        )
    for array in arrays:
        group.create_array(
            name=array.name,
            shape=(num_rows, *array.item_shape),
            chunks=(chunk_rows(array, shard_rows), *array.item_shape),
            shards=(rows_of_object(array, num_rows, shard_rows), *array.item_shape),
            dtype=array.dtype,
            compressors=compressors(array),
            fill_value=array.fill_value,
            attributes=array.attributes,
            dimension_names=names[array.name],
        )
    documents = {key: json.loads(value.to_bytes()) for key, value in objects.items()}
    members = {name: documents[f"{name}/zarr.json"] for name in (*(one.name for one in coordinates), *declared)}
    documents["zarr.json"]["consolidated_metadata"] = {
        "kind": "inline",
        "must_understand": False,
        "metadata": members,
    }
    return {key: json.dumps(document, indent=2).encode() for key, document in documents.items()}


def encode_shard(metadata: bytes, shard: int, values: NDArray[Any]) -> bytes | None:
    """The one Zarr object of a shard, the same bytes as zarr's own writer makes.

    Args:
        metadata: the array's zarr.json.
        shard: number of the shard.
        values: [rows of the shard, ...].

    Returns:
        The object, or None if every value is NaN: Zarr keeps no object for what is only the fill value. Zeros are kept:
        they may say something.
    """
    array, objects = _array_in_memory(metadata, {})
    start = shard * _shard_rows(array)
    array.with_config({"write_empty_chunks": values.dtype.kind != "f"})[start : start + len(values)] = values
    blobs = [value.to_bytes() for key, value in objects.items() if key != "zarr.json"]
    return blobs[0] if blobs else None


def run_metadata(run: RunPlan | Manifest, generator_digest: str, *, has_coordinates: bool = True) -> dict[str, bytes]:
    """Every zarr.json of a run, by key relative to its folder: the same bytes from its plan and from its manifest.

    Args:
        run: its plan or its manifest.
        generator_digest: of the archive.
        has_coordinates: as in `group_metadata`.
    """
    attributes = run_attributes(run, generator_digest)
    return group_metadata(run.arrays, run.num_rows, run.shard_rows, attributes, has_coordinates=has_coordinates)


def coordinate_objects(run: RunPlan | Manifest, generator_digest: str, image_ids: Sequence[str]) -> dict[str, bytes]:
    """Values of a run's coordinates as Zarr objects, by key relative to its folder.

    Args:
        run: its plan or its manifest.
        generator_digest: of the archive.
        image_ids: of its rows, in their order.
    """
    metadata = run_metadata(run, generator_digest)
    found = {}
    for name, values in coordinate_values(run.arrays, image_ids).items():
        array, objects = _array_in_memory(metadata[f"{name}/zarr.json"], {})
        array.with_config({"write_empty_chunks": True})[:] = values
        found[chunk_name(name, 0, 1)] = objects[chunk_name("", 0, 1).lstrip("/")].to_bytes()
    return found


def run_attributes(run: RunPlan | Manifest, generator_digest: str) -> dict[str, Any]:
    """What a run's Zarr group says of it, JSON values."""
    steps, terms = trace_of(run.arrays)
    attributes: dict[str, Any] = {
        "run_id": run.run_id,
        "method": run.method,
        "method_digest": run.method_digest,
        "generator_digest": generator_digest,
        "trace_steps": list(steps),
        "trace_terms": list(terms),
    }
    if run.subject is not None:
        attributes["subject"] = run.subject.to_dict()
    return attributes


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


def decode_shard(
    metadata: bytes, shard: int, blob: bytes, name: str, num_rows: int, item_shape: tuple[int, ...]
) -> NDArray[Any]:
    """The values of a shard, [rows of the shard, ...]; checksums are checked.

    Args:
        metadata: the array's zarr.json.
        shard: number of the shard.
        blob: its object.
        name: where that was, for the message.
        num_rows: rows of the shard.
        item_shape: of one row, as the run declares it: the metadata are not believed before they say the same.

    Raises:
        CorruptArchiveError: the object or the metadata are damaged, or say something else.
    """
    try:
        array = guarded(_array_in_memory(metadata, {shard: blob})[0])
        if array.shape[1:] != item_shape:
            raise ValueError(f"its metadata say {array.shape[1:]} of each image, {item_shape} is declared")
        start = shard * _shard_rows(array)
        return np.asarray(array[start : start + num_rows])
    except Exception as error:  # a damaged object can fail in any codec: checksum, index, shape
        raise CorruptArchiveError(f"{name} cannot be decoded ({first_line(error)}): {HOW_TO_REPAIR}") from error


def chunk_of(array: RunArray, shard: int) -> str:
    """Key of the shard's object of this array, relative to the run's folder."""
    return chunk_name(array.name, shard, 1 + len(array.item_shape))


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
