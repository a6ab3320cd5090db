"""Refining a laboratory's inversions in this process, as the flow does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from lsap_archive import Archive, open_archive
from lsap_core.generators.config import GeneratorConfig
from lsap_core.presets import REFINERS, NamedRefiner
from lsap_core.refinement.hfgi_checkpoints import HfgiCheckpoint, canonical_hfgi_state, to_hfgi_metadata
from lsap_core.refinement.hfgi_networks import HfgiConfig, HfgiNetworks
from tasks.archived.rendering import Renderer
from tasks.refinement.plan import RefinementStage
from tasks.refinement.request import RefinementRequest
from tasks.refinement.worker import RefineWorker
from tasks.stage import ShardOutcome
from tasks.weights.generators import GeneratorFile, load_generator


def few_steps(**changes: Any) -> NamedRefiner:
    """Of PTI, and large ones."""
    return REFINERS["pti"].with_settings({"num_steps": 6, "learning_rate": 0.02, "stop_at_lpips": None, **changes})


@pytest.fixture(scope="session")
def pti() -> Callable[..., NamedRefiner]:
    """PTI in a few large steps; settings may be changed."""
    return few_steps


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
            "refiners": refiners or (few_steps(),),
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
    def config(self) -> GeneratorConfig:
        return load_generator(self.laboratory.generator).config

    @property
    def renderer(self) -> Renderer:
        return Renderer(load_generator(self.laboratory.generator).generator.freeze())


@pytest.fixture(scope="session")
def refining_desk() -> Callable[[Any], RefiningDesk]:
    """A desk for a laboratory."""
    return RefiningDesk


@pytest.fixture
def refining(laboratory: Any) -> RefiningDesk:
    laboratory.fill(5)
    laboratory.invert()
    return RefiningDesk(laboratory)


@pytest.fixture
def hfgi_file(generator_file: str, tmp_path: Path) -> Callable[..., str]:
    """Writes small networks of HFGI with random weights: `hfgi_file(name, seed=1, generator_digest=...)`."""
    loaded = load_generator(generator_file)

    def make(name: str = "hfgi", *, seed: int = 0, **told: Any) -> str:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            networks = HfgiNetworks(HfgiConfig.for_generator(loaded.config, widths="small")).eval()
        state = canonical_hfgi_state(networks.config, networks.state_dict(), what="HFGI")
        about = {"generator_digest": loaded.digest, **told}
        checkpoint = HfgiCheckpoint(networks.config, state, layout="safetensors", **about)
        path = tmp_path / f"{name}.safetensors"
        save_file(checkpoint.state, path, to_hfgi_metadata(checkpoint))
        return str(path)

    return make
