"""A laboratory of the smallest kind: a random 32 px generator, a folder of PNG files, an archive in memory."""

from __future__ import annotations

import io
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
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
from lsap_core.images import ContentBox
from lsap_core.presets import Method, method
from tasks.archived.anchors import AnchorOptions
from tasks.editing.calibration import CalibrationOptions, Part, Values, find_spread, find_strength
from tasks.editing.chosen import with_deviation
from tasks.editing.plan import EditingStage
from tasks.editing.request import EditRequest
from tasks.editing.spec import parse_edit
from tasks.editing.worker import EditWorker
from tasks.inversion.plan import InversionFacts, InversionStage
from tasks.inversion.request import InversionRequest
from tasks.inversion.worker import EmbedWorker
from tasks.stage import ShardOutcome
from tasks.weights.encoders import encode_encoder
from tasks.weights.generators import GeneratorFile, load_generator, save_generator
from tasks.weights.networks import NetworkChoice
from tests.planned import Planned

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


@dataclass(frozen=True)
class PlannedInversion(Planned):
    """Of an inversion, with what is known of it."""

    request: InversionRequest
    facts: InversionFacts
    num_images: int
    source: str


@dataclass(frozen=True)
class PlannedEdits(Planned):
    """Of edits, with what is known of them."""

    strengths: dict[str, float | None]
    digests: dict[str, str]
    refused: dict[str, str]


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

    def request(self, *, content_box: ContentBox | None = None, **changes: Any) -> InversionRequest:
        values: dict[str, Any] = {
            "source": str(self.source),
            "archive": self.archive,
            "domain": "laboratory",
            "generator": GeneratorFile(self.generator, content_box),
            "methods": self.methods,
            "networks": self.networks,
            "anchor": AnchorOptions(num_samples=64),
            "fit": "refuse",
            "seed": 0,
            "shard_rows": 4,
            "batch_size": 4,
            "encoders": self.encoders,
            "device": "cpu",
        }
        return InversionRequest(**{**values, **changes})

    def prepare(self, *, start: bool = True, **changes: Any) -> PlannedInversion:
        request = self.request(**changes)
        with InversionStage(request, start=start) as stage:
            jobs = tuple(stage.jobs())
            return PlannedInversion(jobs, request, stage.facts, stage.num_images, stage.describe())

    @staticmethod
    def worker(prepared: PlannedInversion, *, save_every_seconds: float = 300.0, **changes: Any) -> EmbedWorker:
        return EmbedWorker(replace(prepared.request, **changes), save_every_seconds=save_every_seconds)

    def embed(self, prepared: PlannedInversion, **worker: Any) -> list[ShardOutcome]:
        """Embed every shard that is left."""
        embedder = self.worker(prepared, **worker)
        return [embedder(shard) for shard in prepared.shards]

    def publish(self, prepared: Planned) -> Archive:
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
        path.write_bytes(encode_encoder(encoder, **{"generator_digest": digest, **told}))
        return str(path)

    return make


@pytest.fixture
def new_laboratory(tmp_path: Path, generator_file: str) -> Callable[[], Laboratory]:
    """Makes laboratories with an archive each; they share the source."""
    source = tmp_path / "images"
    source.mkdir()
    return lambda: Laboratory(source, generator_file)


@pytest.fixture(scope="session")
def new_laboratories(generator_file: str) -> Callable[[Path], Laboratory]:
    """Makes laboratories that tests share, with a source each."""
    return lambda source: Laboratory(source, generator_file)


@pytest.fixture
def laboratory(new_laboratory: Callable[[], Laboratory]) -> Laboratory:
    return new_laboratory()


@dataclass
class EditingDesk:
    """Edits a laboratory's archive in this process, as the flow does."""

    laboratory: Laboratory
    directions: dict[str, str]

    def request(self, edits: Mapping[str, Any], **changes: Any) -> EditRequest:
        values: dict[str, Any] = {
            "archive": self.laboratory.archive,
            "generator": GeneratorFile(self.laboratory.generator),
            "methods": (),
            "edits": {name: parse_edit(name, edit, self.directions) for name, edit in edits.items()},
            "keep_images": False,
            "calibration": CalibrationOptions(num_images=4, num_synthetic=64),
            "batch_size": 4,
            "device": "cpu",
        }
        return EditRequest(**{**values, **changes})

    def worker(self, request: EditRequest) -> EditWorker:
        return EditWorker(request)

    def calibrate(self, request: EditRequest, *, part_size: int | None = None) -> None:
        """Keep what is missing."""
        stage, worker = EditingStage(request), self.worker(request)
        missing = stage.missing_calibrations()
        size = stage.part_size if part_size is None else part_size

        def measure(parts: Sequence[Part]) -> list[Values]:
            return [worker.measure(part) for part in parts]

        for spread in missing.spreads:
            stage.writer.keep_calibration(spread.digest, find_spread(spread, measure, size))
        for work in missing.strengths:
            found = find_strength(with_deviation(work, stage.writer), request.archive, measure, size)
            stage.writer.keep_calibration(work.digest, found)

    def plan(self, request: EditRequest, *, start: bool = True) -> PlannedEdits:
        stage = EditingStage(request, start=start)
        return PlannedEdits(tuple(stage.jobs()), stage.strengths, stage.digests, stage.refused)

    def publish(self, prepared: Planned) -> Archive:
        for run_id in prepared.runs:
            assert RunWriter.open(self.laboratory.archive, run_id).publish({})
        return open_archive(self.laboratory.archive)

    def edit(self, edits: Mapping[str, Any], **changes: Any) -> tuple[Archive, list[ShardOutcome]]:
        """Calibrate, plan, edit every shard that is left, publish."""
        request = self.request(edits, **changes)
        self.calibrate(request)
        prepared = self.plan(request)
        worker = self.worker(request)
        results = [worker(shard) for shard in prepared.shards]
        return self.publish(prepared), results


@pytest.fixture
def desk(laboratory: Laboratory, tmp_path: Path) -> EditingDesk:
    """With a direction named "right" in W."""
    path = tmp_path / "right.npy"
    np.save(path, np.eye(1, CONFIG.w_dim, dtype=np.float32))
    return EditingDesk(laboratory, {"right": str(path)})
