"""What pivotal tuning minimizes: the distance to an image, and how far other codes' images move (Roich et al. 2022)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from lsap_core.errors import ConfigError
from lsap_core.generators.generator import Generator, Noise
from lsap_core.images import crop
from lsap_core.inversion.inversion import PerceptualDistance
from lsap_core.objectives.terms import pixel_error

Render = Callable[[Tensor, Noise], Tensor]
"""Codes [n, K, w_dim] and noise to images [n, C, R, R] of tuned weights, with gradients to these."""


class PtiLossSettings(Protocol):
    """The constants of the loss of pivotal tuning, as `PtiSettings` explains them."""

    @property
    def learning_rate(self) -> float:
        """Of Adam."""
        ...

    @property
    def mse_weight(self) -> float:
        """Multiplier of the pixel error."""
        ...

    @property
    def lpips_weight(self) -> float:
        """Multiplier of the perceptual distance."""
        ...

    @property
    def regularizes_locality(self) -> bool:
        """Whether other codes are held where they were."""
        ...

    @property
    def locality_alpha(self) -> float:
        """How far from the pivot others are held."""
        ...

    @property
    def locality_psi(self) -> float:
        """Truncation of what is drawn."""
        ...

    @property
    def locality_mse_weight(self) -> float:
        """Multiplier of the pixel error there."""
        ...

    @property
    def locality_lpips_weight(self) -> float:
        """Multiplier of the perceptual distance there."""
        ...


class PtiLoss:
    """The loss of an image: mse_weight MSE + lpips_weight LPIPS, and locality regularization where it is asked for.

    Images are compared where the generator has its picture, at its full size (sections 3.2 and 3.3).

    Args:
        generator: as it was before tuning; frozen.
        perceptual: frozen.
        settings: the constants.

    Raises:
        ConfigError: locality is regularized around the mean of W, and the generator has none.
    """

    def __init__(self, generator: Generator, *, perceptual: PerceptualDistance, settings: PtiLossSettings):
        if settings.regularizes_locality and not generator.has_w_avg:
            raise ConfigError(
                "regularizes_locality is true and the generator's file had no mean of W: estimate it, or set "
                "regularizes_locality to false"
            )
        self.generator = generator
        self.perceptual = perceptual
        self.settings = settings

    def terms(
        self,
        render: Render,
        w_plus: Tensor,
        noise: Noise,
        view: Tensor,
        target_features: list[Tensor],
        *,
        z: Tensor | None = None,
        measures_lpips: bool = False,
    ) -> dict[str, Tensor]:
        """The loss of each image, [n], and its terms, those of the image itself before multiplication.

        Args:
            render: with the weights that are tuned.
            w_plus: the pivots, [n, K, w_dim].
            noise: that belongs to them.
            view: the images where the generator has its picture, [n, C, h, w] in [-1, 1].
            target_features: of these; not looked at where nothing looks at LPIPS.
            z: [n, z_dim], toward whose codes locality is kept; None leaves that term out.
            measures_lpips: whether LPIPS is a term, without gradient, even where it has no weight.
        """
        settings = self.settings
        seen = self.view(render(w_plus, noise))
        terms = {"mse": pixel_error(seen, view)}
        loss = settings.mse_weight * terms["mse"]
        if settings.lpips_weight > 0:
            terms["lpips"] = self.perceptual.distance(self.perceptual.features(seen), target_features)
            loss = loss + settings.lpips_weight * terms["lpips"]
        elif measures_lpips:
            with torch.no_grad():
                terms["lpips"] = self.perceptual.distance(self.perceptual.features(seen), target_features)
        if z is not None:
            terms["locality"] = self.locality(self.codes_around(w_plus, z.to(w_plus)), render)
            loss = loss + terms["locality"]
        return {"loss": loss, **terms}

    @torch.no_grad()
    def codes_around(self, w_plus: Tensor, z: Tensor) -> Tensor:
        """Where locality is kept: codes [N, K, w_dim] at the distance alpha from the pivots, toward those of z.

        Args:
            w_plus: the pivots, [N, K, w_dim].
            z: [N, z_dim].
        """
        w_avg = self.generator.mapping.w_avg
        drawn = w_avg + self.settings.locality_psi * (self.generator.map(z) - w_avg)  # [N, w_dim]
        return at_distance(w_plus, self.generator.expand(drawn), self.settings.locality_alpha)

    def locality(self, codes: Tensor, render: Render) -> Tensor:
        """How far tuning moved the images of other codes [N, K, w_dim], without noise: the weighted loss, [N]."""
        settings = self.settings
        with torch.no_grad():
            before = self.view(self.generator.synthesize(codes, noise="none"))
        after = self.view(render(codes, "none"))
        loss = settings.locality_mse_weight * pixel_error(after, before)
        if settings.locality_lpips_weight > 0:
            with torch.no_grad():
                features = self.perceptual.features(before)
            distance = self.perceptual.distance(self.perceptual.features(after), features)
            loss = loss + settings.locality_lpips_weight * distance
        return loss

    def view(self, images: Tensor) -> Tensor:
        """What of images [N, C, R, R] carries the picture, [N, C, h, w]."""
        return crop(images, self.generator.config.content_box)


def check_pti_loss(settings: PtiLossSettings) -> None:
    """Refuse constants that cannot be minimized with.

    Raises:
        ConfigError: a value lies outside its range, or nothing would pull.
    """
    for name in ("learning_rate", "locality_alpha", "locality_psi"):
        if not 0 < getattr(settings, name) < math.inf:
            raise ConfigError(f"{name} is {getattr(settings, name)}; wanted a positive number")
    for name in ("mse_weight", "lpips_weight", "locality_mse_weight", "locality_lpips_weight"):
        if not 0 <= getattr(settings, name) < math.inf:
            raise ConfigError(f"{name} is {getattr(settings, name)}; wanted a number that is not negative")
    if settings.mse_weight == settings.lpips_weight == 0:
        raise ConfigError("mse_weight and lpips_weight are both 0: nothing would pull toward the image")
    if settings.regularizes_locality and settings.locality_mse_weight == settings.locality_lpips_weight == 0:
        raise ConfigError(
            "regularizes_locality is true and locality_mse_weight and locality_lpips_weight are both 0: set one of "
            "them, or regularizes_locality to false"
        )


def at_distance(w_plus: Tensor, towards: Tensor, distance: float) -> Tensor:
    """Codes [N, K, w_dim] at a distance, over all rows together, from codes in the direction of others."""
    direction = towards - w_plus
    length: Tensor = torch.linalg.vector_norm(direction, dim=(1, 2), keepdim=True)
    return w_plus + distance * direction / length
