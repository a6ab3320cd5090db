"""From maps to rows of W+: the feature pyramid and the heads that read it."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn

from lsap_core.generators.layers import EqualizedLinear

HEAD_SLOPE = 0.01
COARSE_HEADS = 3
MIDDLE_HEADS = 7


class Pyramid(nn.Module):
    """p2 = up(c3) + lateral1(c2), p1 = up(p2) + lateral2(c1): detail with the meaning of the last map.

    `up` is bilinear with aligned corners (Lin et al. 2017; as in pSp, without smoothing convolutions).
    """

    def __init__(self, widths: tuple[int, int, int]):
        super().__init__()
        fine, middle, coarse = widths
        self.lateral1 = nn.Conv2d(middle, coarse, 1)
        self.lateral2 = nn.Conv2d(fine, coarse, 1)

    def forward(self, c1: Tensor, c2: Tensor, c3: Tensor, num_maps: int = 3) -> list[Tensor]:
        """Maps [N, *, h, w] from fine to coarse -> the first `num_maps` of c3, p2, p1, all as wide as c3."""
        maps = [c3]
        if num_maps > 1:
            maps.append(add_upsampled(maps[-1], self.lateral1(c2)))
        if num_maps > 2:
            maps.append(add_upsampled(maps[-1], self.lateral2(c1)))
        return maps


def add_upsampled(coarse: Tensor, fine: Tensor) -> Tensor:
    """The coarse map, brought to the size of the fine one, plus the fine one."""
    return F.interpolate(coarse, fine.shape[-2:], mode="bilinear", align_corners=True) + fine


def map_of_head(head: int) -> int:
    """Which map a head reads: 0 (c3) for heads 0-2, 1 (p2) for 3-6, 2 (p1) from 7 on."""
    return 0 if head < COARSE_HEADS else 1 if head < MIDDLE_HEADS else 2


class MapToStyle(nn.Module):
    """A map -> one row of W+: strided convolutions down to a single position, then an equalized linear layer.

    As many convolutions as the longer side can be halved, rounded up: 16 x 16 and 12 x 16 both take four.
    """

    def __init__(self, width: int, w_dim: int, map_size: tuple[int, int]):
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(num_head_convs(map_size)):
            layers += [nn.Conv2d(width, width, 3, stride=2, padding=1), nn.LeakyReLU(HEAD_SLOPE)]
        self.convs = nn.Sequential(*layers)
        self.linear = EqualizedLinear(width, w_dim)

    def forward(self, features: Tensor) -> Tensor:
        """[N, width, h, w] of the size it was made for -> [N, w_dim]."""
        row: Tensor = self.linear(self.convs(features)[:, :, 0, 0])
        return row


class PooledToStyle(nn.Module):
    """The mean over a map -> one w, by an equalized linear layer (the head of W encoders)."""

    def __init__(self, width: int, w_dim: int):
        super().__init__()
        self.linear = EqualizedLinear(width, w_dim)

    def forward(self, features: Tensor) -> Tensor:
        """[N, width, h, w] -> [N, w_dim]."""
        w: Tensor = self.linear(features.mean(dim=(2, 3)))
        return w


def num_head_convs(map_size: tuple[int, int]) -> int:
    """Convolutions of stride 2 that bring a map to a single position: ceil(log2(longer side))."""
    return math.ceil(math.log2(max(map_size)))
