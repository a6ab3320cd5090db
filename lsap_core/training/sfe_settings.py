"""How the networks of StyleFeatureEditor are trained."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import get_args

from lsap_core.errors import ConfigError
from lsap_core.refinement.sfe_networks import SfeBackbone
from lsap_core.training.image_adversary import check_stddev_group

MOST_STEPS = 10**9


@dataclass(frozen=True)
class SfeTrainingSettings:
    """How the networks are trained; the defaults are those of the released code on faces.

    The loss is l2_weight MSE + lpips_weight LPIPS + identity_weight (1 - similarity) + adversarial_weight softplus(-D),
    in the first phase also feature_weight mean((F_k - F_w)^2).

    Attributes:
        l2_weight: multiplier of the pixel error.
        lpips_weight: multiplier of the perceptual distance.
        identity_weight: multiplier of the identity term; 0.5 on cars.
        adversarial_weight: multiplier of the discriminator's term; with 0 there is none.
        feature_weight: multiplier of the distance between fused features and those of the code (first phase).
        learning_rate: of Ranger.
        discriminator_learning_rate: of Adam.
        batch_size: images of one step.
        num_steps: optimizer steps of the phase.
        decay_steps: the last steps, over which the learning rate falls linearly to 0; the published training has none.
        adversarial_start: last step without a discriminator.
        fade_steps: of the first phase, over which features are faded in.
        r1_gamma: multiplier of the gradient penalty.
        r1_every: steps between gradient penalties.
        backbone: of new networks, "iresnet_50" (published) or "small" (small domains).
        has_finer_shift: whether a new Feature Editor takes Delta from features of twice the side, and reduces it by one
            more block, as the paper does for cars (second phase).
        edits: powers by name of an edit, of which one is drawn for each batch (second phase).

    Raises:
        ConfigError: a value lies outside its range.
    """

    l2_weight: float = 1.0
    lpips_weight: float = 0.8
    identity_weight: float = 0.1
    adversarial_weight: float = 0.01
    feature_weight: float = 0.01
    learning_rate: float = 1e-4
    discriminator_learning_rate: float = 1e-4
    batch_size: int = 8
    num_steps: int = 300_000
    decay_steps: int = 0
    adversarial_start: int = 45_000
    fade_steps: int = 10_000
    r1_gamma: float = 10.0
    r1_every: int = 16
    backbone: SfeBackbone = "iresnet_50"
    has_finer_shift: bool = False
    edits: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse what cannot run."""
        for name in ("batch_size", "num_steps", "fade_steps", "r1_every"):
            if not 1 <= getattr(self, name) <= MOST_STEPS:
                raise ConfigError(f"{name} is {getattr(self, name)}; wanted at least 1, and at most {MOST_STEPS:,}")
        for name in ("learning_rate", "discriminator_learning_rate"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name} is {getattr(self, name)}; wanted a positive number")
        weights = ("l2_weight", "lpips_weight", "identity_weight", "adversarial_weight", "feature_weight")
        for name in (*weights, "r1_gamma", "adversarial_start"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"{name} is {getattr(self, name)}; wanted a number that is not negative")
        if self.l2_weight == self.lpips_weight == self.identity_weight == 0:
            raise ConfigError("l2_weight, lpips_weight and identity_weight are all 0: nothing would look at images")
        if not 0 <= self.decay_steps <= self.num_steps:
            raise ConfigError(f"decay_steps is {self.decay_steps}; wanted 0 to num_steps, {self.num_steps}")
        if self.backbone not in get_args(SfeBackbone):
            raise ConfigError(f'backbone is "{self.backbone}"; wanted one of {", ".join(get_args(SfeBackbone))}')
        if self.adversarial_weight > 0:
            check_stddev_group(self.batch_size)

    def learning_rate_at(self, step: int) -> float:
        """Ranger's rate at a step, counted from 0."""
        if not self.decay_steps:
            return self.learning_rate
        return self.learning_rate * min(1.0, (self.num_steps - step) / self.decay_steps)

    def feature_scale(self, step: int) -> float:
        """How much of the features is inserted at a step of the first phase, counted from 1: min(1, step / fade_steps).

        Example:
            >>> SfeTrainingSettings().feature_scale(2_500)
            0.25
        """
        return min(1.0, step / self.fade_steps)


SFE_INVERTER = SfeTrainingSettings()
SFE_EDITOR = SfeTrainingSettings(num_steps=200_000, adversarial_start=0, feature_weight=0.0)
"""The two phases as the released code has them; docs/refinement.md has what the paper prints."""
