"""Train the networks of a refiner: check and prepare, train on Ray, report."""

from __future__ import annotations

from prefect import flow

from flows.parameters.train_refiner import TrainRefinerRun
from flows.running.trainings import train_through
from tasks.reports.training import TrainingReport
from tasks.settings import Settings


@flow(name="train_refiner", persist_result=False)
def train_refiner(run: TrainRefinerRun) -> TrainingReport:
    """Train the networks of a refiner, from wherever their folder says.

    Args:
        run: what to train, from which codes or inversions of which images, and where to keep it.
    """
    return train_through(run.resolve(Settings.from_environment()), run.when_busy)
