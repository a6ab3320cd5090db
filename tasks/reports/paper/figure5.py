"""Figure 5: the original, its inversion and its edits by every method, side by side at full resolution."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from tasks.visible_text import visible

PAGE_SIDE = 192  # pixels of a picture on the page; smaller ones are enlarged by a whole number there
SHEET_SIDE = 96  # at least so many pixels of a picture on a sheet, so that its labels can be read
JPEG_ABOVE = 128  # larger pictures stand on the page as JPEG; the sheet beside it is lossless

Pixels = NDArray[np.uint8]
"""[H, W, C], C = 1 or 3."""


@dataclass(frozen=True)
class EditedImage:
    """One image of figure 5.

    Attributes:
        image_id: of the original.
        original: its pixels, as the methods saw them.
        made: pictures by method title, in order; each by label ("inversion", or that of an edit). A picture that is
            not there is missing.
    """

    image_id: str
    original: Pixels
    made: Mapping[str, Mapping[str, Pixels]]


def spread(items: Sequence[str], count: int) -> list[str]:
    """So many of the items, evenly spread over them.

    Example:
        >>> spread(["a", "b", "c", "d", "e", "f"], 3)
        ['a', 'c', 'e']
    """
    count = min(count, len(items))
    return [items[index * len(items) // count] for index in range(count)]


def sheet(image: EditedImage, labels: Sequence[str]) -> bytes:
    """One image as a PNG file: a row for each method, a column for each label, no pixel lost.

    Args:
        image: its pictures.
        labels: of the columns, in order.
    """
    height, width = image.original.shape[:2]
    zoom = max(1, -(-SHEET_SIDE // max(height, width)))
    height, width = height * zoom, width * zoom
    gap = max(4, width // 40)
    size = max(11, width // 16)
    font = ImageFont.load_default(size)
    titles = [*image.made]
    left = int(max(font.getlength(title) for title in ["original", *titles])) + 3 * gap
    top = 2 * size + 4 * gap
    columns, rows = 1 + len(labels), len(titles)
    canvas = Image.new("RGB", (left + columns * (width + gap), top + rows * (height + gap)), "white")
    draw = ImageDraw.Draw(canvas)

    for column, text in enumerate(["original", *labels]):
        words = visible(text).replace(", ", "\n", 1)
        draw.text((left + column * (width + gap) + width / 2, top - gap), words, "#1d2329", font, "md", align="center")
    for row, title in enumerate(titles):
        y = top + row * (height + gap)
        draw.text((left - 2 * gap, y + height / 2), visible(title), "#1d2329", font, "rm")
        cells = [image.original if row == 0 else None, *(image.made[title].get(text) for text in labels)]
        for column, pixels in enumerate(cells):
            if pixels is not None:
                shown = _picture(pixels).resize((width, height), Image.Resampling.NEAREST)
                canvas.paste(shown, (left + column * (width + gap), y))
    return _encoded(canvas, "PNG")


def page_uri(pixels: Pixels) -> str:
    """A picture for the page as a data: URI, at most PAGE_SIDE pixels on its longer side."""
    picture = _picture(pixels)
    if max(picture.size) <= JPEG_ABOVE:
        return f"data:image/png;base64,{base64.b64encode(_encoded(picture, 'PNG')).decode()}"
    picture.thumbnail((PAGE_SIDE, PAGE_SIDE), Image.Resampling.LANCZOS)
    return f"data:image/jpeg;base64,{base64.b64encode(_encoded(picture, 'JPEG')).decode()}"


def page_width(pixels: Pixels) -> tuple[int, bool]:
    """How wide a picture stands on the page, and whether it is enlarged, so that its pixels stay square."""
    height, width = pixels.shape[:2]
    if max(height, width) <= 72:
        return width * max(1, round(64 / width)), True
    return min(width, width * PAGE_SIDE // max(height, width)), False


def _picture(pixels: Pixels) -> Image.Image:
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)


def _encoded(picture: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **({"quality": 90} if kind == "JPEG" else {}))
    return buffer.getvalue()
