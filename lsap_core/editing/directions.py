"""Linear directions in W and W+ (InterFaceGAN, Shen et al. 2020), and edits along them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from lsap_core.editing.edits import (
    Edit,
    Layers,
    Offset,
    Strength,
    check_fit,
    checked_strength,
    move,
    plain,
    rows_of,
    tensor_digest,
)
from lsap_core.errors import ConfigError, ShapeError

SPAN_TOLERANCE = 1e-4
"""Below this share of a direction outside the span of its conditions, what is left is rounding."""


@dataclass(frozen=True, eq=False)
class Direction:
    """Where an attribute grows, and for which generator that holds.

    Attributes:
        name: what people call it.
        vectors: [1, D] for every row of a code, or [K, D], float32; of any length, which a strength multiplies.
        generator: digest of the generator that it was found on, None where nobody knows.
        space: "w" for one vector, "w_plus" for one for each row.
        provenance: how it was found, in values that JSON has.

    Raises:
        ShapeError: other shapes.
        ConfigError: values that are not finite, or all 0.
    """

    name: str
    vectors: Tensor
    generator: str | None = None
    space: Literal["w", "w_plus"] = "w"
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse what moves no code or breaks every one."""
        vectors = self.vectors.detach().float()
        if vectors.ndim != 2 or (self.space == "w" and len(vectors) != 1):
            wanted = "[1, D]" if self.space == "w" else "[K, D]"
            raise ShapeError(
                f'direction "{self.name}" in {self.space} is {list(vectors.shape)}; wanted {wanted}: '
                "from_array takes other shapes"
            )
        if not bool(torch.isfinite(vectors).all()):
            raise ConfigError(f'direction "{self.name}" holds values that are not finite; make it again')
        if not bool(vectors.any()):
            raise ConfigError(f'direction "{self.name}" is all 0 and leads nowhere; make it again')
        object.__setattr__(self, "vectors", vectors)

    @property
    def digest(self) -> str:
        """Digest of the numbers, the same for every file that holds them."""
        return tensor_digest(self.vectors)

    @staticmethod
    def from_array(
        array: np.ndarray | Tensor,
        *,
        name: str,
        num_ws: int,
        w_dim: int,
        generator: str | None = None,
        provenance: Mapping[str, Any] | None = None,
    ) -> Direction:
        """A direction from any shape that is in circulation.

        Rows that are all the same are one vector, so they fit a generator with another number of rows too.

        Args:
            array: [D], [1, D], [K, D] or [1, K, D].
            name: what people call it.
            num_ws: rows K of the generator's codes.
            w_dim: their width D.
            generator: digest of the generator that it was found on, if known.
            provenance: how it was found.

        Raises:
            ShapeError: another width, or different rows for another K.
            ConfigError: values that are not finite, or all 0.
        """
        values = torch.as_tensor(array).detach().to("cpu", torch.float32)
        rows = values.squeeze(0) if values.ndim == 3 and len(values) == 1 else torch.atleast_2d(values)
        if rows.ndim != 2 or rows.shape[1] != w_dim:
            raise ShapeError(
                f'direction "{name}" is {list(values.shape)}; this generator wants width {w_dim}: '
                f"[{w_dim}], [1, {w_dim}], [{num_ws}, {w_dim}] or [1, {num_ws}, {w_dim}]"
            )
        if bool((rows == rows[:1]).logical_or(rows.isnan()).all()):  # NaN is refused below, by its own name
            rows = rows[:1]
        elif len(rows) != num_ws:
            raise ShapeError(
                f'direction "{name}" has {len(rows)} different rows; this generator has {num_ws}: '
                "it was found on a generator of another size, take one for this one"
            )
        space: Literal["w", "w_plus"] = "w" if len(rows) == 1 else "w_plus"
        return Direction(name, rows.clone(), generator, space, dict(provenance or {}))


def along(direction: Direction, strength: Strength, *, layers: Layers | None = None) -> Edit:
    """The edit w'_l = w_l + strength * n_l (InterFaceGAN, eq. 6, in W+); 0 returns the codes bit for bit.

    Args:
        direction: n.
        strength: how far, in lengths of n; one number, or one for each image, [N].
        layers: (first, end) rows that move; None for all. An end beyond the last row means the last row.

    Raises:
        ConfigError: a strength that is not finite, or no range of rows.

    Example:
        >>> up = Direction("up", torch.tensor([[0.0, 1.0]]))
        >>> along(up, 3.0, layers=(1, 2))(torch.zeros(1, 2, 2))
        tensor([[[0., 0.], [0., 3.]]])
    """
    return Offset(direction.vectors, checked_strength(strength), rows_of(layers), _about(direction))


def to_distance(direction: Direction, distance: Strength) -> Edit:
    """Every row to a given signed distance from the hyperplane through the origin (InterFaceGAN's W interpolation).

    w'_l = w_l + (d - w_l . n_l) n_l with n_l of length 1, so that a distance means the same for all codes.

    Args:
        direction: n; its length does not matter.
        distance: d, one number, or one for each image, [N].

    Raises:
        ConfigError: a distance that is not finite.
    """
    lengths = direction.vectors.norm(dim=1, keepdim=True)
    if not bool((lengths > 0).all()):
        raise ConfigError(f'direction "{direction.name}" has rows of length 0: no hyperplane belongs to them')
    given = checked_strength(distance)
    wanted = given[:, None] if isinstance(given, Tensor) else torch.tensor([[float(given)]], dtype=torch.float64)
    return _ToDistance(direction.vectors / lengths, wanted, {**_about(direction), "kind": "distance"})


@dataclass(frozen=True, eq=False)
class _ToDistance:
    """w'_l = w_l + (d_l - w_l . n_l) n_l.

    Attributes:
        normals: [1 or K, D], of length 1.
        distances: [1 or N, 1 or K].
        about: what `describe` says besides the distances.
    """

    normals: Tensor
    distances: Tensor
    about: Mapping[str, Any]

    def __call__(self, w_plus: Tensor) -> Tensor:
        check_fit(w_plus, self.normals)
        if len(self.distances) not in (1, len(w_plus)):
            raise ShapeError(f"{len(self.distances)} distances for {len(w_plus)} images; wanted one for each")
        normals = self.normals.to(w_plus)
        missing = self.distances.to(w_plus) - (w_plus * normals).sum(dim=2)  # [N, K]
        return move(w_plus, missing[:, :, None] * normals, None)

    def inverse(self, w_plus: Tensor) -> Edit:
        """Every row back to the distance that it had."""
        check_fit(w_plus, self.normals)
        return replace(self, distances=(w_plus * self.normals.to(w_plus)).sum(dim=2))

    def describe(self) -> dict[str, Any]:
        same = bool((self.distances == self.distances[:, :1]).all())
        distances = self.distances[:, 0] if same else None
        if distances is None:
            return {**self.about, "distance": self.distances.tolist()}
        return {**self.about, "distance": distances.item() if len(distances) == 1 else plain(distances)}


def conditional(direction: Direction, conditions: Sequence[Direction]) -> Direction:
    """The part of a direction along which the conditions do not change, of length 1 (InterFaceGAN, section 3.3).

    n' = n - C^+ C n, normalized; the rows of C are the conditions and C^+ its pseudo-inverse.

    Args:
        direction: n.
        conditions: c_1, ..., c_m, of any length and not necessarily orthogonal.

    Returns:
        A direction orthogonal to every condition, row by row. Without conditions: n, normalized.

    Raises:
        ConfigError: n lies in the span of the conditions, or they belong to another generator.
        ShapeError: their shapes do not go together.
    """
    normal = direction.vectors.double()
    length = normal.norm(dim=1, keepdim=True)
    for condition in conditions:
        _check_condition(direction, condition)
    if conditions:
        num_rows = max(len(one.vectors) for one in (direction, *conditions))
        normal = normal.expand(num_rows, -1)
        spanned = torch.stack([one.vectors.double().expand(num_rows, -1) for one in conditions], dim=1)  # [K, m, D]
        coordinates = spanned @ normal[:, :, None]
        normal = normal - (torch.linalg.pinv(spanned) @ coordinates)[:, :, 0]
    remaining = normal.norm(dim=1, keepdim=True)
    if bool((remaining <= SPAN_TOLERANCE * length).any()):
        names = ", ".join(one.name for one in conditions)
        raise ConfigError(
            f'direction "{direction.name}" lies in the span of its conditions ({names}): nothing is left of it '
            "that would not change them; leave one of them out"
        )
    told = {"conditional_on": [{"name": one.name, "digest": one.digest} for one in conditions]}
    space: Literal["w", "w_plus"] = "w" if len(normal) == 1 else "w_plus"
    return Direction(
        direction.name,
        (normal / remaining).float(),
        direction.generator,
        space,
        {**direction.provenance, **(told if conditions else {})},
    )


def _check_condition(direction: Direction, condition: Direction) -> None:
    ours, theirs = direction.vectors.shape, condition.vectors.shape
    if ours[1] != theirs[1] or (1 not in (ours[0], theirs[0]) and ours[0] != theirs[0]):
        raise ShapeError(
            f'condition "{condition.name}" is {list(theirs)} and direction "{direction.name}" {list(ours)}; '
            "wanted the same rows and width"
        )
    if None not in (direction.generator, condition.generator) and direction.generator != condition.generator:
        raise ConfigError(
            f'condition "{condition.name}" belongs to generator {condition.generator}, direction '
            f'"{direction.name}" to {direction.generator}: find both on one generator'
        )


def _about(direction: Direction) -> dict[str, Any]:
    return {
        "kind": "direction",
        "direction": direction.name,
        "digest": direction.digest,
        "generator": direction.generator,
        "space": direction.space,
    }
