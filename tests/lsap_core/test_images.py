"""Ranges, cropping and downsampling of images."""

from collections.abc import Callable
from types import ModuleType
from typing import Any, get_args

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

import lsap_core.images as images_module
from lsap_core.errors import ConfigError, ShapeError
from lsap_core.images import Downsampling, as_rgb, comparison_view, crop, from_uint8, quantize, to_uint8


def all_levels() -> np.ndarray:
    """Every 8-bit level once, as an image [1, 16, 16, 1]."""
    return np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)


def test_pixels_become_floats_as_the_published_programs_do_it(fill: ModuleType, reference: Callable[[str], Any]):
    pixels = reference("metric_mse")["target_u8"].numpy()
    expected = torch.cat([fill.image_to_float(picture) for picture in pixels])
    assert torch.equal(from_uint8(pixels), expected)
    assert from_uint8(all_levels()).dtype == torch.float32
    assert from_uint8(all_levels()).min() == -1 and from_uint8(all_levels()).max() == 1


@pytest.mark.parametrize("name", ["tensor2im", "make_image"])
def test_floats_become_pixels_as_the_published_programs_do_it(name: str, reference: Callable[[str], Any]) -> None:
    numbers = reference("tensor_ops")
    found = to_uint8(numbers["x"])[0].astype(int)
    assert np.abs(found - numbers.expected(name)).max() <= 1
    assert (found == numbers.expected(name)).mean() > 0.999  # rounding instead of truncating would move half of them


def test_colours_seen_of_transparent_images_are_those_over_white() -> None:
    pixels = torch.rand(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    pixels[:, 3, :4], pixels[:, 3, 4:6] = 3.0, -3.0  # opaque and transparent, beyond the range
    seen = as_rgb(pixels)
    assert torch.equal(seen[:, :, :4], pixels[:, :3, :4]) and torch.equal(seen[:, :, 4:6], torch.ones(2, 3, 2, 8))
    between = [np.asarray(Image.fromarray(one)) for one in to_uint8(pixels)]
    white = Image.new("RGBA", (8, 8), "white")
    laid = [np.asarray(Image.alpha_composite(white, Image.fromarray(one)).convert("RGB")) for one in between]
    np.testing.assert_allclose(to_uint8(seen).astype(int), np.stack(laid).astype(int), atol=2)
    gray = torch.zeros(1, 1, 2, 2)
    assert torch.equal(as_rgb(gray), torch.zeros(1, 3, 2, 2))
    assert torch.equal(as_rgb(pixels[:, :3]), pixels[:, :3])


def test_levels_beyond_the_range_are_clamped() -> None:
    assert to_uint8(torch.tensor([-7.0, -1.0, 1.0, 7.0]).view(1, 1, 2, 2)).flatten().tolist() == [0, 0, 255, 255]


def test_pixels_that_became_floats_come_back_within_one_level() -> None:
    back = to_uint8(from_uint8(all_levels())).astype(int)
    assert np.abs(back - all_levels()).max() <= 1


def test_quantized_images_are_those_of_the_published_test_script(reference: Callable[[str], Any]) -> None:
    numbers = reference("metric_mse")
    output = from_uint8(numbers["output_u8"].numpy()) * 1.1 + 0.03
    numbers.check("quantised_sub", quantize(output)[..., ::16, ::16])


@pytest.mark.parametrize(
    "pixels",
    [np.zeros((4, 4, 3), np.uint8), np.zeros((1, 4, 4, 3), np.float32), np.zeros((1, 4, 4, 3), np.int64)],
)
def test_what_is_no_batch_of_8_bit_pictures_is_refused(pixels: np.ndarray) -> None:
    with pytest.raises(ShapeError, match="wanted uint8") as caught:
        from_uint8(pixels)
    assert str(pixels.dtype) in str(caught.value) and str(list(pixels.shape)) in str(caught.value)


@pytest.fixture
def compared_at_32(monkeypatch: pytest.MonkeyPatch) -> None:
    """The published numbers were made at 32 pixels instead of 256."""
    monkeypatch.setattr(images_module, "COMPARISON_SIDE", 32)


@pytest.mark.usefixtures("compared_at_32")
@pytest.mark.parametrize(
    ("downsampling", "name"),
    [("area", "area"), ("bilinear", "antialias"), ("bilinear_noaa", "bilinear"), ("bilinear_clamped", "bilinear")],
)
def test_downsampling_is_the_published_one(downsampling: Any, name: str, reference: Callable[[str], Any]) -> None:
    numbers = reference("tensor_ops")
    x = numbers["x"]
    # One of the published programs clamps its input in place, after the others had read it: the stored input is
    # the clamped one. Compared is what comes from pixels inside the range alone.
    clamped = comparison_view((x.abs() == 1).float(), downsampling=downsampling)
    assert (clamped == 0).float().mean() > 0.05
    numbers.check(name, comparison_view(x, downsampling=downsampling), where=clamped == 0)


@pytest.mark.usefixtures("compared_at_32")
def test_only_bilinear_downsampling_without_antialiasing_clamps(numbers: Callable[..., Tensor]) -> None:
    images = 2.0 * numbers(1, 3, 80, 80)
    for downsampling in get_args(Downsampling):
        found, inside = (comparison_view(each, downsampling=downsampling) for each in (images, images.clamp(-1, 1)))
        assert torch.equal(found, inside) == (downsampling in ("bilinear_noaa", "bilinear_clamped"))


@pytest.mark.usefixtures("compared_at_32")
@pytest.mark.parametrize("size", [(128, 128), (64, 64), (96, 128), (96, 96), (80, 80)])
def test_clamping_what_interpolation_reads_is_clamping_all(
    size: tuple[int, int], numbers: Callable[..., Tensor]
) -> None:
    """Bit for bit, in both passes, whether the comparison size is an even fraction of the size or not."""
    images = 2.0 * numbers(2, 3, *size)
    found, wanted = images.clone().requires_grad_(True), images.clone().requires_grad_(True)
    view = comparison_view(found, downsampling="bilinear_noaa")
    whole = F.interpolate(wanted.clamp(-1, 1), view.shape[-2:], mode="bilinear", align_corners=False)
    assert torch.equal(view, whole)
    view.square().sum().backward()
    whole.square().sum().backward()
    assert torch.equal(found.grad, wanted.grad)


def test_antialiased_downsampling_is_that_of_the_published_test_script(reference: Callable[[str], Any]) -> None:
    numbers = reference("metric_mse")
    output = quantize(from_uint8(numbers["output_u8"].numpy()) * 1.1 + 0.03)  # 320 pixels
    numbers.check("resized_sub", comparison_view(output, downsampling="bilinear")[..., ::8, ::8])


def test_images_above_256_pixels_are_averaged_in_blocks(numbers: Callable[..., Tensor]) -> None:
    images = numbers(1, 3, 512, 512)
    blocks = images.unflatten(3, (256, 2)).unflatten(2, (256, 2)).mean(dim=(3, 5))
    torch.testing.assert_close(comparison_view(images), blocks)


@pytest.mark.parametrize("side", [32, 256])
@pytest.mark.parametrize("downsampling", ["area", "bilinear", "bilinear_noaa"])
def test_images_up_to_256_pixels_pass_unchanged(side: int, downsampling: Any, numbers: Callable[..., Tensor]) -> None:
    images = 3.0 * numbers(1, 1, side, side)
    assert torch.equal(comparison_view(images, downsampling=downsampling), images)


@pytest.mark.parametrize("side", [32, 256])
def test_images_are_clamped_at_every_size_where_that_was_asked_for(side: int, numbers: Callable[..., Tensor]) -> None:
    images = 3.0 * numbers(1, 1, side, side)
    assert images.abs().max() > 1
    assert torch.equal(comparison_view(images, downsampling="bilinear_clamped"), images.clamp(-1, 1))


def test_the_content_box_is_cropped_before_downsampling_and_keeps_its_shape(numbers: Callable[..., Tensor]) -> None:
    images = numbers(1, 3, 512, 512)
    view = comparison_view(images, content_box=(64, 448, 0, 512))
    assert view.shape == (1, 3, 192, 256)
    torch.testing.assert_close(view, comparison_view(images)[:, :, 32:224])
    assert torch.equal(crop(images, (64, 448, 0, 512)), images[:, :, 64:448])
    assert crop(images, None) is images


def test_another_downsampling_is_refused() -> None:
    wanted = '"area", "bilinear", "bilinear_noaa" or "bilinear_clamped"'
    with pytest.raises(ConfigError, match=f'downsampling is "nearest"; wanted {wanted}'):
        comparison_view(torch.zeros(1, 1, 4, 4), downsampling="nearest")  # type: ignore[arg-type]
