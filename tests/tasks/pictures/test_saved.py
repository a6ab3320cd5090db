"""Images as saved files that are read back: the published protocol."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from lsap_core.images import from_uint8, to_uint8
from lsap_core.metrics import mse
from tasks.pictures.saved import png_file, read_back

# The script of e4e and pSp on saved images (see tests/reference).
REFERENCE = Path(__file__).parents[2] / "reference" / "metric_mse.npz"


def levels(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def test_the_error_of_saved_files_is_that_of_the_published_script() -> None:
    numbers = np.load(REFERENCE)
    seen = read_back(from_uint8(numbers["in.output_u8"]))
    assert seen.shape == (2, 3, 256, 256)
    found = mse(seen, read_back(from_uint8(numbers["in.target_u8"])))
    np.testing.assert_allclose(found, numbers["out.l2_script"], rtol=1e-5, atol=5e-9)


@pytest.mark.parametrize("channels", [1, 3])
def test_large_images_are_what_pil_makes_of_their_files(channels: int) -> None:
    images = torch.randn(2, channels, 512, 512, generator=torch.Generator().manual_seed(0))
    found = read_back(images)
    for image, pixels in zip(found, to_uint8(images), strict=True):
        file = io.BytesIO()
        Image.fromarray(pixels.squeeze()).save(file, "PNG")
        read = Image.open(file).resize((256, 256), Image.Resampling.BILINEAR)
        wanted = np.asarray(read).reshape(256, 256, channels)
        np.testing.assert_array_equal(to_uint8_exactly(image), wanted)


def to_uint8_exactly(image: Tensor) -> np.ndarray:
    """Levels of an image [C, H, W] that has nothing between levels."""
    values = (image.permute(1, 2, 0).numpy().astype(np.float64) + 1) / 2 * 255
    np.testing.assert_allclose(values, values.round(), atol=1e-4)
    return values.round().astype(np.uint8)


@pytest.mark.parametrize("side", [8, 32, 256])
def test_images_that_are_not_larger_keep_their_pixels(side: int) -> None:
    images = from_uint8(levels(2, side, side, 3))
    assert torch.equal(read_back(images), images)


def test_of_cars_the_content_is_saved_and_compared_at_192_by_256() -> None:
    images = from_uint8(levels(1, 512, 512, 3))
    found = read_back(images, content_box=(64, 448, 0, 512))
    assert found.shape == (1, 3, 192, 256)
    assert torch.equal(found, read_back(images[:, :, 64:448]))
    changed = images.clone()
    changed[:, :, :64], changed[:, :, 448:] = 1.0, -1.0
    assert torch.equal(read_back(changed, content_box=(64, 448, 0, 512)), found)


def test_a_content_box_may_have_any_shape() -> None:
    """Also one whose reduced sides are no whole numbers: 191.5 of 383 are 191."""
    images = from_uint8(levels(1, 512, 512, 1))
    assert read_back(images, content_box=(64, 447, 0, 512)).shape == (1, 1, 191, 256)


def test_what_a_file_does_not_hold_is_lost() -> None:
    images = torch.tensor([[-7.0, 7.0, 0.0, 1 / 255 + 0.9 / 255]]).expand(8, 4)[None, None]
    images = images.repeat(1, 1, 1, 2)
    half = from_uint8(np.array([[[[127]]]], np.uint8)).item()  # 0 lies between 127 and 128, and is cut down
    wanted = torch.tensor([-1.0, 1.0, half, 1 / 255])
    torch.testing.assert_close(read_back(images)[0, 0, 0, :4], wanted, atol=1e-6, rtol=0)


def test_a_png_file_holds_every_level() -> None:
    for channels, mode in ((1, "L"), (3, "RGB")):
        pixels = levels(16, 12, channels)
        image = Image.open(io.BytesIO(png_file(pixels)))
        assert (image.format, image.mode, image.size) == ("PNG", mode, (12, 16))
        np.testing.assert_array_equal(np.asarray(image).reshape(pixels.shape), pixels)
