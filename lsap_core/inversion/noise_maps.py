"""Noise maps of single images: drawn from the image's own stream, normalized for itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from lsap_core.generators.config import GeneratorConfig

NoiseNormalization = Literal["unbiased", "biased"]


def random_streams(seeds: Sequence[int]) -> list[torch.Generator]:
    """One random stream for each image, on the CPU, so that results do not depend on the device or the batch."""
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def draw(streams: Sequence[torch.Generator], shape: Sequence[int]) -> Tensor:
    """Standard normal numbers, row n from stream n: [N, *shape], float32, on the CPU."""
    return torch.stack([torch.randn(*shape, generator=stream) for stream in streams])


def draw_noise(config: GeneratorConfig, streams: Sequence[torch.Generator]) -> list[Tensor]:
    """One set of noise maps for each image, [N, 1, side, side] for each convolution."""
    return [draw(streams, (1, side, side)) for side in config.noise_sides]


@torch.no_grad()
def normalize_noise_(noise: Sequence[Tensor], normalization: NoiseNormalization = "unbiased") -> None:
    """Bring every map of every image to mean 0 and deviation 1, in place.

    "unbiased" divides by the deviation with n - 1 (rosinality, GANInverter), "biased" with n (NVlabs, PTI).
    """
    for maps in noise:
        maps -= maps.mean(dim=(1, 2, 3), keepdim=True)
        maps /= maps.std(dim=(1, 2, 3), keepdim=True, correction=1 if normalization == "unbiased" else 0)
