"""Backbones: image -> maps of decreasing size, of which an encoder reads the last three."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from lsap_core.encoders.config import Backbone
from lsap_core.perceptual.ir_se import IR_SE_50, IrSeSizes, IrSeTrunk

IR_SE_SIZES: dict[Backbone, IrSeSizes] = {
    "ir_se_50": IR_SE_50,
    "small": IrSeSizes(16, (24, 32, 48), (1, 1, 2)),
}
RESNET_34_WIDTHS = (64, 128, 256, 512)
RESNET_34_BLOCKS = (3, 4, 6, 3)


class BasicBlock(nn.Module):
    """y = relu(BN conv relu BN conv x + shortcut(x)), under torchvision's names (He et al. 2016)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.downsample = (
            None
            if stride == 1 and in_channels == out_channels
            else nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False), nn.BatchNorm2d(out_channels)
            )
        )

    def forward(self, features: Tensor) -> Tensor:
        """[N, in, H, W] -> [N, out, H / stride, W / stride], rounded up."""
        shortcut = features if self.downsample is None else self.downsample(features)
        main = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(features)))))
        return F.relu(main + shortcut)


class ResNet34Trunk(nn.Module):
    """ResNet-34 as ReStyle uses it: PReLU after the first convolution, no pooling there, blocks in one list."""

    def __init__(self, *, in_channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, RESNET_34_WIDTHS[0], 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(RESNET_34_WIDTHS[0])
        self.relu = nn.PReLU(RESNET_34_WIDTHS[0])
        blocks: list[BasicBlock] = []
        before = RESNET_34_WIDTHS[0]
        for group, (width, count) in enumerate(zip(RESNET_34_WIDTHS, RESNET_34_BLOCKS, strict=True)):
            for block in range(count):
                blocks.append(BasicBlock(before, width, 2 if block == 0 and group > 0 else 1))
                before = width
        self.body = nn.Sequential(*blocks)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Images [N, in_channels, H, W] in [-1, 1] -> maps of 64, 128, 256 and 512 channels at H / 2 ... H / 16."""
        features, maps = self.relu(self.bn1(self.conv1(images))), []
        ends = {sum(RESNET_34_BLOCKS[: group + 1]) - 1 for group in range(len(RESNET_34_BLOCKS))}
        for index, block in enumerate(self.body):
            features = block(features)
            if index in ends:
                maps.append(features)
        return maps


def build_backbone(name: Backbone, *, in_channels: int) -> IrSeTrunk | ResNet34Trunk:
    """The backbone of a name, with random weights."""
    if name == "resnet_34":
        return ResNet34Trunk(in_channels=in_channels)
    return IrSeTrunk(IR_SE_SIZES[name], in_channels=in_channels)


def map_widths(name: Backbone) -> tuple[int, int, int]:
    """Channels of the last three maps c1, c2, c3."""
    widths = RESNET_34_WIDTHS if name == "resnet_34" else IR_SE_SIZES[name].widths
    return widths[-3], widths[-2], widths[-1]


def map_sizes(name: Backbone, input_size: tuple[int, int]) -> list[tuple[int, int]]:
    """Height and width of the last three maps c1, c2, c3 for images of a size; every stride rounds up.

    Example:
        >>> map_sizes("ir_se_50", (192, 256))
        [(48, 64), (24, 32), (12, 16)]
    """
    num_groups = len(RESNET_34_WIDTHS if name == "resnet_34" else IR_SE_SIZES[name].widths)
    halvings = range(num_groups - 2, num_groups + 1)
    height, width = input_size
    return [(-(-height // 2**halving), -(-width // 2**halving)) for halving in halvings]
