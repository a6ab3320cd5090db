"""How HFGI's networks are trained."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import get_args

from lsap_core.errors import ConfigError
from lsap_core.refinement.hfgi_fusion import check_view_side
from lsap_core.refinement.hfgi_networks import Widths
from lsap_core.training.settings import MOST_STEPS

WEIGHTED_TERMS = ("l2", "lpips", "identity", "alignment")


@dataclass(frozen=True)
class HfgiTrainingSettings:
    """How HFGI's networks are trained; the defaults are those published for faces (Wang et al. 2022, section 3).

    The loss of an image is l2_weight MSE + lpips_weight LPIPS + identity_weight (1 - similarity)
    + alignment_weight mean |D' - D|, with the residual D and D' = ADA(warped D, G(w)).

    Attributes:
        l2_weight: multiplier of the pixel error.
        lpips_weight: multiplier of the perceptual distance.
        identity_weight: multiplier of the identity term.
        alignment_weight: multiplier of the distance between the aligned residual and the residual itself.
        distortion: how far corners of residuals move at most, in half sides.
        warp_probability: of a residual to be warped; 0.9 in the published script, 0.8 in the published defaults.
        learning_rate: of Ranger.
        batch_size: images of one step.
        num_steps: optimizer steps.
        decay_steps: the last steps, over which the learning rate falls linearly to 0; the published training has none.
        view_side: pixels on the longer side of the images that the networks see, as in `HfgiSettings`.
        widths: of the networks, "published", or "small" for small domains.
        starts_without_effect: whether new networks begin at the plain image, as `HfgiNetworks.start_without_effect`.

    Raises:
        ConfigError: a value lies outside its range, or contradicts another one.
    """

    l2_weight: float = 1.0
    lpips_weight: float = 0.8
    identity_weight: float = 0.1
    alignment_weight: float = 0.1
    distortion: float = 0.15
    warp_probability: float = 0.9
    learning_rate: float = 1e-4
    batch_size: int = 8
    num_steps: int = 100_000
    decay_steps: int = 0
    view_side: int | None = None
    widths: Widths = "published"
    starts_without_effect: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot run."""
        check_view_side(self.view_side)
        for name in ("batch_size", "num_steps"):
            if not 1 <= getattr(self, name) <= MOST_STEPS:
                raise ConfigError(f"{name} is {getattr(self, name)}; wanted at least 1, and at most {MOST_STEPS:,}")
        if not 0 < self.learning_rate < math.inf:
            raise ConfigError(f"learning_rate is {self.learning_rate}; wanted a positive number")
        for term in WEIGHTED_TERMS:
            if not 0 <= getattr(self, f"{term}_weight") < math.inf:
                raise ConfigError(
                    f"{term}_weight is {getattr(self, f'{term}_weight')}; wanted a number that is not negative"
                )
        if self.l2_weight == self.lpips_weight == self.identity_weight == 0:
            raise ConfigError("l2_weight, lpips_weight and identity_weight are all 0: nothing would look at images")
        if not 0 <= self.decay_steps <= self.num_steps:
            raise ConfigError(f"decay_steps is {self.decay_steps}; wanted 0 to num_steps, {self.num_steps}")
        if self.widths not in get_args(Widths):
            raise ConfigError(f'widths is "{self.widths}"; wanted one of {", ".join(get_args(Widths))}')
        if not 0 <= self.distortion < 1:
            raise ConfigError(f"distortion is {self.distortion}; wanted 0 to below 1 half sides")
        if not 0 <= self.warp_probability <= 1:
            raise ConfigError(f"warp_probability is {self.warp_probability}; wanted 0 to 1")

    def learning_rate_at(self, step: int) -> float:
        """Ranger's rate at a step, counted from 0."""
        if not self.decay_steps:
            return self.learning_rate
        return self.learning_rate * min(1.0, (self.num_steps - step) / self.decay_steps)

    @property
    def weights(self) -> dict[str, float]:
        """Multipliers of the terms that count, by the terms' names."""
        every = {term: getattr(self, f"{term}_weight") for term in WEIGHTED_TERMS}
        return {term: weight for term, weight in every.items() if weight > 0}
