"""The S^N cosine distance (SNCD) between codes and the anchor: as a metric and as a loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from lsap_core.alignment.anchor import Anchor
from lsap_core.errors import ConfigError, ShapeError
from lsap_core.generators.generator import Generator
from lsap_core.spaces.styles import NORM_FLOOR, select

LayerReduction = Literal["mean", "sum", "none"]


def sncd_per_layer(styles: Sequence[Tensor], anchor: Anchor) -> Tensor:
    """1 - mu_l . s_l / ||s_l|| of every image and layer, [N, L] (LSAP, eq. 10).

    Args:
        styles: the vectors of the anchor's style set, each [N, width].
        anchor: the anchor; a constant, no gradient reaches it.

    Raises:
        ShapeError: the number of vectors or their widths are not the anchor's.
    """
    found = [style.shape[-1] for style in styles]
    wanted = [len(direction) for direction in anchor.directions]
    if found != wanted:
        raise ShapeError(f"style vectors have widths {found}; the anchor ({anchor.style_set}) has {wanted}")
    row = torch.cat(list(styles), dim=-1)  # [N, sum of widths]
    directions, ones = (matrix.detach().to(row.dtype) for matrix in anchor.by_layer)
    lengths = (row.square() @ ones).clamp_min(NORM_FLOOR**2).sqrt()  # [N, L]
    return 1 - row @ directions / lengths


def reduce_layers(per_layer: Tensor, reduction: LayerReduction) -> Tensor:
    """[N, L] -> [N] by mean or sum over layers, or unchanged.

    Raises:
        ConfigError: another reduction.
    """
    if reduction == "mean":
        return per_layer.mean(dim=1)
    if reduction == "sum":
        return per_layer.sum(dim=1)
    if reduction == "none":
        return per_layer
    raise ConfigError(f'layer reduction is "{reduction}"; wanted "mean", "sum" or "none"')


class SncdLoss:
    """SNCD of each image as a loss on codes (LSAP, eq. 10-11).

    The reduction over layers is the paper's open end, and a weight means nothing without it: optimization takes the
    mean (LSAP_O: 20 in W+, 5 in W), encoders the sum over active layers.
    """

    def __init__(self, generator: Generator, anchor: Anchor, *, reduction: LayerReduction = "mean"):
        self.generator = generator
        self.anchor = anchor
        self.reduction: LayerReduction = reduction

    def __call__(self, codes: Tensor) -> Tensor:
        """Distances [N] ([N, L] without reduction) of W or W+ codes; differentiable in the codes."""
        return self.of_styles(self.generator.styles(codes))

    def of_styles(self, styles: Sequence[Tensor]) -> Tensor:
        """The same of all style vectors in execution order, when they are known already."""
        chosen = select(styles, self.generator.config, self.anchor.style_set)  # L of [N, width]
        return reduce_layers(sncd_per_layer(chosen, self.anchor), self.reduction)


class SncdMetric:
    """SNCD of a set of codes, from pieces in any order (LSAP, eq. 6).

    SNCD = mean_l (1 - mu_l . m_l) with m_l the mean of the set's normalized styles. By bilinearity this equals the
    mean over images of their own distances, and the mean over all pairs of a synthetic and an inverse code.
    """

    def __init__(self, num_layers: int):
        self.count = 0
        self.total = torch.zeros(num_layers, dtype=torch.float64)

    def update(self, per_layer: Tensor) -> None:
        """Add distances [N, L], as `sncd_per_layer` returns them."""
        self.count += len(per_layer)
        self.total = self.total + per_layer.detach().to("cpu", torch.float64).sum(dim=0)

    def merge(self, other: SncdMetric) -> SncdMetric:
        """The metric of both sets together."""
        both = SncdMetric(len(self.total))
        both.count = self.count + other.count
        both.total = self.total + other.total
        return both

    def compute(self, reduction: LayerReduction = "mean") -> Tensor:
        """SNCD of the set: one number by mean or sum over layers, or [L] without reduction."""
        return reduce_layers((self.total / self.count)[None], reduction)[0]
