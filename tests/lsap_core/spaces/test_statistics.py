"""Mean and spread of W."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lsap_core.errors import ShapeError
from lsap_core.spaces.statistics import CodeStatistics


def test_mean_and_deviation_are_those_of_the_published_projectors(reference: Callable[[str], Any]) -> None:
    numbers = reference("opt_latent_std")
    statistics = CodeStatistics.of(numbers["w"])
    numbers.check("latent_mean", statistics.mean())
    numbers.check("latent_std", np.float32(statistics.deviation()))


def test_a_merge_of_pieces_in_any_order_equals_the_whole(numbers: Callable[..., Tensor]) -> None:
    codes = 3.0 + numbers(100, 7)
    whole = CodeStatistics.of(codes)
    pieces = [CodeStatistics.of(piece) for piece in codes.split([1, 40, 59])]
    merged = CodeStatistics.empty(7)
    for piece in reversed(pieces):
        merged = merged.merge(piece)
    assert merged.count == whole.count == 100
    torch.testing.assert_close(merged.mean(), whole.mean(), rtol=1e-12, atol=0)
    assert merged.deviation() == pytest.approx(whole.deviation(), rel=1e-12)


def test_a_merge_leaves_its_parts_as_they_were(numbers: Callable[..., Tensor]) -> None:
    first, second = CodeStatistics.of(numbers(3, 4)), CodeStatistics.of(numbers(5, 4, seed=1))
    total = first.total.clone()
    first.merge(second)
    assert first.count == 3 and torch.equal(first.total, total)


def test_codes_added_in_two_updates_equal_codes_added_at_once(numbers: Callable[..., Tensor]) -> None:
    codes = numbers(10, 4)
    statistics = CodeStatistics.empty(4)
    statistics.update(codes[:3])
    statistics.update(codes[3:])
    torch.testing.assert_close(statistics.mean(), codes.mean(dim=0))
    assert statistics.deviation() == pytest.approx(CodeStatistics.of(codes).deviation(), rel=1e-12)


def test_the_deviation_survives_a_mean_a_thousand_times_larger(numbers: Callable[..., Tensor]) -> None:
    codes = numbers(1000, 8)
    shifted = CodeStatistics.of(1000.0 + codes.double())
    assert shifted.deviation() == pytest.approx(CodeStatistics.of(codes).deviation(), rel=1e-6)


@pytest.mark.parametrize("shape", [(7,), (3, 6), (3, 2, 7)])
def test_codes_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match=r"wanted \[N, 7\]") as caught:
        CodeStatistics.empty(7).update(torch.zeros(shape))
    assert str(list(shape)) in str(caught.value)
