"""Photos in, faces out and back in: every photo has its line, and no photo stops the others."""

from __future__ import annotations

import functools
import io
import json
import os
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.ndimage
from numpy.typing import NDArray
from PIL import ExifTags, Image

from lsap_core.errors import ConfigError
from tasks.errors import SourceError
from tasks.faces.align_faces import AlignedFace, AlignReport, AlignSettings, align_photos
from tasks.faces.face_crop import Points
from tasks.faces.landmarks import LandmarkFile
from tasks.faces.paste_faces import paste_photos
from tasks.sources.source import open_source

FIVE = np.array([[-30, 0], [30, 0], [0, 30], [-20, 55], [20, 55]], dtype=np.float64)
SETTINGS = AlignSettings(size=128)


def face_at(x: float, y: float, scale: float = 1.0) -> Points:
    """Five points of a face whose eyes' middle is at a place; its square has sides of 240 at scale 1."""
    return FIVE * scale + (x, y)


@functools.cache
def texture(width: int = 420, height: int = 360) -> NDArray[np.uint8]:
    noise = scipy.ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(height, width, 3)), (4, 4, 0))
    return np.clip(128 + 45 * noise / noise.std(), 0, 255).astype(np.uint8)


def write(path: Path, pixels: NDArray[np.uint8], **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


def align(folder: Path, faces: dict[str, list[Points]], out: Path, settings: AlignSettings = SETTINGS) -> AlignReport:
    with open_source(str(folder)) as source:
        return align_photos(source, LandmarkFile(Path("points.json"), faces), out, settings)


def lines(report: AlignReport) -> dict[str, AlignedFace]:
    assert len({face.image_id for face in report.faces}) == len(report.faces)
    return {face.image_id: face for face in report.faces}


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder with all that goes wrong."""
    folder = tmp_path / "photos"
    write(folder / "good.png", texture(), compress_level=1)
    write(folder / "deep" / "a.b.jpg", texture(), quality=95)
    for name in ("nobody.png", "tiny.png", "elsewhere.png", "crowd.png"):
        shutil.copyfile(folder / "good.png", folder / name)
    (folder / "broken.png").write_bytes((folder / "good.png").read_bytes()[:5000])
    (folder / "text.jpg").write_text("no image")
    (folder / "empty.png").touch()
    os.mkfifo(folder / "pipe.png")
    (folder / "gone.png").symlink_to(folder / "never.png")
    return folder


FACES = {
    "good.png": [face_at(200, 140)],
    "deep/a.b.jpg": [face_at(200, 140)],
    "tiny.png": [face_at(200, 140, 0.1)],
    "elsewhere.png": [face_at(2000, 140)],
    "crowd.png": [face_at(80, 80, 0.4), face_at(250, 150, 0.8), face_at(350, 200, 0.5)],
}


def test_every_photo_has_its_line_and_none_stops_the_others(photos: Path, tmp_path: Path) -> None:
    report = align(photos, FACES, tmp_path / "out")
    found = lines(report)
    assert {image_id: face.status for image_id, face in found.items()} == {
        "good.png": "aligned",
        "deep/a.b.jpg": "aligned",
        "crowd.png": "aligned",
        "nobody.png": "no_face",
        "tiny.png": "too_small",
        "elsewhere.png": "bad_landmarks",
        "broken.png": "unreadable",
        "text.jpg": "unreadable",
        "empty.png": "unreadable",
        "gone.png": "unreadable",
    }
    assert report.counts == {"aligned": 3, "bad_landmarks": 1, "no_face": 1, "too_small": 1, "unreadable": 4}
    assert files(tmp_path / "out") == ["crowd.png", "deep/a.b.png", "good.png", "report.json"]
    for name in ("crowd.png", "deep/a.b.png", "good.png"):
        with Image.open(tmp_path / "out" / name) as face:
            assert (face.size, face.mode) == ((128, 128), "RGB")
    assert found["crowd.png"].face == 1 and found["crowd.png"].num_faces == 3  # the largest
    assert found["broken.png"].notes == ("truncated",)
    assert "points.json has no face for this photo" in str(found["nobody.png"].problem)
    assert "sides of 24 pixels in the photo, at least 32 were wanted" in str(found["tiny.png"].problem)
    assert all((face.problem is None) == (face.status == "aligned") for face in report.faces)


def test_the_report_on_disk_is_the_one_that_comes_back(photos: Path, tmp_path: Path) -> None:
    report = align(photos, FACES, tmp_path / "out")
    document = json.loads((tmp_path / "out" / "report.json").read_text())
    assert document == json.loads(json.dumps(report.to_dict()))
    assert document["settings"] == {"size": 128, "face": "largest", "min_side": None, "supersampling": 1}
    good = next(face for face in document["faces"] if face["image_id"] == "good.png")
    assert np.shape(good["quad"]) == (4, 2) and np.shape(good["landmarks"]) == (5, 2) and len(good["digest"]) == 64
    assert good["notes"] == [] and good["was_aligned"] is False


@pytest.mark.parametrize(
    ("face", "numbers", "status"),
    [("largest", [1], "aligned"), ("all", [0, 1, 2], "aligned"), (2, [2], "aligned"), ("only", [None], "several")],
)
def test_of_several_faces_the_wanted_ones_are_cut_out(
    photos: Path, tmp_path: Path, face: Any, numbers: list[int | None], status: str
) -> None:
    report = align(photos, FACES, tmp_path / "out", AlignSettings(size=64, face=face))
    crowd = [line for line in report.faces if line.image_id == "crowd.png"]
    assert [line.face for line in crowd] == numbers and {line.status for line in crowd} == {status}
    if face == "all":
        assert [line.output for line in crowd] == [f"crowd.face-{number}.png" for number in numbers]


def test_a_number_that_no_face_has(photos: Path, tmp_path: Path) -> None:
    found = lines(align(photos, FACES, tmp_path / "out", AlignSettings(size=64, face=1)))
    assert found["good.png"].status == "no_face" and "has 1 faces, number 1 was wanted" in str(
        found["good.png"].problem
    )


def test_photos_are_turned_upright_and_landmarks_are_those_of_the_upright_one(tmp_path: Path) -> None:
    upright = texture()
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # shown turned by 90 degrees clockwise
    write(tmp_path / "photos" / "plain.png", upright)
    write(tmp_path / "photos" / "turned.png", np.ascontiguousarray(np.rot90(upright)), exif=exif)
    face = [face_at(200, 140)]
    found = lines(align(tmp_path / "photos", {"plain.png": face, "turned.png": face}, tmp_path / "out"))
    assert (found["turned.png"].width, found["turned.png"].height) == (420, 360)
    assert found["turned.png"].notes == ("rotated_by_exif",)
    plain, turned = (np.asarray(Image.open(tmp_path / "out" / name)) for name in ("plain.png", "turned.png"))
    assert np.array_equal(plain, turned)


def test_a_crop_of_a_crop_is_called_aligned_and_enlarged_ones_are_noted(tmp_path: Path) -> None:
    write(tmp_path / "photos" / "crop.png", texture(240, 240))
    (line,) = align(
        tmp_path / "photos", {"crop.png": [face_at(119.5, 114)]}, tmp_path / "out", AlignSettings(256)
    ).faces
    assert line.was_aligned and line.notes == ("enlarged",)


def test_photos_with_one_name_but_for_the_suffix_keep_it(tmp_path: Path) -> None:
    faces = {name: [face_at(200, 140)] for name in ("a.png", "a.jpg", "report.jpg", "a.jpg.jpeg")}
    for name in faces:
        write(tmp_path / "photos" / name, texture())
    found = lines(align(tmp_path / "photos", faces, tmp_path / "out"))
    assert {line.output for line in found.values()} == {"a.png.png", "a.jpg.png", "report.png", None}
    clash = next(line for line in found.values() if line.output is None)
    assert clash.status == "not_written" and "another face's" in str(clash.problem)


def test_ids_of_a_manifest_stay_below_the_folder(tmp_path: Path) -> None:
    write(tmp_path / "photos" / "a.png", texture())
    address = (tmp_path / "photos" / "a.png").as_uri()
    (tmp_path / "list.csv").write_text(
        f"uri,image_id\n{address},../../up\n{address},C:\\x\n{address},file:///etc/y.png\n"
    )
    ids = ("../../up", "C:\\x", "file:///etc/y.png")
    report = align(tmp_path / "list.csv", {name: [face_at(200, 140)] for name in ids}, tmp_path / "deep" / "out")
    assert {line.output for line in report.faces if line.output} <= {"up.png", "x.png", "etc/y.png"}
    outside = [path for path in files(tmp_path) if not path.startswith(("deep/out/", "photos/", "list.csv"))]
    assert outside == []


def test_members_of_a_zip_and_sources_without_images(tmp_path: Path) -> None:
    picture = io.BytesIO()
    Image.fromarray(texture()).save(picture, "PNG")
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        archive.writestr("in/a.png", picture.getvalue())
        archive.writestr("../evil.png", picture.getvalue())
    found = lines(align(tmp_path / "photos.zip", {"in/a.png": [face_at(200, 140)]}, tmp_path / "out"))
    assert found["in/a.png"].output == "in/a.png" and found["../evil.png"].status == "unreadable"
    (tmp_path / "none").mkdir()
    with pytest.raises(SourceError, match="no image found"):
        align(tmp_path / "none", {}, tmp_path / "out2")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 8}, "size is 8; wanted 16 to 4096 pixels"),
        ({"face": "smallest"}, 'face is "smallest"; wanted largest, all, only, or a number'),
        ({"face": -1}, "face is -1; wanted 0"),
        ({"min_side": 0}, "min_side is 0"),
        ({"supersampling": 9}, "supersampling is 9; wanted 1 to 4"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        AlignSettings(**settings)


# --- back into the photos ---------------------------------------------------------------------------


@pytest.fixture
def aligned(photos: Path, tmp_path: Path) -> Path:
    align(photos, FACES, tmp_path / "out", AlignSettings(size=256, face="all", min_side=24))
    return tmp_path / "out"


def test_unedited_faces_restore_the_photos(aligned: Path, photos: Path, tmp_path: Path) -> None:
    report = paste_photos(aligned, aligned / "report.json", tmp_path / "pasted")
    assert report.counts == {"pasted": 4}
    assert {photo.image_id: photo.num_faces for photo in report.photos}["crowd.png"] == 3
    assert files(tmp_path / "pasted") == ["crowd.png", "deep/a.b.png", "good.png", "pasted.json", "tiny.png"]
    for name in ("good.png", "crowd.png"):
        pasted, photo = (np.asarray(Image.open(folder / name), int) for folder in (tmp_path / "pasted", photos))
        assert np.abs(pasted - photo).mean() < 0.5 and np.abs(pasted - photo).max() < 30


def test_edited_faces_arrive_at_every_size(aligned: Path, photos: Path, tmp_path: Path) -> None:
    for name in ("good.face-0.png", "crowd.face-0.png", "crowd.face-1.png", "crowd.face-2.png"):
        write(tmp_path / "edited" / name, np.full((50, 50, 3), 7, np.uint8))
    report = paste_photos(tmp_path / "edited", aligned / "report.json", tmp_path / "pasted", feather=0)
    status = {photo.image_id: photo.status for photo in report.photos}
    assert status == {"good.png": "pasted", "crowd.png": "pasted", "deep/a.b.jpg": "no_edit", "tiny.png": "no_edit"}
    good = np.asarray(Image.open(tmp_path / "pasted" / "good.png"))
    assert good.shape == (360, 420, 3)
    assert (good[40:250, 90:310] == 7).all() and np.array_equal(good[300:], texture()[300:])


def test_changed_photos_and_edits_that_are_no_squares_are_told(aligned: Path, photos: Path, tmp_path: Path) -> None:
    write(photos / "good.png", texture()[::-1])
    (aligned / "tiny.face-0.png").write_bytes(b"no image")
    write(aligned / "deep" / "a.b.face-0.png", np.zeros((9, 12, 3), np.uint8))
    report = paste_photos(aligned, aligned / "report.json", tmp_path / "pasted")
    found = {photo.image_id: (photo.status, photo.problem or "") for photo in report.photos}
    assert found["good.png"][0] == "photo_changed" and "align it again" in found["good.png"][1]
    assert found["tiny.png"][0] == "unreadable"
    assert (
        found["deep/a.b.jpg"][0] == "unreadable" and "is 12x9 pixels, a square was wanted" in found["deep/a.b.jpg"][1]
    )
    assert files(tmp_path / "pasted") == ["crowd.png", "pasted.json"]


def test_photos_that_have_moved_are_found_in_another_source(aligned: Path, photos: Path, tmp_path: Path) -> None:
    photos.rename(tmp_path / "moved")
    (tmp_path / "moved" / "tiny.png").unlink()
    with pytest.raises(SourceError, match="nothing is at"):
        paste_photos(aligned, aligned / "report.json", tmp_path / "pasted")
    report = paste_photos(aligned, aligned / "report.json", tmp_path / "pasted", source=str(tmp_path / "moved"))
    assert report.counts == {"pasted": 3, "unreadable": 1}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "something"}, "is a report of 'something', version 1; wanted the report.json"),
        ({"version": 9}, "version 9; wanted"),
        ({"faces": [{}]}, "cannot be used .*KeyError"),
        ({"output": "../../up.png"}, "'../../up.png' is no name of a file below the folder"),
        ({"output": "/etc/x.png"}, "'/etc/x.png' is no name"),
        ({"quad": [[0, 0], [0, 1], [1, 1]]}, "are no corners of a square"),
        ({"quad": [[0, 0], [0, 1], [1, 1], [float("nan"), 0]]}, "are no corners of a square"),
        ({"quad": "here"}, "cannot be used"),
    ],
)
def test_a_report_that_was_tampered_with_is_refused(
    aligned: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    path = aligned / "report.json"
    document = json.loads(path.read_text())
    (name,) = change
    (document if name in document else next(f for f in document["faces"] if f["output"])).update(change)
    path.write_text(json.dumps(document))
    with pytest.raises(ConfigError, match=message):
        paste_photos(aligned, path, tmp_path / "pasted")
    assert not (tmp_path / "pasted").exists()


def test_what_is_no_report_or_folder_is_refused(aligned: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none.json does not exist; wanted the report.json"):
        paste_photos(aligned, tmp_path / "none.json", tmp_path / "pasted")
    with pytest.raises(ConfigError, match=r"good.face-0.png cannot be used"):
        paste_photos(aligned, aligned / "good.face-0.png", tmp_path / "pasted")
    with pytest.raises(ConfigError, match="is no folder; wanted that of the edited faces"):
        paste_photos(tmp_path / "nowhere", aligned / "report.json", tmp_path / "pasted")
    with pytest.raises(ConfigError, match=r"feather is 0.5; wanted 0 to below 0.5"):
        paste_photos(aligned, aligned / "report.json", tmp_path / "pasted", feather=0.5)
