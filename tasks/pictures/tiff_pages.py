"""Pages of a TIFF: which of them is the picture, and which are small copies or masks of it."""

import struct
from collections.abc import Sequence
from typing import NamedTuple

MAX_PAGES = 1000  # more are not counted
_MAX_ENTRIES = 4096  # of a page; more are not looked at

_SUBFILE, _OLD_SUBFILE, _WIDTH, _HEIGHT, _BELOW = 254, 255, 256, 257, 330
_REDUCED, _MASK = 1, 4  # bits of the tag 254
_OLD_REDUCED = 2


class TiffPage(NamedTuple):
    """A page, as its directory tells.

    Attributes:
        width, height: pixels; 0 where it does not tell.
        is_derived: whether it says that it is a reduced copy, or a mask, of another page.
        has_pages_below: whether pages hang below it, as the raw picture of a camera below its preview.
    """

    width: int
    height: int
    is_derived: bool
    has_pages_below: bool


def pages_of(data: bytes) -> list[TiffPage]:
    """The pages of a TIFF or BigTIFF, as far as their directories can be read; at most 1000."""
    order, is_big = "<" if data[:2] == b"II" else ">", 43 in data[2:4]
    address, size = ("Q", 8) if is_big else ("I", 4)
    pages: list[TiffPage] = []
    seen: set[int] = set()
    try:
        (place,) = struct.unpack_from(order + address, data, size)
        while place and place not in seen and len(pages) < MAX_PAGES:
            seen.add(place)
            (count,) = struct.unpack_from(order + ("Q" if is_big else "H"), data, place)
            start, width = place + (8 if is_big else 2), 4 + 2 * size
            tags = {}
            for index in range(min(count, _MAX_ENTRIES)):
                tag, kind, _ = struct.unpack_from(f"{order}HH{address}", data, start + index * width)
                form = {3: "H", 4: "I", 16: "Q"}.get(kind, "B")
                (tags[tag],) = struct.unpack_from(order + form, data, start + index * width + 4 + size)
            is_derived = bool(tags.get(_SUBFILE, 0) & (_REDUCED | _MASK)) or tags.get(_OLD_SUBFILE) == _OLD_REDUCED
            pages.append(TiffPage(tags.get(_WIDTH, 0), tags.get(_HEIGHT, 0), is_derived, _BELOW in tags))
            (place,) = struct.unpack_from(order + address, data, start + count * width)
    except struct.error:  # a directory lies beyond the end
        pass
    return pages


def pictures_among(pages: Sequence[TiffPage]) -> list[int]:
    """Numbers of the pages that are pictures of their own: no reduced copies, by their own word or by their size."""
    own = [number for number, page in enumerate(pages) if not page.is_derived]
    if len(own) < 2:
        return own
    largest = max((pages[number] for number in own), key=lambda page: page.width * page.height)
    return [number for number in own if not _is_copy(pages[number], largest)]


def _is_copy(page: TiffPage, of: TiffPage) -> bool:
    """Whether a page has the shape of a larger one, within a pixel, at half its size or less."""
    if 2 * page.width > of.width or 2 * page.height > of.height:
        return False
    return abs(page.width * of.height - page.height * of.width) <= max(of.width, of.height)
