"""Learning rate and exploration noise over the run of an optimization (Karras et al. 2020, app. D)."""

from __future__ import annotations

import math


def learning_rate(time: float, initial: float, *, rampdown: float = 0.25, rampup: float = 0.05) -> float:
    """The rate at a time in [0, 1): linear warm-up, then constant, then half a cosine; 0 at time 0."""
    down = min(1.0, (1.0 - time) / rampdown)
    return initial * (0.5 - 0.5 * math.cos(math.pi * down)) * min(1.0, time / rampup)


def exploration_strength(time: float, code_deviation: float, *, factor: float = 0.05, until: float = 0.75) -> float:
    """Deviation of the noise that is added to codes, fading to 0 at time `until`."""
    return code_deviation * factor * max(0.0, 1.0 - time / until) ** 2
