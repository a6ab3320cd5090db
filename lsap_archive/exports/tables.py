"""Batches of what is exported as Arrow: rows, arrays as lists of fixed size, pictures as binary."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lsap_archive.exports.chosen import Batch, Chosen
from lsap_archive.format.rows import ROW_SCHEMA

_FLOAT = pa.float32()
PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
"""A picture as Hugging Face `datasets` stores it in Parquet."""


def nested_type(shape: tuple[int, ...]) -> pa.DataType:
    """Lists of fixed size of lists of fixed size, [K, D]: `fixed_size_list<fixed_size_list<float>[D]>[K]`."""
    found = _FLOAT
    for size in reversed(shape):
        found = pa.list_(found, size)
    return found


def flat_type(shape: tuple[int, ...]) -> pa.DataType:
    """One list of fixed size, as vectors are searched by."""
    return pa.list_(_FLOAT, int(np.prod(shape)))


def nested(values: NDArray[np.float32]) -> pa.Array:
    """[n, ...] as n such lists of lists."""
    found = pa.array(values.reshape(-1), _FLOAT)
    for size in reversed(values.shape[1:]):
        found = pa.FixedSizeListArray.from_arrays(found, size)
    return found


def flat(values: NDArray[np.float32]) -> pa.Array:
    """[n, ...] as n such lists."""
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1), _FLOAT), int(np.prod(values.shape[1:])))


def schema_of(chosen: Chosen, *, is_flat: bool, picture: pa.DataType) -> pa.Schema:
    """Columns of rows, arrays and pictures, in this order."""
    as_type = flat_type if is_flat else nested_type
    arrays = [pa.field(name, as_type(shape)) for name, shape in chosen.shapes.items()]
    return pa.schema([*ROW_SCHEMA, *arrays, *(pa.field(name, picture) for name in chosen.picture_columns)])


def tables_of(chosen: Chosen, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """Every batch in that schema."""
    for batch in chosen.batches():
        yield _in_schema(batch, schema)


def _in_schema(batch: Batch, schema: pa.Schema) -> pa.RecordBatch:
    columns: list[pa.Array] = [batch.rows.column(one.name).cast(one.type) for one in ROW_SCHEMA]
    for name, values in batch.arrays.items():
        is_flat = schema.field(name).type == flat_type(values.shape[1:])
        columns.append(flat(values) if is_flat else nested(values))
    for name, pictures in batch.pictures.items():
        columns.append(pa.array(map(_as(schema.field(name).type), pictures), schema.field(name).type))
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _as(kind: pa.DataType) -> Any:
    def binary(picture: bytes | None) -> Any:
        return picture

    def struct(picture: bytes | None) -> Any:
        return None if picture is None else {"bytes": picture, "path": None}

    return struct if pa.types.is_struct(kind) else binary
