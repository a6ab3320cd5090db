"""open_source and plan_items: every kind of source, and what is wrong with some."""

import csv
import hashlib
import io
import json
import os
import pickle
import struct
import tarfile
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from PIL import Image

from domains.digits.data import load_split
from tasks.errors import BadImageError, SourceError
from tasks.pictures.decoding import decode_image
from tasks.sources.source import PlannedImage, Source, SourceItem, digest_bytes, open_source, plan_items


def png(value: int = 0) -> bytes:
    file = io.BytesIO()
    Image.new("L", (16, 16), value).save(file, "PNG")
    return file.getvalue()


def write(path: Path, data: bytes = png()) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def tar_of(name: str, data: bytes) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        member = tarfile.TarInfo(name)
        member.size = len(data)
        tar.addfile(member, io.BytesIO(data))
    return file.getvalue()


def ids(source: Source) -> list[str]:
    return [item.image_id for item in source.items()]


def problems(source: Source) -> dict[str, str]:
    return {item.image_id: item.problem.reason for item in source.items() if item.problem is not None}


def refuse(spec: str | Path, **options: Any) -> SourceError:
    with pytest.raises(SourceError) as caught, open_source(str(spec), **options) as source:
        source.describe()
    return caught.value


def write_csv(path: Path, *rows: tuple[str, ...]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


# --- folders -------------------------------------------------------------------------------------


def test_folder_gives_images_below_it_in_the_order_of_their_ids(tmp_path: Path) -> None:
    names = ["b.png", "a/z.JPG", "a/b/c.webp", "a.png", "a-b/x.tiff", "a b.png", "a/.keep/x.png", "notes.txt"]
    for name in names:
        write(tmp_path / name)
    images = ["a b.png", "a-b/x.tiff", "a.png", "a/b/c.webp", "a/z.JPG", "b.png"]
    assert images == sorted(images)
    with open_source(str(tmp_path)) as source:
        assert ids(source) == images


def test_names_are_kept_verbatim(tmp_path: Path) -> None:
    names = sorted(
        ["a..b.png", "x.tar.png", "  spaced  .png", "é/日本.png", "e\u0301.png", "q?#%41::~.png", "back\\s.png"]
    )
    for number, name in enumerate(names):
        write(tmp_path / name, png(number))
    with open_source(str(tmp_path)) as source:
        items = list(source.items())
        assert [item.image_id for item in items] == names
        assert [source.read(item) for item in items] == [png(number) for number in range(len(names))]


def test_what_is_no_image_is_counted(tmp_path: Path) -> None:
    for name in ["a.png", "notes.txt", "b.txt", "Makefile", ".hidden.png", ".cache/x.png"]:
        write(tmp_path / name)
    with open_source(str(tmp_path)) as source:
        description = source.describe()
    assert description.num_images == 1
    assert description.other_files == {"": 1, ".txt": 2}
    assert description.num_hidden == 2
    assert "1 images; 3 other files left out (1 without suffix, 2 .txt); 2 hidden" in str(description)


def test_item_read_in_another_process_needs_no_listing(tmp_path: Path) -> None:
    write(tmp_path / "a/b c.png", png(7))
    with open_source(str(tmp_path)) as source:
        item = pickle.loads(pickle.dumps(next(source.items())))
    write(tmp_path / "a/later.png")
    with open_source(str(tmp_path)) as source:
        assert source.read(SourceItem(item.image_id, item.uri)) == png(7)


def test_linked_folders_are_followed_and_circles_are_not(tmp_path: Path) -> None:
    write(tmp_path / "elsewhere/x.png")
    write(tmp_path / "root/a/y.png")
    (tmp_path / "root/link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "root/a/up").symlink_to(tmp_path / "root")
    (tmp_path / "root/file.png").symlink_to(tmp_path / "elsewhere/x.png")
    with open_source(str(tmp_path / "root")) as source:
        assert ids(source) == ["a/y.png", "file.png", "link/x.png"]
        assert source.describe().num_loops == 1


def test_links_to_nowhere_are_bad_images(tmp_path: Path) -> None:
    (tmp_path / "gone.png").symlink_to(tmp_path / "nothing")
    (tmp_path / "self.png").symlink_to(tmp_path / "self.png")
    write(tmp_path / "ok.png")
    with open_source(str(tmp_path)) as source:
        planned = {image.image_id: image.digest for image in plan_items(source)}
    assert planned["gone.png"] == planned["self.png"] == "unreadable:unreadable"
    assert planned["ok.png"] == digest_bytes(png())


def test_pipe_is_left_out_for_it_would_block(tmp_path: Path) -> None:
    write(tmp_path / "a.png")
    os.mkfifo(tmp_path / "pipe.png")
    with open_source(str(tmp_path)) as source:
        assert ids(source) == ["a.png"]
        assert source.describe().other_files == {".png": 1}


def test_folder_named_like_an_image_is_a_folder(tmp_path: Path) -> None:
    write(tmp_path / "x.png/y.png")
    with open_source(str(tmp_path)) as source:
        assert ids(source) == ["x.png/y.png"]


def test_names_in_a_folder_that_are_no_utf_8_are_guessed_as_in_zips_and_told(tmp_path: Path) -> None:
    contents = {
        b"caf\x82/\x82t\x82.png": ("café/été.png", png(1)),
        b"caf\xc3\xa9/a.png": ("café/a.png", png(2)),  # another folder, which has that name
        b"\x82t\x82.png": ("été.png#2", png(3)),
        "été.png".encode(): ("été.png", png(4)),
        b"z\x82.tar": ("zé.tar/0.png", png(5)),
    }
    for name, (_, data) in contents.items():
        path = os.fsencode(tmp_path / "in") + b"/" + name
        os.makedirs(os.path.dirname(path), exist_ok=True)
        Path(os.fsdecode(path)).write_bytes(tar_of("0.png", data) if name.endswith(b".tar") else data)
    with open_source(str(tmp_path / "in")) as source:
        items = list(source.items())
        assert [item.image_id for item in items] == sorted(item.image_id for item in items)
        json.dumps([item.uri for item in items], ensure_ascii=False).encode()  # can be written down
        found = {item.image_id: source.read(SourceItem(item.image_id, item.uri)) for item in items}
        assert "3 names are no UTF-8 and were read as CP437" in str(source.describe())
    wanted = dict(contents.values())
    wanted["café#2/été.png"] = wanted.pop("café/été.png")
    assert found == wanted


def test_a_percent_address_leads_nowhere_else(tmp_path: Path) -> None:
    write(tmp_path / "in/a.png")
    write(tmp_path / "secret.png")
    with open_source(str(tmp_path / "in")) as source:
        for address in (f"file+percent://{tmp_path}/secret.png", f"file+percent://{tmp_path}/in/%2e%2e/secret.png"):
            with pytest.raises(BadImageError) as caught:
                source.read(SourceItem("x.png", address))
            assert caught.value.reason == "unsafe_name"


def test_vanished_file_is_a_bad_image(tmp_path: Path) -> None:
    path = write(tmp_path / "a.png")
    with open_source(str(tmp_path)) as source:
        item = next(source.items())
        path.unlink()
        with pytest.raises(BadImageError, match=r"a\.png cannot be read \(FileNotFoundError\).*restore it") as caught:
            source.read(item)
    assert caught.value.reason == "unreadable"


def test_file_above_the_limit_is_not_read(tmp_path: Path) -> None:
    write(tmp_path / "a.png", b"\0" * 1001)
    with (
        open_source(str(tmp_path), max_bytes=1000) as source,
        pytest.raises(BadImageError, match=r"1001 bytes.*at most 1000.*shrink it") as caught,
    ):
        source.read(next(source.items()))
    assert caught.value.reason == "too_large"


def test_item_from_outside_the_folder_is_not_read(tmp_path: Path) -> None:
    write(tmp_path / "root/a.png")
    write(tmp_path / "secret.png")
    with open_source(str(tmp_path / "root")) as source:
        for uri in (f"file://{tmp_path}/secret.png", f"file://{tmp_path}/within/../secret.png"):
            with pytest.raises(BadImageError) as caught:
                source.read(SourceItem("secret.png", uri))
            assert caught.value.reason == "unsafe_name"


# --- globs and single files ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.png", ["a.png", "b.png"]),
        ("*/*.png", ["x/c.png"]),
        ("**/*.png", ["a.png", "b.png", "x/c.png", "x/y/d.png"]),
        ("x/**", ["c.png", "e.jpg", "y/d.png"]),
        ("[ac]*", ["a.png"]),
    ],
)
def test_glob_picks_from_a_folder(tmp_path: Path, pattern: str, expected: list[str]) -> None:
    for name in ["a.png", "b.png", "x/c.png", "x/e.jpg", "x/y/d.png", "a.txt", "x/.h/i.png"]:
        write(tmp_path / name)
    with open_source(f"{tmp_path}/{pattern}") as source:
        assert ids(source) == expected


def test_brackets_in_a_name_that_exists_are_no_glob(tmp_path: Path) -> None:
    write(tmp_path / "photo[1].png", png(5))
    with open_source(f"{tmp_path}/photo[1].png") as source:
        (item,) = source.items()
        assert item.image_id == "photo[1].png"
        assert source.read(item) == png(5)


def test_glob_that_matches_nothing(tmp_path: Path) -> None:
    write(tmp_path / "a.png")
    assert "no image found" in str(refuse(tmp_path / "*.jpg"))


# --- zips ----------------------------------------------------------------------------------------


def write_zip(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def test_zip_gives_its_members(tmp_path: Path) -> None:
    members = {"b/é x.png": png(1), "a..b.png": png(2), "notes.txt": b"", "__MACOSX/._a.png": b"", "b/": b""}
    path = write_zip(tmp_path / "images.ZIP", members)
    with open_source(str(path)) as source:
        items = list(source.items())
        assert [item.image_id for item in items] == ["a..b.png", "b/é x.png"]
        assert [source.read(item) for item in items] == [png(2), png(1)]
        assert source.describe().other_files == {".txt": 1}
        assert source.describe().num_hidden == 1


def write_zip_of_bytes(path: Path, *names: bytes, extra: bytes = b"") -> Path:
    """A zip whose names are these bytes, without the flag that they are UTF-8; each member is an image of its own."""
    with zipfile.ZipFile(path, "w") as archive:
        for number, name in enumerate(names):
            info = zipfile.ZipInfo("ABCD"[number] * len(name))
            info.extra = extra
            archive.writestr(info, png(number))
    data = path.read_bytes()
    for number, name in enumerate(names):
        data = data.replace(b"ABCD"[number : number + 1] * len(name), name)
    path.write_bytes(data)
    return path


def ids_and_images(source: Source) -> dict[str, bytes]:
    return {item.image_id: source.read(item) for item in source.items()}


def test_names_in_a_zip_are_utf_8_where_they_can_be(tmp_path: Path) -> None:
    names = ["été.png", "猫/写真.png", "plain.png"]
    path = write_zip_of_bytes(tmp_path / "x.zip", *(name.encode() for name in names))
    with open_source(str(path)) as source:
        assert ids_and_images(source) == {name: png(number) for number, name in enumerate(names)}
        assert "UTF-8" not in str(source.describe())
        old = "été.png".encode().decode("cp437")  # as older plans have it
        assert source.read(SourceItem(old, f"zip://{old}::file://{path}")) == png(0)


@pytest.mark.parametrize("encoding", ["cp437", "cp1252", "shift_jis", "gbk", "big5", "koi8_r"])
def test_names_in_a_zip_that_are_no_utf_8_are_guessed_and_told(encoding: str, tmp_path: Path) -> None:
    text = {"shift_jis": "表.png", "gbk": "乗.png", "big5": "功.png", "koi8_r": "кот.png"}.get(encoding, "é.png")
    raw = text.encode(encoding)
    with open_source(str(write_zip_of_bytes(tmp_path / "x.zip", raw, b"plain.png"))) as source:
        assert ids_and_images(source) == {raw.decode("cp437"): png(0), "plain.png": png(1)}
        assert source.describe().num_hidden == 0
        assert "1 names are no UTF-8 and were read as CP437" in str(source.describe())


def test_a_zip_may_tell_the_name_in_unicode_beside_the_bytes(tmp_path: Path) -> None:
    raw, text = "表.png".encode("shift_jis"), "表.png".encode()
    good = b"\1" + struct.pack("<I", zlib.crc32(raw)) + text
    for body, name in ((good, "表.png"), (b"\1\0\0\0\0" + text, raw.decode("cp437")), (b"", raw.decode("cp437"))):
        path = write_zip_of_bytes(tmp_path / "x.zip", raw, extra=struct.pack("<HH", 0x7075, len(body)) + body)
        with open_source(str(path)) as source:
            assert ids_and_images(source) == {name: png(0)}
            assert source.describe().num_guessed == (name != "表.png")


def test_a_name_that_is_said_to_be_utf_8_and_is_not_costs_no_other_member(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "x.zip", {"été.png": png(1), "Ω.png": png(2), "plain.png": png(3)})
    path.write_bytes(path.read_bytes().replace("Ω".encode(), b"\xe9\xe9"))
    with open_source(str(path)) as source:
        assert ids_and_images(source) == {"été.png": png(1), "plain.png": png(3), "ΘΘ.png": png(2)}
        assert source.describe().num_guessed == 1


def test_what_is_hidden_in_a_zip_is_told_by_its_parts(tmp_path: Path) -> None:
    path = write_zip_of_bytes(tmp_path / "x.zip", b".a.png", b"b\\.c.png", b"\xe9/.d.png", b"\xe9.e.png")
    with open_source(str(path)) as source:
        assert list(ids_and_images(source)) == ["Θ.e.png"]
        assert source.describe().num_hidden == 3


def test_members_that_climb_out_are_never_opened(tmp_path: Path) -> None:
    names = ["../evil.png", "a/../../evil.png", "/etc/evil.png", "..\\evil.png", "C:\\evil.png"]
    path = write_zip(tmp_path / "x.zip", dict.fromkeys(names, png()) | {"ok.png": png()})
    with open_source(str(path)) as source:
        assert problems(source) == dict.fromkeys(names, "unsafe_name")
        by_id = {image.image_id: image.digest for image in plan_items(source)}
        assert by_id == dict.fromkeys(names, "unreadable:unsafe_name") | {"ok.png": digest_bytes(png())}
        with pytest.raises(BadImageError, match=r"leads out of the source.*rename it"):
            source.read(SourceItem("../evil.png", f"zip://../evil.png::file://{path}"))


def test_zip_bomb_is_refused_by_its_declared_size(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "x.zip", {"bomb.png": b"\0" * 2_000_000})
    assert path.stat().st_size < 5000
    with open_source(str(path), max_bytes=1_000_000) as source, pytest.raises(BadImageError) as caught:
        source.read(next(source.items()))
    assert caught.value.reason == "too_large"
    assert "2000000 bytes" in caught.value.message


def test_damaged_member_is_a_bad_image_and_the_others_are_not(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "x.zip", {"a.png": os.urandom(100), "b.png": png()})
    data = bytearray(path.read_bytes())
    data[60] ^= 0xFF
    path.write_bytes(data)
    with open_source(str(path)) as source:
        planned = list(plan_items(source))
    assert [image.digest for image in planned] == ["unreadable:corrupt", digest_bytes(png())]


def test_encrypted_member_is_a_bad_image(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "x.zip", {"a.png": png()})
    data = bytearray(path.read_bytes())
    data[6] |= 1  # the flag, in the member's header and in the directory
    data[data.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(data)
    with open_source(str(path)) as source, pytest.raises(BadImageError, match=r"encrypted.*unpack the zip") as caught:
        source.read(next(source.items()))
    assert caught.value.reason == "unreadable"


@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
def test_member_twice_is_ambiguous(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("a.png", png(1))
        archive.writestr("a.png", png(2))
    message = str(refuse(tmp_path / "x.zip"))
    assert "two images with the id 'a.png'" in message
    assert "rename" in message


def test_broken_zip(tmp_path: Path) -> None:
    whole = write_zip(tmp_path / "whole.zip", {"a.png": png()}).read_bytes()
    for data in (b"", b"no zip at all", whole[: len(whole) // 2]):
        error = refuse(write(tmp_path / "x.zip", data))
        assert "x.zip is not a complete zip file" in str(error)
        assert not error.is_transient


def test_closed_source_says_so(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "x.zip", {"a.png": png()})
    with open_source(str(path)) as source:
        item = next(source.items())
    source.close()
    with pytest.raises(SourceError, match="open the source again"):
        source.read(item)


# --- arrays --------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3, 9, 16), (3, 9, 16, 1), (3, 9, 16, 3)])
def test_array_gives_its_pixels(tmp_path: Path, shape: tuple[int, ...]) -> None:
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    np.save(tmp_path / "images.npy", images)
    with open_source(str(tmp_path / "images.npy")) as source:
        items = list(source.items())
        assert [item.image_id for item in items] == ["000000", "000001", "000002"]
        channels = 3 if shape[3:] == (3,) else 1
        decoded = [decode_image(source.read(item), size=(16, 16), channels=channels, fit="letterbox") for item in items]
    for image, pixels in zip(decoded, images.reshape(3, 9, 16, channels), strict=True):
        np.testing.assert_array_equal(image.pixels[3:12], pixels)


def test_array_item_beyond_the_end(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((2, 8, 8), np.uint8))
    with (
        open_source(str(tmp_path / "x.npy")) as source,
        pytest.raises(BadImageError, match="beyond the end") as caught,
    ):
        source.read(SourceItem("000002", f"file://{tmp_path}/x.npy#000002"))
    assert caught.value.reason == "unreadable"


@pytest.mark.parametrize("address", ["x.png", "other.npy#000000", "x.npy#", "x.npy#-1", "x.npy"])
def test_array_gives_no_image_for_the_address_of_another_source(tmp_path: Path, address: str) -> None:
    np.save(tmp_path / "x.npy", np.zeros((2, 8, 8), np.uint8))
    with (
        open_source(str(tmp_path / "x.npy")) as source,
        pytest.raises(BadImageError, match="is no image of") as caught,
    ):
        source.read(SourceItem("000000", f"file://{tmp_path}/{address}"))
    assert caught.value.reason == "unreadable"


@pytest.mark.parametrize(
    ("array", "match"),
    [
        (np.array([{"a": 1}], dtype=object), r"object \[1\].*never loaded"),
        (np.zeros((2, 8, 8), np.float32), r"float32 \[2, 8, 8\].*uint8"),
        (np.zeros((8, 8), np.uint8), r"uint8 \[8, 8\].*\[N, H, W\]"),
        (np.zeros((2, 8, 8, 4), np.uint8), r"\[2, 8, 8, 4\].*C = 1 or 3"),
        (np.asfortranarray(np.zeros((2, 8, 8), np.uint8)), r"Fortran.*C order"),
        (np.zeros((2, 0, 8), np.uint8), r"without a pixel"),
        (np.zeros((0, 8, 8), np.uint8), r"no image found"),
    ],
)
def test_other_arrays_are_refused(tmp_path: Path, array: NDArray[Any], match: str) -> None:
    np.save(tmp_path / "x.npy", array, allow_pickle=True)
    with pytest.raises(SourceError, match=match), open_source(str(tmp_path / "x.npy")) as source:
        source.describe()


@pytest.mark.parametrize("shape", [(2, -8, -8), (-2, 8, 8), (1, 10**9, 10**9), (10**15, 8, 8)])
def test_an_array_whose_header_lies_is_asked_wrongly(tmp_path: Path, shape: tuple[int, ...]) -> None:
    header = repr({"descr": "|u1", "fortran_order": False, "shape": shape}).encode() + b"\n"
    data = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(128)
    refusal = refuse(write(tmp_path / "x.npy", data))
    assert not refusal.is_transient and f"says uint8 {list(shape)}" in str(refusal)


def test_an_image_of_an_array_that_is_larger_than_any_may_be_is_asked_wrongly(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((2, 64, 64), np.uint8))
    with pytest.raises(SourceError, match=r"holds uint8.*4096 bytes; at most 1000"):
        open_source(str(tmp_path / "x.npy"), max_bytes=1000)


def test_what_is_no_file_is_never_waited_for(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    write(folder / "a.png", png(1))
    for name in ("pipe.png", "pipe.npy", "pipe.zip", "pipe.csv"):
        os.mkfifo(folder / name)
        assert "is a pipe; wanted a file" in str(refuse(folder / name))
    (folder / "zero.png").symlink_to("/dev/zero")
    assert "is a device; wanted a file" in str(refuse(folder / "zero.png"))
    uris = ["a.png", "pipe.png", "zero.png", "a\0.png", f"file://{folder}/a\0.png"]
    with open_source(str(write_csv(folder / "list.csv", ("uri",), *[(uri,) for uri in uris]))) as source:
        found = {item.image_id: item for item in source.items()}
        assert source.read(found["a.png"]) == png(1)
        for uri in uris[1:]:
            with pytest.raises(BadImageError):
                source.read(found[uri])
    with open_source(str(folder)) as source:
        assert [item.image_id for item in source.items()] == ["a.png"]


def test_truncated_array(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((2, 8, 8), np.uint8))
    data = (tmp_path / "x.npy").read_bytes()
    for length, found in ((len(data) - 1, f"has {len(data) - 1}"), (20, "not a .npy array"), (0, "not a .npy array")):
        (tmp_path / "x.npy").write_bytes(data[:length])
        assert found in str(refuse(tmp_path / "x.npy"))


# --- manifests -----------------------------------------------------------------------------------


def write_manifest(path: Path, uris: list[str | None], image_ids: list[str | None] | None = None) -> Path:
    if path.suffix == ".parquet":
        columns = {"uri": uris} | ({"image_id": image_ids} if image_ids else {})
        pq.write_table(pa.table(columns), path)
        return path
    if path.suffix == ".jsonl":
        boxes = {"objects": {"bbox": [[1, 2, 3, 4]]}, "label": 7}
        ids = image_ids or [None] * len(uris)
        lines = [{"uri": uri, "image_id": image_id} | boxes for uri, image_id in zip(uris, ids, strict=True)]
        return write(path, "\n".join(map(json.dumps, lines)).encode())
    rows = [("uri", "label", "image_id")] if image_ids else [("uri", "label")]
    for row, uri in enumerate(uris):
        rows.append((uri or "", "7", (image_ids[row] or "")) if image_ids else (uri or "", "7"))
    return write_csv(path, *rows)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_manifest_resolves_against_its_folder(tmp_path: Path, suffix: str) -> None:
    near = write(tmp_path / "set/images/b c.png", png(1))
    far = write(tmp_path / "far/a::b.png", png(2))
    uris = ["images/b c.png", str(far), far.as_uri().replace("%3A", ":"), "./images/b c.png"]
    path = write_manifest(tmp_path / f"set/list{suffix}", uris, ["0002", "0001", "0003", None])
    with open_source(str(path)) as source:
        items = list(source.items())
        assert [item.image_id for item in items] == ["./images/b c.png", "0001", "0002", "0003"]
        assert [source.read(item) for item in items] == [png(1), png(2), png(1), png(2)]
        assert items[2].uri == f"file://{near}"


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_manifest_without_ids_takes_the_uri(tmp_path: Path, suffix: str) -> None:
    write(tmp_path / "b.png")
    path = write_manifest(tmp_path / f"list{suffix}", ["b.png", "a/missing.png", None])
    with open_source(str(path)) as source:
        planned = list(plan_items(source))
    assert [(image.image_id, image.digest) for image in planned] == [
        ("a/missing.png", "unreadable:unreadable"),
        ("b.png", digest_bytes(png())),
        ("row-000003", "unreadable:no_uri"),
    ]
    with open_source(str(path)) as source, pytest.raises(BadImageError, match="has no uri"):
        source.read(SourceItem("row-000003", ""))  # as a worker does


def test_manifest_rows_that_climb_out_are_never_opened(tmp_path: Path) -> None:
    write(tmp_path / "secret.png")
    uris = ["../secret.png", "x/../../secret.png", f"file://{tmp_path}/set/../secret.png", "zip://a.png::x.zip"]
    path = write_csv(tmp_path / "set/list.csv", ("uri",), *[(uri,) for uri in uris])
    with open_source(str(path)) as source:
        assert problems(source) == dict.fromkeys(uris, "unsafe_name")
        with pytest.raises(BadImageError):
            source.read(SourceItem("x", uris[2]))


def test_manifest_from_elsewhere_may_not_ask_for_local_files(tmp_path: Path) -> None:
    local = write(tmp_path / "secret.png")
    with fsspec.open("memory://far/list.csv", "w") as file:
        file.write(f"uri\nfile://{local}\nmemory://far/x.png\n")
    with open_source("memory://far/list.csv") as source:
        assert problems(source) == {f"file://{local}": "unsafe_name"}


def test_manifest_uri_that_cannot_be_an_address_is_a_bad_image(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "list.csv", ("uri",), ("nosuch://x/a.png",), (f"file://{tmp_path}",))
    with open_source(str(path)) as source:
        digests = [image.digest for image in plan_items(source)]
    assert digests == ["unreadable:unreadable", "unreadable:unsafe_name"]  # a folder, and a kind that nobody knows


@pytest.mark.parametrize(
    ("image_id", "uri"),
    [
        ("", "https://me:hunter2@example.org/a.png"),
        ("", "https://example.org/a.png?auth_key=17-hunter2-0"),
        ("https://example.org/a.png?token=hunter2", "https://example.org/a.png"),
        ("https://me:hunter2@example.org/a.png", "a.png"),
    ],
)
def test_password_in_a_manifest_is_not_carried_on(tmp_path: Path, image_id: str, uri: str) -> None:
    path = write_csv(tmp_path / "list.csv", ("image_id", "uri"), (image_id, uri))
    with open_source(str(path)) as source:
        (image,) = plan_items(source)
    assert image.digest == "unreadable:unsafe_name"
    assert "hunter2" not in f"{image.image_id} {image.uri} {image.problem}"


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_id_twice_names_both(tmp_path: Path, suffix: str) -> None:
    path = write_manifest(tmp_path / f"list{suffix}", ["a.png", "b.png", "c.png"], ["one", "two", "one"])
    message = str(refuse(path))
    assert "'one'" in message
    assert "/a.png" in message
    assert "/c.png" in message
    assert "rename" in message


@pytest.mark.parametrize("table", ["csv", "utf-8 with a mark", "utf-16", "binary", "large_binary", "dictionary"])
def test_a_table_may_have_its_texts_as_bytes(table: str, tmp_path: Path) -> None:
    write(tmp_path / "猫" / "été.png")
    rows = [("猫/été.png", "一"), ("猫/été.png", "two")]
    if table in ("csv", "utf-8 with a mark", "utf-16"):
        text = "uri,image_id\r\n" + "".join(f'"{uri}",{image_id}\r\n' for uri, image_id in rows)
        encoding = {"csv": "utf-8", "utf-8 with a mark": "utf-8-sig"}.get(table, "utf-16")
        path = write(tmp_path / "x.csv", text.encode(encoding))
    else:
        columns = {name: pa.array([row[i].encode() for row in rows]) for i, name in enumerate(("uri", "image_id"))}
        if table == "large_binary":
            columns = {name: column.cast(pa.large_binary()) for name, column in columns.items()}
        elif table == "dictionary":
            columns = {name: column.dictionary_encode() for name, column in columns.items()}
        path = tmp_path / "x.parquet"
        pq.write_table(pa.table(columns), path)
    with open_source(str(path)) as source:
        assert ids_and_images(source) == {"two": png(), "一": png()}
        assert "UTF-8" not in str(source.describe())


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_what_is_no_utf_8_in_a_table_is_guessed_cell_by_cell_and_told(suffix: str, tmp_path: Path) -> None:
    write(tmp_path / "é.png")
    ids_as_bytes = ["ü".encode("cp1252"), "ü".encode() + b"!"]
    path = tmp_path / f"x.{suffix}"
    if suffix == "csv":
        write(
            path, b"uri,image_id\n" + b"".join("é.png".encode() + b"," + image_id + b"\n" for image_id in ids_as_bytes)
        )
    else:
        pq.write_table(pa.table({"uri": ["é.png"] * 2, "image_id": pa.array(ids_as_bytes)}), path)
    with open_source(str(path)) as source:
        assert ids_and_images(source) == {"ü": png(), "ü!": png()}
        assert "1 names are no UTF-8 and were read as CP437 (folders, zips and shards) or Latin-1 (tables)" in str(
            source.describe()
        )


@pytest.mark.parametrize(
    ("name", "data", "match"),
    [
        ("x.csv", b"path,label\na.png,1\n", r"columns \['path', 'label'\].*`uri`.*header"),
        ("x.csv", b"", r"columns \[\].*`uri`"),
        ("x.csv", b'uri\n"a.png\n', r"not a CSV table.*export it again"),
        ("x.csv", b"\xff\xfeu\0r\0i\0\n\0a", r"not a CSV table.*export it again"),
        ("x.csv", b"uri\n", r"no image found"),
        ("x.csv", b"uri,uri\na.png,b.png\n", r"a column twice"),
        ("x.jsonl", b'{"path": "a.png"}', r"columns \[\].*`uri`"),
        ("x.jsonl", b'{"uri": "a.png"', r"no table of one JSON object a line.*export it again"),
        ("x.jsonl", b'{"uri": 3}', r"no table .*/uri. changed from string to number"),
        ("x.jsonl", b'["a.png"]', r"no table of one JSON object a line"),
        ("x.jsonl", b'{"x": ' + b"[" * 10**6 + b"]" * 10**6 + b"}", r"columns \[\].*`uri`"),
        ("x.jsonl", b"", r"no table of one JSON object a line"),
        ("x.parquet", b"PAR1 but no more", r"not a complete Parquet file.*copy it again"),
    ],
)
def test_broken_manifest(tmp_path: Path, name: str, data: bytes, match: str) -> None:
    write(tmp_path / name, data)
    with pytest.raises(SourceError, match=match) as caught, open_source(str(tmp_path / name)) as source:
        source.describe()
    assert not caught.value.is_transient


# --- built-in sources ----------------------------------------------------------------------------


def test_digits_are_built_in() -> None:
    split = load_split("test")
    with open_source("digits:test[:256]") as source:
        items = list(source.items())
        decoded = decode_image(source.read(items[13]), size=(32, 32), channels=1)
    assert [item.image_id for item in items] == split.ids[:256]
    np.testing.assert_array_equal(decoded.pixels[..., 0], split.images[13])
    assert decoded.notes == ()


@pytest.mark.parametrize(("spec", "num_images"), [("digits:test", 1000), ("digits:train[3990:]", 10)])
def test_size_of_built_in_sources(spec: str, num_images: int) -> None:
    with open_source(spec) as source:
        assert source.describe().num_images == num_images


@dataclass(frozen=True)
class TwoImages:
    images: NDArray[np.uint8]
    ids: list[str]


def test_other_built_in_sources_can_be_passed() -> None:
    loaded = TwoImages(np.full((2, 8, 8, 3), 9, np.uint8), ["t/b", "t/a"])
    with open_source("toy:all", builtin={"toy:all": lambda: loaded}) as source:
        assert ids(source) == ["t/a", "t/b"]
        assert source.read(next(source.items())) == b"P6\n8 8\n255\n" + b"\x09" * 192


def test_empty_slice_and_unknown_name() -> None:
    assert "no image found" in str(refuse("digits:test[5:5]"))
    assert "digits:test, digits:train" in str(refuse("digits:validation"))


# --- other file systems --------------------------------------------------------------------------


@pytest.fixture
def memory() -> Iterator[Any]:
    fs = fsspec.filesystem("memory")
    fs.store.clear()
    yield fs
    fs.store.clear()


def test_memory_works_like_a_disk(memory: Any, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("m.png", png(3))
    np.save(tmp_path / "x.npy", np.zeros((1, 8, 8), np.uint8))
    memory.pipe("/set/b.png", png(1))
    memory.pipe("/set/a/é c.png", png(2))
    memory.pipe("/x.zip", (tmp_path / "x.zip").read_bytes())
    memory.pipe("/x.npy", (tmp_path / "x.npy").read_bytes())
    memory.pipe("/set/list.csv", b"uri\nb.png\nmemory://set/a/\xc3\xa9 c.png\n")
    expected = {
        "memory://set": {"a/é c.png": png(2), "b.png": png(1)},
        "memory://set/*.png": {"b.png": png(1)},
        "memory://set/b.png": {"b.png": png(1)},
        "memory://set/list.csv": {"b.png": png(1), "memory://set/a/é c.png": png(2)},
        "memory://x.zip": {"m.png": png(3)},
        "memory://x.npy": {"000000": b"P5\n8 8\n255\n" + b"\0" * 64},
    }
    for spec, images in expected.items():
        with open_source(spec) as source:
            assert {item.image_id: source.read(item) for item in source.items()} == images


def test_file_urls_work_like_paths(tmp_path: Path) -> None:
    write(tmp_path / "a.png")
    with open_source(f"file://{tmp_path}") as by_url, open_source(str(tmp_path)) as by_path:
        assert list(by_url.items()) == list(by_path.items())


@pytest.mark.object_store
def test_bucket_works_like_a_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    from moto.server import ThreadedMotoServer

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        options = {"endpoint_url": f"http://{host}:{port}"}
        fs = fsspec.filesystem("s3", **options)
        fs.mkdir("faces")
        for number, name in enumerate(["set/a/x y.png", "set/b.png", "set/empty.png", "set/notes.txt"]):
            fs.pipe(f"faces/{name}", b"" if "empty" in name else png(number))
        with open_source("s3://faces/set", storage_options=options) as source:
            planned = [(image.image_id, image.uri, image.digest) for image in plan_items(source)]
            assert planned == [
                ("a/x y.png", "s3://faces/set/a/x y.png", digest_bytes(png(0))),
                ("b.png", "s3://faces/set/b.png", digest_bytes(png(1))),
                ("empty.png", "s3://faces/set/empty.png", digest_bytes(b"")),
            ]
            assert source.describe().other_files == {".txt": 1}
            fs.pipe("faces/set/c.png", png(2))  # by another client: a cached listing would hide it
            assert ids(source) == ["a/x y.png", "b.png", "c.png", "empty.png"]
            with pytest.raises(BadImageError) as caught:
                source.read(SourceItem("gone.png", "s3://faces/set/gone.png"))
            assert caught.value.reason == "unreadable"
        assert "nothing is at s3://nosuch/set" in str(refuse("s3://nosuch/set", storage_options=options))
    finally:
        server.stop()


# --- sources that cannot be used -----------------------------------------------------------------


def test_missing_path_says_what_would_be_a_source(tmp_path: Path) -> None:
    error = refuse(tmp_path / "nowhere")
    for part in (f"nothing is at {tmp_path}/nowhere", "a .zip, a .npy", "digits:test", "check the spelling"):
        assert part in str(error)
    assert not error.is_transient


def test_empty_folder_says_what_it_holds(tmp_path: Path) -> None:
    write(tmp_path / "notes.txt")
    message = str(refuse(tmp_path))
    assert "no image found" in message
    assert "1 .txt" in message
    assert ".png" in message


def test_file_of_no_known_kind(tmp_path: Path) -> None:
    assert "no known kind" in str(refuse(write(tmp_path / "images.rar")))


def test_unknown_protocol() -> None:
    error = refuse("nosuch://bucket/x")
    assert "no readable address" in str(error)
    assert not error.is_transient


def test_unreachable_bucket_is_worth_a_retry_and_tells_no_secret() -> None:
    options = {
        "key": "AKIAEXAMPLE",
        "secret": "wJalrXUtn",
        "endpoint_url": "http://127.0.0.1:9",
        "config_kwargs": {"retries": {"max_attempts": 0}, "connect_timeout": 1},
    }
    error = refuse("s3://bucket/faces", storage_options=options)
    assert error.is_transient
    assert "s3://bucket/faces does not answer" in str(error)
    assert "check the endpoint" in str(error)
    assert "AKIAEXAMPLE" not in str(error)
    assert "wJalrXUtn" not in str(error)


def test_password_in_the_spec_is_refused_and_not_repeated() -> None:
    for spec in ("https://me:hunter2@example.org/x.zip", "https://example.org/x.zip?X-Amz-Signature=hunter2"):
        error = refuse(spec)
        assert "hunter2" not in str(error)
        assert "carries a" in str(error) and "environment" in str(error)


def test_transience_survives_the_way_between_processes() -> None:
    assert pickle.loads(pickle.dumps(SourceError("x", is_transient=True))).is_transient


# --- planning ------------------------------------------------------------------------------------


def test_plan_is_in_order_and_digests_the_bytes(tmp_path: Path) -> None:
    for number in range(40):
        write(tmp_path / f"{number:02d}.png", png(number))
    write(tmp_path / "text.png", b"not an image")
    with open_source(str(tmp_path)) as source:
        planned = list(plan_items(source, num_threads=3))
        assert [(image.image_id, image.uri) for image in planned] == [
            (item.image_id, item.uri) for item in source.items()
        ]
    assert planned[7].digest == hashlib.sha256(png(7)).hexdigest()
    assert planned[40].digest == digest_bytes(b"not an image")  # whether bytes are an image is for the decoder
    assert planned[40].problem is None


@dataclass
class Listing:
    """A backend that counts how far it was listed and fails where told."""

    num_images: int
    read: Callable[[str], bytes]
    num_listed: int = 0
    kind: str = "test"

    def items(self, left_out: object) -> Iterator[SourceItem]:
        for index in range(self.num_images):
            self.num_listed += 1
            yield SourceItem(f"{index:04d}", f"test://{index:04d}")

    def close(self) -> None:
        pass


def test_plan_reads_at_the_same_time_but_not_far_ahead() -> None:
    together = threading.Barrier(4, timeout=10)

    def read(uri: str) -> bytes:
        together.wait()  # breaks unless four reads are under way
        return b""

    listing = Listing(400, read)
    planned = plan_items(Source("test", listing), num_threads=4)
    first = next(planned)
    assert first == PlannedImage("0000", "test://0000", digest_bytes(b""))
    assert listing.num_listed <= 8
    together.abort()
    planned.close()


def test_failing_storage_stops_the_plan_and_is_not_booked_on_an_image() -> None:
    def read(uri: str) -> bytes:
        if uri.endswith("0005"):
            raise SourceError("the bucket does not answer", is_transient=True)
        return b""

    done = []
    with pytest.raises(SourceError, match="does not answer"):
        for image in plan_items(Source("test", Listing(100, read)), num_threads=2):
            done.append(image.image_id)
    assert done == [f"{index:04d}" for index in range(5)]
