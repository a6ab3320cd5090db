"""A folder as people have them: every file ends as a row, good, duplicate or failed with its reason."""

from __future__ import annotations

import io
import json
import struct
import zlib
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from domains.digits.data import load_split
from lsap_archive import open_archive, verify_archive

pytestmark = [pytest.mark.ray, pytest.mark.slow]

METHOD = "lsap_o_w_plus"
HOSTILE = "<img src=x onerror=alert(1)>.png"
OK: dict[str, tuple[int, int]] = {
    "cmyk.jpg": (32, 32),
    "exif rotated.jpg": (48, 48),
    "good.png": (32, 32),
    "gray with alpha.png": (32, 32),
    "palette.png": (32, 32),
    "rgba.png": (32, 32),
    "sixteen bit.png": (40, 40),
    "ünïcode ☃ % #.png": (32, 32),
    HOSTILE: (32, 32),
}
FAILED = {
    "animated.gif": "animated",
    "bomb.png": "too_large",
    "broken again.png": "not_an_image",
    "broken.png": "not_an_image",
    "one pixel.png": "too_small",
    "truncated.png": "truncated",
    "wide.png": "not_square",
    "zero.png": "empty",
}
DUPLICATES = {"good again.png.png": "good again.png"}  # the first name in order is the one that is embedded
ALTERED = {"16_bit_to_8_bit": 1, "alpha_over_white": 1, "cmyk_to_rgb": 1, "rotated_by_exif": 1}
NUM_IMAGES = len(OK) + len(FAILED) + 2


def encoded(image: Image.Image, file_format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def bomb() -> bytes:
    """A complete PNG header of 100,000 x 100,000 pixels, and next to nothing behind it."""
    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 0, 0, 0, 0)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mixed") / "images"
    folder.mkdir()
    digits = [Image.fromarray(pixels) for pixels in load_split("test").images[:12]]
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn
    alpha = digits[3].convert("LA")
    alpha.putalpha(128)
    contents = {
        "good.png": encoded(digits[0], "PNG"),
        "cmyk.jpg": encoded(digits[1].convert("CMYK"), "JPEG", quality=95),
        "exif rotated.jpg": encoded(digits[2].resize((48, 48)), "JPEG", quality=95, exif=exif),
        "gray with alpha.png": encoded(alpha, "PNG"),
        "palette.png": encoded(digits[4].convert("P"), "PNG"),
        "rgba.png": encoded(digits[5].convert("RGBA"), "PNG"),
        "sixteen bit.png": encoded(
            Image.fromarray(np.asarray(digits[6].resize((40, 40)), np.uint16) * np.uint16(257)), "PNG"
        ),
        "ünïcode ☃ % #.png": encoded(digits[7], "PNG"),
        HOSTILE: encoded(digits[8], "PNG"),
        "good again.png": encoded(digits[9], "PNG"),
        "good again.png.png": encoded(digits[9], "PNG"),
        "animated.gif": encoded(digits[0], "GIF", save_all=True, append_images=digits[1:3]),
        "bomb.png": bomb(),
        "broken.png": b"this is a text, whatever its name says\n" * 10,
        "broken again.png": b"this is a text, whatever its name says\n" * 10,
        "one pixel.png": encoded(Image.new("L", (1, 1)), "PNG"),
        "truncated.png": encoded(digits[10], "PNG")[:150],
        "wide.png": encoded(digits[11].resize((48, 32)), "PNG"),
        "zero.png": b"",
        "notes.txt": b"no image and not meant to be one",
    }
    for name, data in contents.items():
        (folder / name).write_bytes(data)
    return folder


@pytest.mark.parametrize(("limit", "code"), [(None, 1), (1, 0)], ids=["default limit", "no limit"])
def test_every_file_gets_its_row_whatever_the_limit_of_failures(
    limit: float | None, code: int, images: Path, lsap_on_cluster: Any, tmp_path: Path
) -> None:
    archive = tmp_path / "archive"
    fields = {} if limit is None else {"max_failed_share": limit}
    finished = lsap_on_cluster.invert(
        "--json",
        source=images,
        archive=archive,
        methods=f"[{METHOD}]",
        embedding__num_steps=2,
        workers__count=1,
        report_images=16,
        **fields,
    ).wait()
    assert finished.code == code, finished.err
    counts = {"ok": len(OK) + 1, "failed": len(FAILED), "duplicate": 1}
    if code == 0:
        told = json.loads(finished.out)
        assert (told["num_images"], told["by_status"]) == (NUM_IMAGES, counts)
        assert told["by_reason"] == Counter(FAILED.values())
        assert told["by_alteration"] == ALTERED
        assert "1 CMYK converted" in (archive / "reports" / "invert.html").read_text()
    else:
        assert finished.out == ""
        last = finished.err.splitlines()[-1]
        assert last.startswith(f"lsap: TooManyFailuresError: {counts['failed']} of {sum(counts.values())} images")
        for word in ("max_failed_share", "1 truncated", "limit of 5%", str(archive)):
            assert word in last
    check_archive(archive)
    check_page((archive / "reports" / "invert.html").read_text())
    if code == 0:
        following_the_advice = lsap_on_cluster.invert(
            "--json",
            source=images,
            archive=archive,
            methods=f"[{METHOD}]",
            embedding__num_steps=2,
            workers__count=1,
            fit="crop",
        ).wait()
        assert following_the_advice.code == 0, following_the_advice.err
        assert json.loads(following_the_advice.out)["by_status"] == {"ok": 1}
        assert "1 was cropped" in (archive / "reports" / "invert.html").read_text()


def check_archive(folder: Path) -> None:
    assert verify_archive(str(folder)).problems == []
    archive = open_archive(str(folder))
    rows = archive.rows(history=True).to_pylist()
    wanted = [*OK, *FAILED, *DUPLICATES, *DUPLICATES.values()]
    assert Counter(row["image_id"] for row in rows) == dict.fromkeys(wanted, 1)
    for row in rows:
        name = row["image_id"]
        if name in FAILED:
            assert (row["status"], row["reason"]) == ("failed", FAILED[name])
            assert len(row["message"]) > 20
        elif name in DUPLICATES:
            assert (row["status"], row["duplicate_of"]) == ("duplicate", DUPLICATES[name])
        else:
            assert (row["status"], row["reason"]) == ("ok", None)
            assert (row["width"], row["height"]) == OK.get(name, (32, 32))
            assert np.isfinite([row["mse"], row["lpips"], row["sncd"]]).all()
    codes = archive.codes([*OK, *DUPLICATES.values(), *DUPLICATES], METHOD)
    assert np.isfinite(codes).all()
    np.testing.assert_array_equal(codes[-2], codes[-1])
    assert len(np.unique(codes, axis=0)) == len(OK) + 1


class Page(HTMLParser):
    """Tags with their attributes, and the text between them."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def check_page(text: str) -> None:
    """The hostile name is text; nothing on the page runs or loads anything."""
    page = Page()
    page.feed(text)
    page.close()
    assert HOSTILE in "".join(page.texts)
    assert HOSTILE not in text  # only escaped
    for tag, attributes in page.tags:
        assert tag not in ("script", "iframe", "object", "embed")
        assert not [name for name in attributes if name.startswith("on")]
        assert attributes.get("src", "data:").startswith("data:")
    for reason in FAILED.values():
        assert reason in text
