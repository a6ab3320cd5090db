"""Style mixing and interpolation in numbers."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lsap_core.editing import interpolate, mix


def test_mixing_takes_rows_over_and_leaves_the_others(numbers: Callable[..., Tensor]) -> None:
    codes, other = numbers(2, 6, 4), numbers(1, 6, 4, seed=1)
    mixed = mix(other, (2, 5), source="anna")(codes)
    assert torch.equal(mixed[:, 2:5], other[:, 2:5].expand(2, -1, -1))
    assert torch.equal(mixed[:, [0, 1, 5]], codes[:, [0, 1, 5]])
    assert mix(other, (2, 5), source="anna").describe()["source"] == "anna"


def test_interpolation_passes_both_ends_exactly_and_the_middle(numbers: Callable[..., Tensor]) -> None:
    codes, other = numbers(2, 6, 4), numbers(2, 6, 4, seed=1)
    assert torch.equal(interpolate(other, 0.0)(codes), codes)
    assert torch.equal(interpolate(other, 1.0)(codes), other)
    torch.testing.assert_close(interpolate(other, 0.5)(codes), (codes + other) / 2)
