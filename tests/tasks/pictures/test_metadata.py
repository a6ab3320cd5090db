"""Metadata that nobody reads decides nothing: pixels come out as without it, and what mattered is told."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from tasks.errors import BadImageError
from tasks.pictures.decoding import DecodedImage, decode_image

ROWS, COLUMNS = np.mgrid[:32, :32]
PIXELS = np.stack([ROWS * 5, COLUMNS * 3, ROWS + COLUMNS], axis=-1).astype(np.uint8)
LARGE = zlib.compress(b"word " * 400_000)  # 2 MB
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def decode(data: bytes) -> DecodedImage:
    return decode_image(data, size=(32, 32), channels=3)


def save(file_format: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, file_format, **options)
    return file.getvalue()


def chunk(kind: bytes, body: bytes, checksum: int | None = None) -> bytes:
    crc = zlib.crc32(kind + body) if checksum is None else checksum
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", crc)


def png_with(*chunks: bytes, at_end: bool = False) -> bytes:
    data = save()
    place = data.index(b"IEND") - 4 if at_end else data.index(b"IDAT") - 4
    return data[:place] + b"".join(chunks) + data[place:]


def jpeg_with(*segments: tuple[int, bytes]) -> bytes:
    data = save("JPEG")
    inserted = b"".join(b"\xff%c" % marker + struct.pack(">H", len(body) + 2) + body for marker, body in segments)
    return data[:2] + inserted + data[2:]


def primaries_of_display_p3() -> bytes:
    profile = bytearray(SRGB)
    place = profile.index(b"rXYZ")
    (offset,) = struct.unpack_from(">I", profile, place + 4)
    profile[offset + 8 : offset + 20] = struct.pack(">3i", *(int(value * 65536) for value in (0.5151, 0.2412, -0.001)))
    return bytes(profile)


NOTHING: tuple[str, ...] = ()
CHUNKS = {
    "a text of 2 MB": (chunk(b"zTXt", b"Comment\0\0" + LARGE), NOTHING),
    "a text that is not packed": (chunk(b"tEXt", b"Comment\0" + b"x" * 3_000_000), NOTHING),
    "a text without a checksum": (chunk(b"tEXt", b"parameters\0a cat", checksum=0), NOTHING),
    "a text packed in an unknown way": (chunk(b"zTXt", b"Comment\0\7" + LARGE), NOTHING),
    "a hundred texts of 1 MB": (chunk(b"zTXt", b"a\0\0" + zlib.compress(b"x" * 2**20)) * 100, NOTHING),
    "a gamma of no bytes": (chunk(b"gAMA", b""), NOTHING),
    "a time of one byte": (chunk(b"tIME", b"1"), NOTHING),
    "an unknown chunk": (chunk(b"caBX", b"x" * 2_000_000), NOTHING),
    "XMP of 2 MB": (chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + LARGE), ("metadata_dropped",)),
    "EXIF without a checksum": (chunk(b"eXIf", b"MM\0*" + bytes(8), checksum=0), ("metadata_dropped",)),
    "a profile of 2 MB": (chunk(b"iCCP", b"icc\0\0" + LARGE), ("colour_profile_not_applied",)),
    "a profile that is not packed": (chunk(b"iCCP", b"icc\0\0" + b"x" * 500), ("colour_profile_not_applied",)),
    "the profile of sRGB": (chunk(b"iCCP", b"icc\0\0" + zlib.compress(SRGB)), NOTHING),
    "sRGB by its chunk": (chunk(b"sRGB", b"\0") + chunk(b"gAMA", struct.pack(">I", 100_000)), NOTHING),
    "linear light": (chunk(b"gAMA", struct.pack(">I", 100_000)), ("colour_profile_not_applied",)),
    "PQ of films": (chunk(b"cICP", b"\x09\x10\0\1"), ("colour_profile_not_applied",)),
}


@pytest.mark.parametrize("at_end", [False, True])
@pytest.mark.parametrize("kind", CHUNKS)
def test_chunks_of_a_png_do_not_cost_its_pixels(kind: str, at_end: bool) -> None:
    chunks, notes = CHUNKS[kind]
    decoded = decode(png_with(chunks, at_end=at_end))
    np.testing.assert_array_equal(decoded.pixels, PIXELS)
    assert decoded.notes == notes


@pytest.mark.parametrize("size", [100, 60_000, 3_000_000])
def test_exif_of_a_png_turns_it_whatever_its_size(size: int) -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x9286] = 3, b"x" * size
    decoded = decode(save(exif=exif))
    np.testing.assert_array_equal(decoded.pixels, PIXELS[::-1, ::-1])
    assert decoded.notes == ("rotated_by_exif",)


def test_xmp_of_a_png_turns_it() -> None:
    xmp = b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(b'<x tiff:Orientation="3"/>')
    assert decode(png_with(chunk(b"iTXt", xmp))).notes == ("rotated_by_exif",)


def test_what_lies_behind_the_end_of_a_png_is_not_read() -> None:
    np.testing.assert_array_equal(decode(save() + chunk(b"zTXt", b"a\0\0" + LARGE)).pixels, PIXELS)


def test_a_png_of_apple_is_no_damage() -> None:
    data = save()
    with pytest.raises(BadImageError, match=r"CgBI.*plain PNG") as refusal:
        decode(data[:8] + chunk(b"CgBI", b"\x50\0\x20\2") + data[8:])
    assert refusal.value.reason == "unsupported_format"


SEGMENTS = {
    "Photoshop's, broken off": [(0xED, b"Photoshop 3.0\x008BIM\x04\x04")],
    "an index of pictures that is broken": [(0xE2, b"MPF\0II*\0\xff\xff\xff\xff")],
    "13 MB of comments": [(0xFE, b"x" * 65_000)] * 200,
    "13 MB of extended XMP": [(0xE1, b"http://ns.adobe.com/xmp/extension/\0" + b"x" * 65_000)] * 200,
    "a profile of no bytes": [(0xE2, b"ICC_PROFILE\0")],
    "JFIF without its version": [(0xE0, b"JFIF")],
    "Adobe's, broken off": [(0xEE, b"Adobe")],
    "EXIF that is none": [(0xE1, b"Exif\0\0")],
}


@pytest.mark.parametrize("kind", SEGMENTS)
def test_segments_of_a_jpeg_do_not_cost_its_pixels(kind: str) -> None:
    decoded = decode(jpeg_with(*SEGMENTS[kind]))
    np.testing.assert_array_equal(decoded.pixels, decode(save("JPEG")).pixels)
    assert decoded.notes == ()


def test_fill_bytes_before_a_marker_are_passed_over_at_once() -> None:
    data = save("JPEG")
    filled = data[:2] + b"\xff" * 30_000_000 + data[2:]
    np.testing.assert_array_equal(decode(filled).pixels, decode(data).pixels)


FORMATS_WITH_PROFILES = ["PNG", "JPEG", "WEBP", "TIFF", "AVIF"]


@pytest.mark.parametrize("file_format", FORMATS_WITH_PROFILES)
def test_a_profile_that_is_not_srgb_is_told_and_not_applied(file_format: str) -> None:
    plain, other = decode(save(file_format)), decode(save(file_format, icc_profile=primaries_of_display_p3()))
    np.testing.assert_array_equal(other.pixels, plain.pixels)
    assert (plain.notes, other.notes) == ((), ("colour_profile_not_applied",))
    assert decode(save(file_format, icc_profile=SRGB)).notes == ()


@pytest.mark.parametrize("file_format", FORMATS_WITH_PROFILES)
def test_a_profile_of_three_megabytes_costs_no_image(file_format: str) -> None:
    decoded = decode(save(file_format, icc_profile=SRGB + bytes(3_000_000)))
    np.testing.assert_array_equal(decoded.pixels, decode(save(file_format)).pixels)


def test_adobe_rgb_as_cameras_say_it_is_told() -> None:
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0xA005] = {1: "R03"}
    assert decode(save("JPEG", exif=exif)).notes == ("colour_profile_not_applied",)
