"""MS-SSIM against the program that HyperStyle publishes, and one value for each image."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from lsap_core.errors import ShapeError
from lsap_core.images import from_uint8
from lsap_core.metrics import has_five_scales, ms_ssim


@pytest.fixture(scope="module")
def published(reference: Callable[[str], Any]) -> tuple[Any, Tensor, Tensor]:
    numbers = reference("metric_msssim")
    images = [from_uint8(numbers[name].numpy()[None]) for name in ("x", "y")]
    return numbers, images[0], images[1]


def test_the_value_is_that_of_the_published_program(published: tuple[Any, Tensor, Tensor]) -> None:
    numbers, images, target = published
    numbers.check("msssim_range2", ms_ssim(images, target)[0])


def test_opposite_structure_counts_as_none(published: tuple[Any, Tensor, Tensor]) -> None:
    numbers, images, _ = published
    numbers.check("msssim_relu", ms_ssim(-images, images)[0])


def test_every_image_is_for_itself(published: tuple[Any, Tensor, Tensor]) -> None:
    _, images, target = published
    found = ms_ssim(torch.cat([images, target]), torch.cat([target, target]))
    assert found.tolist() == pytest.approx([ms_ssim(images, target).item(), 1.0], abs=1e-6)


def test_a_flat_image_of_another_brightness_has_the_luminance_term_alone() -> None:
    a, b = torch.full((1, 1, 192, 256), 0.5), torch.full((1, 1, 192, 256), 0.25)
    constant = (0.01 * 2) ** 2
    luminance = (2 * 0.5 * 0.25 + constant) / (0.5**2 + 0.25**2 + constant)
    assert ms_ssim(a, b).item() == pytest.approx(luminance**0.1333, rel=1e-4)


def test_images_without_five_scales_are_refused() -> None:
    for shape in ((1, 1, 175, 256), (1, 1, 256, 175)):
        assert not has_five_scales(torch.zeros(shape))
        with pytest.raises(ShapeError, match=r"five scales .* at least 176"):
            ms_ssim(torch.zeros(shape), torch.zeros(shape))
    assert has_five_scales(torch.zeros(1, 1, 176, 176))
    assert ms_ssim(torch.zeros(1, 1, 176, 176), torch.zeros(1, 1, 176, 176)).item() == pytest.approx(1)
    with pytest.raises(ShapeError, match=r"\[1, 1, 176, 176\], target \[1, 3, 176, 176\]"):
        ms_ssim(torch.zeros(1, 1, 176, 176), torch.zeros(1, 3, 176, 176))
