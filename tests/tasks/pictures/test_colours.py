"""Profiles are told apart by what they do, whatever they are called."""

import struct

import pytest
from PIL import ImageCms

from tasks.pictures.colours import is_srgb

SRGB = ((0.4361, 0.2225, 0.0139), (0.3851, 0.7169, 0.0971), (0.1431, 0.0606, 0.7142))
ADOBE = ((0.6097, 0.3111, 0.0195), (0.2053, 0.6257, 0.0609), (0.1492, 0.0632, 0.7446))
PARAMETRIC = b"para\0\0\0\0" + struct.pack(
    ">HH5i", 3, 0, *(round(v * 65536) for v in (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045))
)
TABLE = b"curv\0\0\0\0" + struct.pack(
    ">I256H",
    256,
    *(
        round(65535 * (v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4))
        for v in (i / 255 for i in range(256))
    ),
)


def gamma(value: float) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(value * 256))


def profile(space: bytes, tags: dict[bytes, bytes]) -> bytes:
    header, body = bytearray(128), b""
    header[16:20], header[36:40] = space, b"acsp"
    table = struct.pack(">I", len(tags))
    for name, tag in tags.items():
        table += name + struct.pack(">II", 132 + 12 * len(tags) + len(body), len(tag))
        body += tag
    return bytes(header) + table + body


def rgb(primaries: tuple[tuple[float, ...], ...], curve: bytes) -> bytes:
    xyz = [b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(v * 65536) for v in point)) for point in primaries]
    points = dict(zip((b"rXYZ", b"gXYZ", b"bXYZ"), xyz, strict=True))
    return profile(b"RGB ", points | dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve))


@pytest.mark.parametrize(
    ("data", "is_its"),
    [
        (ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(), True),
        (rgb(SRGB, PARAMETRIC), True),
        (rgb(SRGB, TABLE), True),
        (rgb(SRGB, gamma(2.2)), False),  # 7 of 255 levels darker in the shadows
        (rgb(SRGB, gamma(1.8)), False),
        (rgb(SRGB, gamma(1.0)), False),
        (rgb(ADOBE, gamma(2.2)), False),
        (rgb(ADOBE, PARAMETRIC), False),
        (profile(b"GRAY", {b"kTRC": TABLE}), True),
        (profile(b"GRAY", {b"kTRC": gamma(1.75)}), False),
        (profile(b"CMYK", {}), False),
        (rgb(SRGB, TABLE)[:300], False),
        (rgb(SRGB, b"curv"), False),
        (rgb(SRGB, b"para\0\0\0\0\0\x09\0\0"), False),
        (rgb(SRGB, b"curv\0\0\0\0\xff\xff\xff\xff"), False),
        (b"", False),
        (b"\xff" * 4096, False),
    ],
)
def test_is_srgb(data: bytes, is_its: bool) -> None:
    assert is_srgb(data) == is_its
