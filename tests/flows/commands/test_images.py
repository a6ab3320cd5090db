"""`lsap image`: from photos to faces and back by the command line. No server, no Ray."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib.cbook
import numpy as np
import pytest
from PIL import Image

from flows.commands.cli import main

DONE, FAILED, ASKED_WRONGLY = 0, 1, 2
EYES_NOSE_MOUTH = [[222, 188], [304, 186], [267, 225], [232, 277], [301, 277]]  # marked by hand


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two files, one of them the photograph of a face that comes with matplotlib."""
    folder = tmp_path / "photos"
    folder.mkdir()
    with matplotlib.cbook.get_sample_data("grace_hopper.jpg") as file:
        (folder / "hopper.jpg").write_bytes(file.read())
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (tmp_path / "points.json").write_text(json.dumps({"hopper.jpg": EYES_NOSE_MOUTH}))
    return folder


def test_a_photo_is_aligned_and_pasted_back(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "faces"
    landmarks = ["--landmarks", str(tmp_path / "points.json")]
    assert main(["image", "align", str(photos), "--out", str(out), *landmarks, "--size", "512"]) == DONE
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == f"{out}: 1 aligned, 1 unreadable"
    assert shown[1].split()[:2] == ["unreadable", "broken.png"]  # what went wrong comes first
    assert shown[2].split() == ["aligned", "hopper.jpg", "hopper.png"]

    back = [str(out), "--report", str(out / "report.json"), "--out", str(tmp_path / "back"), "--json"]
    assert main(["image", "paste", *back]) == DONE
    assert json.loads(capsys.readouterr().out)["counts"] == {"pasted": 1}
    pasted, photo = (np.asarray(Image.open(p), int) for p in (tmp_path / "back/hopper.png", photos / "hopper.jpg"))
    assert np.abs(pasted - photo).mean() < 1.5


def test_without_any_face_the_command_fails(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "points.json").write_text("{}")
    landmarks = ["--landmarks", str(tmp_path / "points.json"), "--json"]
    assert main(["image", "align", str(photos), "--out", str(tmp_path / "faces"), *landmarks]) == FAILED
    assert json.loads(capsys.readouterr().out)["counts"] == {"no_face": 1, "unreadable": 1}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--detector", "dlib"], "--detector dlib and --predictor FILE go together"),
        (["--landmarks", "x.json", "--predictor", "p.dat"], "--detector dlib and --predictor FILE go together"),
        (["--detector", "dlib", "--predictor", "p.dat"], "p.dat does not exist"),
        (["--landmarks", "x.json"], "x.json does not exist"),
        (["--landmarks", "x.json", "--upsampling", "1"], "--upsampling goes with --detector dlib"),
        (["--landmarks", "x.json", "--face", "smallest"], 'face is "smallest"'),
        (["--detector", "mtcnn"], "MTCNN) needs pnet.npy, rnet.npy, onet.npy"),
        ([], "MTCNN) needs pnet.npy, rnet.npy, onet.npy"),
    ],
)
def test_what_is_asked_wrongly_is_told_in_a_sentence(
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.setenv("LSAP_BACKBONES", str(tmp_path))
    monkeypatch.setitem(sys.modules, "mtcnn", None)  # as if the package were not there
    assert main(["image", "align", str(photos), "--out", str(tmp_path / "faces"), *arguments]) == ASKED_WRONGLY
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("lsap: ") and message in line
    assert not (tmp_path / "faces").exists()
