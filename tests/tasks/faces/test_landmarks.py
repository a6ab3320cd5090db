"""Landmarks from files of every kind, from dlib on a photograph, and from MTCNN."""

from __future__ import annotations

import builtins
import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.cbook
import numpy as np
import pytest
import torch
from PIL import Image

from lsap_core.errors import ConfigError
from lsap_core.perceptual.face_detection import Faces
from tasks.faces import landmarks
from tasks.faces.face_crop import FacePoints, Points, crop_face, side_of
from tasks.faces.landmarks import DlibFinder, MtcnnFinder, read_landmarks
from tasks.weights.published import Published

BLACK = np.zeros((8, 8, 3), np.uint8)
POINTS = np.random.default_rng(0).uniform(0, 500, size=(3, 68, 2)).round(3)

# Marked by hand in the photograph that comes with matplotlib, Grace Hopper's: 512 x 600 pixels, in the public domain.
HOPPER = {"left_eye": (222, 188), "right_eye": (304, 186), "mouth_left": (232, 277), "mouth_right": (301, 277)}


# --- files ------------------------------------------------------------------------------------------


def write_json(path: Path) -> None:
    path.write_text(json.dumps({"a/b.png": POINTS[0].tolist(), "two faces.jpg": POINTS[1:].tolist(), "none.png": []}))


def write_csv(path: Path) -> None:
    names = ",".join(f"x{index},y{index}" for index in range(68))
    lines = [f"who,image_id,{names}"]
    for image_id, points in zip(("a/b.png", "two faces.jpg", "two faces.jpg"), POINTS, strict=True):
        lines.append(f"x,{image_id}," + ",".join(map(str, points.flatten())))
    path.write_text("\n".join(lines) + "\n")


def write_npz(path: Path) -> None:
    np.savez(path, **{"a/b.png": POINTS[0], "two faces.jpg": POINTS[1:]})


@pytest.mark.parametrize(("suffix", "write"), [(".json", write_json), (".csv", write_csv), (".npz", write_npz)])
def test_files_tell_the_faces_of_every_image(tmp_path: Path, suffix: str, write: Callable[[Path], None]) -> None:
    path = tmp_path / f"points{suffix}"
    write(path)
    found = read_landmarks(path)
    assert found.describe() == str(path)
    np.testing.assert_array_equal(found.find("a/b.png", BLACK), POINTS[:1])
    np.testing.assert_array_equal(found.find("two faces.jpg", BLACK), POINTS[1:])
    assert found.find("another.png", BLACK) == [] and found.find("none.png", BLACK) == []


def write_pts(path: Path, points: Points) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = "\n".join(f"{x} {y}" for x, y in points + 1)  # they count from 1
    path.write_text(f"version: 1\nn_points:  {len(points)}\n{{\n{rows}\n}}\n")


def test_pts_files_count_from_one_and_belong_to_images_by_name(tmp_path: Path) -> None:
    write_pts(tmp_path / "all" / "a" / "b.c.pts", POINTS[0])
    write_pts(tmp_path / "all" / "d.pts", POINTS[1, :5])
    found = read_landmarks(tmp_path / "all")
    np.testing.assert_allclose(found.find("a/b.c.jpeg", BLACK), POINTS[:1])
    np.testing.assert_allclose(found.find("d.png", BLACK), POINTS[1:2, :5])
    assert found.find("b.c.jpeg", BLACK) == []
    np.testing.assert_allclose(read_landmarks(tmp_path / "all" / "d.pts").find("d.png", BLACK), POINTS[1:2, :5])


def test_five_points_in_a_table(tmp_path: Path) -> None:
    (tmp_path / "five.csv").write_text("image_id,x0,y0,x1,y1,x2,y2,x3,y3,x4,y4\nq.png,1,2,3,4,5,6,7,8,9,10\n")
    (face,) = read_landmarks(tmp_path / "five.csv").find("q.png", BLACK)
    assert face.tolist() == [[1, 2], [3, 4], [5, 6], [7, 8], [9, 10]]


class RunsWhenUnpickled:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return builtins.exec, ("raise SystemExit",)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.json", "{", "p.json is not JSON"),
        ("p.json", "[" * 100_000, "p.json is not JSON"),
        ("p.json", "[1]", "p.json holds a list; wanted {image_id: points}"),
        ("p.json", '{"a.png": [[1, 2]]}', r"p.json: 'a.png': found \[1, 2\] numbers; wanted 68 or 5 points"),
        ("p.json", '{"a.png": "here"}', r"p.json: 'a.png': found something else than points"),
        ("p.json", '{"a.png": [[1, 2], [3]]}', r"p.json: 'a.png': found something else than points"),
        ("p.json", '{"a.png": [[1,2],[1,2],[1,2],[1,2],[1,NaN]]}', "not all finite"),
        ("p.csv", "image_id,x0,y0\na,1,2\n", "has the columns image_id, x0, y0; wanted image_id and x0, y0 to x67"),
        ("p.csv", "", "has the columns none"),
        (
            "p.csv",
            "image_id,x0,y0,x1,y1,x2,y2,x3,y3,x4,y4\na,1,2,3,4,5,6,7,8,9\n",
            r"p.csv, line 2: found \[5, 2\] numbers, not all finite",
        ),
        ("p.csv", "image_id,x0,y0,x1,y1,x2,y2,x3,y3,x4,y4\na,1,2,3,4,5,6,7,8,9,b\n", "line 2: found something else"),
        ("p.csv", b"\xff\xfe\x00", "p.csv is no table"),
        ("p.pts", "1 2\n3 4\n", "p.pts is no .pts file; wanted"),
        ("p.pts", "version: 1\nn_points: 2\n{\n1 2\n3 4\n}\n", r"p.pts: found \[2, 2\] numbers"),
        ("p.pts", b"\xff", "p.pts is no .pts file"),
        ("p.npz", b"PK\x03\x04", "p.npz is no .npz file of plain arrays"),
        ("p.npz", b"zzz", "p.npz is no .npz file of plain arrays"),
        ("p.dat", "", "p.dat is a file of no known kind; wanted a .json, .csv"),
    ],
)
def test_other_content_is_refused_in_a_sentence(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(ConfigError, match=message):
        read_landmarks(tmp_path / name)


def test_arrays_of_objects_are_not_run(tmp_path: Path) -> None:
    np.savez(tmp_path / "p.npz", a=np.array([RunsWhenUnpickled()]))
    with pytest.raises(ConfigError, match=r"no .npz file of plain arrays"):
        read_landmarks(tmp_path / "p.npz")


def test_missing_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"does not exist; wanted a .json"):
        read_landmarks(tmp_path / "p.json")
    with pytest.raises(ConfigError, match=r"holds no .pts file"):
        read_landmarks(tmp_path)


# --- dlib -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hopper() -> Image.Image:
    """A photograph with one face."""
    with matplotlib.cbook.get_sample_data("grace_hopper.jpg") as file:
        return Image.open(file).convert("RGB")


def sixty_eight(scale: float, shift: tuple[float, float]) -> Points:
    """68 points of that face in the photograph at a scale and place: the marked ones, and a ring for the others."""
    ring = np.linspace(0, 2 * np.pi, 68, endpoint=False)
    points = np.stack([265 + 100 * np.cos(ring), 230 + 110 * np.sin(ring)], axis=1)
    around = 12 * np.stack([np.cos(ring[:60:10]), np.sin(ring[:60:10])], axis=1)
    points[36:42] = HOPPER["left_eye"] + around - around.mean(axis=0)
    points[42:48] = HOPPER["right_eye"] + around - around.mean(axis=0)
    points[48], points[54] = HOPPER["mouth_left"], HOPPER["mouth_right"]
    return points * scale + shift


def placed(photo: Image.Image, scale: float, shift: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    """The photograph at a scale and place within another one."""
    canvas = Image.new("RGB", size, (90, 110, 140))
    canvas.paste(photo.resize((round(photo.width * scale), round(photo.height * scale))), shift)
    return np.asarray(canvas)


@pytest.fixture(scope="module")
def predictor(hopper: Image.Image, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small shape predictor in dlib's format, that has learnt this one face at several scales and places."""
    dlib = pytest.importorskip("dlib")
    detector = dlib.get_frontal_face_detector()
    images, annotations = [], []
    for scale, shift in [(1.0, (0, 0)), (0.9, (20, 10)), (1.1, (5, 0)), (0.95, (0, 15)), (1.05, (10, 20))]:
        pixels = placed(hopper, scale, shift, (620, 680))
        (box,) = detector(pixels, 0)
        parts = [dlib.point(round(x), round(y)) for x, y in sixty_eight(scale, shift)]
        images.append(pixels)
        annotations.append([dlib.full_object_detection(box, parts)])
    options = dlib.shape_predictor_training_options()
    options.cascade_depth, options.tree_depth, options.num_trees_per_cascade_level = 4, 2, 15
    options.oversampling_amount, options.feature_pool_size, options.num_test_splits = 10, 60, 10
    options.num_threads, options.be_verbose, options.random_seed = 1, False, "0"
    path = tmp_path_factory.mktemp("dlib") / "shape_predictor_68_face_landmarks.dat"
    dlib.train_shape_predictor(images, annotations, options).save(str(path))
    return path


def test_dlib_finds_the_face_of_a_photograph(hopper: Image.Image, predictor: Path) -> None:
    finder = DlibFinder(predictor)
    assert finder.describe() == "dlib with shape_predictor_68_face_landmarks.dat"
    pixels = placed(hopper, 0.98, (60, 30), (700, 700))
    (found,) = finder.find("hopper.jpg", pixels)
    points = FacePoints.from_landmarks(found)
    marked = {name: np.array(place) * 0.98 + (60, 30) for name, place in HOPPER.items()}  # 80 between the eyes
    for name, place in marked.items():
        assert np.hypot(*(getattr(points, name) - place)) < 10, name
    quad = points.quad()
    (again,) = finder.find("crop", np.asarray(crop_face(Image.fromarray(pixels), quad, 256)))
    for name, place in marked.items():
        in_crop = (
            256 * (place - quad[0]) @ np.stack([quad[3] - quad[0], quad[1] - quad[0]], 1) / side_of(quad) ** 2 - 0.5
        )
        assert np.hypot(*(getattr(FacePoints.from_landmarks(again), name) - in_crop)) < 10, name


def test_dlib_finds_several_faces_and_none(hopper: Image.Image, predictor: Path) -> None:
    finder = DlibFinder(predictor)
    two = np.concatenate([placed(hopper, 1.0, (0, 0), (520, 620)), placed(hopper, 0.7, (60, 60), (520, 620))], axis=1)
    large, small = (FacePoints.from_landmarks(points) for points in finder.find("two.jpg", two))
    assert {large.left_eye[0] < 520, small.left_eye[0] < 520} == {True, False}
    assert finder.find("none.jpg", np.zeros((200, 200, 3), np.uint8)) == []


def test_small_faces_need_upsampling(hopper: Image.Image, predictor: Path) -> None:
    pixels = placed(hopper, 0.25, (10, 10), (160, 180))
    assert DlibFinder(predictor).find("small.jpg", pixels) == []
    (found,) = DlibFinder(predictor, upsampling=1).find("small.jpg", pixels)
    eye = np.array(HOPPER["left_eye"]) * 0.25 + 10
    assert np.hypot(*(FacePoints.from_landmarks(found).left_eye - eye)) < 5


def test_what_is_no_predictor_of_68_points_is_refused(tmp_path: Path, predictor: Path) -> None:
    dlib = pytest.importorskip("dlib")
    with pytest.raises(ConfigError, match="does not exist; wanted dlib's shape_predictor_68"):
        DlibFinder(tmp_path / "no.dat")
    (tmp_path / "zeros.dat").write_bytes(bytes(1000))
    with pytest.raises(ConfigError, match=r"zeros.dat is no shape predictor of dlib"):
        DlibFinder(tmp_path / "zeros.dat")
    (tmp_path / "short.dat").write_bytes(predictor.read_bytes()[:-300])
    with pytest.raises(ConfigError, match=r"short.dat is no shape predictor of dlib"):
        DlibFinder(tmp_path / "short.dat")
    box, options = dlib.rectangle(0, 0, 7, 7), dlib.shape_predictor_training_options()
    options.num_threads, options.cascade_depth, options.num_trees_per_cascade_level = 1, 1, 1
    face = [[dlib.full_object_detection(box, [dlib.point(n, n) for n in range(5)])]] * 2
    dlib.train_shape_predictor([BLACK, BLACK], face, options).save(str(tmp_path / "five.dat"))
    with pytest.raises(ConfigError, match=r"five.dat predicts 5 points; wanted 68"):
        DlibFinder(tmp_path / "five.dat")


def test_without_dlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "dlib", None)
    with pytest.raises(ConfigError, match=r"dlib is not installed .*: pip install 'lsap\[faces\]', or give a file"):
        DlibFinder(tmp_path / "some.dat")


# --- MTCNN ------------------------------------------------------------------------------------------


def test_mtcnn_gives_five_points_in_pixels_of_the_photo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    five = torch.arange(20, dtype=torch.float64).reshape(2, 5, 2)
    seen: list[tuple[int, ...]] = []

    class Detector(torch.nn.Module):
        def detect(self, images: torch.Tensor) -> list[Faces]:
            seen.append(tuple(images.shape))
            return [Faces(torch.zeros(2, 5), five)]

    monkeypatch.setattr(landmarks, "load_available_detector", lambda published, settings: (Detector(), "MTCNN"))
    finder = MtcnnFinder(Published(str(tmp_path)), device="cpu")
    assert finder.describe() == "MTCNN"
    np.testing.assert_array_equal(finder.find("a.png", np.zeros((30, 40, 3), np.uint8)), five)
    # In a photo that is looked at at half its size, the first pixel there is the middle of the first two here.
    np.testing.assert_array_equal(finder.find("a.png", np.zeros((600, 2048, 3), np.uint8)), 2 * five + 0.5)
    assert seen == [(1, 3, 30, 40), (1, 3, 300, 1024)]


def test_mtcnn_of_the_package_finds_the_face_of_a_photograph(hopper: Image.Image, tmp_path: Path) -> None:
    if importlib.util.find_spec("mtcnn") is None or importlib.util.find_spec("lz4") is None:
        pytest.skip("the packages mtcnn and lz4 are not installed: make test")
    finder = MtcnnFinder(Published(str(tmp_path)), device="cpu")
    assert finder.find("none.png", np.zeros((60, 60, 3), np.uint8)) == []
    (found,) = finder.find("hopper.jpg", placed(hopper, 0.98, (60, 30), (700, 700)))
    points = FacePoints.from_landmarks(found)
    for name, place in HOPPER.items():  # 80 pixels between the eyes
        assert np.hypot(*(getattr(points, name) - (np.array(place) * 0.98 + (60, 30)))) < 10, name
