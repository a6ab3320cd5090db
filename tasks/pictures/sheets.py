"""Sheets: pictures side by side under their names, small ones magnified so that their pixels stay squares."""

from __future__ import annotations

import io
import itertools
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from lsap_archive import Store
from lsap_core.images import to_uint8
from tasks.pictures.decoding import decode_photo
from tasks.visible_text import visible

SMALLEST_TILE = 96  # pixels of a picture's longer side: smaller ones are magnified by a whole number to at least this
LARGEST_STRIP_TILE = 512  # larger ones are reduced to this on strips of edits
LARGEST_SIDE = 1280  # of a small picture
GAP = 4  # pixels between pictures, or a fortieth of large ones
FONT_SIZE = 12  # or a sixteenth of large pictures
INK, BACKGROUND = "#1d2329", "white"
BAND = 8  # pairs beside each other

Pixels = NDArray[np.uint8]
"""[H, W, C], C = 1, 3 or 4; what is transparent shows the sheet."""


def draw_sheet(
    rows: Sequence[Sequence[Pixels | None]],
    *,
    column_labels: Sequence[str] = (),
    row_labels: Sequence[str] = (),
    smallest: int = SMALLEST_TILE,
    largest: int | None = None,
) -> Image.Image:
    """Pictures in rows and columns, with names above and on the left; None is a gap.

    Args:
        rows: all of the same length, with at least one picture.
        column_labels: one for each column, or none; a line ends at a comma.
        row_labels: one for each row, or none.
        smallest: smaller pictures are magnified by a whole number to at least so many pixels on their longer side.
        largest: larger ones are reduced to so many; None keeps every pixel.
    """
    tiles = [[None if pixels is None else _tile(pixels, smallest, largest) for pixels in row] for row in rows]
    width, height = (max(tile.size[axis] for row in tiles for tile in row if tile) for axis in (0, 1))
    gap, size = max(GAP, width // 40), max(FONT_SIZE, width // 16)
    font = ImageFont.truetype(_font_file(), size)
    above = [visible(label).replace(", ", "\n", 1) for label in column_labels] or [""] * len(tiles[0])
    beside = [visible(label) for label in row_labels]
    left = int(max(map(font.getlength, beside))) + 2 * gap if beside else 0
    top = max(1 + label.count("\n") for label in above) * (size + size // 4) + gap if column_labels else 0
    widths = [max(width, *(int(font.getlength(line)) for line in label.split("\n"))) + gap for label in above]
    edges = list(itertools.accumulate(widths, initial=left))  # of the columns
    sheet = Image.new("RGB", (edges[-1], top + len(tiles) * (height + gap)), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    for label, edge, wide in zip(above, edges, widths, strict=False):
        draw.text((edge + wide / 2, top - gap), label, INK, font, "md", spacing=size // 4, align="center")
    for row, of_row in enumerate(tiles):
        middle = top + row * (height + gap) + (height + gap) // 2
        if beside:
            draw.text((left - gap, middle), beside[row], INK, font, "rm")
        for tile, edge, wide in zip(of_row, edges, widths, strict=False):
            if tile is not None:
                corner = (edge + (wide - tile.width) // 2, middle - tile.height // 2)
                sheet.paste(tile, corner, tile if tile.mode == "RGBA" else None)
    return sheet


def draw_strips(columns: Sequence[Tensor], column_labels: Sequence[str], row_labels: Sequence[str]) -> bytes:
    """A PNG file: a row for each image, a column for each batch [N, C, h, w] in about [-1, 1]."""
    rows = list(zip(*map(to_uint8, columns), strict=True))
    return as_png(draw_sheet(rows, column_labels=column_labels, row_labels=row_labels, largest=LARGEST_STRIP_TILE))


def draw_pairs(images: Tensor, reconstruction: Tensor) -> bytes:
    """A PNG file: bands of at most 8 originals [N, C, h, w], their reconstructions below them."""
    pairs = [*np.concatenate([to_uint8(images), to_uint8(reconstruction)], axis=1)]  # each [2h, w, C]
    width = min(BAND, len(pairs))
    padded = [*pairs, *[None] * (-len(pairs) % width)]
    return as_png(draw_sheet([padded[start : start + width] for start in range(0, len(padded), width)], smallest=128))


def small_picture(url: str) -> bytes:
    """A JPEG file of a picture in a store, at most 1280 pixels wide and high.

    Read by our own decoding, because what lies in a store may have been put there by others.
    """
    folder, _, name = url.rpartition("/")
    image = as_picture(decode_photo(Store.from_url(folder).get(name), min_side=1).pixels)
    image.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
    return as_jpeg(image)


def width_on_page(width: int, height: int, largest: int) -> tuple[int, bool]:
    """How wide a picture stands on a page, and whether it is magnified, so that its pixels stay squares.

    Example:
        >>> width_on_page(32, 32, 128), width_on_page(512, 256, 128)
        ((64, True), (128, False))
    """
    longer = max(width, height)
    if longer <= 72:
        return width * max(1, round(72 / longer)), True
    return min(width, width * largest // longer), False


def as_picture(pixels: Pixels) -> Image.Image:
    """Pixels as PIL has them."""
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)


def as_png(picture: Image.Image) -> bytes:
    """A PNG file."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def as_jpeg(picture: Image.Image) -> bytes:
    """A JPEG file, which has no alpha: what is transparent is laid over white."""
    if picture.mode == "RGBA":
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, BACKGROUND), picture).convert("RGB")
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


@cache
def _font_file() -> str:
    """DejaVu Sans, which matplotlib brings: Pillow's own font has no Greek letters, and methods are named by λ."""
    return str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf")


def _tile(pixels: Pixels, smallest: int, largest: int | None) -> Image.Image:
    picture = as_picture(pixels)
    longer = max(picture.size)
    if largest is not None and longer > largest:
        size = (max(1, picture.width * largest // longer), max(1, picture.height * largest // longer))
        return picture.resize(size, Image.Resampling.LANCZOS)
    factor = max(1, -(-smallest // longer))
    return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
