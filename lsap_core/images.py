"""Images as tensors: float32 in [-1, 1] inside, uint8 at the edges; cropping and downsampling."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lsap_core.errors import ConfigError, ShapeError

Downsampling = Literal["area", "bilinear", "bilinear_noaa", "bilinear_clamped"]
ContentBox = tuple[int, int, int, int]

COMPARISON_SIDE = 256
IMAGE_CHANNELS = (1, 3, 4)
"""What images may have: gray; red, green and blue; these and alpha, which is 1 where a picture is opaque."""


def from_uint8(pixels: np.ndarray) -> Tensor:
    """Pixels [N, H, W, C] uint8 -> images [N, C, H, W] float32 in [-1, 1], by (v / 255 - 0.5) / 0.5.

    Raises:
        ShapeError: another shape or dtype.
    """
    if pixels.ndim != 4 or pixels.dtype != np.uint8:
        raise ShapeError(f"pixels are {pixels.dtype} {list(pixels.shape)}; wanted uint8 [N, H, W, C]")
    images = torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2)
    return (images.float() / 255.0 - 0.5) / 0.5


def to_uint8(images: Tensor) -> np.ndarray:
    """Images [N, C, H, W] in about [-1, 1] -> pixels [N, H, W, C] uint8: clamped, then truncated as all peers do."""
    levels = (images.detach().clamp(-1, 1) + 1) / 2 * 255
    return levels.to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def quantize(images: Tensor) -> Tensor:
    """What is left of images [N, C, H, W] after saving them as 8-bit files and reading them back."""
    return from_uint8(to_uint8(images)).to(images.device)


def as_rgb(images: Tensor) -> Tensor:
    """What networks that know colours see of images: gray ones three times, transparent ones laid over white.

    Args:
        images: [N, C, H, W] in about [-1, 1], C = 1, 3 or 4, the fourth alpha from -1 (transparent) to 1 (opaque).

    Returns:
        [N, 3, H, W]; colours over white are alpha c + (1 - alpha), with alpha in [0, 1] after clamping.

    Example:
        >>> as_rgb(torch.tensor([0.5, 0.0, -1.0, 0.0]).view(1, 4, 1, 1)).flatten()
        tensor([0.7500, 0.5000, 0.0000])
    """
    if images.shape[1] != 4:
        return images.expand(-1, 3, -1, -1)
    alpha = (images[:, 3:].clamp(-1, 1) + 1) / 2
    return images[:, :3] * alpha + (1 - alpha)


def crop(images: Tensor, content_box: ContentBox | None) -> Tensor:
    """The rows and columns that carry the picture."""
    if content_box is None:
        return images
    top, bottom, left, right = content_box
    return images[:, :, top:bottom, left:right]


def comparison_size(height: int, width: int) -> tuple[int, int]:
    """Height and width in which images are compared: at most 256 pixels on the longer side, smaller ones as they are.

    Example:
        >>> comparison_size(384, 512), comparison_size(32, 32)
        ((192, 256), (32, 32))
    """
    longest = max(height, width)
    if longest <= COMPARISON_SIDE:
        return height, width
    return height * COMPARISON_SIDE // longest, width * COMPARISON_SIDE // longest


def comparison_view(
    images: Tensor, *, content_box: ContentBox | None = None, downsampling: Downsampling = "area"
) -> Tensor:
    """What losses and metrics look at: the content box, at most 256 pixels on its longer side.

    Args:
        images: [N, C, H, W].
        content_box: (top, bottom, left, right) or None.
        downsampling: "area" averages blocks (StyleGAN2 projectors); "bilinear" is antialiased (how published
            metrics read saved files); "bilinear_noaa" clamps to [-1, 1] and interpolates without antialiasing;
            "bilinear_clamped" does the same, and clamps images that are not downsampled too, as the LSAP authors'
            optimizer does at every size.

    Returns:
        [N, C, h, w] with max(h, w) <= 256; smaller images pass unchanged, or clamped where all are.

    Raises:
        ConfigError: another downsampling.
    """
    if downsampling not in get_args(Downsampling):
        *others, last = (f'"{one}"' for one in get_args(Downsampling))
        raise ConfigError(f'downsampling is "{downsampling}"; wanted {", ".join(others)} or {last}')
    images = crop(images, content_box)
    if downsampling == "bilinear_clamped":
        images = images.clamp(-1, 1)
    size = comparison_size(*images.shape[-2:])
    if size == tuple(images.shape[-2:]):
        return images
    if downsampling == "area":
        return F.interpolate(images, size, mode="area")
    if downsampling == "bilinear":
        return F.interpolate(images, size, mode="bilinear", align_corners=False, antialias=True)
    images = _read_by_bilinear(images, size).clamp(-1, 1)
    return F.interpolate(images, size, mode="bilinear", align_corners=False)


def _read_by_bilinear(images: Tensor, size: tuple[int, int]) -> Tensor:
    """The rows and columns that interpolation to a size reads, from which it then comes to the same.

    For an even fraction of the size these are the two in the middle of every block: at 1024 pixels a quarter of the
    image, so that what is clamped is no second image of the full size.
    """
    (height, width), (rows, columns) = images.shape[-2:], size
    factor = height // rows
    if factor < 4 or factor % 2 or (height, width) != (rows * factor, columns * factor):
        return images
    middle = slice(factor // 2 - 1, factor // 2 + 1)
    blocks = images.unflatten(3, (columns, factor)).unflatten(2, (rows, factor))  # [N, C, h, f, w, f]
    read: Tensor = blocks[:, :, :, middle, :, middle].flatten(4, 5).flatten(2, 3)  # [N, C, 2h, 2w]
    return read
