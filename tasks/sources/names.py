"""Names that a container keeps as bytes: UTF-8 where they are, else what the container declares, else a guess."""

import re
import struct
import zipfile
import zlib
from collections.abc import Iterator
from typing import NamedTuple

ZIP_GUESS = "cp437"
"""What a zip means that says nothing (APPNOTE.TXT, appendix D), and folders likewise. Every byte has a character."""
TABLE_GUESS = "latin-1"
"""What programs of Western Windows write into tables, but for quotation marks. Every byte has a character."""
GUESSES = "CP437 (folders, zips and shards) or Latin-1 (tables)"

_UNICODE_PATH = 0x7075  # Info-ZIP's extra field (APPNOTE.TXT, section 4.6.9)


class DecodedName(NamedTuple):
    """A name, and whether the bytes did not say how they are to be read."""

    text: str
    is_guessed: bool = False


def decode_name(raw: bytes, guess: str, declared: str | None = None) -> DecodedName:
    """The text of a name: UTF-8 where that is valid, else what the container declares, else by a fixed guess.

    Args:
        raw: the bytes.
        guess: an encoding in which all bytes have a character.
        declared: the name as the container tells it elsewhere, or None.

    Example:
        >>> decode_name("été".encode(), "cp437"), decode_name(b"\\xe9t\\xe9", "latin-1").is_guessed
        (DecodedName(text='été', is_guessed=False), True)
    """
    try:
        return DecodedName(raw.decode())
    except UnicodeDecodeError:
        return DecodedName(raw.decode(guess), True) if declared is None else DecodedName(declared)


def file_name(name: str) -> DecodedName:
    """The name of a file as a file system gave it, which is bytes on some: bytes that are no UTF-8 are guessed."""
    try:
        raw = name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # no file system has given it
        return DecodedName(name)
    return decode_name(raw, ZIP_GUESS)


def is_hidden(name: DecodedName) -> bool:
    """Whether a part of a name begins with a dot.

    Programs of Windows have parted names by backslashes. In a name that is guessed, that byte may be the half of a
    character (Shift JIS, Big5, GBK), so only slashes part it.
    """
    parts = name.text.split("/") if name.is_guessed else re.split(r"[/\\]", name.text)
    return any(part.startswith(".") and part != ".." for part in parts)


def name_of_member(info: zipfile.ZipInfo) -> DecodedName:
    """The name of a zip's member; what follows a NUL is cut off, as every program does."""
    if info.flag_bits & 0x800:
        return DecodedName(info.filename)
    raw = info.orig_filename.encode("cp437")  # as zipfile has decoded it, each byte to one character
    name = decode_name(raw, ZIP_GUESS, _unicode_path(info, raw))
    return name._replace(text=name.text.partition("\0")[0])


def _unicode_path(info: zipfile.ZipInfo, raw: bytes) -> str | None:
    """The name in the extra field for it, where that belongs to this name: it has its checksum."""
    for kind, body in _extra_fields(info.extra):
        if kind == _UNICODE_PATH and body[:1] == b"\1" and body[1:5] == struct.pack("<I", zlib.crc32(raw)):
            try:
                return body[5:].decode()
            except UnicodeDecodeError:
                return None
    return None


def _extra_fields(extra: bytes) -> Iterator[tuple[int, bytes]]:
    start = 0
    while start + 4 <= len(extra):
        kind, size = struct.unpack_from("<HH", extra, start)
        yield kind, extra[start + 4 : start + 4 + size]
        start += 4 + size
