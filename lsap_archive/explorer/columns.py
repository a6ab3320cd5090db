"""The columns of the explorer's table `images`: those of the rows, and one for each thing that was measured."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

from lsap_archive.format.rows import ROW_SCHEMA

Kind = Literal["number", "count", "text"]

_LOW_IS_WORST = frozenset({"identity_similarity", "identity", "psnr", "ms_ssim", "class_kept"})
_HIGH_IS_WORST = frozenset(
    {
        "mse",
        "lpips",
        "lpips_judge",
        "sncd",
        "w_distance",
        "final_loss",
        "seconds",
        "num_steps",
        "distance_to_real",
        "lec",
    }
)
_MOST_MEASURED = 48  # columns of measurements; further ones are for SQL


@dataclass(frozen=True)
class Column:
    """A column that rows can be sorted by.

    Attributes:
        name: in the table `images`.
        kind: "number" for floats, "count" for integers, "text".
        worst: which end of it is the worst, "high" or "low"; None where it is neither.
        measure, by: where it stands in the table `measurements`; measure is None for a column of the rows.
    """

    name: str
    kind: Kind
    worst: Literal["high", "low"] | None = None
    measure: str | None = None
    by: str | None = None

    @property
    def is_number(self) -> bool:
        """Whether it has a histogram, ranges and differences."""
        return self.kind != "text"


def row_columns() -> list[Column]:
    """Those of ROW_SCHEMA."""
    return [Column(field.name, _kind(field.type), _worst(field.name)) for field in ROW_SCHEMA]


def measured_columns(measured: Iterable[tuple[str, str | None]]) -> list[Column]:
    """One for each measure and what it was measured by, named "measure [by]"; no name is there twice.

    Example:
        >>> [one.name for one in measured_columns([("lpips", "alex"), ("lpips", "vgg"), ("sncd", None), ("fit", None)])]
        ['fit', 'lpips [alex]', 'lpips [vgg]', 'sncd [evaluated]']
    """
    taken = {name.casefold() for name in (*ROW_SCHEMA.names, "place")}
    columns = []
    for measure, by in sorted(measured, key=lambda one: (one[0], one[1] or ""))[:_MOST_MEASURED]:
        name = measure if by is None else f"{measure} [{by}]"
        if by is None and name.casefold() in taken:
            name = f"{measure} [evaluated]"
        while name.casefold() in taken:  # names differ only in case, which those of SQL may not
            name += " *"
        taken.add(name.casefold())
        columns.append(Column(name, "number", _worst(measure), measure, by))
    return columns


def _kind(of: pa.DataType) -> Kind:
    return "number" if pa.types.is_floating(of) else "count" if pa.types.is_integer(of) else "text"


def _worst(name: str) -> Literal["high", "low"] | None:
    return "high" if name in _HIGH_IS_WORST else "low" if name in _LOW_IS_WORST else None


def quoted(name: str) -> str:
    """A name in SQL."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """A text in SQL."""
    return "'" + text.replace("'", "''") + "'"


def images_sql(columns: Iterable[Column]) -> str:
    """The query that makes the table `images` of `latest` and `measurements`."""
    measured = [one for one in columns if one.measure is not None]
    if not measured:
        return "select * from latest"
    values = ",\n        ".join(
        f"max(value) filter (where measure = {literal(str(one.measure))} and "
        + ('"by" is null' if one.by is None else f'"by" = {literal(one.by)}')
        + f") as {quoted(one.name)}"
        for one in measured
    )
    names = ", ".join(f"measured.{quoted(one.name)}" for one in measured)
    return (
        f"select latest.*, {names} from latest left join (\n"
        f'    select run_id, "row",\n        {values}\n'
        '    from measurements group by run_id, "row"\n'
        ') as measured on measured.run_id = latest.run_id and measured."row" = latest."row"'
    )
