"""Pools of codes."""

import pytest
import torch
from torch import Tensor

from lsap_core.errors import ConfigError, ShapeError
from lsap_core.training.code_pool import CodePool
from lsap_core.training.random_numbers import stream


def codes(first: int, count: int) -> Tensor:
    """Codes that can be told apart by their first number."""
    return torch.arange(first, first + count)[:, None].expand(-1, 3).float()


def test_a_pool_fills_first_then_exchanges_about_half() -> None:
    pool = CodePool(50)
    assert torch.equal(pool.exchange(codes(0, 30), stream(0)), codes(0, 30))
    assert torch.equal(pool.exchange(codes(30, 20), stream(1)), codes(30, 20))
    given = codes(50, 400)
    returned = pool.exchange(given, stream(2))
    share = (returned != given).any(dim=1).float().mean().item()
    assert 0.4 < share < 0.6
    assert pool.codes is not None and pool.codes.shape == (50, 3)
    # Nothing is lost and nothing is there twice.
    everything = torch.cat([returned, pool.codes])[:, 0].sort().values
    assert torch.equal(everything, torch.arange(450.0))


def test_one_after_another_is_the_same_as_the_published_loop() -> None:
    pool, given = CodePool(4), codes(0, 40)
    random = stream(3)
    swaps, places = torch.rand(40, generator=random) < 0.5, torch.randint(4, (40,), generator=random)
    stored: list[Tensor] = []
    expected = []
    for code, swap, place in zip(given, swaps, places.tolist(), strict=True):
        if len(stored) < 4:
            stored.append(code)
            expected.append(code)
        elif swap:
            expected.append(stored[place])
            stored[place] = code
        else:
            expected.append(code)
    assert torch.equal(pool.exchange(given, stream(3)), torch.stack(expected))
    assert pool.codes is not None and torch.equal(pool.codes, torch.stack(stored))


def test_a_loaded_pool_goes_on_as_the_saved_one() -> None:
    pool, other = CodePool(5), CodePool(5)
    assert pool.to_tensors() == {}
    pool.exchange(codes(0, 8), stream(0))
    other.load_tensors(pool.to_tensors())
    assert torch.equal(pool.exchange(codes(8, 8), stream(1)), other.exchange(codes(8, 8), stream(1)))
    assert torch.equal(pool.to_tensors()["codes"], other.to_tensors()["codes"])
    other.load_tensors({})
    assert other.codes is None


def test_a_pool_of_size_0_returns_what_it_is_given() -> None:
    pool = CodePool(0)
    assert torch.equal(pool.exchange(codes(0, 8), stream(0)), codes(0, 8))
    assert pool.codes is None


def test_wrong_codes_are_refused() -> None:
    pool = CodePool(2)
    pool.exchange(codes(0, 2), stream(0))
    with pytest.raises(ShapeError, match=r"codes are \[2, 4\]; this pool wants \[N, D\] with D = 3"):
        pool.exchange(torch.zeros(2, 4), stream(0))
    with pytest.raises(ShapeError, match=r"codes are \[4\]; this pool wants \[N, D\]"):
        CodePool(2).exchange(torch.zeros(4), stream(0))
    with pytest.raises(ShapeError, match=r"saved codes are \[3, 3\]; this pool holds \[2, D\]"):
        pool.load_tensors({"codes": codes(0, 3)})
    with pytest.raises(ConfigError, match="size of a pool is -1"):
        CodePool(-1)
