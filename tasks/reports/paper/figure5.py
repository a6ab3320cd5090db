"""Figures 3 and 5: the original, its inversion and its edits by every method, side by side at full resolution."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from PIL import Image

from tasks.pictures.sheets import Pixels, as_jpeg, as_picture, as_png, draw_sheet

PAGE_SIDE = 192  # pixels of a picture on the page; smaller ones are enlarged by a whole number there
JPEG_ABOVE = 128  # larger pictures stand on the page as JPEG; the sheet beside it is lossless


@dataclass(frozen=True)
class EditedImage:
    """One image of figure 3 or 5.

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
    rows = [
        [None if row else image.original, *(made.get(label) for label in labels)]
        for row, made in enumerate(image.made.values())
    ]
    return as_png(draw_sheet(rows, column_labels=["original", *labels], row_labels=list(image.made)))


def page_uri(pixels: Pixels) -> str:
    """A picture for the page as a data: URI, at most PAGE_SIDE pixels on its longer side."""
    picture = as_picture(pixels)
    if max(picture.size) <= JPEG_ABOVE:
        return f"data:image/png;base64,{base64.b64encode(as_png(picture)).decode()}"
    picture.thumbnail((PAGE_SIDE, PAGE_SIDE), Image.Resampling.LANCZOS)
    return f"data:image/jpeg;base64,{base64.b64encode(as_jpeg(picture)).decode()}"
