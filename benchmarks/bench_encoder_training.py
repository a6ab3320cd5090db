"""What a step of training an encoder costs: pSp, e4e and LSAP_E, with all heads active.

`EncoderTraining.advance` ("ours") against the published loops ("plain"), alternately in one run and only after both
have given the same loss, terms and gradient norm on the same batch with the same noise. All networks and images are
random: this measures what training costs, and says nothing about how good it is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from measurement import Benchmark, Work, parse_shared, run, shared_parser
from plain_training import Draws, PlainTraining
from random_generator import generator_config, random_generator
from torch import Tensor, nn

from lsap_core.alignment import estimate_anchor
from lsap_core.encoders import Backbone, Encoder, EncoderConfig
from lsap_core.generators import Generator, GeneratorConfig
from lsap_core.images import COMPARISON_SIDE
from lsap_core.perceptual.features import EmbeddingSimilarity, FeatureDistance, FeatureNet, FeatureNetConfig
from lsap_core.perceptual.identity import ArcFace, ArcFaceSimilarity
from lsap_core.presets import training
from lsap_core.training import EncoderTraining, EncoderTrainingSettings, ProgressiveSchedule
from lsap_core.training.latent_adversary import LatentAdversary
from lsap_core.training.random_numbers import derived_seed, draw_noise, stream

FORMS = ("ours", "plain")
METHODS = ("psp", "e4e", "lsap_e")
SEED = 0
ANCHOR_SAMPLES = 64  # few: its memory must not hide that of the steps
STANDING_STILL = 1e-8  # learning rate: weights stay where they are, so every sample does the same work
AGREEMENT = 1e-3
FEATURES, ALEXNET, ARCFACE, NONE = "features", "alexnet", "arcface", "none"
ALEXNET_CHANNELS = (64, 192, 384, 256, 256)

_DIGITS = {"num_steps": 6000, "decay_steps": 1800, "identity_weight": 0}
_JOINING = {"progressive_start": 1200, "progressive_every": 350}
DIGITS: dict[str, dict[str, Any]] = {"psp": _DIGITS, "e4e": _DIGITS | _JOINING, "lsap_e": _DIGITS | _JOINING}


@dataclass(frozen=True)
class Preset:
    """What belongs together.

    Attributes:
        table: of the generator's channels.
        backbone: of the encoder.
        perceptual: kind of the perceptual network.
        resolution: of the generator, unless the options say another.
        batch_size: likewise.
    """

    table: str
    backbone: Backbone
    perceptual: str
    resolution: int
    batch_size: int


PRESETS = {
    "digits": Preset("digits", "small", FEATURES, 32, 16),
    "full": Preset("config_f", "ir_se_50", ALEXNET, 1024, 8),
    "tiny": Preset("tiny", "small", FEATURES, 16, 2),
}


@dataclass(frozen=True)
class TrainingCell:
    """Sizes of one measurement; a sample takes `steps` steps from `first_step` on."""

    preset: str
    method: str
    resolution: int
    batch_size: int
    backbone: str
    perceptual: str
    identity: str
    first_step: int
    steps: int

    @property
    def units(self) -> int:
        """Images of one call."""
        return self.batch_size * self.steps


def training_cell(
    preset: str, method: str, *, steps: int, resolution: int | None = None, batch_size: int | None = None
) -> TrainingCell:
    """A cell of a preset, at the first step with all heads at which R1 is due."""
    chosen = PRESETS[preset]
    resolution, batch_size = resolution or chosen.resolution, batch_size or chosen.batch_size
    settings = method_settings(preset, method, batch_size)
    num_ws = generator_config(chosen.table, resolution).num_ws
    last_joined = ProgressiveSchedule(settings.progressive_start, settings.progressive_every, num_ws).stages()[-1]
    identity = NONE
    if settings.identity_weight > 0:
        identity = ARCFACE if preset == "full" and resolution >= COMPARISON_SIDE else FEATURES
    return TrainingCell(
        preset,
        method,
        resolution,
        batch_size,
        chosen.backbone,
        chosen.perceptual,
        identity,
        first_step=math.ceil(last_joined / settings.r1_every) * settings.r1_every,
        steps=steps,
    )


def method_settings(preset: str, method: str, batch_size: int) -> EncoderTrainingSettings:
    """The published settings, or those of the digits domain, with learning rates at which nothing moves."""
    changes = DIGITS[method] if preset == "digits" else {}
    return replace(
        training(method, **changes).settings,
        batch_size=batch_size,
        learning_rate=STANDING_STILL,
        discriminator_learning_rate=STANDING_STILL,
    )


class RandomAlexNet(nn.Module):
    """Convolutions and poolings of AlexNet's trunk (Krizhevsky 2014), tapped where LPIPS taps it; random weights."""

    def __init__(self) -> None:
        super().__init__()
        one, two, three, four, five = ALEXNET_CHANNELS
        self.convs = nn.ModuleList(
            [
                nn.Conv2d(3, one, 11, stride=4, padding=2),
                nn.Conv2d(one, two, 5, padding=2),
                nn.Conv2d(two, three, 3, padding=1),
                nn.Conv2d(three, four, 3, padding=1),
                nn.Conv2d(four, five, 3, padding=1),
            ]
        )

    def taps(self, images: Tensor) -> list[Tensor]:
        """The five activations of images [N, 3, H, W]."""
        taps: list[Tensor] = []
        features = images
        for index, conv in enumerate(self.convs):
            features = F.relu(conv(F.max_pool2d(features, 3, 2) if index in (1, 2) else features))
            taps.append(features)
        return taps


def build(cell: TrainingCell, form: str, device: torch.device) -> Work:
    """Some steps; returns the terms of the first one, in the order of their names, with the gradient's norm."""
    preset, settings = PRESETS[cell.preset], method_settings(cell.preset, cell.method, cell.batch_size)
    is_plain = form == "plain"
    generator = random_generator(preset.table, cell.resolution, "weights" if is_plain else "activations", device)
    anchor = estimate_anchor(generator, num_samples=ANCHOR_SAMPLES)
    encoder = random_encoder(cell, settings, generator, anchor.w_avg)
    perceptual = FeatureDistance(random_network(cell.perceptual, generator.config)).to(device)
    identity = random_identity(cell.identity, generator.config, device)
    stream_of_images = torch.Generator().manual_seed(1)
    shape = (cell.batch_size, generator.config.image_channels, *encoder.config.input_size)
    images = (2 * torch.rand(shape, generator=stream_of_images) - 1).to(device)
    seeds = range(cell.batch_size)
    if not is_plain:
        # In the memory layout that tasks/weights/networks.py chooses.
        for network in (encoder, generator, perceptual):
            network.to(memory_format=torch.channels_last)
        ours = EncoderTraining(encoder, generator, anchor, perceptual, identity, settings, seed=SEED)
        return _steps(ours, cell, lambda: ours.advance(images, seeds))

    generator.requires_grad_(cell.method == "psp")  # pSp trains with gradients to all weights of its generator
    if identity is not None:
        identity.requires_grad_(cell.method != "e4e")  # the other two train with gradients to its weights as well
    discriminator = LatentAdversary(generator, settings, seed=SEED).network
    plain = PlainTraining(encoder, generator, anchor, perceptual, identity, settings, discriminator)
    first_draws = [same_draws(generator.config, cell, len(images), device)]
    return _steps(plain, cell, lambda: plain.advance(images, first_draws.pop() if first_draws else None))


def _steps(trained: EncoderTraining | PlainTraining, cell: TrainingCell, advance: Any) -> Work:
    def advance_all() -> Tensor:
        trained.step = cell.first_step  # every sample takes the same steps of the schedule
        terms = [advance() for _ in range(cell.steps)]
        return torch.tensor([terms[0][name] for name in sorted(terms[0])], dtype=torch.float64)

    return advance_all


def same_draws(config: GeneratorConfig, cell: TrainingCell, num_images: int, device: torch.device) -> Draws:
    """What `EncoderTraining` draws for the first step of a cell."""
    step, stage = cell.first_step, config.num_ws - 1
    streams = [stream(SEED, step, "noise", image, device=device) for image in range(num_images)]
    z = torch.randn(num_images, config.z_dim, generator=stream(SEED, step, "real codes")).to(device)
    rows = [derived_seed(SEED, step, "judged row", image) % (stage + 1) for image in range(num_images)]
    return Draws(draw_noise(config, streams), z, rows)


def random_encoder(
    cell: TrainingCell, settings: EncoderTrainingSettings, generator: Generator, w_avg: Tensor
) -> Encoder:
    """The same weights in both forms."""
    torch.manual_seed(2)
    config = EncoderConfig.for_generator(generator.config, heads=settings.heads, backbone=PRESETS[cell.preset].backbone)
    encoder = Encoder(config).to(w_avg.device)
    encoder.w_avg.copy_(w_avg.expand_as(encoder.w_avg))
    return encoder


def random_network(kind: str, config: GeneratorConfig) -> FeatureNet | RandomAlexNet:
    """A frozen network with random weights: right in cost, without meaning."""
    torch.manual_seed(3)
    if kind == ALEXNET:
        return RandomAlexNet().requires_grad_(False).eval()
    side = min(config.resolution, COMPARISON_SIDE)
    return FeatureNet(FeatureNetConfig(side, config.image_channels)).requires_grad_(False).eval()


def random_identity(
    kind: str, config: GeneratorConfig, device: torch.device
) -> ArcFaceSimilarity | EmbeddingSimilarity | None:
    """The identity network, or None where its term has no weight."""
    if kind == NONE:
        return None
    if kind == ARCFACE:
        torch.manual_seed(4)
        return ArcFaceSimilarity(ArcFace()).to(device)
    network = random_network(FEATURES, config)
    assert isinstance(network, FeatureNet)
    return EmbeddingSimilarity(network).to(device)


BENCHMARK = Benchmark(
    name="encoder training",
    per="image",
    difference_of="terms of the first step in the order of their names, with the gradient's norm",
    build=build,
    smallest=training_cell("tiny", "e4e", steps=2),
    forms=FORMS,
    agreement=AGREEMENT,
    counts_state=True,
    is_rate=True,
)


if __name__ == "__main__":
    parser = shared_parser(__doc__)
    parser.add_argument("--preset", choices=tuple(PRESETS), default="digits")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--resolution", type=int, help="of the generator; the preset's when not given")
    parser.add_argument("--batch", type=int, help="images of a step; the preset's when not given")
    parser.add_argument("--steps", type=int, default=16, help="of one sample; R1 is due in every 16th")
    options = parse_shared(parser)
    if options.steps < 1 or (options.batch is not None and options.batch < 1):
        parser.error("--steps and --batch must be at least 1")
    if options.resolution is not None and options.preset == "digits" and options.resolution != 32:
        parser.error(f"--resolution is {options.resolution}; digits are 32 pixels")
    cells = [
        training_cell(
            options.preset, method, steps=options.steps, resolution=options.resolution, batch_size=options.batch
        )
        for method in options.methods
    ]
    run(BENCHMARK, cells, options)
