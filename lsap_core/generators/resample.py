"""The one FIR filter of StyleGAN2, and what it is used for."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

FIR_TAPS = (1.0, 3.0, 3.0, 1.0)


def fir_kernel() -> Tensor:
    """The normalized 4x4 low-pass filter, outer([1,3,3,1], [1,3,3,1]) / 64, [4, 4]."""
    taps = torch.tensor(FIR_TAPS)
    kernel = torch.outer(taps, taps)
    return kernel / kernel.sum()


def smooth_upsampled(features: Tensor, kernel: Tensor) -> Tensor:
    """Low-pass the output of a stride-2 transposed convolution: side 2H + 1 becomes 2H.

    Args:
        features: [N, C, 2H + 1, 2H + 1].
        kernel: the normalized filter [4, 4]; its gain of 4 restores the energy lost to zero insertion.

    Returns:
        [N, C, 2H, 2H].
    """
    channels = features.shape[1]
    weight = (kernel * 4).to(features.dtype).expand(channels, 1, 4, 4)
    return F.conv2d(features, weight, padding=1, groups=channels)


def upsample_rgb(image: Tensor, kernel: Tensor) -> Tensor:
    """Double the side of the running RGB sum: zero insertion, padding 2 before and 1 after, FIR of gain 4.

    Args:
        image: [N, C, H, W].
        kernel: the normalized filter [4, 4].

    Returns:
        [N, C, 2H, 2W].
    """
    channels = image.shape[1]
    weight = (kernel * 4).to(image.dtype).expand(channels, 1, 4, 4)
    # A transposed convolution is zero insertion and correlation in one; the filter is symmetric.
    return F.conv_transpose2d(image, weight, stride=2, padding=1, groups=channels)
