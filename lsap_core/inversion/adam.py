"""Adam for rows that stand at different steps: the formula of `torch.optim.Adam`, one image a row."""

from __future__ import annotations

import torch
from torch import Tensor

FIRST_DECAY, SECOND_DECAY = 0.9, 0.999
"""beta_1 and beta_2 (Kingma and Ba 2015), torch's own defaults."""
EPSILON = 1e-8


def first_correction(steps: int) -> float:
    """1 - beta_1^t at step t, counted from 1: what the mean of gradients falls short of."""
    return 1 - FIRST_DECAY**steps


def second_correction(steps: int) -> float:
    """1 - beta_2^t at step t, counted from 1: what the mean of squares falls short of."""
    return 1 - SECOND_DECAY**steps


@torch.no_grad()
def adam_(
    values: Tensor,
    first_moments: Tensor,
    second_moments: Tensor,
    gradient: Tensor,
    *,
    rate: Tensor,
    root_correction: Tensor,
    moves: Tensor,
) -> None:
    """One step of every row that moves, in place; the others stay as they are, bit for bit.

    m = beta_1 m + (1 - beta_1) g, v = beta_2 v + (1 - beta_2) g^2,
    x = x - rate m / (v^(1/2) / root_correction + 1e-8) (Kingma and Ba 2015).

    Args:
        values: what moves, [N, P].
        first_moments: m, [N, P].
        second_moments: v, [N, P].
        gradient: g, [N, P]; may be anything where a row does not move.
        rate: learning rate over 1 - beta_1^t, [N, 1].
        root_correction: (1 - beta_2^t)^(1/2), [N, 1].
        moves: [N, 1] bool.
    """
    first = torch.lerp(first_moments, gradient, 1 - FIRST_DECAY)
    second = SECOND_DECAY * second_moments + (1 - SECOND_DECAY) * gradient.square()
    moved = values - rate * first / (second.sqrt() / root_correction + EPSILON)
    for old, new in ((first_moments, first), (second_moments, second), (values, moved)):
        old.copy_(torch.where(moves, new, old))
