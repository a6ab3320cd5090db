"""Whether a picture says that its numbers mean other colours than sRGB's. They are not converted, only told."""

import struct
from collections.abc import Callable, Iterator

from PIL import Image

from tasks.pictures.formats import brands_of

COLOURS_NOT_APPLIED = "colour_profile_not_applied"

_SRGB = ((0.4361, 0.2225, 0.0139), (0.3851, 0.7169, 0.0971), (0.1431, 0.0606, 0.7142))  # X, Y, Z of R, G, B at D50
_XYZ_WITHIN = 0.005
_CURVE_WITHIN = 0.02  # 5 of 255 levels
_LEVELS = (0.1, 0.25, 0.5, 0.75, 0.9)

# Of ITU-T H.273: BT.709 or not told; sRGB's curve, the television curves that are shown alike, or not told.
_USUAL_PRIMARIES = (1, 2)
_USUAL_CURVES = (1, 2, 6, 13, 14, 15)


def is_srgb(profile: bytes) -> bool:
    """Whether an ICC profile is sRGB's, or the gray of its curve, by what it does and not by its name.

    Primaries within 0.005 of sRGB's in XYZ, and curves within 2 % of its curve. A profile that is no matrix with
    curves, or cannot be read, is not.

    Args:
        profile: the profile, from 128 bytes on.
    """
    try:
        tags = dict(_tags(profile))
        if profile[16:20] == b"GRAY":
            return _is_srgb_curve(tags[b"kTRC"])
        if profile[16:20] != b"RGB " or b"A2B0" in tags:
            return False
        points = [_xyz(tags[name]) for name in (b"rXYZ", b"gXYZ", b"bXYZ")]
        are_its = all(
            abs(found - wanted) <= _XYZ_WITHIN
            for point, of_srgb in zip(points, _SRGB, strict=True)
            for found, wanted in zip(point, of_srgb, strict=True)
        )
        return are_its and all(_is_srgb_curve(tags[name]) for name in (b"rTRC", b"gTRC", b"bTRC"))
    except (struct.error, KeyError, ValueError, ArithmeticError, IndexError):
        return False


def has_other_colours(primaries: int, curve: int) -> bool:
    """Whether code points of ITU-T H.273 name other primaries or another curve than sRGB's."""
    return primaries not in _USUAL_PRIMARIES or curve not in _USUAL_CURVES


def tells_other_colours(image: Image.Image, data: bytes) -> bool:
    """Whether a file says that its colours are not sRGB: by an ICC profile, by code points, or by its EXIF.

    Args:
        image: the opened file, before its pixels are decoded.
        data: the whole file.
    """
    profile = image.info.get("icc_profile") or _profile_of_jpeg_2000(image, data)
    if profile:
        return not is_srgb(bytes(profile))
    if brands_of(data):
        return _has_other_code_points(data)
    return image.format == "JPEG" and _is_adobe_rgb(image)


def _tags(profile: bytes) -> Iterator[tuple[bytes, bytes]]:
    (count,) = struct.unpack_from(">I", profile, 128)
    for index in range(min(count, 100)):
        name, offset, size = struct.unpack_from(">4sII", profile, 132 + 12 * index)
        yield name, profile[offset : offset + size]


def _xyz(tag: bytes) -> tuple[float, ...]:
    return tuple(value / 65536 for value in struct.unpack_from(">3i", tag, 8))


def _is_srgb_curve(tag: bytes) -> bool:
    curve = _curve(tag)
    return all(abs(_as_srgb(curve(level)) - level) <= _CURVE_WITHIN for level in _LEVELS)


def _as_srgb(light: float) -> float:
    """The level, 0 to 1, that sRGB has for an amount of light, 0 to 1."""
    return 12.92 * light if light <= 0.0031308 else 1.055 * light ** (1 / 2.4) - 0.055


def _curve(tag: bytes) -> Callable[[float], float]:
    """From a level to light, both 0 to 1: a table, or one of the formulas of ICC.1, section 10.18."""
    if tag[:4] == b"curv":
        (count,) = struct.unpack_from(">I", tag, 8)
        if count == 0:
            return lambda level: level
        values = struct.unpack_from(f">{count}H", tag, 12)
        if count == 1:
            return lambda level: level ** (values[0] / 256)
        return lambda level: _between(values, level * (count - 1))
    if tag[:4] != b"para":
        raise ValueError(f"no curve: {tag[:4]!r}")
    (kind,) = struct.unpack_from(">H", tag, 8)
    number = (1, 3, 4, 5, 7)[kind]
    g, a, b, c, d, e, f = (*(value / 65536 for value in struct.unpack_from(f">{number}i", tag, 12)), *[0.0] * 7)[:7]
    if kind == 0:
        return lambda level: level**g
    if kind in (1, 2):
        return lambda level: (max(a * level + b, 0.0) ** g if a * level >= -b else 0.0) + c
    return lambda level: max(a * level + b, 0.0) ** g + e if level >= d else c * level + f


def _between(values: tuple[int, ...], place: float) -> float:
    index = min(int(place), len(values) - 2)
    share = place - index
    return float((1 - share) * values[index] + share * values[index + 1]) / 65535


def _profile_of_jpeg_2000(image: Image.Image, data: bytes) -> bytes | None:
    """The profile in the header of a JP2, which Pillow passes over."""
    start = data.find(b"colr\x02", 0, 65536)
    if image.format != "JPEG2000" or start < 4:
        return None
    return data[start + 7 : start - 4 + int.from_bytes(data[start - 4 : start], "big")]


def _has_other_code_points(data: bytes) -> bool:
    """Of an AVIF or HEIC, which has them in its header, where it has no profile."""
    start = data.find(b"colrnclx", 0, 65536)
    code = data[start + 8 : start + 12]
    return start >= 0 and len(code) == 4 and has_other_colours(*struct.unpack(">HH", code))


def _is_adobe_rgb(image: Image.Image) -> bool:
    """As cameras say it, by the rule of their file system (DCF 2.0): R03 in EXIF."""
    try:
        return str(image.getexif().get_ifd(0xA005).get(1, "")).startswith("R03")
    except Exception:  # broken EXIF raises nearly anything, and tells nothing
        return False
