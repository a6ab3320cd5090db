"""Messages are for whoever types commands and writes run files: none advises what only Python code can do."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGES = ("flows", "tasks", "domains", "lsap_archive", "lsap_core")
ONLY_IN_PYTHON = re.compile(
    r"\bpass [a-z_]+=|\bpass [a-z]+_[a-z_]+\b|\b(pass|call|to|with) `[A-Za-z_.]+`|`[A-Z][A-Za-z]+[.`(]|\b[a-z_]+\(\)"
)
OF_THE_LIBRARY = {
    "freeze": "of a generator that was handed over as a module",
    "comparison_view": "of tensors",
    "hyper_view": "of tensors",
    "EncoderConfig.for_generator": "of an encoder that was built by hand",
    "HyperStyleConfig.for_generator": "of a hypernetwork that was built by hand",
    "writing": "a fault of a flow",
}
"""What messages name that no command can cause, and whose mistake they tell."""


def messages(path: Path) -> Iterator[tuple[int, str]]:
    """The texts of what a module raises or logs, with their lines; what is filled in stands as "?"."""
    for node in ast.walk(ast.parse(path.read_text())):
        is_logged = (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr in ("warning", "error", "exception")
        )
        if isinstance(node, ast.Raise) or is_logged:
            texts = [
                part.value
                if isinstance(part, ast.Constant) and isinstance(part.value, str)
                else "".join(str(piece.value) if isinstance(piece, ast.Constant) else "?" for piece in part.values)
                for part in ast.walk(node)
                if isinstance(part, ast.JoinedStr) or (isinstance(part, ast.Constant) and isinstance(part.value, str))
            ]
            yield from ((node.lineno, text) for text in texts)


def wrong(text: str) -> bool:
    known = "|".join(map(re.escape, OF_THE_LIBRARY))
    return ONLY_IN_PYTHON.search(re.sub(rf"`?\b({known})\b(`|\(\))?", "that", text)) is not None


@pytest.mark.parametrize("package", PACKAGES)
def test_no_message_advises_what_only_python_code_can_do(package: str) -> None:
    root = Path(__file__).parents[2]
    found = [
        f"{path.relative_to(root)}:{line}: {text}"
        for path in sorted((root / package).rglob("*.py"))
        for line, text in messages(path)
        if wrong(text)
    ]
    assert found == []


@pytest.mark.parametrize(
    ("text", "is_wrong"),
    [
        ('no encoder_type: pass heads="direct"', True),
        ("its sizes are not known: pass generator_config", True),
        ("HFGI needs its networks: pass `HfgiNetworks`", True),
        ("no codes were given: pass those of `EncoderEmbedder.codes` to `start`", True),
        ("the generator wants a gradient: call `prepare`", True),
        ("run `lsap archive verify`, or set `fit: crop`", False),
        ("another generator: pass --generator FILE", False),
        ("wanted a frozen one: call `freeze`", False),
    ],
)
def test_it_is_told_apart(text: str, is_wrong: bool) -> None:
    assert wrong(text) is is_wrong
