"""Terms of a loss, one value for each image; the caller weighs and reduces them."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

SMALLEST_REGULARIZED_SIDE = 8


def pixel_error(images: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of each image over channels and pixels, in the range [-1, 1]: [N]."""
    return (images - target).square().mean(dim=(1, 2, 3))


def mean_code_distance(codes: Tensor, w_avg: Tensor, code_deviation: float) -> Tensor:
    """||w_l - w_avg||^2 / deviation^2 averaged over layers: [N]; 1 is the level of synthetic codes.

    The plain L2 penalty that LSAP_O is compared with: it knows the mean of W, but nothing of styles.
    """
    rows = codes if codes.ndim == 3 else codes[:, None]
    return (rows - w_avg).square().sum(dim=-1).mean(dim=1) / code_deviation**2


def noise_regularization(noise: Sequence[Tensor]) -> Tensor:
    """Autocorrelation of noise maps at every scale from their own side down to 8 (Karras et al. 2020, app. D).

    For each map and side: (mean(n shift_x(n)))^2 + (mean(n shift_y(n)))^2, circular shift by one pixel, 2x2
    averages between sides.

    Args:
        noise: maps [N, 1, side, side].

    Returns:
        Sum over maps and sides for each image, [N].
    """
    total = noise[0].new_zeros(noise[0].shape[0])
    for maps in noise:
        while True:
            for axis in (3, 2):
                total = total + (maps * maps.roll(1, dims=axis)).mean(dim=(1, 2, 3)).square()
            if maps.shape[-1] <= SMALLEST_REGULARIZED_SIDE:
                break
            maps = F.avg_pool2d(maps, 2)
    return total
