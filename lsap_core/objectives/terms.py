"""Terms of a loss, one value for each image; the caller weighs and reduces them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
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
    """Autocorrelation of noise maps at every scale from their own size down to 8 (Karras et al. 2020, app. D).

    For each map and scale: (mean(n shift_x(n)))^2 + (mean(n shift_y(n)))^2, circular shift by one pixel, 2x2
    averages between scales. The published programs know squares alone. Of other maps the shorter side is what comes
    down to 8, the last row or column of an odd number is left out of averages, and along a side of one pixel there is
    no shift.

    Args:
        noise: maps [N, 1, h, w].

    Returns:
        Sum over maps and scales for each image, [N].
    """
    waiting: dict[int, list[Tensor]] = {}  # by height, with which goes the width: maps of a generator have one shape
    for maps in noise:
        waiting.setdefault(maps.shape[2], []).append(maps)
    correlations = []
    while waiting:
        height = max(waiting)
        maps = torch.cat(waiting.pop(height), dim=1)  # [N, maps of this size, h, w]
        axes = [axis for axis in (3, 2) if maps.shape[axis] > 1]
        correlations += [(maps * maps.roll(1, dims=axis)).mean(dim=(2, 3)) for axis in axes]
        if min(height, maps.shape[3]) > SMALLEST_REGULARIZED_SIDE:
            waiting.setdefault(height // 2, []).append(F.avg_pool2d(maps, 2))
    return torch.cat(correlations, dim=1).square().sum(dim=1)


def delta_distance(codes: Tensor, stage: int) -> Tensor:
    """How far the offsets of active heads lead from one w: sum_(i = 1 ... stage) ||w_i - w_0||.

    Args:
        codes: W+ codes [N, K, w_dim].
        stage: the last active head, 0 to K - 1; at stage 0 the distance is 0.

    Returns:
        One value for each image, [N].
    """
    lengths: Tensor = torch.linalg.vector_norm(codes[:, 1 : stage + 1] - codes[:, :1], dim=-1)
    return lengths.sum(dim=1)


def w_norm(codes: Tensor, w_avg: Tensor) -> Tensor:
    """Length of W+ codes [N, K, w_dim] less the mean code [w_dim] or [K, w_dim], over all layers: [N]."""
    length: Tensor = torch.linalg.vector_norm(codes - w_avg, dim=(1, 2))
    return length


def realness_loss(logits: Tensor) -> Tensor:
    """softplus(-D), of the same shape: what a discriminator loses on real codes, and an encoder on its own.

    The non-saturating loss (Goodfellow et al. 2014). On fake codes the discriminator loses softplus(D), which is this
    of -D.
    """
    return F.softplus(-logits)


def r1_penalty(logits: Tensor, real: Tensor) -> Tensor:
    """||grad_x D(x)||^2 at each of the real codes or images [N, ...] that the logits [N] are of: [N].

    Mescheder et al. 2018. Differentiable in the weights of D; codes or images must require a gradient.
    """
    (gradient,) = torch.autograd.grad(logits.sum(), real, create_graph=True)
    return gradient.square().flatten(1).sum(dim=1)
