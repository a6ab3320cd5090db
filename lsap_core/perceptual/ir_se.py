"""The residual trunk of ArcFace, with squeeze-and-excitation (IR-SE) or without (IR); the image encoders read it too.

Layers carry the names of the published weights (`input_layer`, `body`, `res_layer`, `shortcut_layer`).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from lsap_core.convolution import Convolution3x3

SQUEEZE = 16


@dataclass(frozen=True)
class IrSeSizes:
    """Sizes of a trunk; the first unit of every group halves the side.

    Attributes:
        stem: channels after the first convolution.
        widths: channels of each group.
        units: residual units of each group.
        has_squeeze: whether units scale their channels (IR-SE) or not (IR).
    """

    stem: int
    widths: tuple[int, ...]
    units: tuple[int, ...]
    has_squeeze: bool = True


IR_SE_50 = IrSeSizes(64, (64, 128, 256, 512), (3, 4, 14, 3))
IR_101 = IrSeSizes(64, (64, 128, 256, 512), (3, 13, 30, 3), has_squeeze=False)


class SqueezeExcitation(nn.Module):
    """x * sigmoid(W2 relu(W1 mean(x))): every channel is scaled by what the whole map shows (Hu et al. 2018)."""

    def __init__(self, channels: int):
        super().__init__()
        squeezed = max(channels // SQUEEZE, 1)
        self.fc1 = nn.Conv2d(channels, squeezed, 1, bias=False)
        self.fc2 = nn.Conv2d(squeezed, channels, 1, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """[N, C, H, W] -> the same shape."""
        pooled = features.mean(dim=(2, 3), keepdim=True)
        scale: Tensor = self.fc2(F.relu(self.fc1(pooled))).sigmoid()
        return features * scale


class SampledConvolution(nn.Conv2d):
    """1x1 convolution of every stride-th entry, without a bias.

    The entries are taken before: with less than 8 channels that lie last, the backward pass of a strided convolution
    of 1x1 writes beyond its memory in oneDNN (torch 2.15, AVX2).
    """

    def __init__(self, in_channels: int, out_channels: int, step: int):
        super().__init__(in_channels, out_channels, 1, bias=False)
        self.step = step

    def forward(self, input: Tensor) -> Tensor:
        """[N, in, H, W] -> [N, out, H / step, W / step], rounded up."""
        return super().forward(input[:, :, :: self.step, :: self.step])


class IrSeUnit(nn.Module):
    """y = SE(BN conv PReLU conv BN x) + shortcut(x), without an activation after the sum (Deng et al. 2019).

    Without squeeze-and-excitation, SE is the identity.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, *, has_squeeze: bool = True):
        super().__init__()
        self.res_layer = nn.Sequential(
            nn.BatchNorm2d(in_channels),
            Convolution3x3(in_channels, out_channels, bias=False),
            nn.PReLU(out_channels),
            nn.Conv2d(out_channels, out_channels, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            *((SqueezeExcitation(out_channels),) if has_squeeze else ()),
        )
        self.shortcut_layer: nn.Module = (
            nn.MaxPool2d(1, stride)  # takes every stride-th entry
            if in_channels == out_channels
            else nn.Sequential(SampledConvolution(in_channels, out_channels, stride), nn.BatchNorm2d(out_channels))
        )

    def forward(self, features: Tensor) -> Tensor:
        """[N, in, H, W] -> [N, out, H / stride, W / stride], rounded up."""
        output: Tensor = self.res_layer(features) + self.shortcut_layer(features)
        return output


class IrSeTrunk(nn.Module):
    """Images -> the map after every group of units, each half as large as the one before it.

    Example:
        >>> import torch
        >>> trunk = IrSeTrunk(IrSeSizes(4, (4, 8), (1, 2)), in_channels=1)
        >>> [tuple(map_.shape) for map_ in trunk(torch.zeros(2, 1, 8, 12))]
        [(2, 4, 4, 6), (2, 8, 2, 3)]
    """

    def __init__(self, sizes: IrSeSizes, *, in_channels: int):
        super().__init__()
        self.input_layer = nn.Sequential(
            nn.Conv2d(in_channels, sizes.stem, 3, padding=1, bias=False),
            nn.BatchNorm2d(sizes.stem),
            nn.PReLU(sizes.stem),
        )
        units: list[IrSeUnit] = []
        before = sizes.stem
        for width, count in zip(sizes.widths, sizes.units, strict=True):
            units += [
                IrSeUnit(before if unit == 0 else width, width, 2 if unit == 0 else 1, has_squeeze=sizes.has_squeeze)
                for unit in range(count)
            ]
            before = width
        self.body = nn.Sequential(*units)
        self._last_units = {last - 1 for last in itertools.accumulate(sizes.units)}

    def forward(self, images: Tensor) -> list[Tensor]:
        """Images [N, in_channels, H, W] in [-1, 1] -> one map for each group, [N, width, H / 2^g, W / 2^g]."""
        features, maps = self.input_layer(images), []
        for index, unit in enumerate(self.body):
            features = unit(features)
            if index in self._last_units:
                maps.append(features)
        return maps
