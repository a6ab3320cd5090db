"""Data sets as they are shipped: WebDataset tars, Parquet of `datasets`, imagefolder; one shard, many, in a bucket."""

from __future__ import annotations

import io
import json
import os
import re
import tarfile
import threading
from collections.abc import Iterable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from PIL import Image

from tasks.errors import BadImageError, SourceError
from tasks.inversion.known_images import KnownImages
from tasks.inversion.listing import list_images
from tasks.sources.patterns import expand_braces
from tasks.sources.shards import place_in_shard
from tasks.sources.source import Source, SourceItem, digest_bytes, open_source, plan_items


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What this machine remembers: nothing yet."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("LSAP_CACHE", str(folder))
    return folder


def png(value: int = 0) -> bytes:
    file = io.BytesIO()
    Image.new("L", (16, 16), value).save(file, "PNG")
    return file.getvalue()


def tar_of(members: Iterable[tuple[str | tarfile.TarInfo, bytes]], form: int = tarfile.GNU_FORMAT) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as tar:
        for name, data in members:
            entry = tarfile.TarInfo(name) if isinstance(name, str) else name
            entry.size = len(data) if entry.isreg() else 0
            tar.addfile(entry, io.BytesIO(data))
    return file.getvalue()


def samples(numbers: Iterable[int]) -> list[tuple[str | tarfile.TarInfo, bytes]]:
    """A sample is an image, its text and its label."""
    return [
        (f"{number:06d}.{ending}", data)
        for number in numbers
        for ending, data in (("png", png(number)), ("json", b"{}"), ("txt", b"text"))
    ]


IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def parquet_of(columns: Mapping[str, Any], images: Iterable[str] = (), **options: Any) -> bytes:
    """A file, which says of some columns that they are images as `datasets` does."""
    table = pa.table(dict(columns))
    if names := {name: {"_type": "Image"} for name in images}:
        told = json.dumps({"info": {"features": {**names, "label": {"_type": "ClassLabel", "names": ["a"]}}}})
        table = table.replace_schema_metadata({"huggingface": told})
    file = io.BytesIO()
    pq.write_table(table, file, **options)
    return file.getvalue()


def images_of(rows: Iterable[tuple[bytes | None, str | None]]) -> pa.Array:
    return pa.array([{"bytes": data, "path": path} for data, path in rows], IMAGE)


def write(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def contents(spec: str | Path, **options: Any) -> dict[str, bytes | str]:
    """What each image is: its bytes, or the reason why there are none."""
    found: dict[str, bytes | str] = {}
    with open_source(str(spec), **options) as source:
        items = list(source.items())
        assert [item.image_id for item in items] == sorted(item.image_id for item in items)
        for item in items:
            try:
                found[item.image_id] = source.read(SourceItem(item.image_id, item.uri))  # as a worker does
                assert item.problem is None
            except BadImageError as error:
                found[item.image_id] = error.reason
                assert item.problem is None or str(item.problem) == str(error)
    return found


def described(spec: str | Path) -> str:
    with open_source(str(spec)) as source:
        return str(source.describe())


def refuse(spec: str | Path, **options: Any) -> SourceError:
    with pytest.raises(SourceError) as caught, open_source(str(spec), **options) as source:
        source.describe()
    return caught.value


# --- tars --------------------------------------------------------------------------------------------------------


def test_a_tar_gives_its_images(tmp_path: Path) -> None:
    path = write(tmp_path / "shard-000000.tar", tar_of(samples(range(3))))
    assert contents(path) == {f"{number:06d}.png": png(number) for number in range(3)}
    assert described(path).endswith("3 images; 6 other files left out (3 .json, 3 .txt)")


@pytest.mark.parametrize("spec", ["", "shard-*.tar", "shard-{000000..000001}.tar", "{shard-000000,shard-000001}.tar"])
def test_ids_are_unique_over_shards(tmp_path: Path, spec: str) -> None:
    """Both shards have the same names; folder, glob and braces give the same ids."""
    for shard in range(2):
        data = tar_of([(f"{sample}.png", png(10 * shard + sample)) for sample in range(2)])
        write(tmp_path / f"shard-{shard:06d}.tar", data)
    expected = {
        f"shard-00000{shard}.tar/{sample}.png": png(10 * shard + sample) for shard in (0, 1) for sample in (0, 1)
    }
    assert contents(f"{tmp_path}/{spec}") == expected


def test_a_shard_lies_in_a_folder_like_a_folder(tmp_path: Path) -> None:
    """In the order of whole ids, whatever stands beside it."""
    for name in ("a.tar", "a.tar.tar", "sub/z.tar"):
        write(tmp_path / name, tar_of([("x/1.png", png(1)), ("0.png", png(0))]))
    for name in ("a.png", "a.tar-b/1.png", "a.tar.png", "a.tar0.png", "b.png"):
        write(tmp_path / name, png(7))
    write(tmp_path / "train.parquet", parquet_of({"image": images_of([(png(3), "3.png")])}))
    write(tmp_path / "labels.parquet", parquet_of({"label": [1, 2]}))
    inside = [f"{shard}/{name}" for shard in ("a.tar", "a.tar.tar", "sub/z.tar") for name in ("0.png", "x/1.png")]
    outside = ["a.png", "a.tar-b/1.png", "a.tar.png", "a.tar0.png", "b.png", "train.parquet/3.png"]
    assert sorted(contents(tmp_path)) == sorted(inside + outside)
    assert "1 other files left out (1 .parquet)" in described(tmp_path)


def test_digests_are_those_of_the_bytes(tmp_path: Path) -> None:
    write(tmp_path / "folder/a.png", png(5))
    write(tmp_path / "x.tar", tar_of([("a.png", png(5))]))
    write(tmp_path / "x.parquet", parquet_of({"image": images_of([(png(5), "a.png")])}))
    digests = set()
    for name in ("folder", "x.tar", "x.parquet"):
        with open_source(str(tmp_path / name)) as source:
            digests |= {(image.image_id, image.digest) for image in plan_items(source)}
    assert digests == {("a.png", digest_bytes(png(5)))}


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_and_foreign_names(tmp_path: Path, form: int) -> None:
    names = ["./a.png", "./b/c.png", "n" * 60 + "/" + "m" * 90 + ".png", "é/日本.png"]
    if form != tarfile.USTAR_FORMAT:
        names.append("/".join(["l" * 100] * 5) + ".png")
    path = write(tmp_path / "x.tar", tar_of([(name, png(i)) for i, name in enumerate(names)], form))
    assert contents(path) == {name.removeprefix("./"): png(i) for i, name in enumerate(names)}


@pytest.mark.parametrize(("encoding", "name"), [("cp1252", "é.png"), ("shift_jis", "表/表.png")])
def test_names_that_are_no_utf8_are_guessed_as_in_zips_and_told(tmp_path: Path, encoding: str, name: str) -> None:
    """Half of a character may be a backslash, behind which ".png" is no hidden file."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", encoding=encoding, format=tarfile.GNU_FORMAT) as tar:
        entry = tarfile.TarInfo(name)
        entry.size = len(png())
        tar.addfile(entry, io.BytesIO(png()))
    path = write(tmp_path / "x.tar", file.getvalue())
    assert contents(path) == {name.encode(encoding).decode("cp437"): png()}
    assert "1 names are no UTF-8 and were read as CP437" in described(path)


def test_a_name_twice_is_two_images(tmp_path: Path) -> None:
    path = write(tmp_path / "x.tar", tar_of([("a.png", png(1)), ("a!.png", png(2)), ("a.png", png(3))]))
    assert contents(path) == {"a!.png": png(2), "a.png": png(1), "a.png#2": png(3)}


def test_hidden_members_and_folders_are_no_images(tmp_path: Path) -> None:
    folder = tarfile.TarInfo("folder.png")
    folder.type = tarfile.DIRTYPE
    path = write(tmp_path / "x.tar", tar_of([(folder, b""), ("._a.png", b""), (".x/b.png", b""), ("a.png", png())]))
    assert list(contents(path)) == ["a.png"]
    assert "2 hidden entries left out" in described(path)


WHOLE = tar_of(samples(range(3)))


@pytest.mark.parametrize(
    ("length", "found"),
    [
        (9216 + 512, ["000000.png", "000001.png", "000002.png"]),  # the padding alone
        (6656 + 40, ["000000.png", "000001.png", "000002.png corrupt", "unread part corrupt"]),  # inside an image
        (6144 + 100, ["000000.png", "000001.png", "unread part corrupt"]),  # inside its header
        (5120 + 1, ["000000.png", "000001.png", "unread part corrupt"]),
        (4608 + 1, ["000000.png", "000001.png", "unread part corrupt"]),  # inside a text
    ],
)
def test_a_tar_cut_short_gives_what_is_whole_and_says_so(tmp_path: Path, length: int, found: list[str]) -> None:
    path = write(tmp_path / "x.tar", WHOLE[:length])
    read = contents(path)
    assert [name if isinstance(data, bytes) else f"{name} {data}" for name, data in read.items()] == found
    if len(found) != 3 or "unread part corrupt" in found:
        assert "x.tar" in described(path).partition("; ")[2] and "after " in described(path)


def test_a_tar_cut_between_two_members_says_so(tmp_path: Path) -> None:
    path = write(tmp_path / "x.tar", WHOLE[:3072])
    assert list(contents(path)) == ["000000.png"]
    assert "has no end mark after its 3 members, and may be cut short there" in described(path)


def test_a_damaged_header_does_not_end_a_tar_in_silence(tmp_path: Path) -> None:
    data = bytearray(WHOLE)
    data[3072 + 10] ^= 0xFF
    path = write(tmp_path / "x.tar", bytes(data))
    assert contents(path) == {"000000.png": png(0), "unread part": "corrupt"}
    assert "damaged at byte 3072" in described(path)


def test_tars_one_behind_the_other_are_all_read(tmp_path: Path) -> None:
    parts = [tar_of([("a.png", png(1))]), tar_of([("b.png", png(2))])]
    assert contents(write(tmp_path / "x.tar", b"".join(parts))) == {"a.png": png(1), "b.png": png(2)}
    assert contents(write(tmp_path / "y.tar", parts[0] + b"padding" * 1000)) == {"a.png": png(1)}


@pytest.mark.parametrize("data", [b"", b"no tar at all" * 100, b"\x7fELF" * 512, WHOLE[:300]])
def test_no_tar(tmp_path: Path, data: bytes) -> None:
    error = refuse(write(tmp_path / "x.tar", data))
    assert "x.tar is no tar file" in str(error) and not error.is_transient
    write(tmp_path / "y.tar", tar_of([("a.png", png())]))
    assert contents(tmp_path) == {"x.tar/unread part": "corrupt", "y.tar/a.png": png()}


@pytest.mark.parametrize("name", ["x.tar.gz", "x.tgz", "x.tar.zst", "x.tar"])
def test_a_compressed_tar_is_refused_in_one_sentence(tmp_path: Path, name: str) -> None:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as tar:
        tar.addfile(tarfile.TarInfo("a.png"))
    message = str(refuse(write(tmp_path / name, file.getvalue())))
    assert "is compressed" in message and "decompress it" in message


def test_a_member_above_the_limit_is_not_read(tmp_path: Path) -> None:
    path = write(tmp_path / "x.tar", tar_of([("a.png", bytes(2000)), ("b.png", png())]))
    assert contents(path, max_bytes=1000) == {"a.png": "too_large", "b.png": png()}


@pytest.mark.parametrize("address", ["other.tar#512+10", "x.tar", "x.tar#", "x.tar#512", "x.tar#-1+5", "../x.tar#0+10"])
def test_addresses_from_elsewhere_are_not_read(tmp_path: Path, address: str) -> None:
    path = write(tmp_path / "set/x.tar", tar_of([("a.png", png())]))
    write(tmp_path / "x.tar", tar_of([("a.png", png())]))
    write(tmp_path / "set/other.tar", tar_of([("a.png", png())]))
    with open_source(str(path)) as source, pytest.raises(BadImageError):
        source.read(SourceItem("a.png", f"file://{tmp_path}/set/{address}"))


def test_a_place_beyond_the_end_is_a_bad_image(tmp_path: Path) -> None:
    path = write(tmp_path / "x.tar", tar_of([("a.png", png())]))
    with open_source(str(path)) as source, pytest.raises(BadImageError, match="ends before byte 10000100"):
        source.read(SourceItem("a.png", f"file://{path}#10000000+100"))


# --- braces ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("{000..003}.tar", ["000.tar", "001.tar", "002.tar", "003.tar"]),
        ("{8..11}", ["8", "9", "10", "11"]),
        ("{2..1}", ["2", "1"]),
        ("{a,b}-{01..02}", ["a-01", "a-02", "b-01", "b-02"]),
        ("{}-{a}-{1...3}", ["{}-{a}-{1...3}"]),
        ("plain", ["plain"]),
    ],
)
def test_braces(pattern: str, names: list[str]) -> None:
    assert expand_braces(pattern) == names


def test_braces_that_stand_for_too_many_names() -> None:
    with pytest.raises(SourceError, match="stands for 1000000001 names"):
        expand_braces("{0..1000000000}")
    with pytest.raises(SourceError, match="at most 100000"):
        expand_braces("{0..999}{0..999}{0..99999999999999999999999}")


def test_a_shard_that_braces_name_has_to_be_there(tmp_path: Path) -> None:
    for shard in (0, 2):
        write(tmp_path / f"{shard:03d}.tar", tar_of([("a.png", png())]))
    error = refuse(f"{tmp_path}/{{000..003}}.tar")
    assert "2 of the 4 shards" in str(error) and "001.tar" in str(error) and "003.tar" in str(error)


def test_braces_pick_also_folders_globs_and_images(tmp_path: Path) -> None:
    for name in ("train/a.png", "train/b.jpg", "val/a.png", "test/a.png"):
        write(tmp_path / name, png())
    write(tmp_path / "val/x.tar", tar_of([("1.png", png())]))
    assert list(contents(f"{tmp_path}/{{train,val}}/*.png")) == ["train/a.png", "val/a.png"]
    assert list(contents(f"{tmp_path}/{{train,val}}/{{a.png,x.tar}}")) == [
        "train/a.png",
        "val/a.png",
        "val/x.tar/1.png",
    ]
    write(tmp_path / "{a,b}.png", png())
    assert list(contents(f"{tmp_path}/{{a,b}}.png")) == ["{a,b}.png"]


# --- Parquet -----------------------------------------------------------------------------------------------------


def test_parquet_of_datasets(tmp_path: Path) -> None:
    rows = [(png(row), f"{row:04d}.png") for row in range(5)]
    rows[3], rows[4] = (rows[3][0], None), (None, "elsewhere.png")
    data = parquet_of({"image": images_of(rows), "label": [0, 1, 0, 1, 0]}, ["image"], row_group_size=2)
    path = write(tmp_path / "train-00000-of-00001.parquet", data)
    found = contents(path)
    assert found == {
        **{f"{row:04d}.png": png(row) for row in range(3)},
        "elsewhere.png": "no_bytes",
        "train-00000-of-00001-000003": png(3),
    }
    assert contents(tmp_path) == {f"{path.name}/{name}": data for name, data in found.items()}
    assert contents(tmp_path / "*.parquet") == contents(f"{tmp_path}/train-{{00000..00000}}-of-00001.parquet")


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
@pytest.mark.parametrize("options", [{}, {"use_dictionary": False}, {"compression": "zstd"}, {"store_schema": False}])
def test_plain_bytes(tmp_path: Path, kind: pa.DataType, options: dict[str, Any]) -> None:
    """As img2dataset and others write them: beside what is no image, alike ones among them, without names."""
    values = [png(row // 2) for row in range(7)]
    columns = {
        "key": [f"{row}" for row in range(7)],
        "embedding": pa.array([b"\1\2"] * 7),
        "jpg": pa.array(values, kind),
    }
    path = write(tmp_path / "part.parquet", parquet_of(columns, **options))
    assert contents(path) == {f"part-{row:06d}": data for row, data in enumerate(values)}


IMAGES_IN_LISTS = pa.array([[{"bytes": png(), "path": "a"}]], pa.list_(IMAGE))
IMAGES_IN_PARTS = pa.array([{"image": {"bytes": png(), "path": "a"}}], pa.struct([("image", IMAGE)]))


@pytest.mark.parametrize("column", [IMAGES_IN_LISTS, IMAGES_IN_PARTS], ids=["lists", "parts"])
def test_images_in_lists_and_in_parts_of_columns_are_not_left_out_in_silence(tmp_path: Path, column: pa.Array) -> None:
    path = write(tmp_path / "in/x.parquet", parquet_of({"images": column}))
    assert "a row for each image" in str(refuse(path))
    write(tmp_path / "in/a.png", png())
    assert contents(tmp_path / "in") == {"a.png": png(), "x.parquet/unread part": "corrupt"}
    write(path, parquet_of({"image": images_of([(png(1), "b.png")]), "more": column}))
    assert contents(path) == {"b.png": png(1)}
    assert "has images in more too" in described(path)


@pytest.mark.parametrize("kind", ["binary_view", "dictionary", "fixed"])
def test_other_types_of_bytes_and_paths(tmp_path: Path, kind: str) -> None:
    data = pa.array([png(1), png(2)])
    content = {
        "binary_view": data.cast(pa.binary_view()),
        "dictionary": data.dictionary_encode(),
        "fixed": data.cast(pa.binary(len(png(1)))),
    }[kind]
    path = write(tmp_path / "x.parquet", parquet_of({"picture": content}))
    assert contents(path) == {"x-000000": png(1), "x-000001": png(2)}
    names = pa.array(["a.png", "b.png"])
    named = names.dictionary_encode() if kind == "dictionary" else names.cast(pa.string_view())
    image = pa.StructArray.from_arrays([data, named], ["bytes", "path"])
    assert contents(write(path, parquet_of({"image": image}))) == {"a.png": png(1), "b.png": png(2)}


def test_large_types_in_a_struct(tmp_path: Path) -> None:
    kind = pa.struct([("path", pa.large_string()), ("bytes", pa.large_binary()), ("width", pa.int32())])
    column = pa.array([{"path": "a.png", "bytes": png(), "width": 16}, None], kind)
    path = write(tmp_path / "x.parquet", parquet_of({"image": column}))
    assert contents(path) == {"a.png": png(), "x-000001": "no_bytes"}


def test_rows_in_an_order_that_is_not_that_of_the_names(tmp_path: Path) -> None:
    order = np.random.default_rng(0).permutation(200)
    rows = images_of((png(int(number)), f"{number:03d}.png") for number in order)
    path = write(tmp_path / "x.parquet", parquet_of({"image": rows}, row_group_size=50))
    assert contents(path) == {f"{number:03d}.png": png(number) for number in range(200)}


def test_paths_that_many_rows_share_stay_apart(tmp_path: Path) -> None:
    rows = images_of([(png(1), "image.png"), (png(2), "image.png"), (png(3), ""), (png(4), "image.png")])
    path = write(tmp_path / "x.parquet", parquet_of({"image": rows}))
    assert contents(path) == {"image.png": png(1), "image.png#2": png(2), "image.png#3": png(4), "x-000002": png(3)}


def test_a_column_is_chosen_where_there_are_several(tmp_path: Path) -> None:
    columns = {"image": images_of([(png(1), "a.png")]), "mask of it": images_of([(png(2), "a.png")])}
    path = write(tmp_path / "x.parquet", parquet_of(columns))
    for spec in (path, tmp_path):
        message = str(refuse(spec))
        assert "image and mask of it may all be images" in message and "x.parquet#image" in message
    assert contents(f"{path}#image") == {"a.png": png(1)}
    assert contents(f"{path}#mask of it") == {"a.png": png(2)}
    assert contents(f"{tmp_path}#mask of it") == {"x.parquet/a.png": png(2)}
    assert contents(f"{tmp_path}/*.parquet#mask of it") == {"x.parquet/a.png": png(2)}
    assert "'label' was wanted as images" in str(refuse(f"{path}#label"))


def test_what_a_file_says_of_its_columns_decides(tmp_path: Path) -> None:
    columns = {"audio": images_of([(b"RIFF", "a.wav")]), "picture": images_of([(png(2), "a.png")])}
    assert contents(write(tmp_path / "x.parquet", parquet_of(columns, ["picture"]))) == {"a.png": png(2)}


def test_a_table_without_images_says_what_would_be_one(tmp_path: Path) -> None:
    for columns in ({"label": [1]}, {"embedding": pa.array([b"\1\2"])}):
        message = str(refuse(write(tmp_path / "x.parquet", parquet_of(columns))))
        assert "a column of images" in message


def test_a_manifest_stays_one(tmp_path: Path) -> None:
    write(tmp_path / "a.png", png(4))
    columns = {"uri": ["a.png"], "thumbnail": pa.array([png(1)])}
    path = write(tmp_path / "x.parquet", parquet_of(columns))
    assert contents(path) == {"a.png": png(4)}
    assert contents(f"{path}#thumbnail") == {"x-000000": png(1)}


def test_a_parquet_file_cut_short_is_a_bad_image_among_shards(tmp_path: Path) -> None:
    data = parquet_of({"image": images_of([(png(1), "a.png")])})
    write(tmp_path / "0.parquet", data[:-20])
    write(tmp_path / "1.parquet", data)
    assert contents(tmp_path) == {"0.parquet/unread part": "corrupt", "1.parquet/a.png": png(1)}
    assert "0.parquet is not a complete Parquet file" in described(tmp_path)


def test_a_damaged_page_harms_its_own_row_group(tmp_path: Path) -> None:
    rows = images_of([(os.urandom(500), f"{row}.png") for row in range(6)])
    data = bytearray(parquet_of({"image": rows}, row_group_size=2, use_dictionary=False))
    group = pq.ParquetFile(io.BytesIO(bytes(data))).metadata.row_group(1).column(0)
    data[group.data_page_offset : group.data_page_offset + 30] = b"\xff" * 30
    found = contents(write(tmp_path / "x.parquet", bytes(data)))
    assert [name for name, value in found.items() if value == "corrupt"] == ["2.png", "3.png"]
    assert sum(isinstance(value, bytes) for value in found.values()) == 4


def test_a_row_above_the_limit_is_not_read(tmp_path: Path) -> None:
    rows = images_of([(bytes(2000), "a.png"), (png(), "b.png")])
    assert contents(write(tmp_path / "x.parquet", parquet_of({"image": rows})), max_bytes=1000) == {
        "a.png": "too_large",
        "b.png": png(),
    }


@pytest.mark.parametrize("address", ["other.parquet#image:0", "x.parquet#image:9", "x.parquet#label:0", "x.parquet#0"])
def test_rows_from_elsewhere_are_not_read(tmp_path: Path, address: str) -> None:
    data = parquet_of({"image": images_of([(png(), "a.png")])})
    for name in ("x.parquet", "other.parquet"):
        write(tmp_path / name, data)
    with open_source(str(tmp_path / "x.parquet")) as source, pytest.raises(BadImageError):
        source.read(SourceItem("a.png", f"file://{tmp_path}/{address}"))


# --- imagefolder -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metadata", ["metadata.csv", "metadata.jsonl", "metadata.parquet"])
def test_an_imagefolder_is_its_images(tmp_path: Path, metadata: str) -> None:
    """Ids are the paths; the table beside the images is a file like others."""
    for name in ("train/cat/1.png", "train/dog/1.png"):
        write(tmp_path / name, png())
    table = {"file_name": ["cat/1.png", "dog/1.png"], "text": ["a cat", "a dog"]}
    lines = [json.dumps(dict(zip(table, row, strict=True))) for row in zip(*table.values(), strict=True)]
    forms = {
        ".csv": b"file_name,text\ncat/1.png,a cat\ndog/1.png,a dog\n",
        ".jsonl": "\n".join(lines).encode(),
        ".parquet": parquet_of(table),
    }
    path = tmp_path / "train" / metadata
    write(path, forms[path.suffix])
    assert list(contents(tmp_path)) == ["train/cat/1.png", "train/dog/1.png"]
    assert f"1 other files left out (1 {path.suffix})" in described(tmp_path)
    assert list(contents(path)) == ["cat/1.png", "dog/1.png"]


# --- what is read, and what is not read again --------------------------------------------------------------------


class Requests(MemoryFileSystem):
    """Counts what is asked of a file."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.ranges: list[tuple[int, int]] = []

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **options: Any) -> bytes:
        self.ranges.append((start or 0, end or 0))
        return bytes(super().cat_file(path, start=start, end=end, **options))


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> tuple[Requests, str]:
    fs = Requests()
    folder = f"/{request.node.name}"

    def open_it(url: str, options: object = None) -> tuple[Requests, str]:
        return fs, fs._strip_protocol(url)

    monkeypatch.setattr("tasks.sources.source.open_file_system", open_it)
    return fs, folder


def test_small_members_come_together_and_payloads_of_large_ones_are_passed_over(requests: tuple[Requests, str]) -> None:
    fs, folder = requests
    fs.pipe_file(f"{folder}/small.tar", tar_of([(f"{i:05d}.png", png(i % 250)) for i in range(3000)]))
    fs.pipe_file(f"{folder}/large.tar", tar_of([(f"{i:05d}.png", bytes(3 * 2**20)) for i in range(10)]))
    with open_source(f"memory:/{folder}/small.tar") as source:
        assert len(list(source.items())) == 3000
        assert len(fs.ranges) <= 6
        fs.ranges.clear()
        assert len({image.digest for image in plan_items(source)}) == 250
        assert len(fs.ranges) <= 6  # the index is remembered
    fs.ranges.clear()
    with open_source(f"memory:/{folder}/large.tar") as source:
        assert len(list(source.items())) == 10
        assert sum(end - start for start, end in fs.ranges) < 2**20
        assert len(fs.ranges) <= 12


def test_images_drawn_at_random_do_not_bring_their_neighbours(requests: tuple[Requests, str]) -> None:
    fs, folder = requests
    fs.pipe_file(f"{folder}/x.tar", tar_of([(f"{i:05d}.png", os.urandom(100_000)) for i in range(50)]))
    with open_source(f"memory:/{folder}/x.tar") as source:
        items = list(source.items())
        fs.ranges.clear()
        for number in (40, 3, 22, 9, 48, 30):
            source.read(items[number])
    assert [end - start for start, end in fs.ranges] == [100_000] * 6


@pytest.mark.parametrize("name", ["x.tar", "x.parquet"])
def test_an_index_is_remembered_until_the_shard_changes(
    tmp_path: Path, cache: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def data(value: int) -> bytes:
        if name.endswith("tar"):
            return tar_of([("a.png", png(value)), ("b.txt", b"")])
        return parquet_of({"image": images_of([(png(value), "a.png")])})

    path = write(tmp_path / name, data(1))
    first, told = contents(path), described(path)
    assert len(list(cache.rglob("*.parquet"))) == 1
    with monkeypatch.context() as patched:
        for module in ("tars.TarShard", "parquet_images.ParquetShard"):
            patched.setattr(f"tasks.sources.{module}.index", None)  # is not asked again
        assert described(path) == told
    next(cache.rglob("*.parquet")).write_bytes(b"damaged")
    assert contents(path) == first
    path.unlink()
    write(path, data(2))
    assert contents(path) == {"a.png": png(2)}
    assert len(list(cache.rglob("*.parquet"))) == 2


def test_a_shard_is_gone_through_once_whatever_the_order_of_its_names(tmp_path: Path) -> None:
    order = np.random.default_rng(1).permutation(300)
    rows = images_of((png(int(number) % 250), f"{number:03d}.png") for number in order)
    path = write(tmp_path / "x.parquet", parquet_of({"image": rows}, row_group_size=10))
    with open_source(str(path)) as source, KnownImages() as known:
        read: list[int] = []
        backend = source.read

        def reading(item: SourceItem) -> bytes:
            read.append(place_in_shard(item.uri)[1])
            return backend(item)

        source.read = reading  # type: ignore[method-assign]
        (listed,) = list_images(source, source.items(), known)
    assert [one.image.image_id for one in listed] == [f"{number:03d}.png" for number in range(300)]
    assert [one.image.digest for one in listed] == [digest_bytes(png(number % 250)) for number in range(300)]
    assert max(abs(place - sorted(read)[index]) for index, place in enumerate(read)) < 16  # threads are not in step


def test_memory_is_bounded_by_what_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One row group of many rows: what was unpacked first is let go of, and unpacked again when it is asked for."""
    monkeypatch.setattr("tasks.sources.parquet_images.KEPT_BYTES", 50_000)
    values = [os.urandom(10_000) for _ in range(40)]
    path = write(tmp_path / "x.parquet", parquet_of({"image": pa.array(values)}))
    with open_source(f"{path}#image") as source:
        items = list(source.items())
        for number in (39, 0, 1, 20, 3):
            assert source.read(items[number]) == values[number]
        kept = source._backend._shards._parquet._kept  # type: ignore[attr-defined]
        assert sum(map(len, kept.values())) <= 50_000


@pytest.mark.object_store
def test_shards_in_a_bucket(s3_options: dict[str, Any]) -> None:
    fs = fsspec.filesystem("s3", **s3_options, use_listings_cache=False)
    for shard in range(2):
        fs.pipe_file(f"listed/shards/wd/{shard:03d}.tar", tar_of([("a.png", png(shard))]))
        data = parquet_of({"image": images_of([(png(shard), "a.png")])})
        fs.pipe_file(f"listed/shards/hf/train-{shard:05d}-of-00002.parquet", data)
    for spec in ("s3://listed/shards/wd", "s3://listed/shards/wd/{000..001}.tar", "s3://listed/shards/wd/*.tar"):
        found = contents(spec, storage_options=s3_options)
        assert found == {f"00{shard}.tar/a.png": png(shard) for shard in range(2)}
    found = contents("s3://listed/shards/hf/train-*.parquet#image", storage_options=s3_options)
    assert found == {f"train-0000{shard}-of-00002.parquet/a.png": png(shard) for shard in range(2)}


def test_a_storage_that_fails_is_not_booked_on_images(requests: tuple[Requests, str], monkeypatch: Any) -> None:
    fs, folder = requests
    fs.pipe_file(f"{folder}/x.tar", tar_of([("a.png", png())]))
    fs.pipe_file(f"{folder}/x.parquet", parquet_of({"image": images_of([(png(), "a.png")])}))
    opened: dict[str, Source] = {name: open_source(f"memory:/{folder}/{name}") for name in ("x.tar", "x.parquet")}
    items = {name: next(source.items()) for name, source in opened.items()}

    def fail(*arguments: Any, **options: Any) -> Any:
        raise ConnectionResetError("the line is dead")

    monkeypatch.setattr(fs, "cat_file", fail)
    for file in opened["x.parquet"]._backend._shards._parquet._open.values():  # type: ignore[attr-defined]
        monkeypatch.setattr(file._handle._file, "read", fail)
    for name, source in opened.items():
        with pytest.raises(SourceError, match="does not answer") as caught:
            source.read(items[name])
        assert caught.value.is_transient
        source.close()


@pytest.fixture(params=[True, False], ids=["ranges", "whole files"])
def web(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, bool]]:
    """A web server of the files in a folder, which gives parts of them or not."""
    gives_parts = request.param

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer(is_asked=False)

        def do_GET(self) -> None:
            self.answer(is_asked=True)

        def answer(self, *, is_asked: bool) -> None:
            path = tmp_path / self.path.lstrip("/")
            if not path.is_file():
                self.send_error(404)
                return
            data = path.read_bytes()
            wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            is_part = gives_parts and wanted is not None
            self.send_response(206 if is_part else 200)
            if gives_parts:
                self.send_header("Accept-Ranges", "bytes")
            if is_part and wanted is not None:
                start, end = int(wanted[1]), min(int(wanted[2]), len(data) - 1)
                self.send_header("Content-Range", f"bytes {start}-{end}/{len(data)}")
                data = data[start : end + 1]
            self.send_header("ETag", '"one"')
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if is_asked:
                self.wfile.write(data)

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}", gives_parts
    server.shutdown()
    server.server_close()
    thread.join()


def test_shards_on_a_web_server(tmp_path: Path, web: tuple[str, bool]) -> None:
    url, gives_parts = web
    for shard in range(2):
        write(tmp_path / f"{shard:03d}.tar", tar_of([("a.png", png(shard)), ("b.png", os.urandom(300_000))]))
        rows = images_of([(png(shard), "a.png"), (os.urandom(300_000), "b.png")])
        write(tmp_path / f"{shard:03d}.parquet", parquet_of({"image": rows}))
    for kind in ("tar", "parquet"):
        if gives_parts:
            assert contents(f"{url}/000.{kind}")["a.png"] == png(0)
            found = contents(f"{url}/{{000..001}}.{kind}")
            assert found[f"000.{kind}/a.png"] == png(0) and found[f"001.{kind}/a.png"] == png(1) and len(found) == 4
        else:
            told = {"tar": "gives whole files alone", "parquet": "support range requests"}[kind]
            assert told in str(refuse(f"{url}/000.{kind}"))
    assert "1 of the 3 shards" in str(refuse(f"{url}/{{000..002}}.tar"))
