"""Weights under published names, made from nothing: right in every name and shape, quick to make, small on the disk.

Tensors of one shape and kind are one in memory, and `torch.save` writes what tensors share once.
"""

from __future__ import annotations

import json
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.reference import fill

KEYS = Path(fill.__file__).with_name("keys")
Shapes = Mapping[str, Sequence[int]]


def tables(name: str) -> dict[str, Any]:
    """What is known of published networks, such as names and shapes of three of them below "pnet", "rnet", "onet"."""
    found: dict[str, Any] = json.loads((KEYS / f"{name}.json").read_text())
    return found


def published(table: str) -> dict[str, list[int]]:
    """Names and shapes of a published network."""
    keys: dict[str, list[int]] = tables(table)["keys"]
    return keys


def filled(shapes: Shapes, small: Container[str] = ()) -> dict[str, Tensor]:
    """A tensor for each name, as large as the rule in `tests/reference/fill.py` makes it.

    Args:
        shapes: by name.
        small: names that the rule does not know: a tenth of normal numbers.
    """
    made: dict[Any, Tensor] = {}
    tensors = {}
    for name, shape in shapes.items():
        if name in small:
            tensors[name] = torch.from_numpy(0.1 * fill.normal(name, shape)).float()
            continue
        kind = fill.kind_of(name, shape, shapes, "plain")
        if kind == "keep":
            tensors[name] = torch.zeros(tuple(shape), dtype=torch.long if not shape else torch.float32)
            continue
        key = kind, tuple(shape)
        if key not in made:
            value = fill.value(name, tuple(shape), shapes, "plain")
            assert value is not None, "a kind that is not kept has a value"
            made[key] = torch.from_numpy(value)
        tensors[name] = made[key]
    return tensors


def below(prefix: str, tensors: Mapping[str, Any]) -> dict[str, Any]:
    """The same under longer names."""
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}
