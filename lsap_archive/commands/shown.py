"""What `lsap-archive` prints: tables for people, JSON for machines.

Names in an archive are anybody's: what is printed for people is visible text, so that none commands the terminal.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

_SIDES = {True: str.rjust, False: str.ljust}


def visible(text: str) -> str:
    r"""The text with what is not printable written out, such as \n or \x1b."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def print_json(document: Any) -> None:
    """Print a document as JSON; numbers that JSON has not, such as NaN, are null."""
    print(json.dumps(_finite(document), indent=2, default=str, allow_nan=False))


def print_table(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Print rows in columns that stand straight, numbers to the right; nothing where a row has no value."""
    for line in table_lines(columns, rows):
        print(line)


def table_lines(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    r"""The lines of a table.

    Example:
        >>> print("\n".join(table_lines(["method", "sncd"], [{"method": "pSp", "sncd": 0.5}, {"method": "e4e"}])))
        method  sncd
        pSp      0.5
        e4e
    """
    cells = [[_cell(row.get(name)) for name in columns] for row in rows]
    heads = [visible(name) for name in columns]
    widths = [max(map(len, column)) for column in zip(heads, *cells, strict=True)]
    is_number = [any(_is_number(row.get(name)) for row in rows) for name in columns]
    for line in (heads, *cells):
        padded = [_SIDES[right](cell, width) for cell, width, right in zip(line, widths, is_number, strict=True)]
        yield "  ".join(padded).rstrip()


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.6g}"
    return visible(str(value))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
