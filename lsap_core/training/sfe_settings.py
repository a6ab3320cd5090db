"""How the networks of StyleFeatureEditor are trained."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lsap_core.errors import ConfigError
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
        num_inverter_steps: of the first phase.
        num_editor_steps: of the second phase.
        adversarial_start: last step of the first phase without a discriminator. In the second it is there always.
        fade_steps: of the first phase, over which features are faded in.
        r1_gamma: multiplier of the gradient penalty.
        r1_every: steps between gradient penalties.

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
    num_inverter_steps: int = 300_000
    num_editor_steps: int = 200_000
    adversarial_start: int = 45_000
    fade_steps: int = 10_000
    r1_gamma: float = 10.0
    r1_every: int = 16

    def __post_init__(self) -> None:
        """Refuse what cannot run."""
        for name in ("batch_size", "num_inverter_steps", "num_editor_steps", "fade_steps", "r1_every"):
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
        if self.adversarial_weight > 0:
            check_stddev_group(self.batch_size)

    def feature_scale(self, step: int) -> float:
        """How much of the features is inserted at a step of the first phase, counted from 1: min(1, step / fade_steps).

        Example:
            >>> SfeTrainingSettings().feature_scale(2_500)
            0.25
        """
        return min(1.0, step / self.fade_steps)


SFE_AS_PRINTED = SfeTrainingSettings(
    learning_rate=2e-4, adversarial_start=14_000, num_inverter_steps=37_500, num_editor_steps=20_000
)
"""The constants that the paper prints; the released code has those of the defaults."""
