"""Tables of reports, which are Markdown, as rows for machines."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

RULE = re.compile(r"\|( *:?-+:? *\|)+")
"""The line between heads and rows."""
MARGIN = " ± "
FIRST = "name"
"""What a first column without a head is called."""


def cells_of(line: str) -> list[str]:
    """The cells of a table's row."""
    return [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line.strip())[1:-1]]


def rows_of(text: str) -> list[dict[str, Any]]:
    """Every row of the tables in a text, by heads.

    Numbers are numbers, with the digits that are shown; those with a margin are a mapping of `value` and
    `standard_error`; empty cells and "-" are None.
    """
    rows: list[dict[str, Any]] = []
    heads: Sequence[str] | None = None
    for line in text.split("\n"):
        if not line.startswith("|"):
            heads = None
        elif heads is None:
            heads = [head or FIRST for head in cells_of(line)]
        elif not RULE.fullmatch(line):
            rows.append({head: _value(cell) for head, cell in zip(heads, cells_of(line), strict=False)})
    return rows


def _value(cell: str) -> Any:
    if cell in ("", "-"):
        return None
    value, margin, error = cell.partition(MARGIN)
    if margin and isinstance(number := _number(value), int | float) and isinstance(far := _number(error), int | float):
        return {"value": number, "standard_error": far}
    return _number(cell)


def _number(cell: str) -> int | float | str:
    """The number that a cell is, if it is a finite one."""
    for kind in (int, float):
        try:
            number: int | float = kind(cell)
        except ValueError:
            continue
        return number if math.isfinite(number) else cell
    return cell
