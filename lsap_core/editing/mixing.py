"""Edits towards other codes: style mixing and interpolation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lsap_core.editing.edits import Edit, Layers, describe_rows, row_mask, rows_of, tensor_digest
from lsap_core.errors import ConfigError, ShapeError


def mix(other: Tensor, layers: Layers, *, source: str | None = None) -> Edit:
    """Style mixing: some rows become those of other codes (StyleGAN, Karras et al. 2019, section 3.1).

    Args:
        other: one code for all images, [1, K, D], or one for each, [N, K, D].
        layers: (first, end) rows to take over. An end beyond the last row means the last row.
        source: where the other codes are from, for `describe`.

    Raises:
        ConfigError: no range of rows.
        ShapeError: the other codes are no W+ codes.
    """
    return _Mix(_checked(other), rows_of(layers), source)


def interpolate(other: Tensor, weight: float, *, source: str | None = None) -> Edit:
    """w' = w + weight * (other - w): 0 returns the codes bit for bit, 1 the others, 0.5 the midpoints.

    Args:
        other: one code for all images, [1, K, D], or one for each, [N, K, D].
        weight: share of the others; outside [0, 1] it extrapolates.
        source: where the other codes are from, for `describe`.

    Raises:
        ConfigError: a weight that is not finite.
        ShapeError: the other codes are no W+ codes.
    """
    if not math.isfinite(weight):
        raise ConfigError(f"weight is {weight}; wanted a finite number, such as 0.5")
    return _Interpolation(_checked(other), float(weight), source)


@dataclass(frozen=True, eq=False)
class _Mix:
    other: Tensor
    rows: Sequence[int] | None
    source: str | None

    def __call__(self, w_plus: Tensor) -> Tensor:
        _check_fit(w_plus, self.other)
        return torch.where(row_mask(self.rows, w_plus), self.other.to(w_plus), w_plus)

    def inverse(self, w_plus: Tensor) -> Edit:
        """The rows of `w_plus` put back."""
        _check_fit(w_plus, self.other)
        return _Mix(w_plus, self.rows, None)

    def describe(self) -> dict[str, Any]:
        return {"kind": "mix", "source": self.source, "digest": tensor_digest(self.other), **describe_rows(self.rows)}


@dataclass(frozen=True, eq=False)
class _Interpolation:
    other: Tensor
    weight: float
    source: str | None

    def __call__(self, w_plus: Tensor) -> Tensor:
        _check_fit(w_plus, self.other)
        other = self.other.to(w_plus)
        if self.weight in (0.0, 1.0):  # exactly the one or the other
            return other.expand_as(w_plus).clone() if self.weight else w_plus.clone()
        return w_plus + self.weight * (other - w_plus)

    def inverse(self, w_plus: Tensor) -> Edit:
        """w = other + (w' - other) / (1 - weight); at weight 1, where nothing is left of w, w itself."""
        if self.weight == 1:
            return _Mix(w_plus, None, None)
        return _Interpolation(self.other, -self.weight / (1 - self.weight), self.source)

    def describe(self) -> dict[str, Any]:
        return {
            "kind": "interpolation",
            "source": self.source,
            "digest": tensor_digest(self.other),
            "weight": self.weight,
        }


def _checked(other: Tensor) -> Tensor:
    if other.ndim != 3:
        raise ShapeError(f"the other codes are {list(other.shape)}; wanted W+ [1, K, D] or [N, K, D]")
    return other


def _check_fit(w_plus: Tensor, other: Tensor) -> None:
    if w_plus.ndim != 3 or w_plus.shape[1:] != other.shape[1:] or len(other) not in (1, len(w_plus)):
        raise ShapeError(
            f"codes are {list(w_plus.shape)} and the others {list(other.shape)}; wanted the same rows and width, "
            "and one other code for all images or one for each"
        )
