"""Train an encoder: check and prepare, train on Ray, report."""

from __future__ import annotations

from prefect import flow

from flows.parameters.train_encoder import TrainEncoderRun
from flows.running.trainings import train_through
from tasks.reports.training import TrainingReport
from tasks.settings import Settings


@flow(name="train_encoder", persist_result=False)
def train_encoder(run: TrainEncoderRun) -> TrainingReport:
    """Train an encoder for a generator, from wherever its folder says.

    Args:
        run: what to train, on which images, and where to keep it.
    """
    return train_through(run.resolve(Settings.from_environment()), run.when_busy)
