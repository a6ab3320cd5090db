"""Random affine maps: no larger than asked for, drawn for each image, repeatable, and background outside."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from domains.making.augmentation import random_affine

SIDE = 32
NOTHING = {"rotation_degrees": 0.0, "shift_pixels": 0.0, "scale": 0.0, "shear": 0.0}
ALL = {"rotation_degrees": 20.0, "shift_pixels": 3.0, "scale": 0.2, "shear": 0.2}


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(count: int) -> Tensor:
    return torch.rand(count, 1, SIDE, SIDE, generator=stream(99)) * 2 - 1


def blobs(count: int, x: float, y: float) -> Tensor:
    """Images with one soft dot `x` right of and `y` below the centre, in pixels."""
    places = torch.arange(SIDE) - (SIDE - 1) / 2
    dot = torch.exp(-((places[None, :] - x) ** 2 + (places[:, None] - y) ** 2) / 2 / 1.5**2)
    return (dot * 2 - 1).expand(count, 1, -1, -1)


def centroids(images: Tensor) -> np.ndarray:
    """Where the ink lies, [N, 2]: right of and below the centre, in pixels."""
    ink = (images[:, 0] + 1).double()
    places = torch.arange(SIDE, dtype=torch.float64) - (SIDE - 1) / 2
    total = ink.sum(dim=(1, 2))
    return torch.stack([(ink.sum(dim=1) @ places) / total, (ink.sum(dim=2) @ places) / total], dim=1).numpy()


def moved(count: int, x: float, y: float, **options: Any) -> np.ndarray:
    return centroids(random_affine(blobs(count, x, y), **{**NOTHING, **options}, generator=stream()))


def test_at_probability_0_nothing_changes() -> None:
    images = noise(5)
    torch.testing.assert_close(
        random_affine(images, **ALL, probability=0.0, generator=stream()), images, atol=1e-5, rtol=0
    )


def test_maps_of_no_size_change_nothing() -> None:
    images = noise(5)
    torch.testing.assert_close(random_affine(images, **NOTHING, generator=stream()), images, atol=1e-5, rtol=0)


def test_background_stays_background() -> None:
    empty = torch.full((20, 1, SIDE, SIDE), -1.0)
    assert torch.equal(random_affine(empty, **ALL, generator=stream()), empty)


def test_what_comes_in_from_outside_is_background() -> None:
    full = torch.ones(20, 1, SIDE, SIDE)
    changed = random_affine(full, **{**NOTHING, "shift_pixels": 6.0}, generator=stream())
    assert changed.min() == -1 and changed.max() == pytest.approx(1, abs=1e-6)
    shares = (changed == -1).float().mean(dim=(1, 2, 3))
    assert 0.1 < shares.max() < 1 - (26 / 32) ** 2 + 0.01


def test_values_stay_in_their_range() -> None:
    changed = random_affine(noise(20), **ALL, generator=stream())
    assert changed.shape == (20, 1, SIDE, SIDE)
    assert changed.min() >= -1 and changed.max() <= 1 + 1e-6


def test_the_generator_alone_decides() -> None:
    images = noise(4)
    torch.manual_seed(1)
    first = random_affine(images, **ALL, probability=0.7, generator=stream(5))
    state = torch.random.get_rng_state()
    torch.manual_seed(2)
    assert torch.equal(random_affine(images, **ALL, probability=0.7, generator=stream(5)), first)
    torch.manual_seed(1)
    assert torch.equal(torch.random.get_rng_state(), state)  # the global stream was not touched
    assert not torch.equal(random_affine(images, **ALL, probability=0.7, generator=stream(6)), first)


def test_every_image_gets_amounts_of_its_own() -> None:
    found = moved(10, 0, 0, shift_pixels=3.0)
    assert len({tuple(place) for place in found.round(3)}) == 10


def test_the_share_of_changed_images_is_the_probability() -> None:
    images = noise(400)
    changed = random_affine(images, **ALL, probability=0.3, generator=stream())
    is_changed = (changed - images).abs().amax(dim=(1, 2, 3)) > 1e-4
    assert 0.25 < is_changed.float().mean() < 0.35


def test_shifts_reach_as_far_as_asked_along_both_axes() -> None:
    found = np.abs(moved(300, 0, 0, shift_pixels=3.0)).max(axis=0)
    assert (found <= 3.01).all() and (found > 2.9).all()


def test_rotations_turn_about_the_centre_and_as_far_as_asked() -> None:
    found = moved(300, 8, 0, rotation_degrees=15.0)
    radii, angles = np.hypot(*found.T), np.degrees(np.arctan2(found[:, 1], found[:, 0]))
    np.testing.assert_allclose(radii, 8, atol=0.1)
    assert 14 < angles.max() < 15.1 and -15.1 < angles.min() < -14


def test_scaling_is_about_the_centre_and_the_same_along_both_axes() -> None:
    found = moved(300, 6, 8, scale=0.2)
    sizes = found / (6, 8)
    np.testing.assert_allclose(sizes[:, 0], sizes[:, 1], atol=0.02)
    assert 1.15 < sizes.max() < 1.22 and 0.78 < sizes.min() < 0.85


def test_a_shear_slants_and_does_not_lift() -> None:
    found = moved(300, 0, 8, shear=0.25)
    np.testing.assert_allclose(found[:, 1], 8, atol=0.1)
    assert 1.8 < np.abs(found[:, 0]).max() < 2.05
    np.testing.assert_allclose(moved(20, 8, 0, shear=0.25), [[8, 0]] * 20, atol=0.1)


def test_gradients_reach_the_images() -> None:
    images = noise(2).requires_grad_(True)
    random_affine(images, **ALL, generator=stream()).sum().backward()
    assert images.grad is not None
    assert images.grad[:, :, 12:20, 12:20].min() > 0
    assert math.isclose(float(images.grad[:, :, 14:18, 14:18].mean()), 1, abs_tol=0.5)
