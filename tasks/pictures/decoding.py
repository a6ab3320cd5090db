"""From the bytes of an image file to the uint8 pixels that a network reads, or a reason why not."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile, TiffImagePlugin

from lsap_core.images import IMAGE_CHANNELS, ContentBox
from tasks.errors import BadImageError
from tasks.pictures.colours import COLOURS_NOT_APPLIED, tells_other_colours
from tasks.pictures.formats import CODESTREAM, PNG, format_of, is_cut_off, jpeg_2000_sizes, num_pictures, open_header
from tasks.pictures.metadata import without_needless_metadata
from tasks.pictures.tiff_pages import pages_of, pictures_among

Fit = Literal["refuse", "crop", "letterbox", "stretch"]

FITS: tuple[Fit, ...] = ("refuse", "crop", "letterbox", "stretch")
MAX_PIXELS = 89_478_485  # 9459 x 9459: where Pillow begins to warn of decompression bombs
MIN_SIDE = 8

ALTERATIONS = {
    "first_of_several_pictures": "the first of several pictures in the file",
    "page_of_full_size": "the page of a TIFF that the others are small copies of",
    "16_bit_to_8_bit": "16 bits cut to 8",
    "12_bit_to_8_bit": "12 bits cut to 8",
    "10_bit_to_8_bit": "10 bits cut to 8",
    "float_to_8_bit": "floats cut to 8 bits",
    "rotated_by_exif": "turned as EXIF says",
    "exif_unreadable": "EXIF unreadable: not turned",
    "metadata_dropped": "metadata too large or damaged: not turned",
    "alpha_over_white": "transparency laid over white",
    "empty_alpha_ignored": "alpha channel empty where none is promised: ignored",
    "cmyk_to_rgb": "CMYK converted",
    "colour_profile_not_applied": "colours are not sRGB, profile not applied",
    "upsampled": "enlarged",
    "cropped": "cropped",
    "letterboxed": "letterboxed",
    "stretched": "stretched",
}
"""What notes of decoded images mean: column `altered` of an archive's rows."""

_ALPHA_BACKGROUND = (255, 255, 255, 255)
_LIMITS = re.compile(
    r"unsupported|not supported|cannot handle|not implemented|unknown pixel mode|unknown data organization|"
    r"decoder \S+ not available|security limit",
    re.IGNORECASE,
)
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
        pixels: uint8 [H, W, C] of that size, C = 1 (luminance), 3 (RGB) or 4 (RGBA, not premultiplied).
        width: pixels across of the file's image as a viewer shows it, that is after EXIF rotation.
        height: pixels down, likewise.
        notes: codes of what was done beyond plain decoding and shrinking, and of what was left undone; see ALTERATIONS.
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
    are not applied, as in the published protocols; one that is not sRGB's gets a note. An alpha channel that is 0
    everywhere counts in formats that promise alpha only. Metadata that nobody reads decides nothing, whatever its size.

    Args:
        data: the whole file.
        size: height and width of the result, in pixels: the side of a generator's images twice, the size of its
            content box (see `place_content`), or what an encoder reads.
        channels: 3 for RGB, 1 for luminance, 4 for RGBA: alpha is kept, and opaque where there is none.
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
            where no square is wanted, "wrong_aspect", "unsupported_colour", "unsupported_depth", "unsupported_format"
            (a picture that is sound, as far as one knows, and that this reader does not read).
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
    if not data.startswith(PNG):
        raise BadImageError("not_an_image", f"the file begins with {data[:8]!r}; wanted a label map: save it as PNG")
    with _reading(data):
        file = _open(data, [])
        _check_header(file, data, None, 1, max_pixels, [])
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


def place_content(
    pixels: NDArray[np.uint8], *, size: tuple[int, int], content_box: ContentBox | None
) -> NDArray[np.uint8]:
    """Pixels [h, w, C] of a content box within a generator's image [H, W, C]; around them is its background, black.

    Args:
        pixels: uint8, of the box's size; those of the whole image pass when there is no box.
        size: height H and width W of the image.
        content_box: (top, bottom, left, right), or None.
    """
    if content_box is None:
        return pixels
    top, bottom, left, right = content_box
    image = np.full((*size, pixels.shape[2]), _BACKGROUND, np.uint8)
    image[top:bottom, left:right] = pixels
    return image


def _check_arguments(size: tuple[int, int], channels: int, fit: str, min_side: int, max_pixels: int) -> None:
    if fit not in FITS:
        raise ValueError(f"fit is {fit!r}: choose one of {', '.join(FITS)}")
    if channels not in IMAGE_CHANNELS:
        raise ValueError(f"channels is {channels}: choose 3 (RGB), 1 (luminance) or 4 (RGBA)")
    height, width = size
    for name, value in (("height", height), ("width", width), ("min_side", min_side), ("max_pixels", max_pixels)):
        if value < 1:
            raise ValueError(f"{name} is {value}: give a number of pixels above 0")


def _decode(
    data: bytes, size: tuple[int, int] | None, channels: int, min_side: int, max_pixels: int, notes: list[str]
) -> Image.Image:
    """The whole image, upright, "RGB", "L" or "RGBA"; one of another aspect ratio is refused where a size is given."""
    if not data:
        raise BadImageError("empty", "the file holds 0 bytes, an image was wanted: copy it again from where it came")
    with _reading(data):
        file = _open(data, notes)
        _check_header(file, data, size, min_side, max_pixels, notes)
        if (depth := _depth(file, data)) > 8:
            notes.append(f"{depth}_bit_to_8_bit")
        if COLOURS_NOT_APPLIED not in notes and tells_other_colours(file, data):
            notes.append(COLOURS_NOT_APPLIED)
        promises_alpha = _promises_alpha(file, data)
        if isinstance(file, TiffImagePlugin.TiffImageFile) and file.tag_v2.get(ExifTags.Base.Orientation) in _UPRIGHT:
            notes.append("rotated_by_exif")  # by Pillow, while it reads
        file.load()
        image = _turn_upright(file, notes)
        image = _to_eight_bits(image, file.format, notes)
        image = _flatten_alpha(image, promises_alpha, channels == 4, notes)
        return _to_colour(image, channels, notes)


# --- the header --------------------------------------------------------------------------------


def _open(data: bytes, notes: list[str]) -> ImageFile.ImageFile:
    """The header of a file, read without the metadata that nobody needs; of a TIFF, that of the page to be read."""
    file = open_header(without_needless_metadata(data, notes))
    if isinstance(file, TiffImagePlugin.TiffImageFile):
        _choose_page(file, data, notes)
    return file


def _choose_page(file: TiffImagePlugin.TiffImageFile, data: bytes, notes: list[str]) -> None:
    """Turn to the one page of a TIFF that is a picture of its own; the others may be its thumbnails and masks."""
    pages = pages_of(data)
    own = pictures_among(pages)
    if not own and any(page.has_pages_below for page in pages):
        raise BadImageError(
            "unsupported_format",
            "the TIFF holds previews alone, with the picture below them, as a camera's raw file (DNG, NEF) does; a "
            "picture was wanted: develop it, and save it as PNG or JPEG",
        )
    if len(own) > 1:
        raise BadImageError(
            "multipage",
            f"the TIFF file holds {len(pages)} frames or pages, {len(own)} of them pictures of their own; one image "
            "per file was wanted: save each one as a file of its own",
        )
    if own and own[0] > 0:
        file.seek(own[0])
    if len(pages) > 1:
        notes.append("page_of_full_size" if own and own[0] > 0 else "first_of_several_pictures")


def _depth(file: ImageFile.ImageFile, data: bytes) -> int:
    """Bits of a channel, as far as they are more than 8 and whole numbers."""
    if file.format == "JPEG2000" and (sizes := jpeg_2000_sizes(data)):
        return sizes[2]
    if file.format == "AVIF" and (start := data.find(b"av1C", 0, 65536)) >= 0:
        flags = int.from_bytes(data[start + 6 : start + 7], "big")  # AV1 in ISO media files, section 2.3
        return 8 if not flags & 0x40 else 12 if flags & 0x20 else 10
    if file.format == "HEIF":
        return int(file.info.get("bit_depth", 8))
    is_deep = any(";16" in str(tile.args) or _has_deep_maximum(file, tile.args) for tile in file.tile)
    return 16 if is_deep or file.mode.startswith("I;16") else 8


def _has_deep_maximum(file: ImageFile.ImageFile, args: Any) -> bool:
    """Whether a PNM's white is above 255; its reader is given it as the last number."""
    return file.format == "PPM" and isinstance(args, tuple) and isinstance(args[-1], int) and args[-1] > 255


def _promises_alpha(file: ImageFile.ImageFile, data: bytes) -> bool:
    """Whether a fourth channel is said to be alpha: neither by BMP, nor by all TIFF and JPEG 2000 files."""
    if isinstance(file, TiffImagePlugin.TiffImageFile):
        return not {1, 2}.isdisjoint(file.tag_v2.get(TiffImagePlugin.EXTRASAMPLES, ()))
    if file.format == "JPEG2000":
        return b"cdef" in data[: max(data.find(CODESTREAM), 0)]
    return file.format != "BMP"


def _check_header(
    image: ImageFile.ImageFile,
    data: bytes,
    size: tuple[int, int] | None,
    min_side: int,
    max_pixels: int,
    notes: list[str],
) -> None:
    width, height = image.size
    if image.format == "JPEG2000" and (announced := jpeg_2000_sizes(data)):  # twice, and the pixels come by this one
        width, height = max(width, announced[0]), max(height, announced[1])
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
    num_frames = num_pictures(image)
    if num_frames > 1 and image.format in ("JPEG", "HEIF"):
        notes.append("first_of_several_pictures")  # phones append a depth map or preview; the first is the photograph
    elif num_frames > 1:
        raise BadImageError(
            "animated",
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
        if _is_limit_of_reader(data, error):
            raise BadImageError(
                "unsupported_format",
                f"the file is a picture of a kind that is not read here {what}; one of the usual kind was wanted: open "
                "it in an image editor, and save it as PNG or JPEG of 8 bits",
            ) from error
        if _ends_early(data, error):
            raise BadImageError(
                "truncated",
                f"the file stops after {len(data)} bytes, before the image is complete {what}: "
                "copy it again from where it came",
            ) from error
        raise BadImageError(
            "corrupt",
            f"the file begins as {format_of(data) or 'a picture'} and could not be decoded {what}: copy it again from "
            "where it came, or open it in an image editor and save it as PNG or JPEG",
        ) from error


def _is_limit_of_reader(data: bytes, error: Exception) -> bool:
    """Whether a file failed for what its reader does not do; Pillow tells that in words alone."""
    if data.startswith((b"II", b"MM")) and isinstance(next(iter(error.args), None), KeyError):
        return True  # TIFF of a compression that it does not know
    return isinstance(error, NotImplementedError) or bool(_LIMITS.search(str(error)))


def _ends_early(data: bytes, error: Exception) -> bool:
    """Whether a file that failed to decode lacks its end, by its format's end mark or announced length."""
    if isinstance(error, EOFError) or "truncated" in str(error).lower():
        return True
    if data.startswith(PNG):
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
    if data.startswith(CODESTREAM) or data[4:8] in (b"ftyp", b"jP  "):
        return is_cut_off(data)
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


def _flatten_alpha(image: Image.Image, promises_alpha: bool, keeps_alpha: bool, notes: list[str]) -> Image.Image:
    if not image.has_transparency_data:
        return image
    if image.mode == "La":
        image = image.convert("LA")
    colours = image.convert("RGBA")
    lowest, highest = colours.getchannel("A").getextrema()
    if lowest == 255:
        return colours.convert("RGB")
    if highest == 0 and not promises_alpha:  # whoever wrote it left the fourth channel as it was
        notes.append("empty_alpha_ignored")
        return colours.convert("RGB")
    if keeps_alpha:
        return colours
    notes.append("alpha_over_white")
    white = Image.new("RGBA", colours.size, _ALPHA_BACKGROUND)
    return Image.alpha_composite(white, colours).convert("RGB")


def _to_colour(image: Image.Image, channels: int, notes: list[str]) -> Image.Image:
    if image.mode == "CMYK":
        notes.append("cmyk_to_rgb")
    elif image.mode not in ("1", "L", "P", "RGB", "RGBA", "RGBX", "YCbCr"):
        raise BadImageError(
            "unsupported_colour",
            f"the pixels are stored as {image.mode}, grey, palette, RGB or CMYK was wanted: save the image as RGB",
        )
    if channels == 1:
        return image if image.mode == "L" else image.convert("RGB").convert("L")
    mode = "RGB" if channels == 3 else "RGBA"
    return image if image.mode == mode else image.convert("RGB").convert(mode)


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
