"""How one generator is tuned to many images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from lsap_core.errors import ConfigError
from lsap_core.refinement.pti_loss import check_pti_loss
from lsap_core.training.settings import MOST_STEPS

WeightsType = Literal["float16", "float32"]


@dataclass(frozen=True)
class PtiTrainingSettings:
    """How one generator is tuned to many images; the defaults are those published (Roich et al. 2022).

    The loss of an image is that of `PtiSettings`. Published are steps of one image each, through all images of the
    group again and again, 350 times; there is no stop at an LPIPS.

    Attributes:
        num_steps: Adam steps; 350 for every image where a step is of one, as published. By default those of ten images.
        batch_size: images of one step.
        learning_rate: of Adam, with torch's other constants.
        decay_steps: the last steps, over which the learning rate falls linearly to 0; the published tuning has none.
        mse_weight: multiplier of the pixel error.
        lpips_weight: multiplier of the perceptual distance.
        regularizes_locality: whether other codes are held where they were.
        locality_alpha: how far from w, over all rows of W+, others are held.
        locality_psi: truncation of what is drawn.
        locality_mse_weight: multiplier of the pixel error there.
        locality_lpips_weight: multiplier of the perceptual distance there.
        weights_type: that the weights are kept and validated in.

    Raises:
        ConfigError: a value lies outside its range.
    """

    num_steps: int = 3500
    batch_size: int = 1
    learning_rate: float = 3e-4
    decay_steps: int = 0
    mse_weight: float = 1.0
    lpips_weight: float = 1.0
    regularizes_locality: bool = False
    locality_alpha: float = 30.0
    locality_psi: float = 0.5
    locality_mse_weight: float = 0.1
    locality_lpips_weight: float = 0.1
    weights_type: WeightsType = "float16"

    def __post_init__(self) -> None:
        """Refuse what cannot run."""
        for name in ("batch_size", "num_steps"):
            if not 1 <= getattr(self, name) <= MOST_STEPS:
                raise ConfigError(f"{name} is {getattr(self, name)}; wanted at least 1, and at most {MOST_STEPS:,}")
        if not 0 <= self.decay_steps <= self.num_steps:
            raise ConfigError(f"decay_steps is {self.decay_steps}; wanted 0 to num_steps, {self.num_steps}")
        if self.weights_type not in get_args(WeightsType):
            raise ConfigError(
                f'weights_type is "{self.weights_type}"; wanted one of {", ".join(get_args(WeightsType))}'
            )
        check_pti_loss(self)

    def learning_rate_at(self, step: int) -> float:
        """Adam's rate at a step, counted from 0."""
        if not self.decay_steps:
            return self.learning_rate
        return self.learning_rate * min(1.0, (self.num_steps - step) / self.decay_steps)
