"""Texts that others have written, such as names of images, as they may be shown: on a page, a terminal, in a log."""

from __future__ import annotations

import re
from collections.abc import Sequence

HARD_SPACE = "\N{NO-BREAK SPACE}"

_MARKDOWN = {"\\": "\\\\", "|": "\\|", "`": "\\`", "<": "&lt;", "](": "]\\("}


def visible(text: str, kept: str = HARD_SPACE) -> str:
    r"""The text with its control, format and surrogate characters written out, such as \n or \u202e.

    A newline breaks a table or forges a line of a log, an escape sequence writes to a terminal what it likes, a
    direction mark turns a line around and a lone surrogate cannot be encoded at all.

    Args:
        text: anybody's.
        kept: characters that stay although they are not printable, such as a newline.
    """
    return "".join(
        char if char.isprintable() or char in kept else char.encode("unicode_escape").decode() for char in text
    )


def in_markdown(text: str) -> str:
    r"""The text within a line or a table's cell of Markdown: visible, with no HTML, link, picture, code or cell in it.

    What emphasizes is left alone: names are full of underscores, and people read these tables on terminals too.

    Example:
        >>> in_markdown("a|<b>[c](d)")
        'a\\|&lt;b>[c]\\(d)'
    """
    return re.sub(r"\]\(|[\\|`<]", lambda found: _MARKDOWN[found[0]], visible(text))


def markdown_table(lines: Sequence[Sequence[str]], align: str = "lr", *, is_padded: bool = False) -> str:
    r"""A table of Markdown, each cell as `in_markdown` writes it.

    Args:
        lines: the heads, then the rows.
        align: a letter for each column, l or r; the last one is that of all further columns.
        is_padded: whether columns stand straight on a terminal too, at the price of long lines.

    Example:
        >>> print(markdown_table([["method", "MSE"], ["a|b", "0.5"]]))
        | method | MSE |
        | --- | ---: |
        | a\|b | 0.5 |
    """
    cells = [[in_markdown(cell) for cell in line] for line in lines]
    sides = align.ljust(len(cells[0]), align[-1])[: len(cells[0])]
    widths = [max(map(len, column)) if is_padded else 0 for column in zip(*cells, strict=True)]
    columns = list(zip(sides, widths, strict=True))
    rule = ["-" * max(3, width) if side == "l" else "-" * max(3, width - 1) + ":" for side, width in columns]
    pad = {"l": str.ljust, "r": str.rjust}
    padded = [[pad[side](cell, width) for cell, (side, width) in zip(line, columns, strict=True)] for line in cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in (padded[0], rule, *padded[1:]))
