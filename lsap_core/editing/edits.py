"""Edits: maps from W+ to W+ that compose, can be taken back, and say what they are."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from lsap_core.errors import ConfigError, ShapeError

Layers = tuple[int, int]
"""Rows first, first + 1, ..., end - 1 of a W+ code; an end beyond the last row means the last row."""

Strength = float | Tensor
"""How far: one number for all images, or one for each, [N]."""


class Edit(Protocol):
    """A map from W+ codes to W+ codes, of any number of images at once."""

    def __call__(self, w_plus: Tensor) -> Tensor:
        """The edited codes: [N, K, D] -> a new tensor [N, K, D].

        Raises:
            ShapeError: the codes do not fit the edit.
        """
        ...

    def inverse(self, w_plus: Tensor) -> Edit:
        """The edit that takes `self(w_plus)` back to `w_plus`, [N, K, D], up to rounding."""
        ...

    def describe(self) -> dict[str, Any]:
        """What this edit is, in values that JSON has: kind, digests, strength, layers, ..."""
        ...


def compose(*edits: Edit) -> Edit:
    """One edit after the other: the second edits what the first has made. No edits at all change nothing.

    Example:
        >>> from lsap_core.editing import Direction, along
        >>> right = Direction("right", torch.tensor([[1.0, 0.0]]))
        >>> compose(along(right, 2.0), along(right, -0.5))(torch.zeros(1, 1, 2))
        tensor([[[1.5000, 0.0000]]])
    """
    return Composed(edits)


@dataclass(frozen=True)
class Composed:
    """Edits one after the other.

    Attributes:
        edits: the first one first.
    """

    edits: tuple[Edit, ...]

    def __call__(self, w_plus: Tensor) -> Tensor:
        """The codes after the last of them, [N, K, D]."""
        edited = w_plus.clone()
        for edit in self.edits:
            edited = edit(edited)
        return edited

    def inverse(self, w_plus: Tensor) -> Edit:
        """Their inverses, the last one first."""
        backwards: list[Edit] = []
        for edit in self.edits:
            backwards.insert(0, edit.inverse(w_plus))
            w_plus = edit(w_plus)
        return Composed(tuple(backwards))

    def describe(self) -> dict[str, Any]:
        """What each of them is."""
        return {"kind": "sequence", "edits": [edit.describe() for edit in self.edits]}


@dataclass(frozen=True, eq=False)
class Offset:
    """w'_l = w_l + strength * v_l on the chosen rows; a strength of 0 keeps every bit.

    Attributes:
        vectors: [1, D] for every row, or [K, D].
        strength: one number, or one for each image, [N].
        rows: the rows that move; None for all.
        about: what `describe` says besides strength and rows.
    """

    vectors: Tensor
    strength: Strength
    rows: Sequence[int] | None
    about: Mapping[str, Any]

    def __call__(self, w_plus: Tensor) -> Tensor:
        """The moved codes, [N, K, D]."""
        check_fit(w_plus, self.vectors)
        return move(w_plus, per_image(self.strength, w_plus) * self.vectors.to(w_plus), self.rows)

    def inverse(self, w_plus: Tensor) -> Offset:
        """The same with the strength's other sign, whatever the codes."""
        return replace(self, strength=-self.strength)

    def describe(self) -> dict[str, Any]:
        """Kind and provenance, strength, rows."""
        return {**self.about, "strength": plain(self.strength), **describe_rows(self.rows)}


def move(w_plus: Tensor, shift: Tensor, rows: Sequence[int] | None) -> Tensor:
    """w_plus + shift on some rows; where the shift is 0, not even the sign of a zero changes.

    Args:
        w_plus: [N, K, D].
        shift: broadcasts to it.
        rows: the rows that move; None for all.
    """
    return torch.where(row_mask(rows, w_plus) & (shift != 0), w_plus + shift, w_plus)


def row_mask(rows: Sequence[int] | None, w_plus: Tensor) -> Tensor:
    """Which rows of codes [N, K, D] are chosen, [K, 1]; those beyond K are left out.

    Raises:
        ConfigError: all of them lie beyond.
    """
    num_ws = w_plus.shape[1]
    mask = torch.ones(num_ws, 1, dtype=torch.bool, device=w_plus.device)
    if rows is not None:
        chosen = [row for row in range(num_ws) if row in rows]
        if not chosen:
            raise ConfigError(f"layers begin at row {min(rows)}; the codes have rows 0 to {num_ws - 1} only")
        mask[:] = False
        mask[chosen] = True
    return mask


def rows_of(layers: Layers | None) -> range | None:
    """The rows that (first, end) stands for; None stays None, which is all.

    Raises:
        ConfigError: no range of rows.
    """
    if layers is None:
        return None
    first, end = layers
    if not 0 <= first < end:
        raise ConfigError(f"layers are ({first}, {end}); wanted (first, end) with 0 <= first < end, such as (0, 8)")
    return range(first, end)


def describe_rows(rows: Sequence[int] | None) -> dict[str, Any]:
    """Rows as JSON values: {"layers": None} for all, {"layers": [first, end]}, or {"rows": [...]}."""
    if rows is None or isinstance(rows, range):
        return {"layers": rows and [rows.start, rows.stop]}
    return {"rows": list(rows)}


def checked_strength(strength: Strength) -> Strength:
    """A strength that is finite.

    Raises:
        ConfigError: it is not.
        ShapeError: a tensor that is not [N].
    """
    if isinstance(strength, Tensor):
        if strength.ndim != 1:
            raise ShapeError(f"strengths are {list(strength.shape)}; wanted one number, or one for each image, [N]")
        is_finite = bool(torch.isfinite(strength).all())
    else:
        is_finite = math.isfinite(strength)
    if not is_finite:
        raise ConfigError(f"strength is {plain(strength)}; wanted finite numbers")
    return strength


def per_image(values: Strength, w_plus: Tensor) -> Tensor:
    """A strength as [1 or N, 1, 1], in the type of the codes [N, K, D].

    Raises:
        ShapeError: strengths for another number of images.
    """
    if isinstance(values, Tensor) and values.shape != w_plus.shape[:1]:
        raise ShapeError(f"{values.shape[0]} strengths for {w_plus.shape[0]} images; wanted one for each")
    return torch.as_tensor(values, dtype=w_plus.dtype, device=w_plus.device).reshape(-1, 1, 1)


def check_fit(w_plus: Tensor, vectors: Tensor) -> None:
    """Refuse codes that vectors [1 or K, D] do not fit.

    Raises:
        ShapeError: the codes are not [N, K, D], or of another K or D than the vectors.
    """
    rows, width = vectors.shape[-2:]
    if w_plus.ndim != 3 or w_plus.shape[2] != width or rows not in (1, w_plus.shape[1]):
        wanted = f"[N, {'K' if rows == 1 else rows}, {width}]"
        raise ShapeError(f"codes are {list(w_plus.shape)}; this edit wants W+ {wanted}: it is of another generator")


def tensor_digest(values: Tensor) -> str:
    """SHA-256 of numbers and their shape, as float32, 32 hexadecimal digits of it."""
    array = values.detach().to("cpu", torch.float32).contiguous().numpy()
    return hashlib.sha256(str(array.shape).encode() + array.tobytes()).hexdigest()[:32]


def plain(values: Strength) -> float | list[float]:
    """A strength as JSON has it."""
    if isinstance(values, Tensor):
        return [float(value) for value in values.tolist()]
    return float(values)
