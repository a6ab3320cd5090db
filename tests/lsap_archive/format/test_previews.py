"""Previews as bytes: what is written comes back, and what is none is told before it is unpacked."""

from __future__ import annotations

import io
import struct
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from lsap_archive import PREVIEW_BYTES, PREVIEW_SIDE, ArchiveMismatchError, CorruptArchiveError, Preview
from lsap_archive.format.previews import (
    PREVIEWS_SCHEMA,
    ROWS_OF_A_GROUP,
    KeptPreview,
    decode_previews,
    encode_previews,
    webp_size,
)


def picture(width: int = 8, height: int = 6, mode: str = "RGB", **how: Any) -> bytes:
    sink = io.BytesIO()
    Image.linear_gradient("L").resize((width, height)).convert(mode).save(sink, "WEBP", **how)
    return sink.getvalue()


def headed(width: int, height: int, size: int = 40) -> bytes:
    """A header alone, of a lossless picture of this size, and nothing behind it."""
    body = b"\x2f" + struct.pack("<I", width - 1 | height - 1 << 14) + bytes(size - 25)
    return b"RIFF" + struct.pack("<I", size - 8) + b"WEBPVP8L" + struct.pack("<I", len(body)) + body


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
@pytest.mark.parametrize("how", [{"quality": 80}, {"lossless": True}], ids=["lossy", "lossless"])
@pytest.mark.parametrize("size", [(3, 5), (128, 64)])
def test_size_is_that_of_the_picture(mode: str, how: dict[str, Any], size: tuple[int, int]) -> None:
    image = Image.new(mode, size)
    image.putpixel((0, 0), (0,) * len(image.getbands()))  # a transparent pixel, where there is alpha
    sink = io.BytesIO()
    image.save(sink, "WEBP", **how)
    assert webp_size(sink.getvalue()) == size


@pytest.mark.parametrize("data", [b"", b"RIFF", b"\x89PNG\r\n\x1a\n" + bytes(40), picture()[:-1], picture() + b"#"])
def test_what_is_no_webp_file_has_no_size(data: bytes) -> None:
    assert webp_size(data) is None


def test_what_is_written_comes_back_by_row() -> None:
    previews = [
        Preview(row, picture(1 + row, 2), None if row % 2 else picture(2, 1 + row))
        for row in reversed(range(5, 6 + ROWS_OF_A_GROUP))
    ]
    data = encode_previews(iter(previews), "shard 0")
    assert data is not None
    found = decode_previews(data, range(4, 4 + 2 * ROWS_OF_A_GROUP), "here")
    assert found == {one.row: KeptPreview(one.original, one.picture) for one in previews}
    assert list(found) == sorted(found)
    assert pq.ParquetFile(pa.BufferReader(data)).metadata.num_row_groups == 2
    pictures = sum(len(one.picture) + len(one.original or b"") for one in previews)
    assert len(data) < pictures + 4000 + 20 * len(previews)


def test_no_previews_are_no_file() -> None:
    assert encode_previews((), "shard 0") is None


@pytest.mark.parametrize(
    ("previews", "told"),
    [
        ([Preview(0, b"GIF89a")], "row 0 has a picture that is no WebP file"),
        ([Preview(0, picture(), b"GIF89a")], "row 0 has a picture that is no WebP file"),
        ([Preview(3, headed(8, 8, PREVIEW_BYTES + 2))], f"row 3 has a picture of {PREVIEW_BYTES + 2} bytes"),
        ([Preview(0, headed(PREVIEW_SIDE + 1, 2))], f"a picture of {PREVIEW_SIDE + 1} x 2 pixels"),
        ([Preview(1, picture()), Preview(0, picture()), Preview(1, picture())], "two previews of row 1"),
    ],
)
def test_what_cannot_be_shown_is_not_written(previews: list[Preview], told: str) -> None:
    with pytest.raises(ArchiveMismatchError, match=told):
        encode_previews(previews, "shard 0")


def parquet(rows: list[int], picture: bytes | None, schema: pa.Schema = PREVIEWS_SCHEMA, **how: Any) -> bytes:
    columns = {"row": rows, "original": [None] * len(rows), "picture": [picture] * len(rows)}
    sink = pa.BufferOutputStream()
    table = pa.table({name: columns.get(name, [1] * len(rows)) for name in schema.names}, schema)
    pq.write_table(table, sink, **{"compression": "none", "use_dictionary": False, **how})
    data: bytes = sink.getvalue().to_pybytes()
    return data


SOUND = picture()


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"PAR1", "cannot be read"),
        (parquet([0], SOUND)[:-9], "cannot be read"),
        (parquet([0], SOUND, pa.schema([("other", pa.int64())])), "the columns other"),
        (parquet([0, 1, 2, 3, 4], SOUND), "5 rows, the shard has 4"),
        (parquet([0, 9], SOUND), "rows that are not of the shard, which has 0 to 3"),
        (parquet([1, 0], SOUND), "in another order"),
        (parquet([0, 0], SOUND), "there twice"),
        (parquet([0], bytes(10**6), compression="zstd"), "compressed columns"),
        (parquet([0, 1, 2], bytes(10**6), use_dictionary=True), "compressed columns"),
        (parquet([0, 1], SOUND, column_encoding={"picture": "DELTA_BYTE_ARRAY"}), "encoded columns"),
        (parquet([0], b"<svg onload=alert(1)>" + bytes(40)), "no WebP file"),
        (parquet([0], headed(16383, 16383)), "a picture of 16383 x 16383 pixels"),
    ],
)
def test_what_is_no_file_of_previews_is_refused(data: bytes, told: str) -> None:
    with pytest.raises(CorruptArchiveError, match=told) as refused:
        decode_previews(data, range(4), "here")
    assert str(refused.value).startswith("here ")
    assert "lsap archive repair" in str(refused.value)


def test_a_row_may_have_an_original_alone_or_nothing() -> None:
    assert decode_previews(parquet([2], None), range(4), "here") == {2: KeptPreview(None, None)}
