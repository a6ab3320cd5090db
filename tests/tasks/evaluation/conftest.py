"""A desk at which a laboratory's archive is measured, in this process and as the flow does it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from lsap_archive import Archive, EvaluationWriter, open_archive
from tasks.editing.calibration import CalibrationOptions
from tasks.evaluation.plan import EvaluationStage
from tasks.evaluation.request import EvaluationRequest
from tasks.evaluation.worker import EvaluationWorker
from tasks.measuring.networks import EvaluationChoice
from tasks.stage import Job, Shard
from tasks.weights.generators import GeneratorFile

NETWORKS = EvaluationChoice(lpips=("digits-judge",), identity=("digits-judge",), judge="digits-judge")


@dataclass(frozen=True)
class PlannedEvaluations:
    """What is left to do, all of it at once."""

    jobs: tuple[Job, ...]
    evaluations: dict[str, tuple[str, ...]]
    refused: dict[str, str]

    @property
    def unpublished(self) -> tuple[str, ...]:
        return tuple(job.job_id for job in self.jobs)

    @property
    def shards(self) -> tuple[Shard, ...]:
        return tuple(shard for job in self.jobs for shard in job.shards)


@dataclass
class MeasuringDesk:
    """Evaluates a laboratory's archive in this process, as the flow does."""

    laboratory: Any

    def request(self, **changes: Any) -> EvaluationRequest:
        values: dict[str, Any] = {
            "archive": self.laboratory.archive,
            "generator": GeneratorFile(self.laboratory.generator),
            "methods": (),
            "networks": NETWORKS,
            "calibration": CalibrationOptions(num_images=4),
            "batch_size": 4,
            "source": str(self.laboratory.source),
            "encoders": self.laboratory.encoders,
            "device": "cpu",
        }
        return EvaluationRequest(**{**values, **changes})

    @staticmethod
    def worker(request: EvaluationRequest) -> EvaluationWorker:
        return EvaluationWorker(request)

    def plan(self, request: EvaluationRequest, *, start: bool = True) -> PlannedEvaluations:
        stage = EvaluationStage(request, start=start)
        return PlannedEvaluations(tuple(stage.jobs()), stage.evaluations, stage.refused)

    def finish(self, **changes: Any) -> EvaluationStage:
        """All that the command does."""
        request = self.request(**changes)
        stage, worker = EvaluationStage(request), self.worker(request)
        for job in stage.jobs():
            for shard in job.shards:
                worker(shard)
            stage.publish(job.job_id)
        stage.add_up_sets()
        return stage

    def evaluate(self, **changes: Any) -> tuple[Archive, PlannedEvaluations]:
        """Plan, measure every shard that is left, publish."""
        request = self.request(**changes)
        prepared = self.plan(request)
        worker = self.worker(request)
        for shard in prepared.shards:
            assert worker(shard).won
        for evaluation_id in prepared.unpublished:
            EvaluationWriter.open(request.archive, evaluation_id).publish({})
        return open_archive(request.archive), prepared


@pytest.fixture
def desk(laboratory: Any) -> MeasuringDesk:
    return MeasuringDesk(laboratory)
