"""A laboratory of the smallest kind: a random 32 px generator, a folder of PNG files, an archive in memory."""

from __future__ import annotations

import io
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lsap_archive import Archive, RunWriter, Store, open_archive
from lsap_core.encoders import Encoder, EncoderConfig
from lsap_core.generators.config import GeneratorConfig
from lsap_core.generators.generator import Generator
from lsap_core.presets import Method, method
from tasks.anchor import AnchorOptions
from tasks.embed import EmbedSpec, EmbedWorker, ShardOutcome, ShardWork
from tasks.encoders import save_encoder
from tasks.networks import NetworkChoice
from tasks.planning import PlannedShard
from tasks.prepare import Prepared, Request, prepare
from tasks.weights import load_generator, save_generator

CONFIG = GeneratorConfig(
    32, (8, 8, 8, 8), z_dim=6, w_dim=8, num_mapping_layers=2, image_channels=1, mapping_lr_multiplier=0.1
)
NETWORKS = NetworkChoice("digits-features", "digits-features", identity="digits-features", judge="digits-judge")


def random_generator(config: GeneratorConfig = CONFIG, seed: int = 0) -> Generator:
    """Random weights, with noise at every convolution but the first."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        generator = Generator(config)
    for layer in generator.synthesis.conv_layers()[1:]:
        torch.nn.init.constant_(layer.noise_strength, 0.1)
    return generator


def random_encoder(config: GeneratorConfig = CONFIG, seed: int = 0, *, is_iterative: bool = False) -> Encoder:
    """A small encoder with random weights, and statistics that batch normalization has seen."""
    sizes = EncoderConfig.for_generator(config, heads="offsets", backbone="small", is_iterative=is_iterative)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        encoder = Encoder(sizes)
        encoder.w_avg.normal_()
        encoder.train()(torch.randn(4, sizes.in_channels, *sizes.input_size))
    return encoder.eval()


@dataclass
class Laboratory:
    """What the tasks are tried on."""

    source: Path
    generator: str
    networks: NetworkChoice = NETWORKS
    archive: str = field(default_factory=lambda: f"memory://test-{uuid.uuid4().hex}")
    methods: tuple[Method, ...] = (method("stylegan2_w_plus", num_steps=3, record_every=2),)
    encoders: dict[str, str] = field(default_factory=dict)

    @property
    def store(self) -> Store:
        return Store.from_url(self.archive)

    def contents(self) -> dict[str, int]:
        """Key and size of everything in the archive."""
        return self.store.sizes()

    @staticmethod
    def picture(number: int, height: int = 32, width: int = 32) -> bytes:
        """A PNG file of gray pixels, another one for every number."""
        pixels = np.random.default_rng(number).integers(0, 256, (height, width)).astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        return file.getvalue()

    def put(self, name: str, data: bytes) -> None:
        (self.source / name).write_bytes(data)

    def fill(self, count: int) -> None:
        """Put pictures "0.png", "1.png", ... into the source."""
        for number in range(count):
            self.put(f"{number}.png", self.picture(number))

    def request(self, **changes: Any) -> Request:
        values: dict[str, Any] = {
            "source": str(self.source),
            "archive": self.archive,
            "generator": self.generator,
            "methods": self.methods,
            "networks": self.networks,
            "anchor": AnchorOptions(num_samples=64),
            "fit": "refuse",
            "seed": 0,
            "shard_rows": 4,
            "encoders": self.encoders,
        }
        return Request(**{**values, **changes})

    def prepare(self, **changes: Any) -> Prepared:
        return prepare(self.request(**changes))

    def worker(self, prepared: Prepared, *, save_every_seconds: float = 300.0, **changes: Any) -> EmbedWorker:
        values: dict[str, Any] = {
            "archive": self.archive,
            "generator": self.generator,
            "networks": self.networks,
            "anchor": prepared.anchor,
            "source": str(self.source),
            "fit": "refuse",
            "batch_size": 4,
            "device": "cpu",
            "encoders": self.encoders,
        }
        return EmbedWorker(EmbedSpec(**{**values, **changes}), save_every_seconds=save_every_seconds)

    def embed(self, prepared: Prepared, **worker: Any) -> list[ShardOutcome]:
        """Embed every shard that is left."""
        embedder = self.worker(prepared, **worker)
        return [embedder.embed(self.work_of(shard)) for shard in prepared.shards]

    @staticmethod
    def work_of(shard: PlannedShard) -> ShardWork:
        return ShardWork(shard.run_id, shard.shard, shard.duplicates)

    def publish(self, prepared: Prepared) -> Archive:
        for run_id in prepared.runs:
            assert RunWriter.open(self.archive, run_id).publish({})
        return open_archive(self.archive)

    def invert(self, *, worker: Mapping[str, Any] | None = None, **changes: Any) -> Archive:
        """Plan, embed and publish."""
        prepared = self.prepare(**changes)
        self.embed(prepared, **(worker or {}))
        return self.publish(prepared)


@pytest.fixture(scope="session")
def generator_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("generator") / "random.safetensors"
    save_generator(random_generator(), str(path))
    return str(path)


@pytest.fixture(scope="session")
def new_encoder(generator_file: str) -> Callable[..., str]:
    """Writes the file of a random encoder of the random generator: `new_encoder(path, seed=1, title="e4e")`."""
    digest = load_generator(generator_file).digest

    def make(path: Path, *, seed: int = 0, is_iterative: bool = False, **told: Any) -> str:
        encoder = random_encoder(seed=seed, is_iterative=is_iterative)
        save_encoder(str(path), encoder, **{"generator_digest": digest, **told})
        return str(path)

    return make


@pytest.fixture
def new_laboratory(tmp_path: Path, generator_file: str) -> Callable[[], Laboratory]:
    """Makes laboratories with an archive each; they share the source."""
    source = tmp_path / "images"
    source.mkdir()
    return lambda: Laboratory(source, generator_file)


@pytest.fixture
def laboratory(new_laboratory: Callable[[], Laboratory]) -> Laboratory:
    return new_laboratory()
