"""How close a reconstruction is to its target, pixel by pixel."""

from __future__ import annotations

import torch
from torch import Tensor

from lsap_core.errors import ShapeError
from lsap_core.objectives.terms import pixel_error

SQUARED_RANGE = 4.0


def mse(reconstruction: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of each image in the range [-1, 1], four times the value in [0, 1]; lower is closer.

    Args:
        reconstruction: images [N, C, H, W], float32, in [-1, 1].
        target: the same shape and range.

    Returns:
        One value per image, [N].

    Raises:
        ShapeError: the shapes differ.
    """
    if reconstruction.shape != target.shape:
        raise ShapeError(f"reconstruction is {list(reconstruction.shape)}, target {list(target.shape)}")
    return pixel_error(reconstruction, target)


def psnr(reconstruction: Tensor, target: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each image, in dB (higher is closer).

    PSNR = 10 log10(R^2 / MSE) with R = 2, the width of the range [-1, 1]. Equal images give inf.

    Args:
        reconstruction: images [N, C, H, W], float32, in [-1, 1].
        target: the same shape and range.

    Returns:
        One value per image, [N].

    Raises:
        ShapeError: the shapes differ.

    Example:
        >>> psnr(torch.zeros(2, 3, 4, 4), torch.ones(2, 3, 4, 4))
        tensor([6.0206, 6.0206])
    """
    return 10 * torch.log10(SQUARED_RANGE / mse(reconstruction, target))
