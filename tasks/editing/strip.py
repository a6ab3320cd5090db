"""A strip for each image of an archive: its inversion, and the same code edited by growing strengths."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from lsap_core.images import to_uint8

SMALLEST_TILE = 96  # small images are magnified by a whole number to at least this height
LARGEST_TILE = 512  # larger ones are reduced to this height
MARGIN = 4
LABEL_HEIGHT = 20
INK, BACKGROUND = (32, 32, 32), (255, 255, 255)


def draw_strips(columns: Sequence[Tensor], column_labels: Sequence[str], row_labels: Sequence[str]) -> bytes:
    """A PNG file: a row for each image, a column for each batch, labels above and on the left.

    Args:
        columns: batches [N, C, h, w] in about [-1, 1].
        column_labels: one for each batch.
        row_labels: one for each image.
    """
    tiles = [[_tile(image) for image in to_uint8(batch)] for batch in columns]
    width, height = tiles[0][0].size
    font = ImageFont.load_default(13)
    left = MARGIN + max(int(font.getlength(label)) for label in ("", *row_labels)) + MARGIN
    sheet = Image.new(
        "RGB",
        (left + len(columns) * (width + MARGIN), LABEL_HEIGHT + len(row_labels) * (height + MARGIN)),
        BACKGROUND,
    )
    draw = ImageDraw.Draw(sheet)
    for column, (label, batch) in enumerate(zip(column_labels, tiles, strict=True)):
        x = left + column * (width + MARGIN)
        draw.text((x + width / 2, LABEL_HEIGHT / 2), label, INK, font, anchor="mm")
        for row, tile in enumerate(batch):
            sheet.paste(tile, (x, LABEL_HEIGHT + row * (height + MARGIN)))
    for row, label in enumerate(row_labels):
        y = LABEL_HEIGHT + row * (height + MARGIN) + height / 2
        draw.text((left - MARGIN, y), label, INK, font, anchor="rm")
    buffer = io.BytesIO()
    sheet.save(buffer, format="PNG")
    return buffer.getvalue()


def _tile(pixels: NDArray[np.uint8]) -> Image.Image:
    image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    if image.height > LARGEST_TILE:
        return image.resize((image.width * LARGEST_TILE // image.height, LARGEST_TILE), Image.Resampling.LANCZOS)
    factor = max(1, -(-SMALLEST_TILE // image.height))
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
