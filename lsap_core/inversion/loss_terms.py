"""What the loss of an optimization is made of: the one function from codes and noise maps to terms (LSAP, eq. 13)."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lsap_core.alignment.anchor import Anchor
from lsap_core.alignment.sncd import sncd_per_layer
from lsap_core.generators.generator import Generator
from lsap_core.generators.style_matrices import StyleMatrices
from lsap_core.images import Downsampling, comparison_view
from lsap_core.inversion.inversion import PerceptualDistance
from lsap_core.inversion.precision import Precision, convolutions
from lsap_core.objectives.terms import mean_code_distance, noise_regularization, pixel_error
from lsap_core.spaces.styles import select

LOSS_TERMS = ("lpips", "sncd", "mse", "mean_code_distance", "noise_regularization")

LossArguments = tuple[Tensor, Tensor, Sequence[Tensor], Tensor, list[Tensor]]
"""What terms are computed of: all arguments of `LossTerms` but the names."""


@dataclass(frozen=True)
class LossTerms:
    """The terms of the loss of each image; nothing here depends on the method but what SNCD looks at.

    Attributes:
        generator: of the images; frozen.
        styles: its affine layers.
        anchor: what SNCD and the mean code are taken from.
        perceptual: the network of the loss.
        noisy_convs: the convolutions that the noise maps are of.
        downsampling: how outputs are brought to what losses look at, see `comparison_view`.
        sncd_is_of_explored: whether SNCD looks at the explored codes, and not at the clean ones.
        precision: of the convolutions of generator and perceptual network; all else is float32.
    """

    generator: Generator
    styles: StyleMatrices
    anchor: Anchor
    perceptual: PerceptualDistance
    noisy_convs: tuple[int, ...]
    downsampling: Downsampling
    sncd_is_of_explored: bool
    precision: Precision = "float32"

    def __call__(
        self,
        clean: Tensor,
        explored: Tensor,
        noise: Sequence[Tensor],
        view: Tensor,
        target_features: list[Tensor],
        wanted: Collection[str],
    ) -> dict[str, Tensor]:
        """The terms that are wanted, by name, [N] each; no noise regularization where there are no maps.

        Args:
            clean: clean codes p, [N, K, w_dim]; a W code is repeated over the K rows.
            explored: explored codes p~, of the same shape; the image is made of them.
            noise: maps of the noisy convolutions, [N, 1, side, side].
            view: what the target is compared by.
            target_features: its perceptual features.
            wanted: some of `LOSS_TERMS`.
        """
        styles = self.styles(explored)  # [N, width] of every layer
        with convolutions(self.precision, clean.device.type):
            image = self._synthesize(styles, noise)  # [N, C, R, R]
        seen = self.view(image.to(clean.dtype))  # [N, C, h, w], as `view`
        terms: dict[str, Tensor] = {}
        if "lpips" in wanted:
            terms["lpips"] = self.perceptual.distance(self.features(seen), target_features)
        if "mse" in wanted:
            terms["mse"] = pixel_error(seen, view)
        if "sncd" in wanted:
            measured = styles if self.sncd_is_of_explored else self.styles(clean)
            chosen = select(measured, self.generator.config, self.anchor.style_set)
            terms["sncd"] = sncd_per_layer(chosen, self.anchor).mean(dim=1)
        if "mean_code_distance" in wanted:
            w_avg, deviation = self.anchor.w_avg.to(clean), self.anchor.code_deviation
            terms["mean_code_distance"] = mean_code_distance(clean, w_avg, deviation)
        if "noise_regularization" in wanted and noise:
            terms["noise_regularization"] = noise_regularization(noise)
        return terms

    @property
    def options(self) -> tuple[Any, ...]:
        """What decides how terms are computed, but for networks."""
        return self.noisy_convs, self.downsampling, self.sncd_is_of_explored, self.precision

    def view(self, images: Tensor) -> Tensor:
        """What losses look at of images [N, C, R, R]."""
        return comparison_view(images, content_box=self.generator.config.content_box, downsampling=self.downsampling)

    def features(self, view: Tensor) -> list[Tensor]:
        """Perceptual features of what losses look at, in its own type."""
        with convolutions(self.precision, view.device.type):
            found = self.perceptual.features(view)
        return [each.to(view.dtype) for each in found]

    def _synthesize(self, styles: Sequence[Tensor], noise: Sequence[Tensor]) -> Tensor:
        maps: list[Tensor | None] = [None] * self.generator.config.num_convs
        for index, given in zip(self.noisy_convs, noise, strict=True):
            maps[index] = given
        image: Tensor = self.generator.synthesis(styles, maps, modulation=self.generator.modulation).image
        return image
