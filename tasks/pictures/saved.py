"""What is left of images when they have been saved as files and are read back to be compared."""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lsap_core.images import ContentBox, comparison_size, crop, from_uint8, to_uint8


def as_picture(pixels: np.ndarray) -> Image.Image:
    """Pillow's image of pixels uint8 [H, W, C], C = 1, 3 or 4."""
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)


def png_file(pixels: np.ndarray) -> bytes:
    """A PNG file of pixels uint8 [H, W, C], C = 1, 3 or 4."""
    file = io.BytesIO()
    as_picture(pixels).save(file, "PNG", compress_level=1)
    return file.getvalue()


def saved_pixels(images: Tensor) -> np.ndarray:
    """Pixels uint8 [N, H, W, C] that files of images [N, C, H, W] in about [-1, 1] hold.

    Clamped and truncated, as all published programs save what a generator made. What was read from a file keeps its
    level, where truncation would make the next darker one of a level that float32 rounds down.
    """
    nearest = ((images.detach().clamp(-1, 1) + 1) / 2 * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    was_read = (from_uint8(nearest) == images.detach().cpu()).permute(0, 2, 3, 1).numpy()
    return np.where(was_read, nearest, to_uint8(images))


def read_back(images: Tensor, *, content_box: ContentBox | None = None) -> Tensor:
    """Images as if saved as PNG files, read back, and resized to at most 256 pixels as published metrics read them.

    The protocol of LSAP, section 4.1: the content box is clamped and truncated to 8 bits, of which PNG loses nothing;
    PIL reduces it bilinearly (antialiased, to 8 bits again). Smaller images keep their size.

    Args:
        images: [N, C, R, R], C = 1, 3 or 4, in about [-1, 1]; what lies outside is clamped.
        content_box: rows and columns that are saved, or None for all; of cars 192 x 256 is left.

    Returns:
        [N, C, h, w] in [-1, 1] on the images' device, max(h, w) <= 256.
    """
    pixels = saved_pixels(crop(images, content_box))
    count, *size, channels = pixels.shape
    height, width = comparison_size(*size)
    if [height, width] != size:
        reduced = [np.asarray(as_picture(one).resize((width, height), Image.Resampling.BILINEAR)) for one in pixels]
        pixels = np.stack(reduced).reshape(count, height, width, channels)
    return from_uint8(pixels).to(images.device)
