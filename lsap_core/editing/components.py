"""Components of W, found without attributes: GANSpace's and SeFa's in one shape, and edits along them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from lsap_core.editing.edits import (
    Edit,
    Layers,
    Offset,
    Strength,
    check_fit,
    checked_strength,
    describe_rows,
    move,
    per_image,
    plain,
    rows_of,
    tensor_digest,
)
from lsap_core.errors import ConfigError, ShapeError

Mode = Literal["absolute", "offset"]


@dataclass(frozen=True, eq=False)
class Components:
    """Orthonormal directions of W, the most important first.

    Attributes:
        kind: "pca" (GANSpace: principal components of sampled w) or "sefa" (singular directions of the weights).
        vectors: [M, D], float32, each of length 1.
        deviations: standard deviation of sampled w along each, [M], of "pca".
        eigenvalues: [M], of "sefa"; None where the file that they are from does not have them.
        mean: mean of sampled w, [D], of "pca".
        layers: rows of W+ that drive the factorized convolutions, of "sefa"; None for all.
        generator: digest of the generator, None where nobody knows.
        provenance: how they were found, in values that JSON has.

    Raises:
        ShapeError: shapes that do not go together.
        ConfigError: what the kind needs is not there, or is not finite.
    """

    kind: Literal["pca", "sefa"]
    vectors: Tensor
    deviations: Tensor | None = None
    eigenvalues: Tensor | None = None
    mean: Tensor | None = None
    layers: tuple[int, ...] | None = None
    generator: str | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse sizes that do not go together."""
        if self.vectors.ndim != 2 or not len(self.vectors):
            raise ShapeError(f"components are {list(self.vectors.shape)}; wanted [M, D]")
        count, width = self.vectors.shape
        wanted = {"deviations": (count,), "mean": (width,)} if self.kind == "pca" else {}
        if self.eigenvalues is not None:
            wanted["eigenvalues"] = (count,)
        for name, shape in {"vectors": (count, width), **wanted}.items():
            values = getattr(self, name)
            if values is None:
                raise ConfigError(f'components of kind "{self.kind}" have no {name}; wanted {list(shape)}')
            if values.shape != shape:
                raise ShapeError(f"the components' {name} are {list(values.shape)}; wanted {list(shape)}")
            if not bool(torch.isfinite(values).all()):
                raise ConfigError(f"the components' {name} hold values that are not finite; make them again")
        if self.layers is not None and not self.layers:
            raise ConfigError("components say that they drive no layer; wanted some, or None for all")

    @property
    def digest(self) -> str:
        """Digest of everything that edits depend on."""
        kept = (self.vectors, self.deviations, self.mean)
        values = torch.cat([values.detach().cpu().float().flatten() for values in kept if values is not None])
        return tensor_digest(torch.cat([values, torch.tensor([*self.vectors.shape, *(self.layers or ())])]))


def along_component(
    components: Components,
    index: int,
    strength: Strength,
    *,
    layers: Layers | None = None,
    mode: Mode | None = None,
) -> Edit:
    """An edit along one component.

    * "absolute", of "pca" only, as published (GANSpace, Härkönen et al. 2020, section 3.3, as e4e and its followers
      edit): the coordinate of row 0 becomes `strength` standard deviations, and all chosen rows move with it:
      w'_l = w_l + (strength * s - <w_0 - mean, v>) v. A strength of 0 is the mean of the coordinate, not the identity.
    * "offset": w'_l = w_l + strength * s * v. s is the standard deviation along v for "pca", and 1 for "sefa".

    Args:
        components: where the component is.
        index: which one; 0 is the most important.
        strength: one number, or one for each image, [N].
        layers: (first, end) rows that move; by default all of them for "pca", and for "sefa" the rows that drive
            the factorized convolutions, where they are known.
        mode: "absolute" or "offset"; by default what was published for the kind.

    Raises:
        ConfigError: no such component, range of rows or mode, or a strength that is not finite.
    """
    if not 0 <= index < len(components.vectors):
        raise ConfigError(f"component {index} was asked for; there are 0 to {len(components.vectors) - 1}")
    mode = mode or ("absolute" if components.kind == "pca" else "offset")
    if mode not in ("absolute", "offset"):
        raise ConfigError(f'mode is "{mode}"; wanted "absolute" or "offset"')
    rows: Sequence[int] | None = rows_of(layers) if layers is not None else components.layers
    given = checked_strength(strength)
    vector = components.vectors[index : index + 1].float()  # [1, D]
    about = {
        "kind": components.kind,
        "digest": components.digest,
        "generator": components.generator,
        "component": index,
        "mode": mode,
    }
    deviation = 1.0 if components.deviations is None else components.deviations[index].item()
    if mode == "offset":
        return Offset(vector * deviation, given, rows, about)
    if components.mean is None:
        raise ConfigError(f'mode "absolute" needs a mean, and "{components.kind}" has none; wanted mode "offset"')
    return _Coordinate(vector, components.mean.float(), given * deviation, rows, {**about, "strength": plain(given)})


@dataclass(frozen=True, eq=False)
class _Coordinate:
    """w'_l = w_l + (target - <w_0 - mean, v>) v on the chosen rows; the coordinate is that of row 0.

    Attributes:
        vector: v, [1, D], of length 1.
        mean: [D].
        target: what the coordinate becomes, in units of W.
        rows: the rows that move; None for all.
        about: what `describe` says besides the rows.
    """

    vector: Tensor
    mean: Tensor
    target: Strength
    rows: Sequence[int] | None
    about: Mapping[str, Any]

    def __call__(self, w_plus: Tensor) -> Tensor:
        check_fit(w_plus, self.vector)
        return move(w_plus, self._missing(w_plus)[:, None, None] * self.vector.to(w_plus), self.rows)

    def inverse(self, w_plus: Tensor) -> Edit:
        """The coordinate set back to what it was; an offset where row 0, which carries it, does not move."""
        check_fit(w_plus, self.vector)
        about = {**self.about, "inverse_of": self.about["mode"]}
        if self.rows is None or 0 in self.rows:
            return replace(self, target=self._coordinate(w_plus), about={**about, "strength": None})
        return Offset(self.vector, -self._missing(w_plus), self.rows, {**about, "mode": "offset"})

    def describe(self) -> dict[str, Any]:
        return {**self.about, **describe_rows(self.rows)}

    def _coordinate(self, w_plus: Tensor) -> Tensor:
        return (w_plus[:, 0] - self.mean.to(w_plus)) @ self.vector[0].to(w_plus)  # [N]

    def _missing(self, w_plus: Tensor) -> Tensor:
        return per_image(self.target, w_plus)[:, 0, 0] - self._coordinate(w_plus)
