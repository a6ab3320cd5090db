"""Which files are pictures: the formats that are read, chosen by their first bytes, and those that are only named."""

import contextlib
import importlib.util
import io
import re
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata

from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    ImageFile,
    Jpeg2KImagePlugin,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
    features,
)

from tasks.errors import BadImageError

PNG = b"\x89PNG\r\n\x1a\n"
JPEG = b"\xff\xd8\xff"
CODESTREAM = b"\xff\x4f\xff\x51"  # of JPEG 2000: the start of an image, and its sizes
HEIC_PACKAGE = "pillow_heif"
READERS_VERSION = 1
"""Raised whenever this room reads what it refused before as `unsupported_*`: such images are then tried again."""

_HEIC_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"})
_HEIF_BRANDS = frozenset({b"mif1", b"mif2", b"msf1"})  # containers, of AVIF too
_AVIF_BRANDS = frozenset({b"avif", b"avis"})

# Pillow would take every core for each image; several are read at the same time.
AvifImagePlugin.DEFAULT_MAX_THREADS = 1


@dataclass(frozen=True)
class PictureFormat:
    """A format that is read.

    Attributes:
        name: as people say it.
        accepts: whether a file is of this format, by its first bytes.
        reader: opens the header of one.
        needs: what must be installed, "" for nothing: a feature of Pillow's, or "lsap[heic]".
    """

    name: str
    accepts: Callable[[bytes], bool]
    reader: Callable[[io.BytesIO], ImageFile.ImageFile]
    needs: str = ""

    @property
    def reason(self) -> str:
        """Why a file of this format fails where its reader is not installed; one of `OF_READER` of lsap_archive."""
        return f"no_{self.name.lower().replace(' ', '_')}_reader"

    @property
    def is_installed(self) -> bool:
        if self.needs == "lsap[heic]":
            return importlib.util.find_spec(HEIC_PACKAGE) is not None
        return not self.needs or bool(features.check(self.needs))


def open_header(data: bytes) -> ImageFile.ImageFile:
    """Read the header with the reader that the first bytes call for.

    Not by `Image.open`: that tries every format Pillow knows, among them some that start other programs, and
    it warns of large images where a refusal is wanted.

    Args:
        data: the whole file.

    Raises:
        BadImageError: "not_an_image"; "unsupported_format" where the file is a picture that is not read here; or the
            format's own reason where its reader is not installed.
    """
    for one in PICTURE_FORMATS:
        if one.accepts(data):
            if not one.is_installed:
                raise _not_installed(one)
            return one.reader(io.BytesIO(data))
    if name := _name_of_unread(data):
        raise BadImageError(
            "unsupported_format",
            f"the file is {name}, which is not read here; {', '.join(FORMATS)} was wanted: save it as PNG or JPEG",
        )
    raise BadImageError(
        "not_an_image",
        f"the file begins with {data[:8]!r}, the start of {', '.join(FORMATS)} was wanted: "
        "convert it to one of these, or take it out of the source",
    )


def readers() -> dict[str, str]:
    """What pictures are read with here, by name, in versions; what is not installed is left out."""
    found = {"lsap": str(READERS_VERSION)}
    for package in ("pillow", "pillow-heif"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def may_be_read_now(reason: str, then: Mapping[str, str]) -> bool:
    """Whether this machine may read what another one, or this one before, did not.

    Args:
        reason: one of `OF_READER` of lsap_archive.
        then: `readers` of that time; empty where nobody noted them.
    """
    for one in PICTURE_FORMATS:
        if one.reason == reason:
            return one.is_installed
    return any(_numbers(version) > _numbers(then.get(name, "")) for name, version in readers().items())


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version)]


def format_of(data: bytes) -> str | None:
    """The name of the format that a file begins as, of those that are read; None for other files."""
    return next((one.name for one in PICTURE_FORMATS if one.accepts(data)), None)


def brands_of(data: bytes) -> frozenset[bytes]:
    """The brands that an ISO media file (AVIF, HEIC, films) says it follows; none for other files."""
    if data[4:8] != b"ftyp":
        return frozenset()
    end = min(int.from_bytes(data[:4], "big"), len(data), 4096)
    return frozenset({data[8:12], *(data[start : start + 4] for start in range(16, end - 3, 4))})


def num_pictures(image: ImageFile.ImageFile) -> int:
    """Pictures or frames in a file; of a TIFF see `pages_of`.

    Phones append a depth map, a preview or a second exposure to a JPEG (CIPA DC-007): an index of them that cannot be
    read says nothing of the photograph.
    """
    if not isinstance(image, JpegImagePlugin.JpegImageFile):
        return 1 if image.format == "TIFF" else int(getattr(image, "n_frames", 1))
    try:
        return int((image._getmp() or {}).get(0xB001, 1))
    except Exception:  # a broken index raises nearly anything
        return 1


def is_cut_off(data: bytes) -> bool:
    """Whether an AVIF, HEIC or JPEG 2000 file stops before the end that its boxes, or its end mark, tell."""
    if data.startswith(CODESTREAM):
        return not data.rstrip(b"\0").endswith(b"\xff\xd9")
    place = 0
    while place + 8 <= len(data):
        size = int.from_bytes(data[place : place + 4], "big")
        if size == 1:
            size = int.from_bytes(data[place + 8 : place + 16], "big")
        if size < 8:  # 0: up to the end, wherever that is
            return False
        place += size
    return place != len(data)


def jpeg_2000_sizes(data: bytes) -> tuple[int, int, int] | None:
    """Width, height, and the most bits of a channel that a JPEG 2000's pixels have; None where it does not tell."""
    start = data.find(CODESTREAM)
    try:
        _, right, bottom, left, top = struct.unpack_from(">H4I", data, start + 6)
        (num_channels,) = struct.unpack_from(">H", data, start + 40)
        depths = [1 + (depth & 0x7F) for depth in data[start + 42 : start + 42 + 3 * min(num_channels, 8) : 3]]
    except struct.error:
        return None
    return (right - left, bottom - top, max(depths)) if start >= 0 and depths else None


def _not_installed(one: PictureFormat) -> BadImageError:
    if one.needs == "lsap[heic]":
        way = "install the package pillow-heif (`pip install 'lsap[heic]'`)"
    else:
        way = f"install a Pillow that has it (features.check({one.needs!r}))"
    return BadImageError(
        one.reason,
        f"the file is a picture in {one.name}, whose reader is not installed: save it as JPEG or PNG; or {way} on "
        "every machine that reads images, and run the same command again, which then tries this one again",
    )


def _begins_with(*magics: bytes) -> Callable[[bytes], bool]:
    return lambda data: data.startswith(magics)


def _is_heic(data: bytes) -> bool:
    return not brands_of(data).isdisjoint(_HEIC_BRANDS | _HEIF_BRANDS)


def _open_heic(file: io.BytesIO) -> ImageFile.ImageFile:
    """By the optional package. It turns pictures upright and takes their depth to 8 bits itself."""
    plugin = importlib.import_module(f"{HEIC_PACKAGE}.as_plugin")
    opened: ImageFile.ImageFile = plugin.HeifImageFile(file)
    return opened


PICTURE_FORMATS = (
    PictureFormat("PNG", _begins_with(PNG), PngImagePlugin.PngImageFile),
    PictureFormat("JPEG", _begins_with(JPEG), JpegImagePlugin.JpegImageFile),
    PictureFormat(
        "WebP", lambda data: data[:4] == b"RIFF" and data[8:12] == b"WEBP", WebPImagePlugin.WebPImageFile, "webp"
    ),
    PictureFormat("TIFF", _begins_with(b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), TiffImagePlugin.TiffImageFile),
    PictureFormat("GIF", _begins_with(b"GIF87a", b"GIF89a"), GifImagePlugin.GifImageFile),
    PictureFormat("BMP", _begins_with(b"BM"), BmpImagePlugin.BmpImageFile),
    PictureFormat(
        "PNM",
        _begins_with(*(b"P%d%c" % (kind, gap) for kind in range(1, 7) for gap in b" \t\r\n")),
        PpmImagePlugin.PpmImageFile,
    ),
    PictureFormat(
        "AVIF",
        lambda data: not brands_of(data).isdisjoint(_AVIF_BRANDS),
        AvifImagePlugin.AvifImageFile,
        "avif",
    ),
    PictureFormat(
        "JPEG 2000",
        _begins_with(b"\0\0\0\x0cjP  \r\n\x87\n", CODESTREAM),
        Jpeg2KImagePlugin.Jpeg2KImageFile,
        "jpg_2000",
    ),
    PictureFormat("HEIC", _is_heic, _open_heic, "lsap[heic]"),
)
"""What is read; the first that accepts a file reads it."""

FORMATS = tuple(one.name for one in PICTURE_FORMATS)

_UNREAD = (
    (b"\xff\x0a", "JPEG XL"),
    (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
    (b"8BPS", "a Photoshop document"),
    (b"%PDF", "a PDF"),
    (b"%!PS", "PostScript"),
    (b"\x76\x2f\x31\x01", "OpenEXR"),
    (b"#?RADIANCE", "Radiance HDR"),
    (b"DDS ", "a DDS texture"),
    (b"\0\0\1\0", "a Windows icon"),
    (b"II\xbc", "JPEG XR"),
    (b"IIRO", "a camera's raw file"),
    (b"IIU\0", "a camera's raw file"),
    (b"FUJIFILMCCD-RAW", "a camera's raw file"),
    (b"P7", "PAM"),
    (b"PF\n", "PFM"),
    (b"Pf\n", "PFM"),
    (b"qoif", "QOI"),
    (b"SIMPLE  =", "FITS"),
    (b"\x93NUMPY", "a NumPy array"),
)


def _name_of_unread(data: bytes) -> str | None:
    """What a file is that is a picture, or nearly one, and not read; None where that is not known."""
    brands = brands_of(data)
    if brands:
        return "a camera's raw file (CR3)" if b"crx " in brands else f"a film or the like (brand {data[8:12]!r})"
    if b"<svg" in data[:1024].lower():
        return "SVG"
    if data[128:132] == b"DICM":
        return "DICOM"
    return next((name for magic, name in _UNREAD if data.startswith(magic)), None)
