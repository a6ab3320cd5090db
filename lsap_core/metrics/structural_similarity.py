"""Multi-scale structural similarity (Wang, Simoncelli and Bovik 2003), one value for each image."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lsap_core.errors import ShapeError

SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
WINDOW_SIDE = 11
WINDOW_DEVIATION = 1.5
SMALLEST_SIDE = WINDOW_SIDE << (len(SCALE_WEIGHTS) - 1)
"""The window has to fit the coarsest scale."""
SIGNED_RANGE = 2.0
LUMINANCE_CONSTANT = (0.01 * SIGNED_RANGE) ** 2
CONTRAST_CONSTANT = (0.03 * SIGNED_RANGE) ** 2


def has_five_scales(images: Tensor) -> bool:
    """Whether images [N, C, H, W] are large enough for MS-SSIM: 176 pixels or more on both sides."""
    return min(images.shape[-2:]) >= SMALLEST_SIDE


def ms_ssim(images: Tensor, target: Tensor) -> Tensor:
    """Multi-scale structural similarity of each image, in [0, 1]; higher is closer.

    l_M^w_M prod_j (cs_j)^w_j over five scales, each half of the one before (2 x 2 averages): l is the luminance term,
    cs the contrast and structure term, in Gaussian windows of 11 pixels (sigma 1.5) that lie within the image. Terms
    are averaged over positions and channels before the product (at the coarsest scale l cs is), and below 0 count as
    0. Images are taken as they are in [-1, 1], with a range of 2, as the published script of HyperStyle takes them.

    Args:
        images: [N, C, H, W] in [-1, 1], both sides at least 176 pixels.
        target: the same shape and range.

    Returns:
        One value per image, [N].

    Raises:
        ShapeError: the shapes differ, or the images are too small for five scales.

    Example:
        >>> ms_ssim(torch.zeros(1, 3, 176, 200), torch.zeros(1, 3, 176, 200))
        tensor([1.])
    """
    if images.shape != target.shape:
        raise ShapeError(f"images are {list(images.shape)}, target {list(target.shape)}")
    if not has_five_scales(images):
        raise ShapeError(
            f"images are {list(images.shape)}; MS-SSIM looks at five scales with a window of {WINDOW_SIDE} pixels and "
            f"wants sides of at least {SMALLEST_SIDE}"
        )
    total = images.new_ones(len(images))
    for scale, weight in enumerate(SCALE_WEIGHTS):
        if scale:
            images, target = F.avg_pool2d(images, 2), F.avg_pool2d(target, 2)
        is_last = scale == len(SCALE_WEIGHTS) - 1
        total = total * _similarity(images, target, with_luminance=is_last).clamp_min(0) ** weight
    return total


def _similarity(images: Tensor, target: Tensor, *, with_luminance: bool) -> Tensor:
    """Contrast and structure of one scale, times luminance or not, averaged over positions and channels: [N]."""
    mean, target_mean = _blur(images), _blur(target)
    spread = _blur(images.square()) - mean.square() + _blur(target.square()) - target_mean.square()
    shared = _blur(images * target) - mean * target_mean
    terms = (2 * shared + CONTRAST_CONSTANT) / (spread + CONTRAST_CONSTANT)
    if with_luminance:
        brightness = mean.square() + target_mean.square() + LUMINANCE_CONSTANT
        terms = terms * (2 * mean * target_mean + LUMINANCE_CONSTANT) / brightness
    return terms.mean(dim=(1, 2, 3))


def _blur(images: Tensor) -> Tensor:
    """Gaussian means at every place where the window lies within the image."""
    offsets = torch.arange(WINDOW_SIDE, dtype=images.dtype, device=images.device) - WINDOW_SIDE // 2
    window = torch.exp(-offsets.square() / (2 * WINDOW_DEVIATION**2))
    window = window / window.sum()
    count, channels, height, width = images.shape
    flat = images.reshape(count * channels, 1, height, width)
    blurred = F.conv2d(F.conv2d(flat, window.view(1, 1, -1, 1)), window.view(1, 1, 1, -1))
    return blurred.view(count, channels, *blurred.shape[-2:])
