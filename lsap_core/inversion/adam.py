"""Adam for rows that stand at different steps: the formula of `torch.optim.Adam`, one image a row."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

EPSILON = 1e-8


@dataclass(frozen=True)
class Decays:
    """beta_1 and beta_2, which past gradients and their squares fade by; torch's defaults (Kingma and Ba 2015).

    Attributes:
        first: beta_1, of the gradients.
        second: beta_2, of their squares.
    """

    first: float = 0.9
    second: float = 0.999

    def first_correction(self, steps: int) -> float:
        """1 - beta_1^t at step t, counted from 1: what the mean of gradients falls short of."""
        return 1 - self.first**steps

    def second_correction(self, steps: int) -> float:
        """1 - beta_2^t at step t, counted from 1: what the mean of squares falls short of."""
        return 1 - self.second**steps


@torch.no_grad()
def adam_(
    values: Tensor,
    first_moments: Tensor,
    second_moments: Tensor,
    gradient: Tensor,
    *,
    decays: Decays,
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
        decays: beta_1 and beta_2.
        rate: learning rate over 1 - beta_1^t, [N, 1].
        root_correction: (1 - beta_2^t)^(1/2), [N, 1].
        moves: [N, 1] bool.
    """
    first = torch.lerp(first_moments, gradient, 1 - decays.first)
    second = decays.second * second_moments + (1 - decays.second) * gradient.square()
    step = rate * first / (second.sqrt() / root_correction + EPSILON)
    for old, new in ((first_moments, first), (second_moments, second), (values, values - step)):
        old.copy_(torch.where(moves, new, old))
