"""Small random affine maps of images: more data for the networks, less memorizing for the discriminator."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def random_affine(
    images: Tensor,
    *,
    rotation_degrees: float,
    shift_pixels: float,
    scale: float,
    shear: float = 0.0,
    probability: float = 1.0,
    generator: torch.Generator,
) -> Tensor:
    """Rotate, shift, scale and shear every image by its own amounts; outside is background (-1).

    Args:
        images: [N, C, R, R] in [-1, 1].
        rotation_degrees: largest rotation.
        shift_pixels: largest shift along each axis.
        scale: largest relative change of size.
        shear: largest horizontal shear.
        probability: share of the images that are changed.
        generator: the random stream.

    Returns:
        The same shape and range; differentiable in `images`.
    """
    count, side = images.shape[0], images.shape[-1]
    draws = torch.rand(count, 5, generator=generator) * 2 - 1
    draws = draws * (torch.rand(count, 1, generator=generator) < probability)
    angle = draws[:, 0] * math.radians(rotation_degrees)
    size = 1 + draws[:, 1] * scale
    shift = draws[:, 2:4] * shift_pixels * 2 / side
    cos, sin = torch.cos(angle) / size, torch.sin(angle) / size
    theta = torch.stack([cos, -sin + draws[:, 4] * shear, shift[:, 0], sin, cos, shift[:, 1]], dim=1).unflatten(
        1, (2, 3)
    )
    grid = F.affine_grid(theta.to(images.dtype), list(images.shape), align_corners=False)
    return F.grid_sample(images + 1, grid, padding_mode="zeros", align_corners=False) - 1
