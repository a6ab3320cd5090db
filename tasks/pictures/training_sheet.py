"""A sheet of samples: each original over its reconstruction."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image
from torch import Tensor

from lsap_core.images import to_uint8

COLUMNS = 8
SMALLEST_TILE = 64  # small images are magnified by a whole number to at least this height
MARGIN = 2
BACKGROUND = 255


def draw_sheet(images: Tensor, reconstruction: Tensor) -> bytes:
    """A PNG file: bands of at most 8 originals [N, C, h, w], their reconstructions below them."""
    factor = max(1, -(-SMALLEST_TILE // images.shape[-2]))
    pairs = np.concatenate([to_uint8(images), to_uint8(reconstruction)], axis=1)  # [N, 2h, w, C]
    tiles = np.pad(
        pairs.repeat(factor, axis=1).repeat(factor, axis=2),
        ((0, 0), (MARGIN, MARGIN), (MARGIN, MARGIN), (0, 0)),
        constant_values=BACKGROUND,
    )
    columns = min(COLUMNS, len(tiles))
    blank = np.full_like(tiles[:1], BACKGROUND)
    tiles = np.concatenate([tiles, *[blank] * (-len(tiles) % columns)])
    bands = [np.concatenate(tiles[start : start + columns], axis=1) for start in range(0, len(tiles), columns)]
    sheet = np.concatenate(bands)
    buffer = io.BytesIO()
    Image.fromarray(sheet[:, :, 0] if sheet.shape[2] == 1 else sheet).save(buffer, format="PNG")
    return buffer.getvalue()
