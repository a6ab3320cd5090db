"""What networks saw of original images, kept so that nobody has to look again: a row for each image."""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import prod

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lsap_archive.errors import HOW_TO_REPAIR, CorruptArchiveError
from lsap_archive.format.rows import from_parquet, notes_of, to_parquet

SEEN_SCHEMA = pa.schema(
    [pa.field("digest", pa.string(), nullable=False), pa.field("seen", pa.list_(pa.float64()), nullable=False)]
)
"""digest is that of the image's file, as rows of runs have it; seen holds the numbers of one array, NaN included."""

_KEPT_AS, _SHAPE, _DTYPE = "kept_as", "shape", "dtype"


def encode_seen(name: str, seen: Mapping[str, NDArray[np.floating]]) -> bytes:
    """What was seen of images as bytes, with the name that it is kept under.

    Args:
        name: see `seen_key`.
        seen: by digest of the image; arrays of one shape and one type, float32 or float64.
    """
    first = next(iter(seen.values()))
    table = pa.table([list(seen), [one.astype(np.float64).ravel().tolist() for one in seen.values()]], SEEN_SCHEMA)
    return to_parquet(table, {_KEPT_AS: name, _SHAPE: json.dumps(list(first.shape)), _DTYPE: first.dtype.name})


def decode_seen(data: bytes, name: str, where: str) -> dict[str, NDArray[np.floating]]:
    """What `encode_seen` was given, bit for bit.

    Raises:
        CorruptArchiveError: it is damaged, or kept under another name.
    """
    notes, table = notes_of(data, where), from_parquet(data, SEEN_SCHEMA, where)
    if notes.get(_KEPT_AS) != name:
        raise CorruptArchiveError(f"{where} is kept as {notes.get(_KEPT_AS)}: {HOW_TO_REPAIR}")
    try:
        shape, dtype = [int(side) for side in json.loads(notes[_SHAPE])], np.dtype(notes[_DTYPE])
        lengths = set(table.column("seen").combine_chunks().value_lengths().to_pylist())
        if lengths != {prod(shape)} or dtype.name not in ("float32", "float64"):
            raise ValueError(f"arrays of {sorted(lengths)} numbers of {dtype}, {prod(shape)} are wanted")
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptArchiveError(f"{where} makes no sense ({error}): {HOW_TO_REPAIR}") from error
    numbers = table.column("seen").combine_chunks().flatten().to_numpy(zero_copy_only=False)
    arrays = numbers.astype(dtype).reshape(-1, *shape)
    return dict(zip(table.column("digest").to_pylist(), arrays, strict=True))
