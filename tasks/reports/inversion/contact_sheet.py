"""A contact sheet as one small picture: originals, and what each method made of them."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw, ImageFont

from lsap_archive import Store
from tasks.pictures.decoding import decode_photo
from tasks.reports.inversion.page import ContactRow

ROWS = 8  # images; the whole sheet is in the report
TILE = 96  # pixels; small images are magnified by a whole number where that gives about this height
LARGEST_SIDE = 1280
MARGIN = 4
LABEL_HEIGHT = 20
INK, BACKGROUND = (32, 32, 32), (255, 255, 255)


def draw_contact_sheet(rows: Sequence[ContactRow], titles: Mapping[str, str]) -> bytes:
    """A JPEG file: a row for each of the first images, the original and a column for each method, with its title.

    Args:
        rows: at least one.
        titles: of the methods by name, in order; where a method has no such image there is a gap.
    """
    font = ImageFont.load_default(12)
    labels = ["original", *titles.values()]
    width = max(TILE, *(int(font.getlength(label)) for label in labels)) + MARGIN
    rows = rows[:ROWS]
    sheet = Image.new("RGB", (len(labels) * width + MARGIN, LABEL_HEIGHT + len(rows) * (TILE + MARGIN)), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    for column, label in enumerate(labels):
        draw.text((MARGIN + column * width, LABEL_HEIGHT / 2), label, INK, font, anchor="lm")
    for index, row in enumerate(rows):
        pictures = [
            row.original_png,
            *(row.cells[name].reconstruction_png if name in row.cells else None for name in titles),
        ]
        for column, picture in enumerate(pictures):
            if picture is not None:
                sheet.paste(_tile(picture), (MARGIN + column * width, LABEL_HEIGHT + index * (TILE + MARGIN)))
    return _jpeg(sheet)


def small_picture(url: str) -> bytes:
    """A JPEG file of a picture in a store, at most 1280 pixels wide and high."""
    folder, _, name = url.rpartition("/")
    image = _opened(Store.from_url(folder).get(name))
    image.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
    return _jpeg(image)


def _opened(data: bytes) -> Image.Image:
    """An image in RGB; by our own decoding, because what lies in a store may have been put there by others."""
    return Image.fromarray(decode_photo(data, min_side=1).pixels)


def _jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=88)
    return buffer.getvalue()


def _tile(png: bytes) -> Image.Image:
    """An image at most TILE pixels wide and high; pixels of small ones stay squares."""
    image = _opened(png)
    factor = TILE / max(image.size)
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    return image.resize(size, Image.Resampling.NEAREST if factor >= 1 else Image.Resampling.LANCZOS)
