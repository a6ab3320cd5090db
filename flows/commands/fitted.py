"""Lines in the width of a terminal: tables as columns, in blocks where they are too wide, and long lines folded."""

from __future__ import annotations

import itertools
import os
import shutil
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence

from flows.commands.markdown_tables import RULE, cells_of

NARROWEST = 40
GAP = "  "


def width_of_output() -> int | None:
    """How many characters fit into a line of standard output; None for files and pipes, unless COLUMNS says it."""
    if not os.environ.get("COLUMNS", "").isdigit() and (sys.stdout is None or not sys.stdout.isatty()):
        return None
    return max(shutil.get_terminal_size().columns, NARROWEST)


def fitted(lines: Iterable[str], width: int | None) -> Iterator[str]:
    """Lines for people, none longer than a width but where a single word is.

    Args:
        lines: text, and tables as Markdown has them.
        width: None for no limit.
    """
    for is_table, some in itertools.groupby(lines, lambda line: line.startswith("|")):
        if is_table:
            yield from _columns(list(some), width)
        else:
            for line in some:
                yield from _folded(line, width)


def _folded(line: str, width: int | None) -> list[str]:
    """A line in pieces, those after the first a little further in."""
    if width is None or len(line) <= width:
        return [line]
    margin = line[: len(line) - len(line.lstrip())]
    inner = f"{margin}    "
    return textwrap.wrap(
        line.lstrip(),
        width,
        initial_indent=margin,
        subsequent_indent=inner,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _columns(table: Sequence[str], width: int | None) -> Iterator[str]:
    """A Markdown table as columns; where not all fit, as many blocks as it takes, each with the first column."""
    found = [cells_of(line) for line in table if not RULE.fullmatch(line)]
    rows = [[*row, *[""] * (max(map(len, found)) - len(row))] for row in found]
    is_right = [cell.endswith(":") for line in table if RULE.fullmatch(line) for cell in cells_of(line)]
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    for number, block in enumerate(_blocks(widths, width)):
        if number:
            yield ""
        for row in rows:
            told = [
                row[i].rjust(widths[i]) if i < len(is_right) and is_right[i] else row[i].ljust(widths[i]) for i in block
            ]
            yield from _folded(GAP.join(told).rstrip(), width)


def _blocks(widths: Sequence[int], width: int | None) -> list[list[int]]:
    """Which columns stand together; the first in every block."""
    blocks = [[0]]
    for place in range(1, len(widths)):
        taken = sum(widths[i] + len(GAP) for i in blocks[-1])
        if width is not None and len(blocks[-1]) > 1 and taken + widths[place] > width:
            blocks.append([0])
        blocks[-1].append(place)
    return blocks
