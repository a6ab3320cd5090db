"""Label maps: which file is an image's, and what becomes of names and files that cannot be used."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tasks.errors import BadImageError
from tasks.refinement.label_maps import LabelMaps


def put(path: Path, label: int, size: tuple[int, int] = (8, 8)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    file = io.BytesIO()
    Image.fromarray(np.full(size, label, np.uint8)).save(file, "PNG")
    path.write_bytes(file.getvalue())


@pytest.mark.parametrize(
    ("image_id", "name"),
    [
        ("a.jpg", "a.png"),
        ("b/c.PNG", "b/c.png"),
        ("seed.1", "seed.1.png"),  # no suffix of an image: seed.2 is another one
        ("7", "7.png"),
        ("x::y.png", "x::y.png"),
    ],
)
def test_a_map_is_named_like_its_image(image_id: str, name: str, tmp_path: Path) -> None:
    put(tmp_path / name, 5)
    labels = LabelMaps(str(tmp_path)).read(image_id, (8, 8))
    assert labels.shape == (8, 8) and labels.unique().tolist() == [5]


@pytest.mark.parametrize("image_id", ["../a.jpg", "/etc/a.jpg", "b/../../a.jpg"])
def test_no_name_leads_out_of_the_folder(image_id: str, tmp_path: Path) -> None:
    put(tmp_path / "a.png", 5)
    (tmp_path / "maps").mkdir()
    with pytest.raises(BadImageError) as caught:
        LabelMaps(str(tmp_path / "maps")).read(image_id, (8, 8))
    assert caught.value.reason == "unsafe_name"


@pytest.mark.parametrize(
    ("image_id", "reason"),
    [
        ("missing.png", "no_segments"),
        ("folder.png", "no_segments"),
        ("wide.png", "segments_do_not_fit"),
        ("empty.png", "segments_not_an_image"),
        ("half.png", "segments_truncated"),
    ],
)
def test_what_is_no_map_of_the_image_is_told_with_its_place(image_id: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "empty.png").touch()
    put(tmp_path / "wide.png", 5, (8, 16))
    put(tmp_path / "half.png", 5)
    (tmp_path / "half.png").write_bytes((tmp_path / "half.png").read_bytes()[:50])
    with pytest.raises(BadImageError) as caught:
        LabelMaps(str(tmp_path)).read(image_id, (8, 8))
    assert caught.value.reason == reason and str(tmp_path / image_id) in str(caught.value)
