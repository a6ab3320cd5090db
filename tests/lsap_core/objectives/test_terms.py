"""Terms of the loss, one value for each image."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lsap_core.encoders import LatentDiscriminator
from lsap_core.objectives.terms import (
    delta_distance,
    mean_code_distance,
    noise_regularization,
    pixel_error,
    r1_penalty,
    realness_loss,
    w_norm,
)


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


@pytest.mark.parametrize(
    ("size", "scales"),
    [((32, 16), [(32, 16), (16, 8)]), ((20, 24), [(20, 24), (10, 12), (5, 6)]), ((8, 16), [(8, 16)])],
)
def test_maps_that_are_no_squares_count_down_to_8_on_their_shorter_side(
    size: tuple[int, int], scales: list[tuple[int, int]], numbers: Callable[..., Tensor]
) -> None:
    maps = numbers(1, 1, *size, dtype=torch.float64)
    expected = 0.0
    for scale in scales:
        small = F.adaptive_avg_pool2d(maps, scale)
        expected += sum((small * small.roll(1, axis)).mean().item() ** 2 for axis in (2, 3))
    assert noise_regularization([maps]).item() == pytest.approx(expected, rel=1e-12)
    assert noise_regularization([maps.mT]).item() == pytest.approx(expected, rel=1e-12)


def test_a_map_of_one_row_is_not_compared_with_itself(numbers: Callable[..., Tensor]) -> None:
    maps = numbers(1, 1, 1, 6, dtype=torch.float64)
    expected = (maps * maps.roll(1, 3)).mean() ** 2
    assert noise_regularization([maps]).item() == pytest.approx(expected.item(), rel=1e-12)


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


def test_delta_distance_at_each_stage_is_the_published_one(reference: Callable[[str], Any]) -> None:
    numbers = reference("latent_losses")
    found = [2e-4 * delta_distance(numbers["latent"], stage).mean() for stage in numbers["stages"].tolist()]
    numbers.check("e4e_delta", torch.stack(found))
    numbers.check("ganinverter_delta", torch.stack(found))


def test_delta_distance_of_equal_rows_is_0_with_a_finite_gradient() -> None:
    codes = torch.ones(2, 8, 12, requires_grad=True)
    distance = delta_distance(codes, 7)
    distance.sum().backward()
    assert torch.equal(distance, torch.zeros(2)) and torch.equal(codes.grad, torch.zeros(2, 8, 12))


def test_w_norm_is_the_published_one(reference: Callable[[str], Any]) -> None:
    numbers = reference("latent_losses")
    numbers.check("w_norm", w_norm(numbers["latent"], numbers["latent_avg"]).mean())
    numbers.check("w_norm_plain", w_norm(numbers["latent"], torch.zeros(512)).mean())


@pytest.fixture
def published_discriminator(filled: Callable[..., dict[str, Tensor]]) -> LatentDiscriminator:
    """The latent discriminator that the published program ran."""
    discriminator = LatentDiscriminator(512)
    discriminator.load_state_dict(filled("latent_discriminator", "plain"))
    return discriminator


def test_adversarial_loss_over_active_rows_is_the_published_one(
    reference: Callable[[str], Any], published_discriminator: LatentDiscriminator
) -> None:
    numbers = reference("latent_losses")
    per_row = realness_loss(published_discriminator(numbers["latent"].flatten(0, 1)).view(2, 18))
    found = [0.1 * per_row[:, : stage + 1].mean() for stage in numbers["stages"].tolist()]
    numbers.check("e4e_adv", torch.stack(found))


def test_losses_of_the_latent_discriminator_are_the_published_ones(
    reference: Callable[[str], Any], published_discriminator: LatentDiscriminator
) -> None:
    numbers = reference("latent_disc")
    real, fake = (published_discriminator(numbers[name]) for name in ("real_w", "fake_w"))
    parts = torch.stack([realness_loss(real).mean(), realness_loss(-fake).mean()])
    numbers.check("d_real_fake", parts)
    numbers.check("d_loss", parts.sum())
    numbers.check("g_loss", realness_loss(fake).mean())


def test_r1_penalty_and_its_gradient_are_the_published_ones(
    reference: Callable[[str], Any], published_discriminator: LatentDiscriminator
) -> None:
    numbers = reference("latent_disc")
    real = numbers["real_w"].requires_grad_()
    penalty = r1_penalty(published_discriminator(real), real)
    assert penalty.shape == (5,)
    numbers.check("r1", penalty.mean())
    numbers.check("r1_weighted", 10.0 / 2 * 16 * penalty.mean())
    (gradient,) = torch.autograd.grad(penalty.mean(), next(published_discriminator.parameters()))
    numbers.check("r1_grad_first_weight", gradient[:8, :8])
