"""The FIR filter of StyleGAN2."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from lsap_core.generators.resample import fir_kernel, smooth_upsampled, upsample_rgb


def insert_zeros(images: Tensor) -> Tensor:
    """Every pixel followed by a zero, on both axes: [N, C, H, W] -> [N, C, 2H, 2W]."""
    zeros = images.new_zeros(*images.shape[:2], 2 * images.shape[2], 2 * images.shape[3])
    zeros[:, :, ::2, ::2] = images
    return zeros


def correlate(images: Tensor, kernel: Tensor) -> Tensor:
    """Every channel with the same 4x4 filter, written as a sum of shifts."""
    height, width = images.shape[2] - 3, images.shape[3] - 3
    return sum(
        kernel[row, column] * images[:, :, row : row + height, column : column + width]
        for row in range(4)
        for column in range(4)
    )


def test_the_filter_is_the_normalized_binomial() -> None:
    expected = torch.tensor([[1, 3, 3, 1], [3, 9, 9, 3], [3, 9, 9, 3], [1, 3, 3, 1]]) / 64
    assert torch.equal(fir_kernel(), expected)


def test_the_rgb_sum_is_doubled_by_zero_insertion_padding_2_and_1_and_the_filter(
    numbers: Callable[..., Tensor],
) -> None:
    image = numbers(2, 3, 5, 5, dtype=torch.float64)
    kernel = fir_kernel().double()
    expected = correlate(F.pad(insert_zeros(image), (2, 1, 2, 1)), 4 * kernel)
    torch.testing.assert_close(upsample_rgb(image, kernel), expected, rtol=0, atol=1e-12)


def test_the_output_of_an_upsampling_convolution_is_filtered_with_gain_4(numbers: Callable[..., Tensor]) -> None:
    features = numbers(2, 3, 9, 9, dtype=torch.float64)
    kernel = fir_kernel().double()
    expected = correlate(F.pad(features, (1, 1, 1, 1)), 4 * kernel)
    torch.testing.assert_close(smooth_upsampled(features, kernel), expected, rtol=0, atol=1e-12)


def test_doubling_keeps_the_level_of_a_constant_image_inside() -> None:
    doubled = upsample_rgb(torch.full((1, 1, 6, 6), 0.75), fir_kernel())
    torch.testing.assert_close(doubled[..., 2:-2, 2:-2], torch.full((1, 1, 8, 8), 0.75))
