"""Train the two networks that look at digits: the feature network and the independent judge.

    python -m domains.digits.train_networks features
    python -m domains.digits.train_networks judge

Each takes a few minutes on one core, sees the 4,000 training digits only, and prints its accuracy on the
1,000 held-out ones. The two differ in architecture, random state and augmentation.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from domains.digits.augmentation import random_affine
from domains.digits.data import load_split
from domains.network_files import save_network
from lsap_core.perceptual.features import FeatureNet, FeatureNetConfig
from lsap_core.perceptual.judge import JudgeNet

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Recipe:
    """How one of the two networks is trained."""

    network: type[nn.Module]
    config: FeatureNetConfig
    seed: int
    num_epochs: int
    learning_rate: float
    augmentation: dict[str, float]
    pixel_noise: float


RECIPES = {
    "features": Recipe(
        FeatureNet,
        FeatureNetConfig(resolution=32, image_channels=1, channels=(16, 32, 64, 64)),
        seed=1,
        num_epochs=24,
        learning_rate=3e-3,
        augmentation={"rotation_degrees": 10, "shift_pixels": 2, "scale": 0.1},
        pixel_noise=0.05,
    ),
    "judge": Recipe(
        JudgeNet,
        FeatureNetConfig(resolution=32, image_channels=1, channels=(24, 48, 96), embedding_dim=64),
        seed=2,
        num_epochs=24,
        learning_rate=2e-3,
        augmentation={"rotation_degrees": 12, "shift_pixels": 3, "scale": 0.12, "shear": 0.15},
        pixel_noise=0.1,
    ),
}


def train(recipe: Recipe, *, batch_size: int = 64) -> tuple[nn.Module, float]:
    """The trained network in eval mode, and its accuracy on the held-out digits."""
    torch.manual_seed(recipe.seed)
    stream = torch.Generator().manual_seed(recipe.seed)
    images, labels = as_tensors("train")
    network = recipe.network(recipe.config).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), lr=recipe.learning_rate, weight_decay=0.02)
    steps_per_epoch = len(images) // batch_size
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.learning_rate, total_steps=recipe.num_epochs * steps_per_epoch
    )
    for _ in range(recipe.num_epochs):
        network.train()
        for batch in torch.randperm(len(images), generator=stream)[: steps_per_epoch * batch_size].split(batch_size):
            augmented = random_affine(images[batch], **recipe.augmentation, generator=stream)
            augmented = augmented + recipe.pixel_noise * torch.randn(augmented.shape, generator=stream)
            loss = F.cross_entropy(network(augmented), labels[batch], label_smoothing=0.05)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
    network.eval()
    return network, accuracy(network, *as_tensors("test"))


@torch.no_grad()
def accuracy(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Share of the images that get their own class."""
    return (network(images).argmax(dim=1) == labels).float().mean().item()


def as_tensors(split: str) -> tuple[Tensor, Tensor]:
    """Images [N, 1, 32, 32] in [-1, 1] and labels [N] of a split."""
    digits = load_split(split)
    images = torch.from_numpy(digits.images.copy())[:, None].float() / 127.5 - 1
    return images, torch.from_numpy(digits.labels.copy())


def main() -> None:
    """Train the named network and write it beside this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", choices=RECIPES)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    started = time.monotonic()
    network, held_out_accuracy = train(RECIPES[arguments.network])
    output = arguments.output or HERE / f"{arguments.network}.safetensors"
    save_network(output, network)
    print(f"{output.name}: accuracy {held_out_accuracy:.4f} on held-out digits, {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
