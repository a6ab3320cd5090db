"""The table of measurements: one row for each image and measure, so that a new measure is no new column."""

from __future__ import annotations

import math
from typing import Any

import pyarrow as pa

from lsap_archive.errors import ArchiveMismatchError
from lsap_archive.format.columns import column

MEASUREMENT_SCHEMA = pa.schema(
    [
        column("evaluation_id", pa.string(), "the evaluation", is_needed=True),
        column("run_id", pa.string(), "the measured run; null for synthetic images"),
        column("row", pa.int64(), "the measured row of that run", values="from 0", is_needed=True),
        column("image_id", pa.string(), "name of the image", is_needed=True),
        column("method", pa.string(), "the measured method or edit, such as lsap_e/slant", is_needed=True),
        column("edit", pa.string(), "of an edit, its name"),
        column("strength", pa.float64(), "of an edit, how far it goes, in its own measure"),
        column("measure", pa.string(), "what was measured, such as lpips", is_needed=True),
        column("by", pa.string(), "with what: the name of a network, an attribute or an edit"),
        column(
            "value", pa.float64(), "what came out, in the measure's own unit; psnr, in dB, of equal images is infinite"
        ),
        column("problem", pa.string(), "where there is no value, a short code of the reason"),
        column("shard", pa.int32(), "the shard of the evaluation, one file", values="from 0", is_needed=True),
    ]
)
"""One row for each image and measure: `run_id` and `row` join it with the rows of the measured run."""

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
