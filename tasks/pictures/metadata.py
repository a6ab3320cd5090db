"""What stands in a picture file beside its pixels: dropped where nobody reads it, so that it decides nothing."""

import re
import zlib

from tasks.errors import BadImageError
from tasks.pictures.colours import COLOURS_NOT_APPLIED, has_other_colours, is_srgb
from tasks.pictures.formats import JPEG, PNG

MAX_METADATA = 2**20
"""Bytes that a text or a profile may unpack to; larger ones are dropped, and the pixels are decoded without them."""

METADATA_DROPPED = "metadata_dropped"

_FILL = re.compile(b"\xff+")  # before a marker of a JPEG

_PNG_PIXELS = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"acTL", b"fcTL", b"fdAT"})
_PNG_COLOURS = frozenset({b"iCCP", b"cICP", b"sRGB", b"gAMA"})
_PNG_TURNS = (b"XML:com.adobe.xmp", b"Raw profile type exif")  # texts that may tell how the image is turned

_JPEG_READ = {
    0xE0: ((b"JFIF\0", 12),),
    0xE1: ((b"Exif\0\0", 14), (b"http://ns.adobe.com/xap/1.0/\0", 30)),
    0xE2: ((b"ICC_PROFILE\0", 15), (b"MPF\0", 12)),
    0xEE: ((b"Adobe", 12),),
}
"""Of the APPn segments that somebody reads, by their marker: how they begin, and what they have at least, in bytes."""


def without_needless_metadata(data: bytes, notes: list[str]) -> bytes:
    """The file without the metadata that its reader would only trip over; other files than PNG and JPEG as they are.

    A comment, an unknown segment or a profile that is broken, or unpacks to gigabytes, is no damage of the pixels.

    Args:
        data: the whole file.
        notes: gets "metadata_dropped" where what is dropped might have told how the image is turned, and
            "colour_profile_not_applied" where a PNG says that its colours are not sRGB.

    Raises:
        BadImageError: ("unsupported_format") a PNG in Apple's own variant.
    """
    if data.startswith(PNG):
        return _without_chunks(data, notes)
    if data.startswith(JPEG):
        return _without_segments(data)
    return data


def _without_chunks(data: bytes, notes: list[str]) -> bytes:
    """A PNG with the chunks that its pixels need, and those that tell how it is turned."""
    view, kept, start = memoryview(data), bytearray(PNG), len(PNG)
    colours: dict[bytes, bytes] = {}
    while start + 12 <= len(data):
        kind, end = data[start + 4 : start + 8], start + 12 + int.from_bytes(data[start : start + 4], "big")
        if kind == b"CgBI":
            raise BadImageError(
                "unsupported_format",
                "the file is a PNG in Apple's own variant (CgBI), which no other program reads; a plain PNG was "
                "wanted: take it from its sources, or convert it on a Mac",
            )
        if end > len(data) or not kind.isalpha():
            break
        if kind in _PNG_PIXELS:
            kept += view[start:end]
        elif kind in _PNG_COLOURS:
            colours[kind] = data[start + 8 : end - 4] if _is_whole(view[start + 4 : end]) else b""
        elif kind == b"eXIf" or (kind in (b"tEXt", b"zTXt", b"iTXt") and _may_turn(data, start + 8)):
            if _is_whole(view[start + 4 : end]) and (kind == b"eXIf" or _is_small(kind, data[start + 8 : end - 4])):
                kept += view[start:end]
            elif METADATA_DROPPED not in notes:
                notes.append(METADATA_DROPPED)
        start = len(data) if kind == b"IEND" else end  # what lies behind the end is no picture
    if _are_other(colours):
        notes.append(COLOURS_NOT_APPLIED)
    return data if len(kept) == start else bytes(kept + view[start:])


def _are_other(colours: dict[bytes, bytes]) -> bool:
    """Whether a PNG's chunks say that its colours are not sRGB; of several the one that viewers prefer counts."""
    if code := colours.get(b"cICP"):
        return has_other_colours(code[0], code[1] if len(code) > 1 else 0)
    if b"iCCP" in colours:
        _, _, packed = colours[b"iCCP"].partition(b"\0")
        profile = _unpacked(packed[1:])
        return profile is None or not is_srgb(profile)
    gamma = int.from_bytes(colours.get(b"gAMA", b"")[:4], "big")
    return b"sRGB" not in colours and gamma > 0 and abs(gamma - 45455) > 1000  # in 100,000ths


def _is_whole(chunk: memoryview) -> bool:
    """Whether a chunk's kind and body have the checksum that follows them."""
    return zlib.crc32(chunk[:-4]) == int.from_bytes(chunk[-4:], "big")


def _may_turn(data: bytes, start: int) -> bool:
    return data.startswith(_PNG_TURNS, start)


def _is_small(kind: bytes, body: bytes) -> bool:
    """Whether a text unpacks to what is worth reading."""
    _, _, rest = body.partition(b"\0")
    if kind == b"zTXt":
        return rest[:1] == b"\0" and _unpacked(rest[1:]) is not None
    if kind == b"iTXt" and rest[:1] == b"\1":
        return rest[1:2] == b"\0" and _unpacked(rest[2:].split(b"\0", 2)[-1]) is not None
    return len(body) <= MAX_METADATA


def _unpacked(packed: bytes) -> bytes | None:
    """What zlib packed; None where that is broken, or larger than metadata may be."""
    try:
        found = zlib.decompressobj().decompress(packed, MAX_METADATA + 1)
    except zlib.error:
        return None
    return found if len(found) <= MAX_METADATA else None


def _without_segments(data: bytes) -> bytes:
    """A JPEG without comments and without the APPn segments that nobody reads, as far as its first scan."""
    view, kept, start = memoryview(data), bytearray(data[:2]), 2
    while start + 4 <= len(data) and data[start] == 0xFF:
        marker = data[start + 1]
        if marker == 0xFF and (fill := _FILL.match(data, start)):
            start = fill.end() - 1
            continue
        end = start + 2 + int.from_bytes(data[start + 2 : start + 4], "big")
        if marker == 0xDA or marker < 0xC0 or 0xD0 <= marker <= 0xD9 or end > len(data):
            break
        is_metadata = marker == 0xFE or 0xE0 <= marker <= 0xEF
        if not is_metadata or any(
            data.startswith(beginning, start + 4) and end - start - 4 >= least
            for beginning, least in _JPEG_READ.get(marker, ())
        ):
            kept += view[start:end]
        start = end
    return bytes(kept + view[start:])
