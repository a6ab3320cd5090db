"""Terms of the loss, one value for each image."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lsap_core.objectives.terms import mean_code_distance, noise_regularization, pixel_error


def test_noise_regularization_of_each_map_is_the_published_one(reference: Callable[[str], Any]) -> None:
    numbers = reference("opt_noise")
    found = [noise_regularization([maps]).item() for maps in numbers.noise()[:9]]
    np.testing.assert_allclose(found, numbers.expected("reg")[:9], **numbers.outputs["reg"]["tolerance"])


def test_noise_regularization_of_all_maps_is_the_published_sum(reference: Callable[[str], Any]) -> None:
    numbers = reference("opt_noise")
    numbers.check("reg_total", noise_regularization(numbers.noise()[:9])[0])


def test_noise_regularization_is_per_image_unlike_the_published_one_that_pools_the_batch(
    reference: Callable[[str], Any],
) -> None:
    numbers = reference("opt_noise")
    batch = numbers.noise()[9]  # [3, 1, 16, 16]
    found = noise_regularization([batch])
    alone = torch.cat([noise_regularization([batch[row : row + 1]]) for row in range(3)])
    assert found.shape == (3,)
    torch.testing.assert_close(found, alone, rtol=1e-6, atol=0)
    pooled = numbers.expected("reg")[9]
    assert (found - float(pooled)).abs().min() > 1e-3 * pooled
    assert abs(found.mean().item() - pooled) > 1e-3 * pooled


def test_noise_regularization_adds_up_maps_and_sides(numbers: Callable[..., Tensor]) -> None:
    maps = numbers(2, 1, 32, 32, dtype=torch.float64)
    expected = torch.zeros(2, dtype=torch.float64)
    for side in (32, 16, 8):
        for row in range(2):
            small = F.adaptive_avg_pool2d(maps[row, 0][None], side)[0]
            for axis in (0, 1):
                expected[row] += (small * torch.roll(small, 1, axis)).mean() ** 2
    torch.testing.assert_close(noise_regularization([maps]), expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(noise_regularization([maps, maps]), 2 * expected, rtol=1e-12, atol=0)


def test_a_map_of_side_4_counts_once(numbers: Callable[..., Tensor]) -> None:
    maps = numbers(1, 1, 4, 4, dtype=torch.float64)
    expected = sum((maps * maps.roll(1, axis)).mean() ** 2 for axis in (2, 3))
    assert noise_regularization([maps]).item() == pytest.approx(expected.item(), rel=1e-12)


def test_pixel_error_is_the_mean_over_each_image(numbers: Callable[..., Tensor]) -> None:
    images, target = numbers(3, 2, 4, 5), numbers(3, 2, 4, 5, seed=1)
    expected = torch.stack([((images[row] - target[row]) ** 2).sum() / 40 for row in range(3)])
    torch.testing.assert_close(pixel_error(images, target), expected)


def test_mean_code_distance_of_synthetic_codes_is_1_on_average(numbers: Callable[..., Tensor]) -> None:
    codes = 5.0 + 2.0 * numbers(500, 24, dtype=torch.float64)
    mean = codes.mean(dim=0)
    deviation = (codes - mean).square().sum(dim=1).mean().sqrt().item()
    found = mean_code_distance(codes, mean, deviation)
    assert found.shape == (500,) and found.mean().item() == pytest.approx(1.0, rel=1e-9)


def test_mean_code_distance_averages_over_rows_of_w_plus(numbers: Callable[..., Tensor]) -> None:
    w, w_avg = numbers(2, 24), numbers(24, seed=1)
    repeated = w[:, None].repeat(1, 8, 1)
    torch.testing.assert_close(mean_code_distance(repeated, w_avg, 3.0), mean_code_distance(w, w_avg, 3.0))
    repeated[:, 1:] = w_avg
    torch.testing.assert_close(mean_code_distance(repeated, w_avg, 3.0), mean_code_distance(w, w_avg, 3.0) / 8)
