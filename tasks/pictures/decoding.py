"""From the bytes of an image file to the uint8 pixels that a network reads, or a reason why not."""

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import (
    BmpImagePlugin,
    ExifTags,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from lsap_core.images import ContentBox
from tasks.errors import BadImageError

Fit = Literal["refuse", "crop", "letterbox", "stretch"]

FITS: tuple[Fit, ...] = ("refuse", "crop", "letterbox", "stretch")
FORMATS = ("PNG", "JPEG", "WebP", "TIFF", "GIF", "BMP", "PNM")
MAX_PIXELS = 89_478_485  # 9459 x 9459: where Pillow begins to warn of decompression bombs
MIN_SIDE = 8

_ALPHA_BACKGROUND = (255, 255, 255, 255)
_PNG = b"\x89PNG\r\n\x1a\n"
_BACKGROUND = 0  # of letterboxed images, as the published car generator was trained

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class DecodedImage:
    """An image as a network of one size reads it.

    Attributes:
        pixels: uint8 [H, W, C] of that size, C = 1 (luminance) or 3 (RGB).
        width: pixels across of the file's image as a viewer shows it, that is after EXIF rotation.
        height: pixels down, likewise.
        notes: codes of what was done beyond plain decoding and shrinking: "first_of_several_pictures",
            "16_bit_to_8_bit", "rotated_by_exif" (TIFF: turned without a note), "exif_unreadable",
            "float_to_8_bit", "alpha_over_white", "cmyk_to_rgb", "upsampled", "cropped", "letterboxed",
            "stretched".
    """

    pixels: NDArray[np.uint8]
    width: int
    height: int
    notes: tuple[str, ...]


def decode_image(
    data: bytes,
    *,
    size: tuple[int, int],
    channels: int,
    fit: Fit = "refuse",
    min_side: int = MIN_SIDE,
    max_pixels: int = MAX_PIXELS,
) -> DecodedImage:
    """Decode one image file to the size and channels that a network reads.

    Size, frames and shape are judged from the header, before any pixel is decoded. Then, in this order:
    EXIF rotation, depth to 8 bits (the high byte of 16), alpha over white (as browsers show it), colour to
    RGB or to luminance (ITU-R 601, Pillow's "L"), and resizing with Pillow's antialiased BILINEAR, which is
    what published encoders read. An image that has the size already keeps its pixels. Embedded colour profiles
    are not applied, as in the published protocols.

    Args:
        data: the whole file.
        size: height and width of the result, in pixels: the side of a generator's images twice, the size of its
            content box (see `place_content`), or what an encoder reads.
        channels: 3 for RGB, 1 for luminance.
        fit: what to do with an image of another aspect ratio than the size, that is with a side that is off by a
            pixel or more. "refuse" it; "crop": the least that covers the size, then the centre; "letterbox": the
            most that fits into the size, centred on black; "stretch": each side for itself, aspect ratio not kept.
        min_side: refuse images with a shorter side than this, in pixels.
        max_pixels: refuse images with more pixels than this.

    Returns:
        The pixels, the size as shown, and notes.

    Raises:
        BadImageError: the file cannot be used; its reason is one of "empty", "not_an_image", "truncated",
            "corrupt", "too_large", "too_small", "animated" (more than one frame), "multipage", "not_square" or,
            where no square is wanted, "wrong_aspect", "unsupported_colour", "unsupported_depth".
        ValueError: fit, channels or a number is outside what is described here.
    """
    _check_arguments(size, channels, fit, min_side, max_pixels)
    notes: list[str] = []
    image = _decode(data, size if fit == "refuse" else None, channels, min_side, max_pixels, notes)
    width, height = image.size
    if fit == "refuse" and not has_aspect(image.size, size):
        raise _wrong_aspect(image.size, size)
    fitted = _fit(image, size, fit, max_pixels, notes)
    pixels = np.array(fitted, dtype=np.uint8).reshape(*size, channels)
    return DecodedImage(pixels, width, height, tuple(notes))


def decode_photo(data: bytes, *, min_side: int = MIN_SIDE, max_pixels: int = MAX_PIXELS) -> DecodedImage:
    """Decode one image file at its own size, upright, in RGB: as `decode_image` does, but for the resizing.

    Raises:
        BadImageError: the file cannot be used.
    """
    notes: list[str] = []
    image = _decode(data, None, 3, min_side, max_pixels, notes)
    return DecodedImage(np.array(image, dtype=np.uint8), *image.size, tuple(notes))


def decode_labels(data: bytes, *, size: tuple[int, int], max_pixels: int = MAX_PIXELS) -> NDArray[np.int64]:
    """Decode a label map, a PNG file, to a size: every gray value, colour, or number of a palette is a label.

    Args:
        data: the whole file.
        size: height and width of the result, in pixels; a map of the same aspect ratio becomes it by the nearest pixel.
        max_pixels: refuse maps with more pixels than this.

    Returns:
        Labels [height, width].

    Raises:
        BadImageError: the file cannot be used; its reason is that of `decode_image`, or "wrong_aspect".
    """
    if not data.startswith(_PNG):
        raise BadImageError("not_an_image", f"the file begins with {data[:8]!r}; wanted a label map: save it as PNG")
    with _reading(data):
        file = _open_header(data)
        _check_header(file, None, 1, max_pixels, [])
        if not has_aspect(file.size, size):
            height, width = size
            raise BadImageError(
                "wrong_aspect",
                f"the label map is {file.size[0]}x{file.size[1]} pixels, its image {width}x{height}; wanted the same "
                "aspect ratio: make the map of the image as it was aligned and cropped",
            )
        file.load()
        if file.mode not in ("1", "L", "P", "I", "I;16", "I;16B", "RGB"):
            raise BadImageError(
                "unsupported_colour",
                f"the label map's pixels are stored as {file.mode}; wanted gray, palette or RGB: save it without alpha",
            )
        values = np.asarray(file).astype(np.int64)
    labels = values if values.ndim == 2 else values @ np.array([1 << 16, 1 << 8, 1])
    rows, columns = (
        np.minimum(((np.arange(new) + 0.5) * old / new).astype(np.int64), old - 1)
        for new, old in zip(size, labels.shape, strict=True)
    )
    return labels[np.ix_(rows, columns)]


def place_content(pixels: NDArray[np.uint8], *, resolution: int, content_box: ContentBox | None) -> NDArray[np.uint8]:
    """Pixels [H, W, C] of a content box within a generator's square [R, R, C]; around them is its background, black.

    Args:
        pixels: uint8, of the box's size; those of the whole square pass when there is no box.
        resolution: side R of the square.
        content_box: (top, bottom, left, right), or None.
    """
    if content_box is None:
        return pixels
    top, bottom, left, right = content_box
    square = np.full((resolution, resolution, pixels.shape[2]), _BACKGROUND, np.uint8)
    square[top:bottom, left:right] = pixels
    return square


def _check_arguments(size: tuple[int, int], channels: int, fit: str, min_side: int, max_pixels: int) -> None:
    if fit not in FITS:
        raise ValueError(f"fit is {fit!r}: choose one of {', '.join(FITS)}")
    if channels not in (1, 3):
        raise ValueError(f"channels is {channels}: choose 3 (RGB) or 1 (luminance)")
    height, width = size
    for name, value in (("height", height), ("width", width), ("min_side", min_side), ("max_pixels", max_pixels)):
        if value < 1:
            raise ValueError(f"{name} is {value}: give a number of pixels above 0")


def _decode(
    data: bytes, size: tuple[int, int] | None, channels: int, min_side: int, max_pixels: int, notes: list[str]
) -> Image.Image:
    """The whole image, upright, "RGB" or "L"; one without a size's aspect ratio is refused where a size is given."""
    if not data:
        raise BadImageError("empty", "the file holds 0 bytes, an image was wanted: copy it again from where it came")
    with _reading(data):
        file = _open_header(data)
        _check_header(file, size, min_side, max_pixels, notes)
        if any(";16" in str(tile.args) for tile in file.tile):
            notes.append("16_bit_to_8_bit")
        file.load()
        image = _turn_upright(file, notes)
        image = _to_eight_bits(image, file.format, notes)
        image = _flatten_alpha(image, notes)
        return _to_colour(image, channels, notes)


# --- the header --------------------------------------------------------------------------------


def _open_header(data: bytes) -> ImageFile.ImageFile:
    """Read the header with the reader that the first bytes call for.

    Not by `Image.open`: that tries every format Pillow knows, among them some that start other programs, and
    it warns of large images where a refusal is wanted.
    """
    file = io.BytesIO(data)
    readers: list[tuple[tuple[bytes, ...], Callable[[io.BytesIO], ImageFile.ImageFile]]] = [
        ((_PNG,), PngImagePlugin.PngImageFile),
        ((b"\xff\xd8\xff",), JpegImagePlugin.jpeg_factory),
        ((b"GIF87a", b"GIF89a"), GifImagePlugin.GifImageFile),
        ((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), TiffImagePlugin.TiffImageFile),
        ((b"BM",), BmpImagePlugin.BmpImageFile),
        (
            tuple(b"P%d%c" % (kind, gap) for kind in range(1, 7) for gap in b" \t\r\n"),
            PpmImagePlugin.PpmImageFile,
        ),
    ]
    for magics, reader in readers:
        if data.startswith(magics):
            return reader(file)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return WebPImagePlugin.WebPImageFile(file)
    raise BadImageError(
        "not_an_image",
        f"the file begins with {data[:8]!r}, the start of {', '.join(FORMATS)} was wanted: "
        "convert it to one of these, or take it out of the source",
    )


def _check_header(
    image: ImageFile.ImageFile, size: tuple[int, int] | None, min_side: int, max_pixels: int, notes: list[str]
) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise BadImageError(
            "too_large",
            f"the header announces {width}x{height} = {width * height} pixels, at most {max_pixels} were "
            "wanted: shrink the image beforehand",
        )
    if min(width, height) < min_side:
        raise BadImageError(
            "too_small",
            f"the image is {width}x{height} pixels, sides of at least {min_side} were wanted: "
            "take it out of the source, or find the original",
        )
    num_frames = getattr(image, "n_frames", 1)
    if num_frames > 1 and image.format == "MPO":
        notes.append("first_of_several_pictures")  # phones append a depth map or preview; the first is the photograph
    elif num_frames > 1:
        reason = "multipage" if image.format == "TIFF" else "animated"
        raise BadImageError(
            reason,
            f"the {image.format} file holds {num_frames} frames or pages, one image per file was wanted: "
            "save each one as a file of its own",
        )
    # EXIF may turn the image, so only what fits neither way is refused before its pixels are decoded.
    if size is not None and not (has_aspect((width, height), size) or has_aspect((height, width), size)):
        raise _wrong_aspect(image.size, size)


def has_aspect(found: tuple[int, int], size: tuple[int, int]) -> bool:
    """Whether an image, width and height, has the aspect ratio of a size, height and width, within a pixel."""
    (width, height), (wanted_height, wanted_width) = found, size
    return abs(width * wanted_height - height * wanted_width) < max(size)


def _wrong_aspect(found: tuple[int, int], size: tuple[int, int]) -> BadImageError:
    height, width = size
    ways = "or set `fit: crop` (cut off the longer side) or `fit: letterbox` (add black bars)"
    if width == height:
        return BadImageError(
            "not_square",
            f"the image is {found[0]}x{found[1]} pixels, a square was wanted: align and crop the images beforehand, "
            f"{ways}",
        )
    return BadImageError(
        "wrong_aspect",
        f"the image is {found[0]}x{found[1]} pixels, {width}x{height} or the same aspect ratio was wanted, that of the "
        f"generator's content box: crop the images beforehand, {ways}",
    )


@contextmanager
def _reading(data: bytes) -> Iterator[None]:
    """Turn whatever a file format's reader trips over into the reason that the file gives.

    Broken bytes raise nearly every class of exception inside Pillow, hence the broad clause. Memory is the
    machine's business, not the file's, and passes.
    """
    try:
        yield
    except (BadImageError, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise BadImageError("too_large", f"{error}: shrink the image beforehand") from error
    except Exception as error:
        what = f"({type(error).__name__}: {error})"
        if _ends_early(data, error):
            raise BadImageError(
                "truncated",
                f"the file stops after {len(data)} bytes, before the image is complete {what}: "
                "copy it again from where it came",
            ) from error
        raise BadImageError(
            "corrupt",
            f"the file begins like an image and could not be decoded {what}: "
            "copy it again from where it came, or open and save it in an image editor",
        ) from error


def _ends_early(data: bytes, error: Exception) -> bool:
    """Whether a file that failed to decode lacks its end, by its format's end mark or announced length."""
    if isinstance(error, EOFError) or "truncated" in str(error).lower():
        return True
    if data.startswith(_PNG):
        return b"IEND" not in data
    if data.startswith(b"\xff\xd8"):
        return not data.rstrip(b"\0").endswith(b"\xff\xd9")
    if data.startswith(b"GIF8"):
        return not data.rstrip(b"\0").endswith(b";")
    if data.startswith(b"RIFF"):
        return int.from_bytes(data[4:8], "little") + 8 > len(data)
    if data.startswith(b"BM"):
        return int.from_bytes(data[2:6], "little") > len(data)
    if data.startswith((b"II*\0", b"MM\0*")):
        return int.from_bytes(data[4:8], "little" if data[:2] == b"II" else "big") >= len(data)
    return False


# --- pixels ------------------------------------------------------------------------------------


def _turn_upright(image: Image.Image, notes: list[str]) -> Image.Image:
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # broken EXIF raises nearly anything; the pixels are good, and the note tells
        notes.append("exif_unreadable")
        return image
    if orientation not in _UPRIGHT:
        return image
    notes.append("rotated_by_exif")
    return image.transpose(_UPRIGHT[orientation])


def _to_eight_bits(image: Image.Image, file_format: str | None, notes: list[str]) -> Image.Image:
    """Bring grey images of 16 bits (by the high byte, as Pillow has done for colour) and of floats to 8 bits.

    Pillow's own conversion of these modes would clip them at 255.
    """
    if image.mode == "F":
        values = np.asarray(image)
        if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
            raise BadImageError(
                "unsupported_depth",
                f"the pixels are floats from {values.min():g} to {values.max():g}, 0 (black) to 1 (white) "
                "was wanted: scale them, or save the image with 8 bits",
            )
        notes.append("float_to_8_bit")
        return Image.fromarray(np.rint(values * 255).astype(np.uint8))
    if image.mode == "I" and file_format not in ("PNG", "PPM"):  # those two say that I is 0 ... 65535
        raise BadImageError(
            "unsupported_depth",
            "the pixels are 32-bit whole numbers without a known white, 8 or 16 bits were wanted: "
            "save the image with 8 or 16 bits",
        )
    if image.mode != "I" and not image.mode.startswith("I;16"):
        return image
    values = np.asarray(image)
    grey = Image.fromarray((values >> 8).astype(np.uint8))
    transparent = image.info.get("transparency")
    if transparent is not None:
        grey.putalpha(Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
    return grey


def _flatten_alpha(image: Image.Image, notes: list[str]) -> Image.Image:
    if not image.has_transparency_data:
        return image
    if image.mode == "La":
        image = image.convert("LA")
    colours = image.convert("RGBA")
    lowest, _ = colours.getchannel("A").getextrema()
    if lowest == 255:
        return colours.convert("RGB")
    notes.append("alpha_over_white")
    white = Image.new("RGBA", colours.size, _ALPHA_BACKGROUND)
    return Image.alpha_composite(white, colours).convert("RGB")


def _to_colour(image: Image.Image, channels: int, notes: list[str]) -> Image.Image:
    if image.mode == "CMYK":
        notes.append("cmyk_to_rgb")
    elif image.mode not in ("1", "L", "P", "RGB", "RGBX", "YCbCr"):
        raise BadImageError(
            "unsupported_colour",
            f"the pixels are stored as {image.mode}, grey, palette, RGB or CMYK was wanted: save the image as RGB",
        )
    if channels == 3:
        return image if image.mode == "RGB" else image.convert("RGB")
    return image if image.mode == "L" else image.convert("RGB").convert("L")


def _fit(image: Image.Image, size: tuple[int, int], fit: Fit, max_pixels: int, notes: list[str]) -> Image.Image:
    (width, height), (wanted_height, wanted_width) = image.size, size
    if width < wanted_width or height < wanted_height:
        notes.append("upsampled")
    is_of_shape = has_aspect(image.size, size)
    if is_of_shape or fit == "stretch":
        if not is_of_shape:
            notes.append("stretched")
        return _resize(image, wanted_width, wanted_height)
    if fit == "letterbox":
        notes.append("letterboxed")
        return _letterbox(image, wanted_width, wanted_height)
    notes.append("cropped")
    return _crop(image, wanted_width, wanted_height, max_pixels)


def _resize(image: Image.Image, width: int, height: int) -> Image.Image:
    return image if image.size == (width, height) else image.resize((width, height), Image.Resampling.BILINEAR)


def _crop(image: Image.Image, width: int, height: int, max_pixels: int) -> Image.Image:
    """The least that covers the wanted size, then the centre, rounded as torchvision rounds."""
    own_width, own_height = image.size
    if own_width * height < own_height * width:
        new_width, new_height = width, int(width * own_height / own_width)
    else:
        new_width, new_height = int(height * own_width / own_height), height
    if new_width * new_height > max_pixels:
        raise BadImageError(
            "not_square" if width == height else "wrong_aspect",
            f"the image is {own_width}x{own_height} pixels, too far from the shape of {width}x{height} to be scaled "
            "until it covers that and cropped: cut out the part that matters beforehand",
        )
    left = round((new_width - width) / 2)
    top = round((new_height - height) / 2)
    return _resize(image, new_width, new_height).crop((left, top, left + width, top + height))


def _letterbox(image: Image.Image, width: int, height: int) -> Image.Image:
    """The most that fits into the wanted size, centred on black, as the published car generator was trained."""
    scale = min(width / image.width, height / image.height)
    inner = _resize(image, max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    canvas = Image.new(image.mode, (width, height), _BACKGROUND)
    canvas.paste(inner, ((width - inner.width) // 2, (height - inner.height) // 2))
    return canvas
