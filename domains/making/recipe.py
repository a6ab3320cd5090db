"""What decides how a small domain comes out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from torch import Tensor

from lsap_core.generators.config import GeneratorConfig
from lsap_core.perceptual.features import FeatureNet, FeatureNetConfig
from lsap_core.perceptual.judge import JudgeNet

Split = Literal["train", "test"]


@dataclass(frozen=True)
class NetworkRecipe:
    """How one of the two networks that look at images is trained: to tell their classes apart.

    Attributes:
        kind: its architecture.
        config: its sizes.
        seed: of its first weights, the order of the images and their changes.
        num_epochs: how often it sees every image.
        learning_rate: the highest of the schedule.
        augmentation: amounts of `random_affine`.
        pixel_noise: standard deviation of the noise on its images.
    """

    kind: type[FeatureNet] | type[JudgeNet]
    config: FeatureNetConfig
    seed: int
    num_epochs: int
    learning_rate: float
    augmentation: Mapping[str, float]
    pixel_noise: float


@dataclass(frozen=True)
class GeneratorRecipe:
    """How the generator is trained; phases and averaging are counted in images shown.

    Attributes:
        deformation: amounts of `random_affine` for every training image.
        augmentation: amounts for what the discriminator sees.
    """

    seed: int
    batch_size: int = 32
    reconstruction_images: int = 120_000
    adversarial_images: int = 200_000
    code_noise: float = 0.25
    wasserstein_weight: float = 1.0
    wasserstein_batch: int = 128
    pixel_weight: float = 2.0
    reconstruction_every: int = 2
    adversarial_weight_start: float = 0.3
    adversarial_weight_end: float = 1.5
    r1_weight: float = 1.0
    r1_every: int = 12
    style_mixing: float = 0.2
    generator_learning_rate: float = 1.5e-3
    discriminator_learning_rate: float = 1.5e-3
    decay_from: float = 0.5
    ema_half_life: float = 10_000.0
    deformation: Mapping[str, float] = field(
        default_factory=lambda: {"rotation_degrees": 4, "shift_pixels": 1, "scale": 0.04}
    )
    augmentation: Mapping[str, float] = field(
        default_factory=lambda: {"rotation_degrees": 8, "shift_pixels": 3, "scale": 0.08, "probability": 0.7}
    )


@dataclass(frozen=True)
class Recipe:
    """Everything that a small domain is made of.

    Attributes:
        folder: where its weights lie: `features`, `judge` and `generator.safetensors`.
        noun: what one image shows, for tables: "digit".
        load: images [N, C, R, R] in [-1, 1] and their classes [N] of a split; no training sees "test".
        networks: how "features" (perceptual loss, identity) and "judge" (in no loss) are trained.
        sizes: of the generator.
        generator: how it is trained.
    """

    folder: Path
    noun: str
    load: Callable[[Split], tuple[Tensor, Tensor]]
    networks: Mapping[str, NetworkRecipe]
    sizes: GeneratorConfig
    generator: GeneratorRecipe
