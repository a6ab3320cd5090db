"""How far predicted codes lie from the true codes of synthetic images, in W, S and S^N (LSAP, table 2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lsap_core.errors import ShapeError
from lsap_core.generators.generator import Generator
from lsap_core.spaces.styles import StyleSet, normalize, select


@dataclass(frozen=True)
class SquaredDistance:
    """The squared distance of two sets of vectors, one vector for each layer, in three scales; each [N].

    Attributes:
        per_layer: ||a_l - b_l||^2, averaged over layers; what LSAP's table 2 fits.
        per_entry: averaged over all entries of all layers.
        frobenius: root of the sum over all layers.
    """

    per_layer: Tensor
    per_entry: Tensor
    frobenius: Tensor


@dataclass(frozen=True)
class Disalignment:
    """Distance of predicted codes from true ones, for each image.

    Attributes:
        w: squared distance in W; a true W code stands in each of its K rows.
        s: squared distance in S.
        s_n: cosine distance 1 - s_l . s'_l / (||s_l|| ||s'_l||) in S^N, averaged over layers, [N].
    """

    w: SquaredDistance
    s: SquaredDistance
    s_n: Tensor


@torch.no_grad()
def disalignment_of(
    codes: Tensor, true_codes: Tensor, generator: Generator, *, style_set: StyleSet = "authors"
) -> Disalignment:
    """How far the codes of re-inverted synthetic images lie from the codes that made the images (LSAP, table 2).

    Pairs are compared directly, image by image, and not through the anchor as in SNCD.

    Args:
        codes: predicted, W+ [N, K, w_dim] or W [N, w_dim].
        true_codes: W [N, w_dim], as sampled, or W+ [N, K, w_dim].
        generator: its affine layers give the styles.
        style_set: which style vectors S and S^N are made of.

    Returns:
        One value for each image in each space.

    Raises:
        ShapeError: the codes are not those of the generator, or their numbers differ.
    """
    found, true = generator.expand(codes), generator.expand(true_codes)
    if len(found) != len(true):
        raise ShapeError(f"{len(found)} predicted codes for {len(true)} true ones; wanted one for each")
    styles = select(generator.styles(found), generator.config, style_set)
    true_styles = select(generator.styles(true), generator.config, style_set)
    cosines = [(a * b).sum(dim=-1) for a, b in zip(normalize(styles), normalize(true_styles), strict=True)]
    return Disalignment(
        squared_distance(found.unbind(1), true.unbind(1)),
        squared_distance(styles, true_styles),
        1 - torch.stack(cosines).mean(dim=0),
    )


def squared_distance(vectors: Sequence[Tensor], others: Sequence[Tensor]) -> SquaredDistance:
    """Squared distance of layers of vectors, each [N, width], from others of the same shapes."""
    squares = [(a - b).square() for a, b in zip(vectors, others, strict=True)]
    by_layer = torch.stack([square.sum(dim=1) for square in squares])  # [L, N]
    total = by_layer.sum(dim=0)
    return SquaredDistance(by_layer.mean(dim=0), total / sum(square.shape[1] for square in squares), total.sqrt())
