"""The table of measurements: one row for each image and measure, so that a new measure is no new column."""

from __future__ import annotations

import math
from typing import Any

import pyarrow as pa

from lsap_archive.errors import ArchiveMismatchError

MEASUREMENT_SCHEMA = pa.schema(
    [
        pa.field("evaluation_id", pa.string(), nullable=False),
        pa.field("run_id", pa.string()),
        pa.field("row", pa.int64(), nullable=False),
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("method", pa.string(), nullable=False),
        pa.field("edit", pa.string()),
        pa.field("strength", pa.float64()),
        pa.field("measure", pa.string(), nullable=False),
        pa.field("by", pa.string()),
        pa.field("value", pa.float64()),
        pa.field("problem", pa.string()),
        pa.field("shard", pa.int32(), nullable=False),
    ]
)
"""One row for each image and measure: `run_id` and `row` join it with the rows of the measured run.

run_id is null for synthetic images. measure says what was measured ("lpips"), by says with what ("lpips-alex", the
name of an attribute or of an edit). value is a number (the PSNR of equal images is inf), or null with a short code of
the reason in problem.
"""

MEASURED_COLUMNS = ("row", "image_id", "measure", "by", "value", "problem")
"""What a writer hands in; the plan knows the others."""


STATE_NOTE = "state_sha256"
"""Beside the measurements of a shard: digest of its sums, which no manifest has until the evaluation is published."""


def conform_measurements(rows: Any, *, constants: dict[str, Any], planned: range, where: str) -> Any:
    """A shard's measurements in MEASUREMENT_SCHEMA, checked.

    Args:
        rows: pyarrow table of MEASURED_COLUMNS; by, value and problem may be left out and are null.
        constants: the other columns, the same in every row.
        planned: rows of the shard.
        where: for the message.

    Raises:
        ArchiveMismatchError: another column, a row of another shard, a measure twice, a value that is no number, or
            one without a value and without a problem.
    """
    if unknown := sorted(set(rows.column_names) - set(MEASURED_COLUMNS)):
        raise ArchiveMismatchError(f"{where}: unknown columns {', '.join(unknown)}: leave them out")
    if missing := sorted({"row", "image_id", "measure"} - set(rows.column_names)):
        raise ArchiveMismatchError(f"{where}: the columns {', '.join(missing)} are missing: give them")
    size = rows.num_rows
    arrays = []
    for field in MEASUREMENT_SCHEMA:
        if field.name in MEASURED_COLUMNS:
            known = field.name in rows.column_names
            column = rows.column(field.name).cast(field.type) if known else pa.nulls(size, field.type)
        else:
            column = pa.array([constants[field.name]] * size, field.type)
        if not field.nullable and column.null_count:
            raise ArchiveMismatchError(f"{where}: column {field.name} has {column.null_count} nulls: give a value")
        arrays.append(column)
    table = pa.Table.from_arrays(arrays, schema=MEASUREMENT_SCHEMA)
    _check(table, planned, where)
    return table


def _check(table: Any, planned: range, where: str) -> None:
    seen: set[tuple[Any, ...]] = set()
    columns = [table.column(name).to_pylist() for name in ("row", "measure", "by", "value", "problem")]
    for row, measure, by, value, problem in zip(*columns, strict=True):
        name = f"{measure} of row {row}" if by is None else f"{measure} [{by}] of row {row}"
        if row not in planned:
            raise ArchiveMismatchError(f"{where}: {name} was given, the shard has {planned[0]} to {planned[-1]}")
        if (row, measure, by) in seen:
            raise ArchiveMismatchError(f"{where}: {name} was given twice: give it once")
        seen.add((row, measure, by))
        if value is not None and math.isnan(value):
            raise ArchiveMismatchError(f"{where}: {name} is {value}: leave it null and name the problem")
        if (value is None) == (problem is None):
            raise ArchiveMismatchError(f"{where}: {name} needs either a value or a problem")
