"""Random numbers that depend on what they are for, not on who draws them or on what was drawn before."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lsap_core.generators.config import GeneratorConfig


def derived_seed(*parts: int | str) -> int:
    """A seed of 63 bits from names and numbers; other parts, another seed.

    Example:
        >>> derived_seed(0, 17, "noise") == derived_seed(0, 17, "noise") != derived_seed(0, 18, "noise")
        True
    """
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "big") >> 1


def stream(*parts: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """The random stream of `derived_seed`."""
    return torch.Generator(device).manual_seed(derived_seed(*parts))


def draw_noise(config: GeneratorConfig, streams: Sequence[torch.Generator]) -> list[Tensor]:
    """Noise maps on the streams' device, row n from stream n: [N, 1, h, w] for each convolution."""
    sizes = [math.prod(size) for size in config.noise_sizes]
    rows = torch.stack([torch.randn(sum(sizes), generator=each, device=each.device) for each in streams])
    return [maps.view(-1, 1, *size) for maps, size in zip(rows.split(sizes, dim=1), config.noise_sizes, strict=True)]
