"""No name or address that others have written leads out of where it belongs, for reading or for writing."""

from __future__ import annotations

import csv
import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from PIL import Image

from flows.commands.cli import main
from tasks.errors import BadImageError
from tasks.pictures.folders import FileNames
from tasks.sources.items import SourceItem
from tasks.sources.source import Source, open_source

FACE = [[222, 188], [304, 186], [267, 225], [232, 277], [301, 277]]
CLIMBING = (
    "../../climbed.png",
    "a/../../../climbed.png",
    "/climbed.png",
    "//host/climbed.png",
    "C:\\climbed.png",
    "..\\..\\climbed.png",
    "file:///climbed.png",
    ".",
    "..",
    "nul\0.png",
    "~/climbed.png",
    "report.json",
)


def png(side: int = 512) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (side, side), (90, 80, 70)).save(file, "PNG")
    return file.getvalue()


def everything_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


# --- writing --------------------------------------------------------------------------------------------------


@pytest.fixture
def workplace(tmp_path: Path) -> Path:
    """A folder three levels down, so that what climbs out of it is found."""
    folder = tmp_path / "one" / "two" / "three"
    folder.mkdir(parents=True)
    return folder


def test_faces_are_written_below_their_folder_whatever_the_manifest_calls_them(
    workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workplace)
    (workplace / "photo.png").write_bytes(png())
    names = [name for name in CLIMBING if "\0" not in name]  # no table of text can hold that
    with (workplace / "list.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["image_id", "uri"], *([name, "photo.png"] for name in names)])
    (workplace / "points.json").write_text(json.dumps(dict.fromkeys(CLIMBING, FACE)))
    before = everything_in(tmp_path)
    command = ["image", "align", "list.csv", "--landmarks", "points.json", "--size", "128", "--out", "faces", "--json"]
    assert main(command) == 0
    made = everything_in(tmp_path) - before
    assert len(made) > 2 and all(name.startswith("one/two/three/faces/") for name in made)
    report = json.loads((workplace / "faces" / "report.json").read_text())
    assert report["kind"] == "aligned faces"  # which no photo of that name has replaced


def test_members_of_a_zip_are_not_read_nor_written_outside(
    workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workplace)
    names = ["../../climbed.png", "/climbed.png", "C:\\climbed.png", "good.png"]
    with zipfile.ZipFile(workplace / "photos.zip", "w") as archive:
        for name in names:
            archive.writestr(name, png())
    (workplace / "points.json").write_text(json.dumps(dict.fromkeys(names, FACE)))
    before = everything_in(tmp_path)
    command = [
        "image",
        "align",
        "photos.zip",
        "--landmarks",
        "points.json",
        "--size",
        "128",
        "--out",
        "faces",
        "--json",
    ]
    assert main(command) == 0
    assert everything_in(tmp_path) - before == {f"one/two/three/faces/{name}" for name in ("good.png", "report.json")}


@pytest.mark.parametrize("output", ["../../climbed.png", "/etc/hostname", "a/../../b.png", 7, None])
def test_a_report_cannot_point_paste_elsewhere(output: object, workplace: Path, capsys: object) -> None:
    line = {
        "image_id": "a.png",
        "uri": "a.png",
        "digest": "",
        "output": output,
        "quad": [[0, 0], [0, 9], [9, 9], [9, 0]],
    }
    report = {"kind": "aligned faces", "version": 1, "source": str(workplace), "faces": [line]}
    (workplace / "report.json").write_text(json.dumps(report))
    (workplace / "edited").mkdir()
    paste = ["image", "paste", str(workplace / "edited"), "--report", str(workplace / "report.json")]
    expected = 1 if output is None else 2  # nothing to paste, or a report that is none
    (workplace / "a.png").write_bytes(png())
    assert main([*paste, "--out", str(workplace / "out")]) == expected
    assert everything_in(workplace / "out") <= {"pasted.json"} if (workplace / "out").exists() else True


def test_a_name_cannot_be_a_file_and_a_folder() -> None:
    """As keys of a bucket and members of a zip can; the photo is left out and the others go on."""
    for ids in (("a.png", "a.png/b.png"), ("a.png/b.png", "a.png"), ("x/y/z.png", "x/y.png"), ("report.json/a.png",)):
        items = [SourceItem(image_id, "") for image_id in ids]
        names, written = FileNames(items, ["report.json"]), []
        for item in items:
            try:
                written.append(names.of(item, None))
            except BadImageError as problem:
                assert problem.reason == "not_written"
        folders = {str(parent) for name in written for parent in Path(name).parents}
        assert not folders & {*written, "report.json"}


# --- reading --------------------------------------------------------------------------------------------------


@pytest.fixture
def photos(tmp_path: Path) -> Iterator[Path]:
    """Sources of every kind, and a secret beside them."""
    for folder in ("photos", "private"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.png").write_bytes(png(16))
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        archive.writestr("a.png", png(16))
    memory = fsspec.filesystem("memory")
    for name in ("photos/a.png", "private/a.png", "photos-private/a.png"):
        memory.pipe_file(f"/{tmp_path.name}-{name}", png(16))
    yield tmp_path
    for name in ("photos", "private", "photos-private"):
        memory.rm(f"/{tmp_path.name}-{name}", recursive=True)


def specs(folder: Path) -> list[str]:
    inside = f"memory://{folder.name}-photos"
    local = [str(folder / "photos"), f"{folder}/photos/*.png", str(folder / "photos" / "a.png")]
    return [*local, str(folder / "photos.zip"), inside, f"{inside}/*.png", f"{inside}/a.png"]


def test_a_plan_that_others_have_written_reads_nothing_outside_the_source(photos: Path) -> None:
    """Workers read what the archive's plan names: a co-writer could name other files that they may read."""
    elsewhere = [
        str(photos / "private" / "a.png"),
        f"file://{photos}/private/a.png",
        f"{photos}/photos/../private/a.png",
        f"memory://{photos.name}-private/a.png",
        f"memory://{photos.name}-photos-private/a.png",
        f"zip://a.png::{photos}/photos.zip",
        f"zip://../private/a.png::file://{photos}/photos.zip",
        "../private/a.png",
        "a.png",
    ]
    for spec in specs(photos):
        with open_source(spec) as source:
            (own,) = source.items()
            assert source.read(own)
            for uri in elsewhere:
                if uri not in own.uri:
                    assert_is_not_read(source, uri)


def assert_is_not_read(source: Source, uri: str) -> None:
    with pytest.raises(BadImageError) as refusal:
        source.read(SourceItem("a.png", uri))
    assert refusal.value.reason in ("unsafe_name", "unreadable"), (source.spec, uri)


def test_a_manifest_from_elsewhere_names_no_file_of_this_machine(photos: Path) -> None:
    private = photos / "private" / "a.png"
    rows = [str(private), f"file://{private}", f"local://{private}", f"../{photos.name}-private/a.png"]
    rows += [
        f"simplecache::file://{private}",
        f"zip://a.png::file://{photos}/photos.zip",
        f"generic://file://{private}",
    ]
    table = "uri\n" + "\n".join(rows)
    fsspec.filesystem("memory").pipe_file(f"/{photos.name}-photos/list.csv", table.encode())
    with open_source(f"memory://{photos.name}-photos/list.csv") as source:
        items = list(source.items())
        assert len(items) == len(rows)
        for item in items:
            with pytest.raises(BadImageError):
                source.read(item)
            assert_is_not_read(source, item.image_id)
