"""The residual StyleGAN2 discriminator (Karras et al. 2020), for training small generators."""

from __future__ import annotations

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lsap_core.generators.config import GeneratorConfig
from lsap_core.generators.layers import ACTIVATION_GAIN, LEAKY_SLOPE, EqualizedLinear
from lsap_core.generators.resample import fir_kernel

STDDEV_GROUP = 4


class EqualizedConv(nn.Module):
    """Convolution with weights of unit variance, scaled by 1 / sqrt(C_in k^2) at run time."""

    def __init__(self, in_channels: int, out_channels: int, side: int, *, stride: int = 1, bias: bool = True):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, side, side))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        self.weight_gain = 1.0 / math.sqrt(in_channels * side * side)
        self.stride = stride
        self.padding = side // 2 if stride == 1 else 0

    def forward(self, features: Tensor) -> Tensor:
        """[N, in, H, W] -> [N, out, H', W']."""
        return F.conv2d(features, self.weight * self.weight_gain, self.bias, stride=self.stride, padding=self.padding)


class ResidualBlock(nn.Module):
    """Two convolutions and a filtered, strided skip; halves the sides."""

    kernel: Tensor

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv1 = EqualizedConv(in_channels, in_channels, 3)
        self.conv2 = EqualizedConv(in_channels, out_channels, 3, stride=2)
        self.skip = EqualizedConv(in_channels, out_channels, 1, stride=2, bias=False)
        self.register_buffer("kernel", fir_kernel(), persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        """[N, in, H, W] -> [N, out, H/2, W/2]."""
        main = activate(self.conv1(features))
        main = activate(self.conv2(self._smooth(main, padding=2)))
        skip: Tensor = self.skip(self._smooth(features, padding=1))
        return (main + skip) / math.sqrt(2.0)

    def _smooth(self, features: Tensor, *, padding: int) -> Tensor:
        channels = features.shape[1]
        return F.conv2d(features, self.kernel.expand(channels, 1, 4, 4), padding=padding, groups=channels)


class Discriminator(nn.Module):
    """Images [N, C, H, W] -> realness logits [N]; the channel table is the generator's."""

    def __init__(self, config: GeneratorConfig):
        super().__init__()
        widths = config.channels[::-1]
        self.from_rgb = EqualizedConv(config.image_channels, widths[0], 1)
        self.blocks = nn.ModuleList(ResidualBlock(a, b) for a, b in itertools.pairwise(widths))
        last = widths[-1]
        self.final_conv = EqualizedConv(last + 1, last, 3)
        self.final_linear = EqualizedLinear(last * math.prod(config.constant), last)
        self.logit = EqualizedLinear(last, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Realness logits [N]; higher is more real."""
        features = activate(self.from_rgb(images))
        for block in self.blocks:
            features = block(features)
        features = torch.cat([features, minibatch_stddev(features)], dim=1)
        features = activate(self.final_conv(features)).flatten(1)
        logits: Tensor = self.logit(activate(self.final_linear(features)))
        return logits.squeeze(1)


def activate(features: Tensor) -> Tensor:
    """Leaky ReLU of slope 0.2 times sqrt(2)."""
    return F.leaky_relu(features, LEAKY_SLOPE) * ACTIVATION_GAIN


def minibatch_stddev(features: Tensor) -> Tensor:
    """Average standard deviation over groups of images as one more channel, [N, 1, H, W]."""
    num_images, _, height, width = features.shape
    group = min(num_images, STDDEV_GROUP)
    deviation: Tensor = features.unflatten(0, (group, -1)).var(dim=0, unbiased=False).add(1e-8).sqrt()
    return deviation.mean(dim=(1, 2, 3)).repeat(group)[:, None, None, None].expand(-1, 1, height, width)
