"""What a run asks of its workers."""

from __future__ import annotations

import pytest

from flows.parameters.shared import WorkerParameters
from flows.parameters.trainings import TrainingWorkerParameters


def test_bounds_in_the_wrong_order_are_refused() -> None:
    with pytest.raises(ValueError, match="min_count is 3, more than count, which is 2"):
        WorkerParameters(count=2, min_count=3)
    assert WorkerParameters(count=3, min_count=3).min_count == 3


def test_a_training_has_no_bounds_its_workers_share_every_batch() -> None:
    with pytest.raises(ValueError, match="min_count"):
        TrainingWorkerParameters.model_validate({"count": 2, "min_count": 1})
