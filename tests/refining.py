"""Refines the archive of a laboratory in a test's own process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lsap_archive import Archive, open_archive
from lsap_core.presets import REFINERS, NamedRefiner
from tasks.archived.rendering import Renderer
from tasks.refinement.plan import RefinementStage
from tasks.refinement.request import RefinementRequest
from tasks.refinement.worker import RefineWorker
from tasks.stage import ShardOutcome
from tasks.weights.generators import GeneratorFile, load_generator

METHOD = "stylegan2_w_plus"
REFINED = f"{METHOD}/pti"


def pti(**changes: Any) -> NamedRefiner:
    """A few large steps."""
    return REFINERS["pti"].with_settings({"num_steps": 6, "learning_rate": 0.02, "stop_at_lpips": None, **changes})


@dataclass
class RefiningDesk:
    """Refines a laboratory's archive in this process, as the flow does."""

    laboratory: Any

    def request(self, *refiners: NamedRefiner, **changes: Any) -> RefinementRequest:
        values: dict[str, Any] = {
            "archive": self.laboratory.archive,
            "source": str(self.laboratory.source),
            "generator": GeneratorFile(self.laboratory.generator),
            "methods": (),
            "refiners": refiners or (pti(),),
            "networks": self.laboratory.networks,
            "seed": 0,
            "keep": "state",
            "state_type": "float16",
            "batch_size": 4,
            "device": "cpu",
        }
        return RefinementRequest(**{**values, **changes})

    def refine(
        self, *refiners: NamedRefiner, save_every_seconds: float = 300.0, **changes: Any
    ) -> tuple[Archive, list[ShardOutcome]]:
        """Plan, refine every shard that is left, publish."""
        request = self.request(*refiners, **changes)
        stage, worker = RefinementStage(request), RefineWorker(request, save_every_seconds=save_every_seconds)
        jobs = list(stage.jobs())
        outcomes = [worker(shard) for job in jobs for shard in job.shards]
        for job in jobs:
            stage.publish(job.job_id)
        return open_archive(self.laboratory.archive), outcomes

    @property
    def renderer(self) -> Renderer:
        return Renderer(load_generator(self.laboratory.generator).generator.freeze())
