"""What a command prints, for people or for machines, and the codes that it ends with."""

from __future__ import annotations

import argparse
import json
from typing import Any

from tasks.visible_text import HARD_SPACE, visible

DONE, FAILED, ASKED_WRONGLY = 0, 1, 2


def show(document: dict[str, Any], parsed: argparse.Namespace) -> int:
    """Print a document as it is asked for."""
    print_result(document, parsed.json, sentences(document))
    return DONE


def print_result(document: dict[str, Any], as_json: bool, text: str) -> None:
    """Print a document for machines, or its text for people."""
    print(json.dumps(document, indent=2, default=str) if as_json else visible(text, kept=f"\n\t{HARD_SPACE}"))


def sentences(document: dict[str, Any], indent: str = "") -> str:
    """A document as lines of `name: value`, for people."""
    lines: list[str] = []
    for name, value in document.items():
        if isinstance(value, dict):
            lines += [f"{indent}{name}:", sentences(value, indent + "  ")]
        elif isinstance(value, list | tuple) and value and isinstance(value[0], dict):
            lines.append(f"{indent}{name}:")
            for item in value:
                lines += [sentences(item, indent + "  "), ""]
        else:
            lines.append(f"{indent}{name}: {value}")
    return "\n".join(lines)
