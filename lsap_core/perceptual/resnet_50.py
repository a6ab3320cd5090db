"""ResNet-50 without its last layer, under torchvision's names, which MoCo's weights have too."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

WIDTHS = (64, 128, 256, 512)
BLOCKS = (3, 4, 6, 3)
EXPANSION = 4


class Bottleneck(nn.Module):
    """y = relu(conv1x1 conv3x3 conv1x1 x + shortcut(x)), batch normalization after each (He et al. 2016)."""

    def __init__(self, in_channels: int, width: int, stride: int, *, dilation: int = 1):
        super().__init__()
        out_channels = width * EXPANSION
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=dilation, dilation=dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.downsample = (
            None
            if stride == 1 and in_channels == out_channels
            else nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False), nn.BatchNorm2d(out_channels)
            )
        )

    def forward(self, features: Tensor) -> Tensor:
        """[N, in, H, W] -> [N, 4 width, H / stride, W / stride], rounded up."""
        shortcut = features if self.downsample is None else self.downsample(features)
        hidden = F.relu(self.bn1(self.conv1(features)))
        hidden = F.relu(self.bn2(self.conv2(hidden)))
        return F.relu(self.bn3(self.conv3(hidden)) + shortcut)


class ResNet50Trunk(nn.Module):
    """Images [N, 3, H, W] -> the mean of the last map, [N, 2048]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, WIDTHS[0], 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTHS[0])
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        before = WIDTHS[0]
        for group, (width, count) in enumerate(zip(WIDTHS, BLOCKS, strict=True)):
            blocks = []
            for block in range(count):
                blocks.append(Bottleneck(before, width, 2 if block == 0 and group > 0 else 1))
                before = width * EXPANSION
            self.add_module(f"layer{group + 1}", nn.Sequential(*blocks))

    def forward(self, images: Tensor) -> Tensor:
        """Features [N, 2048], not normalized."""
        features: Tensor = self.maxpool(F.relu(self.bn1(self.conv1(images))))
        for group in range(len(WIDTHS)):
            features = self.get_submodule(f"layer{group + 1}")(features)
        return features.mean(dim=(2, 3))
