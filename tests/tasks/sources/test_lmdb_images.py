"""Data sets in an LMDB: keys and encoded images, beside them counts; on a disk alone."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from PIL import Image

from tasks.errors import BadImageError, SourceError
from tasks.sources.source import SourceItem, open_source, plan_items

lmdb = pytest.importorskip("lmdb", reason="the package lmdb is not installed")


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LSAP_CACHE", str(tmp_path_factory.mktemp("cache")))


def jpeg(value: int, side: int = 16) -> bytes:
    file = io.BytesIO()
    Image.new("L", (side, side), value).save(file, "JPEG")
    return file.getvalue()


def write(folder: Path, values: Mapping[bytes, bytes]) -> Path:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with lmdb.open(str(folder), map_size=2**24) as environment, environment.begin(write=True) as transaction:
        for key, value in values.items():
            transaction.put(key, value)
    return folder


def contents(spec: str | Path, **options: int) -> dict[str, bytes | str]:
    found: dict[str, bytes | str] = {}
    with open_source(str(spec), **options) as source:  # type: ignore[arg-type]
        for item in source.items():
            try:
                found[item.image_id] = source.read(SourceItem(item.image_id, item.uri))  # as a worker does
            except BadImageError as error:
                found[item.image_id] = error.reason
    return found


PREPARED = {f"{side}-{number:08d}".encode(): jpeg(number, side) for side in (128, 256) for number in range(3)}
PREPARED_IDS = {key.decode(): data for key, data in PREPARED.items()}


def test_ids_are_keys_and_counts_are_other_files(tmp_path: Path) -> None:
    folder = write(tmp_path / "ffhq.lmdb", {**PREPARED, b"length": b"3", b"__keys__": bytes(5000)})
    for spec in (folder, folder / "data.mdb"):
        assert contents(spec) == PREPARED_IDS
        with open_source(str(spec)) as source:
            assert "6 images; 2 other files left out" in str(source.describe())
    assert contents(f"{folder}#256-") == {key: data for key, data in PREPARED_IDS.items() if key.startswith("256-")}
    assert contents(f"{folder}/data.mdb#128-0").keys() == {f"128-0000000{number}" for number in range(3)}
    assert contents(tmp_path) == {f"ffhq.lmdb/data.mdb/{key}": data for key, data in PREPARED_IDS.items()}


def test_a_value_that_is_no_image_is_a_bad_image_and_not_lost(tmp_path: Path) -> None:
    values = {b"a": jpeg(1), b"b": b"", b"c": b"<html>" * 100, b"caf\x82": jpeg(2), b"../up": jpeg(3)}
    found = contents(write(tmp_path / "x_lmdb", values))
    assert found == {"../up": "unsafe_name", "a": jpeg(1), "b": b"", "c": b"<html>" * 100, "café": jpeg(2)}


def test_values_above_the_limit_are_not_read(tmp_path: Path) -> None:
    folder = write(tmp_path / "x", {b"a": jpeg(1), b"b": jpeg(2) + bytes(9000)})
    assert contents(folder, max_bytes=5000) == {"a": jpeg(1), "b": "too_large"}


def test_threads_and_sources_share_what_is_open(tmp_path: Path) -> None:
    folder = write(tmp_path / "x", {f"{number:04d}".encode(): jpeg(number % 250) for number in range(200)})
    with open_source(str(folder)) as one, open_source(str(folder)) as other:
        images = list(plan_items(one))
        assert len(images) == 200
        assert [image.digest for image in plan_items(other)] == [image.digest for image in images]


@pytest.mark.parametrize("length", [20, 5000, 20_000])
def test_an_lmdb_cut_short_is_refused_and_ends_no_process(tmp_path: Path, length: int) -> None:
    folder = write(tmp_path / "x", {b"%d" % number: os.urandom(3000) for number in range(20)})
    data = folder / "data.mdb"
    data.write_bytes(data.read_bytes()[:length])
    with pytest.raises(SourceError, match="copy it again"):
        contents(folder)


def test_damaged_pages_are_a_sentence(tmp_path: Path) -> None:
    folder = write(tmp_path / "x", {b"%d" % number: os.urandom(3000) for number in range(20)})
    data = folder / "data.mdb"
    whole = data.read_bytes()
    data.write_bytes(whole[:8192] + bytes(len(whole) - 8192))
    with pytest.raises(SourceError, match="is no complete LMDB"):
        contents(folder)


def test_several_values_for_a_key_are_refused(tmp_path: Path) -> None:
    """Which other programs can ask of the main database: a flag in both heads of the file."""
    data = write(tmp_path / "x", {b"a": jpeg(1)}) / "data.mdb"
    content = bytearray(data.read_bytes())
    for head in (0, 4096):
        content[head + 92] |= 4
    data.write_bytes(content)
    with pytest.raises(SourceError, match="several values for a key"):
        contents(tmp_path / "x")


def test_an_lmdb_is_read_from_a_disk_alone() -> None:
    MemoryFileSystem().pipe("/bucket-of-lmdb/x/data.mdb", bytes(16) + b"\xde\xc0\xef\xbe" + bytes(8172))
    with pytest.raises(SourceError, match="a disk was wanted: copy it to one"):
        contents("memory://bucket-of-lmdb/x")


def test_without_the_package_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path / "in/x", {b"a": jpeg(1)})
    monkeypatch.setitem(sys.modules, "lmdb", None)
    with pytest.raises(SourceError, match=r"pip install 'lsap\[lmdb\]'"):
        contents(folder)
    assert contents(folder.parent) == {"x/data.mdb/unread part": "corrupt"}


def test_another_program_s_file_of_this_suffix_is_another_file(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.jpg").write_bytes(jpeg(1))
    (tmp_path / "in/access.mdb").write_bytes(b"\0\1\0\0Standard Jet DB\0" + bytes(4000))
    assert contents(tmp_path / "in") == {"a.jpg": jpeg(1)}
