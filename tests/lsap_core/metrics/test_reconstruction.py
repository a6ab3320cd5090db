"""Pixel metrics of reconstructions."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from lsap_core.errors import ShapeError
from lsap_core.images import comparison_view, from_uint8, quantize
from lsap_core.metrics import mse, psnr


@pytest.fixture(scope="module")
def published_pair(reference: Callable[[str], Any]) -> tuple[Any, Tensor, Tensor]:
    """Numbers of the authors' test script, its resized output and its target."""
    numbers = reference("metric_mse")
    output = quantize(from_uint8(numbers["output_u8"].numpy()) * 1.1 + 0.03)
    return numbers, comparison_view(output, downsampling="bilinear"), from_uint8(numbers["target_u8"].numpy())


def test_mse_is_that_of_the_published_test_script(published_pair: tuple[Any, Tensor, Tensor]) -> None:
    numbers, reconstruction, target = published_pair
    numbers.check("mse", mse(reconstruction, target))


def test_psnr_is_the_usual_one_and_not_3_db_below(published_pair: tuple[Any, Tensor, Tensor]) -> None:
    numbers, reconstruction, target = published_pair
    numbers.check("psnr_usual", psnr(reconstruction, target))


def test_there_is_one_value_for_each_image(numbers: Callable[..., Tensor]) -> None:
    reconstruction, target = numbers(3, 1, 4, 6), numbers(3, 1, 4, 6, seed=1)
    alone = torch.cat([mse(reconstruction[row : row + 1], target[row : row + 1]) for row in range(3)])
    torch.testing.assert_close(mse(reconstruction, target), alone)
    assert psnr(reconstruction, target).shape == (3,)


def test_equal_images_have_no_error_and_infinite_psnr(numbers: Callable[..., Tensor]) -> None:
    images = numbers(2, 3, 4, 4)
    assert torch.equal(mse(images, images), torch.zeros(2))
    assert torch.equal(psnr(images, images), torch.full((2,), torch.inf))


def test_opposite_images_have_the_largest_error() -> None:
    black, white = -torch.ones(1, 3, 4, 4), torch.ones(1, 3, 4, 4)
    assert mse(black, white).item() == 4 and psnr(black, white).item() == 0


@pytest.mark.parametrize("metric", [mse, psnr])
def test_images_of_different_shapes_are_refused(metric: Callable[[Tensor, Tensor], Tensor]) -> None:
    with pytest.raises(ShapeError, match=r"\[1, 3, 4, 4\].*\[3, 3, 4, 4\]"):
        metric(torch.zeros(1, 3, 4, 4), torch.zeros(3, 3, 4, 4))
