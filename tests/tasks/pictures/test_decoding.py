"""decode_image: pixels as published protocols read them, and a reason for every file that cannot be used."""

import io
import pickle
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from lsap_archive import OF_READER
from tasks.errors import BadImageError, TaskError
from tasks.pictures.decoding import DecodedImage, decode_image, decode_labels, place_content
from tasks.pictures.formats import PICTURE_FORMATS, may_be_read_now

# Made with PIL and torchvision, as the published encoders and projector preprocess (see tests/reference).
REFERENCE = Path(__file__).parents[2] / "reference" / "preprocess.npz"


def save(image: Image.Image, file_format: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def gradient(height: int = 32, width: int = 32) -> NDArray[np.uint8]:
    """RGB [H, W, 3] in which no two rows, columns or channels are alike."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows * 5, columns * 3, rows + columns], axis=-1).astype(np.uint8)


def decode(data: bytes, **options: Any) -> DecodedImage:
    return decode_image(data, **{"size": (32, 32), "channels": 3} | options)


def refuse(data: bytes, **options: Any) -> BadImageError:
    with pytest.raises(BadImageError) as caught:
        decode(data, **options)
    return caught.value


def png_chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def sixteen_bit_png(values: NDArray[np.uint16], *extra: bytes) -> bytes:
    """A PNG of 16 bits, [H, W] grey or [H, W, 3] colour, written by hand: Pillow writes no colour one."""
    height, width = values.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, 16, 0 if values.ndim == 2 else 2, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    chunks = [png_chunk(b"IHDR", header), *extra, png_chunk(b"IDAT", zlib.compress(rows)), png_chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


# --- published protocols -------------------------------------------------------------------------


def test_stretch_equals_the_published_encoders() -> None:
    reference = np.load(REFERENCE)
    decoded = decode(save(Image.fromarray(reference["in.image"])), size=(256, 256), fit="stretch")
    np.testing.assert_array_equal(decoded.pixels, reference["out.u8_encoder"])
    assert decoded.notes == ("stretched",)


def test_crop_equals_the_published_projector() -> None:
    reference = np.load(REFERENCE)
    decoded = decode(save(Image.fromarray(reference["in.image"])), size=(256, 256), fit="crop")
    np.testing.assert_array_equal(decoded.pixels[::2, ::2], reference["out.u8_projector_sub"])
    assert (decoded.width, decoded.height) == (420, 300)


# --- fitting -------------------------------------------------------------------------------------


@pytest.mark.parametrize("fit", ["refuse", "crop", "letterbox", "stretch"])
def test_image_of_the_right_size_keeps_its_pixels(fit: str) -> None:
    decoded = decode(save(Image.fromarray(gradient())), fit=fit)
    np.testing.assert_array_equal(decoded.pixels, gradient())
    assert decoded.notes == ()


def test_crop_keeps_the_centre_of_a_tall_image() -> None:
    decoded = decode(save(Image.fromarray(gradient(52, 32))), fit="crop")
    np.testing.assert_array_equal(decoded.pixels, gradient(52, 32)[10:42])


def test_letterbox_centres_on_black() -> None:
    decoded = decode(save(Image.fromarray(gradient(16, 32) // 2 + 100)), fit="letterbox")
    np.testing.assert_array_equal(decoded.pixels[8:24], gradient(16, 32) // 2 + 100)
    assert not decoded.pixels[:8].any()
    assert not decoded.pixels[24:].any()
    assert decoded.notes == ("upsampled", "letterboxed")


def test_not_square_names_the_remedies() -> None:
    error = refuse(save(Image.fromarray(gradient(32, 33))))
    assert error.reason == "not_square"
    assert "33x32" in error.message
    assert "`fit: crop`" in error.message
    assert "`fit: letterbox`" in error.message


def test_crop_of_a_very_long_strip_is_refused_before_memory_is_spent() -> None:
    error = refuse(save(Image.new("L", (60_000, 8))), fit="crop", size=(1024, 1024))
    assert error.reason == "not_square"
    assert "cut out" in error.message


def test_small_image_is_enlarged_with_a_note() -> None:
    assert decode(save(Image.fromarray(gradient(16, 16)))).notes == ("upsampled",)


# --- sizes that are not square -------------------------------------------------------------------

CARS = (24, 32)  # height, width


@pytest.mark.parametrize(
    ("height", "width"), [(24, 32), (48, 64), (15, 20), (250, 333), (249, 333), (12, 15), (13, 18)]
)
def test_an_image_of_the_wanted_aspect_is_taken_with_less_than_a_pixel_off(height: int, width: int) -> None:
    decoded = decode(save(Image.fromarray(gradient(height, width))), size=CARS)
    assert decoded.pixels.shape == (24, 32, 3)
    assert (decoded.width, decoded.height) == (width, height)
    assert decoded.notes == (("upsampled",) if height < 24 else ())
    if (height, width) == CARS:
        np.testing.assert_array_equal(decoded.pixels, gradient(*CARS))


@pytest.mark.parametrize(("height", "width"), [(32, 32), (32, 24), (251, 333), (12, 18), (24, 34)])
def test_an_image_of_another_aspect_is_refused_with_the_remedies(height: int, width: int) -> None:
    error = refuse(save(Image.fromarray(gradient(height, width))), size=CARS)
    assert error.reason == "wrong_aspect"
    assert f"{width}x{height} pixels, 32x24 or the same aspect ratio was wanted" in error.message
    assert "`fit: crop`" in error.message and "`fit: letterbox`" in error.message


def test_the_aspect_is_that_of_the_image_as_it_is_shown() -> None:
    """EXIF may stand it on its side, which the header's width and height do not tell."""
    exif = Image.Exif()
    exif[0x0112] = 6
    lying, standing = (save(Image.fromarray(gradient(*size)), exif=exif) for size in ((24, 32), (32, 24)))
    assert refuse(lying, size=CARS).reason == "wrong_aspect"
    assert refuse(lying, size=CARS).message.startswith("the image is 24x32 pixels")
    np.testing.assert_array_equal(decode(standing, size=CARS).pixels, np.rot90(gradient(32, 24), -1))


def test_crop_and_letterbox_are_relative_to_the_wanted_size() -> None:
    tall, wide = (Image.fromarray(gradient(*size) // 2 + 100) for size in ((32, 32), (24, 40)))
    cropped = decode(save(tall), size=CARS, fit="crop")
    np.testing.assert_array_equal(cropped.pixels, np.asarray(tall)[4:28])
    np.testing.assert_array_equal(decode(save(wide), size=CARS, fit="crop").pixels, np.asarray(wide)[:, 4:36])
    boxed = decode(save(tall), size=CARS, fit="letterbox")
    assert not boxed.pixels[:, :4].any() and not boxed.pixels[:, 28:].any() and boxed.pixels[:, 4:28].all()
    stretched = decode(save(tall), size=CARS, fit="stretch")
    np.testing.assert_array_equal(stretched.pixels, np.asarray(tall.resize((32, 24), Image.Resampling.BILINEAR)))
    assert [each.notes for each in (cropped, boxed, stretched)] == [("cropped",), ("letterboxed",), ("stretched",)]


def test_a_strip_that_would_be_cropped_from_too_many_pixels_has_the_wrong_aspect() -> None:
    error = refuse(save(Image.new("L", (60_000, 8))), fit="crop", size=(768, 1024))
    assert error.reason == "wrong_aspect" and "shape of 1024x768" in error.message


def test_content_is_placed_into_the_generators_image_and_the_rest_is_black() -> None:
    pixels = gradient(24, 32) // 2 + 100
    square = place_content(pixels, size=(32, 32), content_box=(4, 28, 0, 32))
    assert (square.shape, square.dtype) == ((32, 32, 3), np.uint8)
    np.testing.assert_array_equal(square[4:28], pixels)
    assert not square[:4].any() and not square[28:].any()
    assert place_content(square, size=(32, 32), content_box=None) is square
    tall = place_content(pixels[:, :10], size=(32, 16), content_box=(4, 28, 3, 13))
    assert tall.shape == (32, 16, 3) and not tall[:, 13:].any()
    np.testing.assert_array_equal(tall[4:28, 3:13], pixels[:, :10])


# --- what files hold -----------------------------------------------------------------------------


@pytest.mark.parametrize("file_format", ["PNG", "WEBP", "BMP", "TIFF", "PPM"])
def test_lossless_formats_give_the_pixels_back(file_format: str) -> None:
    options = {"lossless": True} if file_format == "WEBP" else {}
    decoded = decode(save(Image.fromarray(gradient()), file_format, **options))
    np.testing.assert_array_equal(decoded.pixels, gradient())
    assert decoded.notes == ()


def test_jpeg_equals_pillow() -> None:
    data = save(Image.fromarray(gradient()), "JPEG")
    np.testing.assert_array_equal(decode(data).pixels, np.asarray(Image.open(io.BytesIO(data))))


def test_gif_of_one_frame_is_an_image() -> None:
    data = save(Image.fromarray(gradient()).quantize(64), "GIF")
    np.testing.assert_array_equal(decode(data).pixels, np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


@pytest.mark.parametrize("mode", ["1", "L"])
def test_grey_fills_the_channels(mode: str) -> None:
    grey = Image.fromarray(gradient()[..., 0]).convert(mode)
    decoded = decode(save(grey))
    np.testing.assert_array_equal(decoded.pixels, np.asarray(grey.convert("RGB")))


def test_palette_with_a_transparent_entry_lies_over_white() -> None:
    image = Image.new("P", (32, 32), 0)
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.paste(1, (0, 0, 16, 32))
    decoded = decode(save(image, transparency=0))
    assert decoded.pixels[0, 0].tolist() == [200, 100, 50]
    assert decoded.pixels[0, 31].tolist() == [255, 255, 255]
    assert decoded.notes == ("alpha_over_white",)


def test_alpha_lies_over_white() -> None:
    image = Image.new("RGBA", (32, 32), (100, 0, 200, 51))  # a fifth of the colour, four fifths of white
    decoded = decode(save(image))
    assert decoded.pixels[0, 0].tolist() == [224, 204, 244]
    assert decoded.notes == ("alpha_over_white",)


def with_alpha() -> NDArray[np.uint8]:
    """RGBA [32, 32, 4] with every share of transparency."""
    return np.dstack([gradient(), np.arange(1024).reshape(32, 32) // 4]).astype(np.uint8)


def test_alpha_is_kept_where_four_channels_are_wanted() -> None:
    decoded = decode(save(Image.fromarray(with_alpha())), channels=4)
    np.testing.assert_array_equal(decoded.pixels, with_alpha())
    assert decoded.notes == ()
    for opaque in (Image.fromarray(gradient()), Image.fromarray(gradient()).convert("CMYK"), Image.new("L", (32, 32))):
        pixels = decode(save(opaque, "TIFF"), channels=4).pixels
        np.testing.assert_array_equal(pixels[..., :3], decode(save(opaque, "TIFF")).pixels)
        assert (pixels[..., 3] == 255).all()


def test_transparent_colours_do_not_bleed_when_an_image_shrinks_and_letterboxes_are_transparent() -> None:
    hidden = np.zeros((64, 64, 4), np.uint8)
    hidden[:, ::2] = (255, 0, 0, 0)  # red that nobody sees
    hidden[:, 1::2] = (0, 0, 200, 255)
    pixels = decode(save(Image.fromarray(hidden)), channels=4).pixels
    assert pixels[4:-4, 4:-4, 0].max() == 0 and pixels[4:-4, 4:-4, 2].min() > 190
    wide = decode(save(Image.fromarray(with_alpha()[:16])), channels=4, fit="letterbox").pixels
    assert (wide[:8] == 0).all() and (wide[-8:] == 0).all() and wide[8:24].any()


def test_opaque_alpha_changes_nothing() -> None:
    image = Image.fromarray(gradient())
    image.putalpha(255)
    decoded = decode(save(image))
    np.testing.assert_array_equal(decoded.pixels, gradient())
    assert decoded.notes == ()


def test_grey_with_alpha_lies_over_white_as_luminance() -> None:
    decoded = decode(save(Image.new("LA", (32, 32), (0, 0))), channels=1)
    assert np.unique(decoded.pixels).tolist() == [255]


def test_cmyk_becomes_rgb() -> None:
    decoded = decode(save(Image.new("CMYK", (32, 32), (255, 0, 0, 0)), "JPEG", quality=100))
    np.testing.assert_allclose(decoded.pixels[16, 16], [0, 255, 255], atol=2)  # full cyan
    assert decoded.notes == ("cmyk_to_rgb",)


def test_sixteen_bit_grey_is_scaled_not_clipped() -> None:
    values = np.linspace(0, 65535, 1024).round().astype(np.uint16).reshape(32, 32)
    for data in (sixteen_bit_png(values), save(Image.fromarray(values), "TIFF")):
        decoded = decode(data, channels=1)
        np.testing.assert_array_equal(decoded.pixels[..., 0], values // 256)
        assert decoded.notes == ("16_bit_to_8_bit",)


def test_sixteen_bit_grey_and_colour_come_out_alike() -> None:
    values = np.arange(1024, dtype=np.uint16).reshape(32, 32) * 64
    colour = decode(sixteen_bit_png(np.stack([values] * 3, axis=-1)))
    assert colour.notes == ("16_bit_to_8_bit",)
    np.testing.assert_array_equal(colour.pixels, decode(sixteen_bit_png(values)).pixels)


def test_sixteen_bit_grey_with_a_transparent_value() -> None:
    values = np.full((32, 32), 300, np.uint16)
    values[:, 16:] = 301
    decoded = decode(sixteen_bit_png(values, png_chunk(b"tRNS", struct.pack(">H", 301))))
    assert decoded.pixels[0, 0].tolist() == [1, 1, 1]
    assert decoded.pixels[0, 31].tolist() == [255, 255, 255]


def test_float_tiff_of_unit_range_is_scaled() -> None:
    values = np.linspace(0, 1, 1024, dtype=np.float32).reshape(32, 32)
    decoded = decode(save(Image.fromarray(values), "TIFF"), channels=1)
    np.testing.assert_array_equal(decoded.pixels[..., 0], np.rint(values * 255))
    assert decoded.notes == ("float_to_8_bit",)


@pytest.mark.parametrize("value", [255.0, -0.5, float("nan"), float("inf")])
def test_float_tiff_of_another_range_is_refused(value: float) -> None:
    values = np.zeros((32, 32), np.float32)
    values[0, 0] = value
    error = refuse(save(Image.fromarray(values), "TIFF"))
    assert error.reason == "unsupported_depth"
    assert "scale them" in error.message


def test_whole_numbers_of_32_bits_are_refused() -> None:
    error = refuse(save(Image.fromarray(np.zeros((32, 32), np.int32)), "TIFF"))
    assert error.reason == "unsupported_depth"
    assert "save the image with 8 or 16 bits" in error.message


def test_lab_is_refused() -> None:
    error = refuse(save(Image.new("LAB", (32, 32)), "TIFF"))
    assert error.reason == "unsupported_colour"
    assert "save the image as RGB" in error.message


def test_one_channel_is_luminance() -> None:
    decoded = decode(save(Image.new("RGB", (32, 32), (255, 0, 0))), channels=1)
    assert decoded.pixels.shape == (32, 32, 1)
    assert np.unique(decoded.pixels).tolist() == [76]  # 0.299 * 255, ITU-R 601


@pytest.mark.parametrize("file_format", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(file_format: str, orientation: int) -> None:
    """A viewer shows `shown`; the file stores it turned, with the tag that turns it back."""
    shown = gradient(32, 20)
    stored = {
        1: shown,
        2: shown[:, ::-1],
        3: shown[::-1, ::-1],
        4: shown[::-1],
        5: shown.swapaxes(0, 1),
        6: np.rot90(shown, 1),
        7: shown[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(shown, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if file_format == "WEBP" else {}
    image = Image.fromarray(np.ascontiguousarray(stored))
    decoded = decode(save(image, file_format, exif=exif, **options), fit="letterbox")
    assert (decoded.width, decoded.height) == (20, 32)
    np.testing.assert_array_equal(decoded.pixels[:, 6:26], shown)
    assert decoded.notes.count("rotated_by_exif") == (orientation != 1)


def test_exif_rotated_jpeg_reports_the_size_as_shown() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    decoded = decode(save(Image.fromarray(gradient(24, 40)), "JPEG", exif=exif), fit="crop")
    assert (decoded.width, decoded.height) == (24, 40)
    assert decoded.notes == ("rotated_by_exif", "upsampled", "cropped")


def test_unreadable_exif_does_not_cost_the_image() -> None:
    data = save(Image.fromarray(gradient()), "PNG", exif=b"Exif\0\0MM\0\x2b broken")
    decoded = decode(data)
    np.testing.assert_array_equal(decoded.pixels, gradient())
    assert decoded.notes == ("exif_unreadable",)


# --- formats of today ----------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"no_jp2": True}, {"tile_size": (16, 16)}])
def test_jpeg_2000_gives_the_pixels_back(options: dict[str, Any]) -> None:
    decoded = decode(save(Image.fromarray(gradient()), "JPEG2000", **options))
    np.testing.assert_array_equal(decoded.pixels, gradient())
    assert decoded.notes == ()


def test_avif_is_near_its_pixels_and_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = save(Image.fromarray(gradient(32, 48)), "AVIF", quality=95, exif=exif)
    decoded = decode(data, size=(48, 32))
    assert np.abs(decoded.pixels.astype(int) - np.rot90(gradient(32, 48), -1)).mean() < 3
    assert decoded.notes == ("rotated_by_exif",)


def test_avif_over_white() -> None:
    decoded = decode(save(Image.new("RGBA", (32, 32), (100, 0, 200, 0)), "AVIF"))
    assert decoded.pixels.min() == 255
    assert decoded.notes == ("alpha_over_white",)


def test_jpeg_2000_of_16_bits_is_scaled() -> None:
    values = np.arange(1024, dtype=np.uint16).reshape(32, 32) * 64
    decoded = decode(save(Image.fromarray(values), "JPEG2000"), channels=1)
    np.testing.assert_array_equal(decoded.pixels[..., 0], values // 256)
    assert decoded.notes == ("16_bit_to_8_bit",)


def test_a_jpeg_2000_is_measured_by_its_pixels_too() -> None:
    """Its first header may say another size than the one that the pixels come by."""
    data = bytearray(save(Image.fromarray(gradient()), "JPEG2000"))
    sizes = data.index(b"\xff\x4f\xff\x51") + 8
    data[sizes : sizes + 8] = struct.pack(">II", 60_000, 60_000)
    assert refuse(bytes(data)).reason == "too_large"


@pytest.mark.parametrize("file_format", ["AVIF", "JPEG2000"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.95])
def test_a_part_of_a_file_of_today_is_truncated(file_format: str, share: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    data = save(Image.fromarray(noise), file_format)
    assert refuse(data[: int(len(data) * share)]).reason == "truncated"


def test_several_frames_of_avif_are_refused() -> None:
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "lime")]
    assert refuse(save(frames[0], "AVIF", save_all=True, append_images=frames[1:])).reason == "animated"


def test_bomb_in_avif_is_refused_by_its_header() -> None:
    data = bytearray(save(Image.fromarray(gradient()), "AVIF"))
    sizes = data.index(b"ispe") + 8
    data[sizes : sizes + 8] = struct.pack(">II", 16_000, 16_000)
    assert refuse(bytes(data)).reason == "too_large"


def test_heic_names_what_reads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for brands in (b"heic\0\0\0\0mif1heic", b"mif1\0\0\0\0mif1heix", b"msf1\0\0\0\0hevcmsf1"):
        error = refuse(struct.pack(">I", 8 + len(brands)) + b"ftyp" + brands + bytes(200))
        assert error.reason == "no_heic_reader"
        for part in ("HEIC", "pillow-heif", "lsap[heic]", "save it as JPEG or PNG"):
            assert part in error.message


def test_reasons_of_readers_that_are_missing_are_those_that_archives_try_again() -> None:
    missing = {one.reason for one in PICTURE_FORMATS if one.needs}
    assert missing == {reason for reason in OF_READER if reason.startswith("no_")}


@pytest.mark.parametrize(
    ("then", "is_tried"),
    [({}, True), ({"pillow": "11.9"}, True), ({"pillow": "12.0.10"}, False), ({"pillow": "13.0"}, False)],
)
def test_what_was_not_read_is_tried_again_by_newer_versions_alone(
    then: dict[str, str], is_tried: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.pictures.formats.readers", lambda: {"pillow": "12.0.9"})
    assert may_be_read_now("unsupported_format", then) == is_tried


def test_heic_is_read_where_its_package_is_installed() -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    file = io.BytesIO()
    pillow_heif.from_pillow(Image.fromarray(gradient())).save(file, quality=-1, chroma=444)
    decoded = decode(file.getvalue())
    assert np.abs(decoded.pixels.astype(int) - gradient()).mean() < 3
    assert decoded.notes == ()
    assert refuse(file.getvalue()[:-100]).reason == "truncated"
    error = refuse(struct.pack(">I", 24) + b"ftypheic\0\0\0\0mif1heic" + bytes(200))  # a beginning and no picture
    assert error.reason == "corrupt" and "begins as HEIC" in error.message and "save it as PNG or JPEG" in error.message


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"\xff\x0a" + bytes(50), "JPEG XL"),
        (b"8BPS\0\1" + bytes(50), "Photoshop"),
        (b"%PDF-1.7", "PDF"),
        (b"\0\0\1\0\1\0" + bytes(50), "Windows icon"),
        (b"<?xml version='1.0'?><svg xmlns='...'>", "SVG"),
        (b"\0\0\0\x14ftypqt  " + bytes(50), "film"),
        (b"\0\0\0\x18ftypcrx \0\0\0\1crx isom", "raw file"),
        (bytes(128) + b"DICM", "DICOM"),
    ],
)
def test_what_is_known_and_not_read_is_named(data: bytes, name: str) -> None:
    error = refuse(data)
    assert error.reason == "unsupported_format"
    assert name in error.message and "save it as PNG or JPEG" in error.message


def test_what_the_reader_does_not_do_is_no_damage() -> None:
    deep = bytearray(save(Image.fromarray(gradient()), "JPEG"))
    deep[deep.index(b"\xff\xc0") + 4] = 12  # bits
    packed = bytearray(save(Image.fromarray(gradient()), "TIFF"))
    entry = packed.index(struct.pack("<HHI", 259, 3, 1))
    packed[entry + 8 : entry + 10] = struct.pack("<H", 34887)  # LERC
    bitmap = bytearray(save(Image.fromarray(gradient()), "BMP"))
    bitmap[30] = 4  # a JPEG within
    for data in (deep, packed, bitmap):
        error = refuse(bytes(data))
        assert error.reason == "unsupported_format"
        assert "save it as PNG or JPEG" in error.message


# --- alpha that nobody promised ------------------------------------------------------------------


def bitmap_of_32_bits(pixels: NDArray[np.uint8], alpha: int) -> bytes:
    """A BMP with masks, the last of them for alpha, as programs write it that leave the fourth byte as it was."""
    height, width = pixels.shape[:2]
    body = np.dstack([pixels[::-1, :, ::-1], np.full((height, width), alpha, np.uint8)]).tobytes()
    header = struct.pack("<IiiHHIIiiII", 108, width, height, 1, 32, 3, len(body), 0, 0, 0, 0)
    header += struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000) + bytes(52)
    return b"BM" + struct.pack("<IHHI", 14 + len(header) + len(body), 0, 0, 14 + len(header)) + header + body


def tiff_without_word_of_its_fourth_channel() -> bytes:
    image = Image.fromarray(gradient())
    image.putalpha(0)
    data = save(image, "TIFF")
    return data.replace(struct.pack("<HHI", 338, 3, 1), struct.pack("<HHI", 65000, 3, 1))  # ExtraSamples, renamed


def test_an_empty_channel_that_is_not_said_to_be_alpha_paints_nothing_white() -> None:
    for data in (bitmap_of_32_bits(gradient(), 0), tiff_without_word_of_its_fourth_channel()):
        decoded = decode(data)
        np.testing.assert_array_equal(decoded.pixels, gradient())
        assert decoded.notes == ("empty_alpha_ignored",)


def test_alpha_of_a_bitmap_that_is_used_counts() -> None:
    assert decode(bitmap_of_32_bits(gradient(), 255)).notes == ()
    assert decode(bitmap_of_32_bits(gradient(), 128)).notes == ("alpha_over_white",)


@pytest.mark.parametrize("file_format", ["PNG", "WEBP", "TIFF", "JPEG2000"])
def test_an_empty_channel_that_is_said_to_be_alpha_is_white(file_format: str) -> None:
    image = Image.fromarray(gradient())
    image.putalpha(0)
    decoded = decode(save(image, file_format))
    assert decoded.pixels.min() == 255
    assert decoded.notes == ("alpha_over_white",)


# --- pages of TIFF -------------------------------------------------------------------------------


def tiff_of(*sizes: tuple[int, int], derived: tuple[int, ...] = (), big: bool = False) -> bytes:
    """Pages of these heights and widths, the derived ones said to be reduced copies."""
    pages = [Image.fromarray(gradient(*size)) for size in sizes]
    for number, page in enumerate(pages):
        page.encoderinfo = {"tiffinfo": {254: 1 if number in derived else 0}}
    return save(
        pages[0], "TIFF", save_all=True, append_images=pages[1:], big_tiff=big, tiffinfo={254: int(0 in derived)}
    )


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize(
    ("sizes", "derived"),
    [
        (((32, 32), (16, 16)), ()),  # by its size
        (((32, 32), (16, 16), (8, 8)), ()),  # a pyramid
        (((32, 32), (24, 24)), (1,)),  # by its word
        (((32, 32), (10, 16)), (1,)),
    ],
)
def test_a_tiff_with_small_copies_is_its_first_page(sizes: Any, derived: Any, big: bool) -> None:
    decoded = decode(tiff_of(*sizes, derived=derived, big=big))
    np.testing.assert_array_equal(decoded.pixels, gradient())
    assert decoded.notes == ("first_of_several_pictures",)


@pytest.mark.parametrize("derived", [(), (0,)])
def test_a_tiff_that_begins_with_its_thumbnail_is_the_large_page(derived: Any) -> None:
    decoded = decode(tiff_of((16, 16), (32, 32), derived=derived))
    np.testing.assert_array_equal(decoded.pixels, gradient())
    assert (decoded.width, decoded.notes) == (32, ("page_of_full_size",))


@pytest.mark.parametrize("sizes", [((32, 32), (32, 32)), ((32, 32), (20, 20)), ((32, 32), (16, 12))])
def test_a_tiff_of_several_pictures_is_refused(sizes: Any) -> None:
    error = refuse(tiff_of(*sizes))
    assert error.reason == "multipage"
    assert "2 frames or pages, 2 of them pictures of their own" in error.message


def test_previews_of_a_raw_file_are_not_taken_for_it() -> None:
    data = tiff_of((16, 16), derived=(0,)).replace(struct.pack("<HHI", 284, 3, 1), struct.pack("<HHI", 330, 3, 1))
    error = refuse(data)
    assert error.reason == "unsupported_format"
    assert "raw file" in error.message and "develop it" in error.message


# --- files that cannot be used -------------------------------------------------------------------


def test_no_bytes() -> None:
    error = refuse(b"")
    assert error.reason == "empty"
    assert "copy it again" in error.message


@pytest.mark.parametrize("data", [b"notes on the pictures, not a picture\n", b"P4ragraph", b"\0" * 64, b"\xff\xd8"])
def test_other_bytes_are_no_image(data: bytes) -> None:
    error = refuse(data)
    assert error.reason == "not_an_image"
    assert repr(data[:8]) in error.message
    assert "convert it" in error.message


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM"])
def test_half_a_file_is_truncated(file_format: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    data = save(Image.fromarray(noise), file_format)
    error = refuse(data[: len(data) // 2])
    assert error.reason == "truncated"
    assert f"{len(data) // 2} bytes" in error.message
    assert "copy it again" in error.message


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "BMP", "GIF"])
def test_header_alone_is_truncated(file_format: str) -> None:
    assert refuse(save(Image.fromarray(gradient()), file_format)[:20]).reason == "truncated"


def test_damaged_middle_is_corrupt() -> None:
    data = bytearray(save(Image.fromarray(gradient())))
    middle = data.index(b"IDAT") + 12
    data[middle : middle + 40] = b"\xaa" * 40
    error = refuse(bytes(data))
    assert error.reason == "corrupt"
    assert "copy it again" in error.message


@pytest.mark.parametrize(
    ("file_format", "reason"), [("GIF", "animated"), ("PNG", "animated"), ("WEBP", "animated"), ("TIFF", "multipage")]
)
def test_several_frames_are_refused(file_format: str, reason: str) -> None:
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "lime", "blue")]
    error = refuse(save(frames[0], file_format, save_all=True, append_images=frames[1:]))
    assert error.reason == reason
    assert "3 frames" in error.message
    assert "save each one" in error.message


def test_first_picture_of_a_phone_file_is_the_photograph() -> None:
    red, blue = (Image.new("RGB", (32, 32), colour) for colour in ("red", "blue"))
    decoded = decode(save(red, "MPO", save_all=True, append_images=[blue]))
    np.testing.assert_allclose(decoded.pixels[0, 0], [255, 0, 0], atol=3)
    assert decoded.notes == ("first_of_several_pictures",)


@pytest.mark.parametrize("size", [(1, 1), (7, 32), (32, 7)])
def test_smaller_than_the_limit(size: tuple[int, int]) -> None:
    error = refuse(save(Image.new("L", size)))
    assert error.reason == "too_small"
    assert f"{size[0]}x{size[1]}" in error.message
    assert "at least 8" in error.message


def test_limit_of_the_side_is_a_parameter() -> None:
    assert decode(save(Image.new("L", (7, 7))), min_side=7).width == 7


@pytest.mark.parametrize("side", [9_500, 60_000, 2**31 - 1])
def test_decompression_bomb_is_refused_by_its_header(side: int) -> None:
    """9,500 px is where Pillow would only warn."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    idat = png_chunk(b"IDAT", zlib.compress(b"\0" * 1000))
    error = refuse(b"\x89PNG\r\n\x1a\n" + header + idat + png_chunk(b"IEND", b""))
    assert error.reason == "too_large"
    assert f"{side}x{side}" in error.message
    assert "shrink" in error.message


def test_bomb_in_webp_is_refused() -> None:
    """Pillow's reader itself refuses this header, before ours can look at it."""
    body = b"VP8X" + struct.pack("<I", 10) + b"\x02\0\0\0" + struct.pack("<I", 16382)[:3] * 2
    error = refuse(b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body)
    assert error.reason == "too_large"
    assert "shrink" in error.message


def test_limit_of_the_pixels_is_a_parameter() -> None:
    assert refuse(save(Image.new("L", (32, 32))), max_pixels=1023).reason == "too_large"


def test_error_survives_the_way_between_processes() -> None:
    error = refuse(b"")
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), again.reason, str(again)) == (BadImageError, "empty", error.message)
    assert isinstance(again, TaskError)
    assert isinstance(again, ValueError)


@pytest.mark.parametrize(
    ("options", "match"),
    [({"fit": "cover"}, "'cover'.*letterbox"), ({"channels": 2}, "2.*RGB"), ({"size": (0, 32)}, "height is 0")],
)
def test_wrong_arguments_are_not_booked_on_the_image(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match) as caught:
        decode(save(Image.fromarray(gradient())), **options)
    assert not isinstance(caught.value, BadImageError)


# --- label maps --------------------------------------------------------------------------------


def test_labels_are_gray_values_colours_or_numbers_of_a_palette() -> None:
    labels = np.arange(64).reshape(8, 8).astype(np.uint8) // 16
    palette = Image.fromarray(labels)
    palette.putpalette([9, 9, 9] * 256)  # all of one colour, and yet four labels
    for data, wanted in (
        (save(Image.fromarray(labels)), labels),
        (save(palette), labels),
        (save(Image.fromarray(labels > 1)), labels > 1),
        (save(Image.fromarray(labels.astype(np.uint16) * 1000)), labels.astype(int) * 1000),
        (save(Image.fromarray(np.stack([labels, labels * 0, labels], axis=-1))), labels.astype(int) * 0x10001),
    ):
        np.testing.assert_array_equal(decode_labels(data, size=(8, 8)), wanted)


def test_a_map_of_another_size_gives_the_nearest_label_and_mixes_none() -> None:
    labels = np.array([[0, 9], [4, 250]], np.uint8)
    large = decode_labels(save(Image.fromarray(labels)), size=(6, 6))
    np.testing.assert_array_equal(large, labels.repeat(3, axis=0).repeat(3, axis=1))
    back = decode_labels(save(Image.fromarray(large.astype(np.uint8))), size=(2, 2))
    np.testing.assert_array_equal(back, labels)


@pytest.mark.parametrize(
    ("data", "reason", "message"),
    [
        (b"", "not_an_image", "wanted a label map: save it as PNG"),
        (save(Image.fromarray(gradient()), "JPEG"), "not_an_image", "wanted a label map: save it as PNG"),
        (save(Image.fromarray(gradient(32, 16))), "wrong_aspect", "the label map is 16x32 pixels, its image 32x32"),
        (save(Image.new("RGBA", (32, 32))), "unsupported_colour", "stored as RGBA; wanted gray, palette or RGB"),
    ],
)
def test_what_is_no_label_map_is_refused(data: bytes, reason: str, message: str) -> None:
    with pytest.raises(BadImageError) as caught:
        decode_labels(data, size=(32, 32))
    assert caught.value.reason == reason and message in str(caught.value)
