"""How an encoder is trained."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from lsap_core.encoders.config import Heads
from lsap_core.errors import ConfigError

Precision = Literal["float32", "bfloat16", "float16"]

MOST_STEPS = 10**9
WEIGHTED_TERMS = ("l2", "lpips", "identity", "sncd", "delta", "adversarial", "w_norm")


@dataclass(frozen=True)
class EncoderTrainingSettings:
    """How an encoder is trained; the defaults are LSAP_E on faces.

    The loss of an image is l2_weight MSE + lpips_weight LPIPS + identity_weight (1 - similarity)
    + sncd_weight sum_(l <= stage) SNCD_l + delta_weight sum_(1 <= i <= stage) ||w_i - w_0||
    + adversarial_weight mean_(i <= stage) softplus(-D(w_i)) + w_norm_weight ||w - w_avg||.

    Attributes:
        heads: the kind of encoder: "direct" (pSp), "offsets" (e4e, LSAP_E) or "single".
        is_iterative: whether the encoder refines its own result (ReStyle).
        num_passes: through an iterative encoder for each image; ReStyle takes 5.
        l2_weight: multiplier of the pixel error.
        lpips_weight: multiplier of the perceptual distance.
        identity_weight: multiplier of the identity term; 0.1 on faces, 0.5 on other domains.
        sncd_weight: lambda of LSAP_E, on the sum over active layers.
        delta_weight: multiplier of the distances between rows; the paper prints 2e-5, its code and e4e use 2e-4.
        adversarial_weight: multiplier of the latent discriminator's term; e4e takes 0.1. With 0 there is none.
        w_norm_weight: multiplier of the distance from the mean code.
        learning_rate: of Ranger; the paper prints 1e-3, its code and e4e use 1e-4.
        batch_size: images of one step, over all workers together.
        num_steps: optimizer steps.
        decay_steps: the last steps, over which the learning rate falls linearly to 0; published trainings have none.
        progressive_start: step at which the first offset joins; None for all heads from the beginning.
        progressive_every: steps from one offset to the next.
        discriminator_learning_rate: of the latent discriminator's Adam.
        r1_gamma: multiplier of the gradient penalty.
        r1_every: steps between gradient penalties.
        pool_size: codes that each of the discriminator's two pools holds; 0 for no pools.
        precision: of networks on images; losses, styles and weights stay float32. "float16" scales its losses.
        accumulate: parts into which a worker splits its images for synthesis and losses, to save memory. The
            encoder sees them together, so that the result is that of one part, up to rounding.

    Raises:
        ConfigError: a value lies outside its range, or contradicts another one.
    """

    heads: Heads = "offsets"
    is_iterative: bool = False
    num_passes: int = 1
    l2_weight: float = 1.0
    lpips_weight: float = 0.8
    identity_weight: float = 0.1
    sncd_weight: float = 0.5
    delta_weight: float = 2e-4
    adversarial_weight: float = 0.0
    w_norm_weight: float = 0.0
    learning_rate: float = 1e-4
    batch_size: int = 8
    num_steps: int = 300_000
    decay_steps: int = 0
    progressive_start: int | None = 20_000
    progressive_every: int = 2_000
    discriminator_learning_rate: float = 2e-5
    r1_gamma: float = 10.0
    r1_every: int = 16
    pool_size: int = 50
    precision: Precision = "float32"
    accumulate: int = 1

    def __post_init__(self) -> None:
        """Refuse what cannot run."""
        for name, names in (("heads", get_args(Heads)), ("precision", get_args(Precision))):
            if getattr(self, name) not in names:
                wanted = ", ".join(f'"{known}"' for known in names)
                raise ConfigError(f'{name} is "{getattr(self, name)}"; wanted one of {wanted}')
        for name in ("num_passes", "batch_size", "num_steps", "progressive_every", "r1_every", "accumulate"):
            if not 1 <= getattr(self, name) <= MOST_STEPS:
                raise ConfigError(f"{name} is {getattr(self, name)}; wanted at least 1, and at most {MOST_STEPS:,}")
        for name in ("learning_rate", "discriminator_learning_rate"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name} is {getattr(self, name)}; wanted a positive number")
        for name in (*(f"{term}_weight" for term in WEIGHTED_TERMS), "r1_gamma", "pool_size"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"{name} is {getattr(self, name)}; wanted a number that is not negative")
        if self.l2_weight == self.lpips_weight == self.identity_weight == 0:
            raise ConfigError("l2_weight, lpips_weight and identity_weight are all 0: nothing would look at images")
        if self.num_passes > 1 and not self.is_iterative:
            raise ConfigError(
                f"num_passes is {self.num_passes}; wanted 1, or is_iterative: true, "
                "because only an iterative encoder reads its own result"
            )
        if self.progressive_start is not None:
            if self.progressive_start < 0:
                raise ConfigError(f"progressive_start is {self.progressive_start}; wanted a step, or null for none")
            if self.heads != "offsets":
                raise ConfigError(
                    f'progressive_start is {self.progressive_start} with heads "{self.heads}"; wanted null, or '
                    'heads "offsets", because only offsets can join later'
                )
        if not 0 <= self.decay_steps <= self.num_steps:
            raise ConfigError(f"decay_steps is {self.decay_steps}; wanted 0 to num_steps, {self.num_steps}")
        if self.accumulate > self.batch_size:
            raise ConfigError(f"accumulate is {self.accumulate}; wanted at most batch_size, {self.batch_size}")

    def learning_rate_at(self, step: int) -> float:
        """Ranger's rate at a step, counted from 0.

        Example:
            >>> settings = EncoderTrainingSettings(learning_rate=1.0, num_steps=100, decay_steps=4)
            >>> [settings.learning_rate_at(step) for step in (0, 96, 97, 99)]
            [1.0, 1.0, 0.75, 0.25]
        """
        if not self.decay_steps:
            return self.learning_rate
        return self.learning_rate * min(1.0, (self.num_steps - step) / self.decay_steps)

    @property
    def weights(self) -> dict[str, float]:
        """Multipliers of the terms that count, by the terms' names."""
        every = {term: getattr(self, f"{term}_weight") for term in WEIGHTED_TERMS}
        return {term: weight for term, weight in every.items() if weight > 0}
