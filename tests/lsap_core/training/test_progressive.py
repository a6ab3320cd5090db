"""Stages, beside the published ones."""

from collections.abc import Callable
from typing import Any

import pytest

from lsap_core.errors import ConfigError
from lsap_core.training import ProgressiveSchedule


@pytest.mark.parametrize("name", ["lsap", "e4e", "default", "small"])
def test_stages_are_the_published_ones(reference: Callable[[str], Any], name: str) -> None:
    numbers = reference("progressive_schedule")
    start, every, num_ws = numbers[f"{name}_params"].tolist()
    schedule = ProgressiveSchedule(start, every, num_ws)
    assert list(schedule.stages()) == numbers.expected(f"{name}_steps").tolist()
    found = [schedule.stage(step) for step in numbers["query_steps"].tolist()]
    assert found == numbers.expected(f"{name}_stage").tolist()


def test_without_a_start_all_heads_train_from_the_beginning() -> None:
    schedule = ProgressiveSchedule(None, 2000, 18)
    assert {schedule.stage(step) for step in (0, 1, 10**6)} == {17}


@pytest.mark.parametrize(
    ("numbers", "message"),
    [((-1, 1, 8), "start is -1"), ((0, -1, 8), "every is -1"), ((None, 1, 0), "num_ws is 0")],
)
def test_impossible_schedules_are_refused(numbers: tuple[int | None, int, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ProgressiveSchedule(*numbers)
