"""Learning rate and exploration over a run."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from lsap_core.inversion.schedule import exploration_strength, learning_rate


@pytest.mark.parametrize("name", ["optim", "pivot"])
def test_the_learning_rate_of_every_step_is_the_published_one(name: str, reference: Callable[[str], Any]) -> None:
    numbers = reference("opt_schedule")
    steps, initial = numbers[f"{name}_params"].tolist()
    found = [learning_rate(step / steps, initial) for step in range(int(steps))]
    numbers.check(f"{name}_lr", np.array(found))


def test_other_ramps_give_the_published_rates(reference: Callable[[str], Any]) -> None:
    numbers = reference("opt_schedule")
    found = [
        [learning_rate(step / 50, 1.0, rampdown=down, rampup=up) for step in range(50)]
        for down, up in numbers["ramps"].tolist()
    ]
    numbers.check("lr_ramps", np.array(found))


def test_the_strength_of_exploration_at_every_step_is_the_published_one(reference: Callable[[str], Any]) -> None:
    numbers = reference("opt_schedule")
    found = [exploration_strength(step / 1000, float(numbers["latent_std"])) for step in range(1000)]
    numbers.check("noise_strength", np.array(found))


def test_the_first_step_has_no_learning_rate() -> None:
    assert learning_rate(0.0, 0.1) == 0.0


def test_exploration_ends_at_three_quarters() -> None:
    assert exploration_strength(0.749, 1.0) > 0
    assert exploration_strength(0.75, 1.0) == exploration_strength(0.9, 1.0) == 0.0
    assert exploration_strength(0.0, 8.0, factor=0.05) == pytest.approx(0.4)
