"""DeepLab v3+ on ResNet-101 (Chen et al. 2018), under the names that SAM's released predictors have."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lsap_core.perceptual.resnet_50 import EXPANSION, WIDTHS, Bottleneck

BLOCKS = (3, 4, 23, 3)
STRIDES = (1, 2, 2, 1)
LAST_DILATIONS = (2, 4, 8)
POOLING_DILATIONS = (1, 6, 12, 18)
POOLED_CHANNELS = 256
LOW_LEVEL_CHANNELS = 48


class DilatedResNet101(nn.Module):
    """ResNet-101 whose last group keeps the size: images [N, 3, H, W] -> maps at H / 4 and H / 16."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, WIDTHS[0], 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTHS[0])
        before = WIDTHS[0]
        for group, (width, count, stride) in enumerate(zip(WIDTHS, BLOCKS, STRIDES, strict=True)):
            dilations = LAST_DILATIONS if group == len(BLOCKS) - 1 else (1,) * count
            blocks = []
            for block, dilation in enumerate(dilations):
                blocks.append(Bottleneck(before, width, stride if block == 0 else 1, dilation=dilation))
                before = width * EXPANSION
            self.add_module(f"layer{group + 1}", nn.Sequential(*blocks))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The last map, [N, 2048, H / 16, W / 16], and that of the first group, [N, 256, H / 4, W / 4]."""
        features = F.max_pool2d(F.relu(self.bn1(self.conv1(images))), 3, stride=2, padding=1)
        low = features = self.get_submodule("layer1")(features)
        for group in range(1, len(BLOCKS)):
            features = self.get_submodule(f"layer{group + 1}")(features)
        return features, low


class AtrousConv(nn.Module):
    """Dilated convolution, batch normalization, ReLU."""

    def __init__(self, in_channels: int, dilation: int):
        super().__init__()
        size, padding = (1, 0) if dilation == 1 else (3, dilation)
        self.atrous_conv = nn.Conv2d(in_channels, POOLED_CHANNELS, size, padding=padding, dilation=dilation, bias=False)
        self.bn = nn.BatchNorm2d(POOLED_CHANNELS)

    def forward(self, features: Tensor) -> Tensor:
        """[N, in, H, W] -> [N, 256, H, W]."""
        return F.relu(self.bn(self.atrous_conv(features)))


class SpatialPyramidPooling(nn.Module):
    """Four dilations and the global mean, side by side, mixed to 256 channels."""

    def __init__(self, in_channels: int):
        super().__init__()
        for index, dilation in enumerate(POOLING_DILATIONS, start=1):
            self.add_module(f"aspp{index}", AtrousConv(in_channels, dilation))
        self.global_avg_pool = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(in_channels, POOLED_CHANNELS, 1, bias=False),
            nn.BatchNorm2d(POOLED_CHANNELS),
            nn.ReLU(),
        )
        self.conv1 = nn.Conv2d(POOLED_CHANNELS * (len(POOLING_DILATIONS) + 1), POOLED_CHANNELS, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(POOLED_CHANNELS)
        self.dropout = nn.Dropout(0.5)

    def forward(self, features: Tensor) -> Tensor:
        """[N, in, H, W] -> [N, 256, H, W]."""
        branches = [self.get_submodule(f"aspp{index + 1}")(features) for index in range(len(POOLING_DILATIONS))]
        branches.append(self.global_avg_pool(features).expand(-1, -1, *features.shape[2:]))
        mixed: Tensor = self.dropout(F.relu(self.bn1(self.conv1(torch.cat(branches, dim=1)))))
        return mixed


class Decoder(nn.Module):
    """The pooled map beside that of the first group, mixed to the output's channels."""

    def __init__(self, out_channels: int):
        super().__init__()
        width = POOLED_CHANNELS
        self.conv1 = nn.Conv2d(WIDTHS[0] * EXPANSION, LOW_LEVEL_CHANNELS, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(LOW_LEVEL_CHANNELS)
        self.last_conv = nn.Sequential(
            nn.Conv2d(width + LOW_LEVEL_CHANNELS, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Dropout(0.1),
            nn.Conv2d(width, out_channels, 1),
        )

    def forward(self, pooled: Tensor, low: Tensor) -> Tensor:
        """Maps at H / 16 and H / 4 -> [N, out, H / 4, W / 4]."""
        low = F.relu(self.bn1(self.conv1(low)))
        mixed: Tensor = self.last_conv(torch.cat([_resized(pooled, low.shape[2:]), low], dim=1))
        return mixed


class DeepLab(nn.Module):
    """Images [N, 3, H, W] in [-1, 1] -> features [N, out_channels, H, W]."""

    def __init__(self, out_channels: int):
        super().__init__()
        self.backbone = DilatedResNet101()
        self.aspp = SpatialPyramidPooling(WIDTHS[-1] * EXPANSION)
        self.decoder = Decoder(out_channels)

    def forward(self, images: Tensor) -> Tensor:
        """Features of every pixel."""
        high, low = self.backbone(images)
        return _resized(self.decoder(self.aspp(high), low), images.shape[2:])


def _resized(features: Tensor, size: torch.Size) -> Tensor:
    """Bilinear, corner pixels on corner pixels."""
    return F.interpolate(features, tuple(size), mode="bilinear", align_corners=True)
