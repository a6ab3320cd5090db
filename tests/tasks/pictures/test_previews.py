"""Small WebP files: what shape and colours they have, and what they cost."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from domains.digits.data import load_split
from flows.parameters.numbers import LARGEST_PREVIEW
from lsap_archive import PREVIEW_BYTES
from tasks.pictures.previews import LOSSLESS_SIDE, expected_preview_bytes, preview_file, preview_files


def noise(height: int, width: int, channels: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def smooth(height: int, width: int, channels: int) -> np.ndarray:
    """A different slope in each channel."""
    rows, columns = np.mgrid[0:height, 0:width]
    slopes = [rows * 255 // height, columns * 255 // width, 255 - rows * 255 // height, 128 + columns * 127 // width]
    return np.stack(slopes[:channels], axis=-1).astype(np.uint8)


def opened(data: bytes) -> Image.Image:
    picture = Image.open(io.BytesIO(data))
    assert picture.format == "WEBP"
    return picture


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("height", "width"), [(32, 32), (3, 5), (LOSSLESS_SIDE, 40)])
def test_small_images_lose_nothing(height: int, width: int, channels: int) -> None:
    pixels = noise(height, width, channels)
    found = np.asarray(opened(preview_file(pixels, 128)))
    assert np.array_equal(found, np.broadcast_to(pixels, (height, width, 3)))


@pytest.mark.parametrize(
    ("size", "side", "wanted"),
    [
        ((192, 256), 128, (96, 128)),
        ((1024, 512), 128, (128, 64)),
        ((300, 3), 100, (100, 1)),
        ((100, 90), 128, (100, 90)),
    ],
)
def test_larger_ones_are_shrunk_with_their_shape(size: tuple[int, int], side: int, wanted: tuple[int, int]) -> None:
    height, width = wanted
    assert opened(preview_file(smooth(*size, 3), side)).size == (width, height)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_colours_and_alpha_stay_what_they_are(channels: int) -> None:
    picture = opened(preview_file(smooth(256, 256, channels), 128))
    assert picture.mode == ("RGBA" if channels == 4 else "RGB")
    found, wanted = np.asarray(picture).astype(int), smooth(128, 128, channels).astype(int)
    assert np.abs(found - wanted).mean() < 3
    if channels == 1:  # gray is gray: to the level or two that its colours cost
        assert np.ptp(found, axis=2).max() <= 2


def test_a_smaller_side_takes_fewer_bytes() -> None:
    sizes = [len(preview_file(smooth(256, 256, 3) // 2 + noise(256, 256, 3) // 2, side)) for side in (32, 64, 128, 256)]
    assert sizes == sorted(sizes)


def test_no_image_is_larger_than_an_archive_takes() -> None:
    assert len(preview_file(noise(LARGEST_PREVIEW, LARGEST_PREVIEW, 4), LARGEST_PREVIEW)) < PREVIEW_BYTES


def test_many_are_the_same_as_each_alone() -> None:
    images = [noise(80, 70, 3, seed) for seed in range(9)]
    assert preview_files(images, 64) == [preview_file(one, 64) for one in images]


def test_what_is_expected_lies_between_digits_and_what_methods_make_of_them() -> None:
    digits = load_split("test").images[:100].reshape(-1, 32, 32, 1)
    mean = np.mean([len(file) for file in preview_files(digits, 128)])
    assert mean < expected_preview_bytes((32, 32), 1, 128) < 2.2 * mean
    assert expected_preview_bytes((32, 32), 1, 0) == 0
