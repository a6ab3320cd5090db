"""Train the two networks that look at a small domain's images: the feature network and the independent judge."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from domains.making.augmentation import random_affine
from domains.making.recipe import NetworkRecipe
from lsap_core.perceptual.features import FeatureNet
from lsap_core.perceptual.judge import JudgeNet

BATCH_SIZE = 64


def train_network(recipe: NetworkRecipe, images: Tensor, labels: Tensor) -> FeatureNet | JudgeNet:
    """A network in eval mode that tells the classes [N] of images [N, C, R, R] apart."""
    torch.manual_seed(recipe.seed)
    stream = torch.Generator().manual_seed(recipe.seed)
    network = recipe.kind(recipe.config).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), lr=recipe.learning_rate, weight_decay=0.02)
    steps_per_epoch = len(images) // BATCH_SIZE
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.learning_rate, total_steps=recipe.num_epochs * steps_per_epoch
    )
    for _ in range(recipe.num_epochs):
        network.train()
        for batch in torch.randperm(len(images), generator=stream)[: steps_per_epoch * BATCH_SIZE].split(BATCH_SIZE):
            augmented = random_affine(images[batch], **recipe.augmentation, generator=stream)
            augmented = augmented + recipe.pixel_noise * torch.randn(augmented.shape, generator=stream)
            loss = F.cross_entropy(network(augmented), labels[batch], label_smoothing=0.05)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
    return network.eval()


@torch.no_grad()
def accuracy(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Share of the images that get their own class."""
    is_right: Tensor = network(images).argmax(dim=1) == labels
    return is_right.float().mean().item()
