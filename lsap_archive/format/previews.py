"""Previews: small WebP files of a shard's images, in one Parquet file, for who looks at an archive without a generator.

Nothing depends on them. They are bounded, so that a page of an archive from elsewhere costs no more than one's own.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lsap_archive.errors import HOW_TO_REPAIR, ArchiveMismatchError, CorruptArchiveError, first_line

PREVIEW_BYTES = 256 * 2**10
"""Of one picture, at most."""
PREVIEW_SIDE = 1024
"""Its longer side, in pixels, at most: a small file may claim to be a large picture."""
ROWS_OF_A_GROUP = 64

PREVIEWS_SCHEMA = pa.schema(
    [pa.field("row", pa.int64(), nullable=False), pa.field("original", pa.binary()), pa.field("picture", pa.binary())]
)
"""A row for each image of which something is kept, in ascending order.

row is that of the arrays; original is what was inverted, kept with inversions only; picture is what the method made of
it. Both are WebP files.
"""

_ROW_OVERHEAD = 256
_FILE_OVERHEAD = 2**16
_EXTENDED, _LOSSLESS, _LOSSY = b"VP8X", b"VP8L", b"VP8 "


@dataclass(frozen=True)
class Preview:
    """What is kept to look at of one image.

    Attributes:
        row: its row in the run's arrays.
        picture: what the method made of it, a WebP file.
        original: what was inverted, a WebP file; of an inversion only.
    """

    row: int
    picture: bytes
    original: bytes | None = None


@dataclass(frozen=True)
class KeptPreview:
    """What a shard's previews have of one image; None where nothing was kept."""

    original: bytes | None
    picture: bytes | None


def largest_previews(num_rows: int) -> int:
    """Bytes that the previews of so many rows have at most."""
    return num_rows * (2 * PREVIEW_BYTES + _ROW_OVERHEAD) + _FILE_OVERHEAD


def webp_size(data: bytes) -> tuple[int, int] | None:
    """Width and height of a WebP file by its header, in pixels; None if it is none, or cut short.

    Source: RFC 9649, sections 2.4 to 2.7.
    """
    if len(data) < 30 or data[:4] != b"RIFF" or data[8:12] != b"WEBP":
        return None
    if struct.unpack("<I", data[4:8])[0] + 8 != len(data):
        return None
    kind, body = data[12:16], data[20:30]
    if kind == _EXTENDED:
        return 1 + int.from_bytes(body[4:7], "little"), 1 + int.from_bytes(body[7:10], "little")
    if kind == _LOSSLESS and body[0] == 0x2F:
        bits = int.from_bytes(body[1:5], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == _LOSSY and body[3:6] == b"\x9d\x01\x2a":
        width, height = struct.unpack("<HH", body[6:10])
        return width & 0x3FFF, height & 0x3FFF
    return None


def preview_problem(picture: bytes) -> str | None:
    """What is wrong with a picture; None if it can be kept and shown."""
    if len(picture) > PREVIEW_BYTES:
        return f"a picture of {len(picture)} bytes, at most {PREVIEW_BYTES} are wanted"
    if (size := webp_size(picture)) is None:
        return "a picture that is no WebP file"
    if not 1 <= min(size) <= max(size) <= PREVIEW_SIDE:
        return f"a picture of {size[0]} x {size[1]} pixels, sides of 1 to {PREVIEW_SIDE} are wanted"
    return None


def encode_previews(previews: Iterable[Preview], where: str) -> bytes | None:
    """The Parquet file of a shard's previews; None if there are none.

    Its columns are neither compressed, as WebP files are already, nor in dictionaries: it unpacks to what it is.

    Args:
        previews: in any order.
        where: the shard, for the message.

    Raises:
        ArchiveMismatchError: two of one row, or a picture that is no WebP file or too large.
    """
    kept = sorted(previews, key=lambda one: one.row)
    for before, one in zip([None, *kept], kept, strict=False):
        if before is not None and before.row == one.row:
            raise ArchiveMismatchError(f"{where}: two previews of row {one.row} were given, one is wanted")
        for picture in (one.picture, one.original):
            if picture is not None and (problem := preview_problem(picture)):
                raise ArchiveMismatchError(f"{where}: the preview of row {one.row} has {problem}")
    if not kept:
        return None
    columns: dict[str, list[Any]] = {name: [getattr(one, name) for one in kept] for name in PREVIEWS_SCHEMA.names}
    sink = pa.BufferOutputStream()
    pq.write_table(
        pa.table(columns, PREVIEWS_SCHEMA),
        sink,
        row_group_size=ROWS_OF_A_GROUP,
        compression="none",
        use_dictionary=False,
        write_statistics=["row"],
        write_page_checksum=True,
    )
    data: bytes = sink.getvalue().to_pybytes()
    return data


def decode_previews(data: bytes, rows: range, where: str) -> Mapping[int, KeptPreview]:
    """What `encode_previews` was given, by row.

    Args:
        data: the Parquet file.
        rows: of the shard.
        where: where the file was, for the message.

    Raises:
        CorruptArchiveError: it is no such file, has rows of another shard, or a picture that is no WebP file or too
            large. What it claims to unpack to is looked at before it is unpacked.
    """
    try:
        with pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True) as file:
            problem = _problem_of_file(file, len(data), rows)
            table = None if problem else file.read()
    except (pa.ArrowException, OSError, ValueError) as error:  # a damaged footer may hold no text
        raise CorruptArchiveError(f"{where} cannot be read ({first_line(error)}): {HOW_TO_REPAIR}") from error
    if table is not None:
        found, originals, pictures = (table.column(name).to_pylist() for name in ("row", "original", "picture"))
        problem = _problem_of_rows(found, rows)
        if problem is None:
            told = (preview_problem(one) for one in (*originals, *pictures) if one is not None)
            problem = next((one for one in told if one), None)
        if problem is None:
            pairs = zip(originals, pictures, strict=True)
            return dict(zip(found, (KeptPreview(*pair) for pair in pairs), strict=True))
    raise CorruptArchiveError(f"{where} holds {problem}: {HOW_TO_REPAIR}")


def _problem_of_file(file: pq.ParquetFile, size: int, rows: range) -> str | None:
    """What is wrong with a Parquet file by its footer alone."""
    about = file.metadata
    if not file.schema_arrow.equals(PREVIEWS_SCHEMA):
        return f"the columns {', '.join(file.schema_arrow.names)[:80]}, {', '.join(PREVIEWS_SCHEMA.names)} are wanted"
    if about.num_rows > len(rows):
        return f"{about.num_rows} rows, the shard has {len(rows)}"
    groups = [about.row_group(index) for index in range(about.num_row_groups)]
    columns = [group.column(index) for group in groups for index in range(group.num_columns)]
    if any(one.compression != "UNCOMPRESSED" or one.has_dictionary_page for one in columns):
        return "compressed columns, plain ones are wanted"
    if any(not {"PLAIN", "RLE"}.issuperset(one.encodings) for one in columns):
        return "encoded columns, plain ones are wanted"
    claimed = sum(one.total_uncompressed_size for one in columns)
    return f"columns of {claimed} bytes in a file of {size}" if claimed > size else None


def _problem_of_rows(found: list[int], rows: range) -> str | None:
    if any(row not in rows for row in found):
        return f"rows that are not of the shard, which has {rows.start} to {rows.stop - 1}"
    if found != sorted(set(found)):
        return "rows that are there twice, or in another order"
    return None
