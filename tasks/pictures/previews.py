"""Small WebP files of images, to be looked at where there is no generator."""

from __future__ import annotations

import io
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from tasks.pictures.saved import as_picture

QUALITY, METHOD = 80, 2
"""Of WebP. Method 2 takes half the time of the usual 4, for 3 % more bytes."""
LOSSLESS_SIDE = 64
"""Images no larger than this lose nothing: digits take 210 bytes so and 270 otherwise, what methods make of them
450 and 240, faces of 64 pixels 1,900 and 660."""
_TOGETHER = 4  # Pillow lets go of Python's lock while it shrinks and packs


def preview_file(pixels: np.ndarray, side: int) -> bytes:
    """A WebP file of an image, shrunk to so many pixels on its longer side; smaller images keep their size.

    Of images up to 64 pixels that are not shrunk nothing is lost; gray is written as equal red, green and blue.

    Args:
        pixels: uint8 [H, W, C], C = 1, 3 or 4.
        side: at least 1.
    """
    picture = as_picture(pixels)
    picture.thumbnail((side, side))
    file = io.BytesIO()
    picture.save(file, "WEBP", lossless=_loses_nothing(max(pixels.shape[:2]), side), quality=QUALITY, method=METHOD)
    return file.getvalue()


def preview_files(images: Iterable[np.ndarray], side: int) -> list[bytes]:
    """`preview_file` of each image, several at a time."""
    with ThreadPoolExecutor(_TOGETHER, thread_name_prefix="previews") as threads:
        return list(threads.map(lambda pixels: preview_file(pixels, side), images))


def _loses_nothing(longest: int, side: int) -> bool:
    return longest <= min(side, LOSSLESS_SIDE)  # what is shrunk is lossy: detail is dense in it


def expected_preview_bytes(size: tuple[int, int], channels: int, side: int) -> int:
    """Bytes of a preview, about: of photos, and of digits and what methods make of them. Noise takes three times more.

    Args:
        size: height and width of the image, pixels.
        channels: 1, 3 or 4.
        side: of the preview's longer side, at most; 0 for none.
    """
    if not side:
        return 0
    longest = max(size)
    kept = min(side, longest)
    num_pixels = size[0] * size[1] * (kept / longest) ** 2
    gray, colour = (0.35, 0.5) if _loses_nothing(longest, side) else (0.25, 0.35)
    return round(num_pixels * (gray if channels == 1 else colour))
