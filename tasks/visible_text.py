"""Texts that others have written, such as names of images, as they may be shown: on a page, a terminal, in a log."""

from __future__ import annotations

import re

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
