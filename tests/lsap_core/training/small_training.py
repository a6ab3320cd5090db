"""A tiny training of each method; as a program, one worker of several that train together.

    python small_training.py RANK NUM_WORKERS FOLDER

writes FOLDER/RANK.pt: what `train_all` returned.
"""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lsap_core.alignment import Anchor, estimate_anchor
from lsap_core.encoders import Encoder, EncoderConfig
from lsap_core.errors import TrainingDivergedError
from lsap_core.generators import Generator, GeneratorConfig
from lsap_core.perceptual.features import FeatureDistance, FeatureNet, FeatureNetConfig
from lsap_core.training import EncoderTraining, EncoderTrainingSettings

CONFIG = GeneratorConfig(32, (8, 8, 8, 8), z_dim=6, w_dim=12, num_mapping_layers=2)

LSAP_E = EncoderTrainingSettings(
    batch_size=4, learning_rate=1e-2, delta_weight=0.01, progressive_start=1, progressive_every=1
)
E4E = replace(
    LSAP_E,
    sncd_weight=0.0,
    adversarial_weight=0.1,
    discriminator_learning_rate=1e-2,
    r1_every=2,
    pool_size=6,
)
PSP = replace(LSAP_E, heads="direct", sncd_weight=0.0, delta_weight=0.0, w_norm_weight=0.01, progressive_start=None)
METHODS = {
    "psp": PSP,
    "e4e": E4E,
    "lsap_e": LSAP_E,
    "restyle_psp": replace(PSP, is_iterative=True, num_passes=3),
    "restyle_e4e": replace(E4E, is_iterative=True, num_passes=2),
}
WITH_WORKERS = ("e4e", "lsap_e", "restyle_e4e")
STEPS_WITH_WORKERS = 5


class Identity:
    """Unit embeddings of a small network."""

    def __init__(self, network: FeatureNet):
        self.network = network

    def embed(self, images: Tensor) -> Tensor:
        """Unit vectors [N, D]."""
        return F.normalize(self.network.embed(images), dim=1)


def make_parts() -> tuple[Generator, Anchor, FeatureNet]:
    """Frozen networks with random weights, the same ones at every call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        generator = Generator(CONFIG)
        with torch.no_grad():
            for layer in generator.synthesis.conv_layers():
                layer.noise_strength.fill_(0.1)
            z = torch.randn(500, CONFIG.z_dim)
            generator.mapping.w_avg.copy_(generator.map(z).mean(dim=0))
        network = FeatureNet(FeatureNetConfig(32, 3, channels=(4, 6, 8, 8), embedding_dim=8)).requires_grad_(False)
    return generator.freeze(), estimate_anchor(generator, num_samples=200), network.eval()


def make_encoder(settings: EncoderTrainingSettings, generator: Generator) -> Encoder:
    """An encoder with random weights, the same ones at every call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        encoder = Encoder(
            EncoderConfig.for_generator(
                generator.config,
                heads=settings.heads,
                backbone="small",
                is_iterative=settings.is_iterative,
                has_pyramid=not settings.is_iterative,
            )
        )
    encoder.w_avg.copy_(generator.mapping.w_avg.expand_as(encoder.w_avg))
    return encoder


def make_training(method: str | EncoderTrainingSettings, *, seed: int = 5, **changes: Any) -> EncoderTraining:
    """The training of a method, before its first step."""
    settings = replace(METHODS[method] if isinstance(method, str) else method, **changes)
    generator, anchor, network = make_parts()
    encoder = make_encoder(settings, generator)
    return EncoderTraining(encoder, generator, anchor, FeatureDistance(network), Identity(network), settings, seed=seed)


def batch(generator: Generator, step: int, *, size: int = 4) -> tuple[Tensor, list[int]]:
    """The images of a step and their seeds."""
    stream = torch.Generator().manual_seed(100 + step)
    with torch.no_grad():
        images = generator.synthesize(generator.map(torch.randn(size, CONFIG.z_dim, generator=stream)))
    return images.clamp(-1, 1), [1000 * step + index for index in range(size)]


def train(
    training: EncoderTraining, steps: Sequence[int], *, rank: int = 0, workers: int = 1
) -> list[dict[str, float]]:
    """Take steps on this worker's share of the images."""
    logged = []
    for step in steps:
        images, seeds = batch(training.generator, step)
        logged.append(training.advance(images[rank::workers], seeds[rank::workers]))
    return logged


def train_all(rank: int = 0, workers: int = 1) -> dict[str, Any]:
    """The state of every method after some steps, and what a worker said when another one saw a bad image."""
    states: dict[str, Any] = {}
    for method in WITH_WORKERS:
        training = make_training(method)
        logged = train(training, range(STEPS_WITH_WORKERS), rank=rank, workers=workers)
        states[method] = {**training.state_dict(), "logged": logged}
    if workers > 1:
        training = make_training("e4e")
        before = [value.clone() for value in training.encoder.state_dict().values()]
        images, seeds = batch(training.generator, 0)
        images[workers - 1] = torch.nan  # the last worker's
        try:
            training.advance(images[rank::workers], seeds[rank::workers])
        except TrainingDivergedError as error:
            after = training.encoder.state_dict().values()
            is_untouched = all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
            states["diverged"] = {"message": str(error), "is_untouched": is_untouched}
    return states


def assert_equal(one: Any, other: Any) -> None:
    """Nested states are equal bit for bit."""
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for name in one:
            assert_equal(one[name], other[name])
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_equal(a, b)
    else:
        assert one == other


if __name__ == "__main__":
    rank, workers, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    torch.set_num_threads(1)
    store = torch.distributed.FileStore(str(folder / "store"), workers)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=workers)
    torch.save(train_all(rank, workers), folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()
