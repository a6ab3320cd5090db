"""How the digits were made: networks in minutes, the generator in an hour, on one CPU core.

    python -m domains.digits.recipe features
    python -m domains.digits.recipe judge
    python -m domains.digits.recipe generator --output generator.safetensors --log training.jsonl

All see the 4,000 training digits only; accuracy and quality are those of the 1,000 held-out ones. The two networks
differ in architecture, random state and augmentation.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from domains.digits.data import load_split
from domains.making.command import make
from domains.making.recipe import GeneratorRecipe, NetworkRecipe, Recipe, Split
from lsap_core.generators.config import GeneratorConfig
from lsap_core.perceptual.features import FeatureNet, FeatureNetConfig
from lsap_core.perceptual.judge import JudgeNet


def load(split: Split) -> tuple[Tensor, Tensor]:
    """Images [N, 1, 32, 32] in [-1, 1] and the digits shown [N]."""
    digits = load_split(split)
    images = torch.from_numpy(digits.images)[:, None].float() / 127.5 - 1
    return images, torch.from_numpy(digits.labels)


RECIPE = Recipe(
    folder=Path(__file__).parent,
    noun="digit",
    load=load,
    networks={
        "features": NetworkRecipe(
            FeatureNet,
            FeatureNetConfig(resolution=32, image_channels=1, channels=(16, 32, 64, 64)),
            seed=1,
            num_epochs=24,
            learning_rate=3e-3,
            augmentation={"rotation_degrees": 10, "shift_pixels": 2, "scale": 0.1},
            pixel_noise=0.05,
        ),
        "judge": NetworkRecipe(
            JudgeNet,
            FeatureNetConfig(resolution=32, image_channels=1, channels=(24, 48, 96), embedding_dim=64),
            seed=2,
            num_epochs=24,
            learning_rate=2e-3,
            augmentation={"rotation_degrees": 12, "shift_pixels": 3, "scale": 0.12, "shear": 0.15},
            pixel_noise=0.1,
        ),
    },
    sizes=GeneratorConfig(
        resolution=32,
        channels=(64, 64, 32, 16),
        z_dim=12,
        w_dim=64,
        num_mapping_layers=3,
        image_channels=1,
        mapping_lr_multiplier=0.1,
    ),
    generator=GeneratorRecipe(seed=3),
)


if __name__ == "__main__":
    make(RECIPE)
