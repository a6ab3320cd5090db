"""Noise maps of single images."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lsap_core.generators import GeneratorConfig
from lsap_core.inversion.noise_maps import draw, draw_noise, normalize_noise_, random_streams


@pytest.mark.parametrize(("normalization", "name"), [("unbiased", "norm"), ("biased", "nv_norm")])
def test_normalized_maps_are_the_published_ones(normalization: str, name: str, reference: Callable[[str], Any]) -> None:
    numbers = reference("opt_noise")
    maps = [each.clone() for each in numbers.noise()[:7]]
    normalize_noise_(maps, normalization)  # type: ignore[arg-type]
    for index, found in enumerate(maps):
        numbers.check(f"{name}_{index}", found)


@pytest.mark.parametrize(("normalization", "name"), [("unbiased", "norm"), ("biased", "nv_norm")])
def test_every_image_is_normalized_by_itself_unlike_in_the_published_programs(
    normalization: str, name: str, reference: Callable[[str], Any]
) -> None:
    numbers = reference("opt_noise")
    together = numbers.noise()[9].clone()  # [3, 1, 16, 16]
    alone = [together[row : row + 1].clone() for row in range(3)]
    normalize_noise_([together], normalization)  # type: ignore[arg-type]
    normalize_noise_(alone, normalization)  # type: ignore[arg-type]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-6, atol=1e-6)
    pooled = numbers.expected(f"{name}_9")
    assert all(np.abs(together[row].numpy() - pooled[row]).max() > 1e-3 for row in range(3))


@pytest.mark.parametrize(("normalization", "correction"), [("unbiased", 1), ("biased", 0)])
def test_normalized_maps_have_mean_0_and_deviation_1(
    normalization: str, correction: int, numbers: Callable[..., Tensor]
) -> None:
    maps = 3.0 + 5.0 * numbers(2, 1, 4, 4, dtype=torch.float64)
    normalize_noise_([maps], normalization)  # type: ignore[arg-type]
    torch.testing.assert_close(maps.mean(dim=(1, 2, 3)), torch.zeros(2).double(), rtol=0, atol=1e-12)
    torch.testing.assert_close(maps.std(dim=(1, 2, 3), correction=correction), torch.ones(2).double())


def test_maps_that_take_gradients_are_normalized_in_place(numbers: Callable[..., Tensor]) -> None:
    maps = numbers(2, 1, 4, 4).requires_grad_()
    normalize_noise_([maps])
    assert maps.is_leaf and maps.requires_grad
    torch.testing.assert_close(maps.detach().std(dim=(1, 2, 3)), torch.ones(2))


def test_there_is_one_map_for_each_convolution_and_image() -> None:
    config = GeneratorConfig(16, (2, 2, 2))
    noise = draw_noise(config, random_streams([3, 4]))
    assert [tuple(maps.shape) for maps in noise] == [(2, 1, side, side) for side in (4, 8, 8, 16, 16)]


def test_an_image_draws_the_same_numbers_whatever_its_neighbours() -> None:
    config = GeneratorConfig(16, (2, 2, 2))
    together = draw_noise(config, random_streams([5, 6, 7]))
    for row, seed in enumerate([5, 6, 7]):
        alone = draw_noise(config, random_streams([seed]))
        assert all(torch.equal(a[row], b[0]) for a, b in zip(together, alone, strict=True))
    assert not torch.equal(together[0][0], together[0][1])


def test_a_stream_goes_on_where_it_stopped() -> None:
    streams = random_streams([1])
    first, second = draw(streams, (4,)), draw(streams, (4,))
    assert first.shape == (1, 4) and not torch.equal(first, second)
    assert torch.equal(first, draw(random_streams([1]), (4,)))
