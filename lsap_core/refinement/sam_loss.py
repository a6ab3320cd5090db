"""What SAM minimizes, one value for each image (Parmar et al. 2022, section 3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lsap_core.generators.config import GeneratorConfig
from lsap_core.images import comparison_view, crop
from lsap_core.inversion.inversion import PerceptualDistance
from lsap_core.objectives.terms import delta_distance, pixel_error
from lsap_core.refinement.sam_prior import GaussianPrior

Size = Literal["comparison", "full"]

WEIGHTED_TERMS = ("lpips", "mse", "prior", "delta", "features")
TRACE_TERMS = ("loss", *WEIGHTED_TERMS)


@dataclass(frozen=True)
class SamTarget:
    """Images that are inverted, as the loss sees them; without gradient.

    Attributes:
        pixels: [N, C, h, w] in [-1, 1].
        features: of the perceptual network.
    """

    pixels: Tensor
    features: list[Tensor]


@dataclass(frozen=True)
class SamLoss:
    """The weighed sum of five terms.

    * lpips: the perceptual distance at no more than 256 pixels, of images clamped to [-1, 1];
    * mse: the pixel error there, or of unclamped images at full size;
    * prior: sum_l (v_l - mean)^T S^-1 (v_l - mean), the Gaussian prior on W+;
    * delta: sum_(l >= 1) ||w_l - w_0||;
    * features: sum_i mean(dF_i^2), and with `weighs_codes` mean((w - w_start)^2).

    A term with weight 0 is not computed.

    Attributes:
        config: of the generator of the images.
        perceptual: the network.
        prior: on W+, where it has a weight.
        weights: of the terms, by name.
        pixels_on: size of the images whose pixels are compared.
        weighs_codes: whether the move of the codes is in the features' term.
    """

    config: GeneratorConfig
    perceptual: PerceptualDistance
    prior: GaussianPrior | None
    weights: Mapping[str, float]
    pixels_on: Size = "comparison"
    weighs_codes: bool = False

    @torch.no_grad()
    def target(self, images: Tensor) -> SamTarget:
        """What the loss sees of images [N, C, R, R] in [-1, 1]."""
        seen = view_of(images, self.config, "comparison").clamp(-1, 1)
        features = self.perceptual.features(seen) if self.weights["lpips"] > 0 else []
        return SamTarget(self._pixels(images, seen), features)

    def __call__(
        self, images: Tensor, codes: Tensor, start_codes: Tensor, offsets: Sequence[Tensor], target: SamTarget
    ) -> dict[str, Tensor]:
        """The "loss" of each image, [N], and its terms before multiplication.

        Args:
            images: of the codes and offsets, [N, C, R, R].
            codes: [N, K, w_dim].
            start_codes: those of the embedding, the same shape.
            offsets: of every feature space, [N, channels, side, side].
            target: from `target`.
        """
        seen = view_of(images, self.config, "comparison").clamp(-1, 1)
        terms: dict[str, Tensor] = {}
        if self.weights["lpips"] > 0:
            terms["lpips"] = self.perceptual.distance(self.perceptual.features(seen), target.features)
        if self.weights["mse"] > 0:
            terms["mse"] = pixel_error(self._pixels(images, seen), target.pixels)
        if self.prior is not None and self.weights["prior"] > 0:
            terms["prior"] = self.prior.distance(codes).to(codes)
        if self.weights["delta"] > 0:
            terms["delta"] = delta_distance(codes, codes.shape[1] - 1)
        if self.weights["features"] > 0:
            moves = [*offsets, codes - start_codes] if self.weighs_codes else offsets
            squares = [move.square().flatten(1).mean(dim=1) for move in moves]
            terms["features"] = torch.stack(squares).sum(dim=0) if squares else codes.new_zeros(len(codes))
        loss = codes.new_zeros(len(codes))
        for name, values in terms.items():
            loss = loss + self.weights[name] * values
        return {"loss": loss, **terms}

    def _pixels(self, images: Tensor, seen: Tensor) -> Tensor:
        return seen if self.pixels_on == "comparison" else view_of(images, self.config, "full")


def view_of(images: Tensor, config: GeneratorConfig, size: Size) -> Tensor:
    """The content box of images, as it is or at no more than 256 pixels."""
    if size == "full":
        return crop(images, config.content_box)
    return comparison_view(images, content_box=config.content_box)
