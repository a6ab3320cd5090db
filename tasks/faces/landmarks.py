"""Where the faces of a photo are: from a file of landmarks, or from a detector.

Points are (x, y) in pixels of the upright photo, (0, 0) the centre of its first pixel; 68 of them in iBUG's order, or
five (eyes, tip of the nose, corners of the mouth, left in the photo first).
"""

from __future__ import annotations

import csv
import json
import posixpath
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lsap_core.errors import ConfigError
from lsap_core.images import from_uint8
from lsap_core.perceptual.face_detection import DetectorSettings
from tasks.array_files import ArrayFileError, read_npz
from tasks.faces.face_crop import Points
from tasks.weights.devices import module_device
from tasks.weights.packaged_mtcnn import load_available_detector
from tasks.weights.published import Published

LANDMARK_KINDS = "a .json, .csv or .npz file of landmarks by image_id, or a .pts file or a folder of them"
NUM_POINTS = (68, 5)
MAX_FILE_BYTES = 2**30
FOR_PHOTOS = DetectorSettings(softmax="classes", thresholds=(0.6, 0.7, 0.8))
LONGEST_SIDE = 1024


class FaceFinder(Protocol):
    """Tells the faces of a photo."""

    def find(self, image_id: str, pixels: NDArray[np.uint8]) -> list[Points]:
        """Landmarks of every face [P, 2], P = 68 or 5, the surest first; none where there is no face.

        Args:
            image_id: of the photo in its source.
            pixels: the upright photo, uint8 [H, W, 3].
        """
        ...

    def describe(self) -> str:
        """Where the landmarks come from, for reports."""
        ...


# --- files ---------------------------------------------------------------------------------------------


class LandmarkFile:
    """Landmarks that somebody else has found, by image_id."""

    def __init__(self, path: Path, faces: Mapping[str, list[Points]], *, by_stem: bool = False):
        self.path = path
        self.faces = faces
        self.by_stem = by_stem

    def find(self, image_id: str, pixels: NDArray[np.uint8]) -> list[Points]:
        """Landmarks of the photo's faces, in the order of the file."""
        return self.faces.get(posixpath.splitext(image_id)[0] if self.by_stem else image_id, [])

    def describe(self) -> str:
        """The file."""
        return str(self.path)


def read_landmarks(path: Path) -> LandmarkFile:
    """Landmarks from a file.

    Args:
        path: one of
            .json: {image_id: [[x, y], ...]}, or a list of such lists for several faces;
            .csv: a row for each face, with columns image_id, x0, y0, x1, y1, ... (and others, which are ignored);
            .npz: an array for each image_id, [P, 2] or [faces, P, 2];
            .pts: iBUG's files, of the photo with the same name but for the suffix, or a folder of them. They count
            from 1, so 1 is taken off.

    Raises:
        ConfigError: there is no such file, or something else is in it; the entry is named.
    """
    if path.is_dir():
        files = sorted(path.rglob("*.pts"))
        if not files:
            raise ConfigError(f"{path} holds no .pts file; wanted {LANDMARK_KINDS}")
        stems = {file.relative_to(path).with_suffix("").as_posix(): [_read_pts(file)] for file in files}
        return LandmarkFile(path, stems, by_stem=True)
    if not path.is_file():
        raise ConfigError(f"{path} does not exist; wanted {LANDMARK_KINDS}")
    if path.stat().st_size > MAX_FILE_BYTES:
        raise ConfigError(f"{path} has {path.stat().st_size} bytes; wanted landmarks of at most {MAX_FILE_BYTES}")
    readers = {".json": _read_json, ".csv": _read_csv, ".npz": _read_npz}
    suffix = path.suffix.lower()
    if suffix == ".pts":
        return LandmarkFile(path, {path.stem: [_read_pts(path)]}, by_stem=True)
    if suffix not in readers:
        raise ConfigError(f"{path} is a file of no known kind; wanted {LANDMARK_KINDS}")
    return LandmarkFile(path, readers[suffix](path))


def _read_json(path: Path) -> dict[str, list[Points]]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise ConfigError(f"{path} holds a {type(document).__name__}; wanted {{image_id: points}}")
    return {image_id: _several(value, f"{path}: {image_id!r}") for image_id, value in document.items()}


def _read_npz(path: Path) -> dict[str, list[Points]]:
    try:
        arrays = read_npz(path.read_bytes())
        return {name: _several(points, f"{path}: {name!r}") for name, points in arrays.items()}
    except ArrayFileError as error:
        raise ConfigError(f"{path} is no .npz file of plain arrays: {error}") from error


def _read_csv(path: Path) -> dict[str, list[Points]]:
    faces: dict[str, list[Points]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        try:
            table = csv.DictReader(file)
            columns = _columns_of_points(path, table.fieldnames or [])
            for row in table:
                where = f"{path}, line {table.line_num}"
                faces.setdefault(row["image_id"], []).append(_one([[row[x], row[y]] for x, y in columns], where))
        except (csv.Error, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} is no table of comma-separated values: {error}") from error
    return faces


def _columns_of_points(path: Path, names: Any) -> list[tuple[str, str]]:
    for count in NUM_POINTS:
        columns = [(f"x{index}", f"y{index}") for index in range(count)]
        if "image_id" in names and all(x in names and y in names for x, y in columns):
            return columns
    raise ConfigError(
        f"{path} has the columns {', '.join(map(str, list(names)[:6])) or 'none'}{', ...' if len(names) > 6 else ''}; "
        "wanted image_id and x0, y0 to x67, y67 (or to x4, y4)"
    )


def _read_pts(path: Path) -> Points:
    try:
        text = path.read_text(encoding="ascii")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is no .pts file: {error}") from error
    body = re.fullmatch(r"\s*version:\s*\S+\s+n_points:\s*\d+\s*\{([^{}]*)\}\s*", text)
    if body is None:
        raise ConfigError(f'{path} is no .pts file; wanted "version: 1", "n_points: 68" and the points in braces')
    return _one([line.split() for line in body[1].strip().splitlines()], str(path)) - 1


def _several(value: Any, where: str) -> list[Points]:
    """The faces of one photo: points, or a list of faces with their points."""
    array = _numbers(value, where)
    if array.size == 0:
        return []
    if array.ndim == 3:
        return [_one(face, where) for face in array]
    return [_one(array, where)]


def _one(value: Any, where: str) -> Points:
    points = _numbers(value, where)
    if points.ndim != 2 or points.shape[1] != 2 or len(points) not in NUM_POINTS or not np.isfinite(points).all():
        raise ConfigError(
            f"{where}: found {list(points.shape)} numbers{'' if np.isfinite(points).all() else ', not all finite'}; "
            "wanted 68 or 5 points of x and y for each face"
        )
    return points


def _numbers(value: Any, where: str) -> Points:
    try:
        return np.asarray(value, dtype=np.float64)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{where}: found something else than points of x and y ({error})") from error


# --- detectors -----------------------------------------------------------------------------------------


class DlibFinder:
    """dlib's frontal face detector, and a shape predictor with 68 points."""

    def __init__(self, predictor: Path, *, upsampling: int = 0):
        """Load both.

        Args:
            predictor: such as shape_predictor_68_face_landmarks.dat.
            upsampling: how often the photo is doubled first; 0 finds faces from about 80 pixels.

        Raises:
            ConfigError: dlib is not installed, or the file is no shape predictor with 68 points.
        """
        try:
            import dlib
        except ImportError as error:
            raise ConfigError(
                f"the detector dlib is not installed ({error}): pip install 'lsap[faces]', or give a file of landmarks"
            ) from error
        if not predictor.is_file():
            raise ConfigError(f"{predictor} does not exist; wanted dlib's shape_predictor_68_face_landmarks.dat")
        try:
            self._predictor = dlib.shape_predictor(str(predictor))
        except RuntimeError as error:
            raise ConfigError(f"{predictor} is no shape predictor of dlib: {error}") from error
        blank = np.zeros((8, 8, 3), np.uint8)
        count = self._predictor(blank, dlib.rectangle(0, 0, 7, 7)).num_parts
        if count != NUM_POINTS[0]:
            raise ConfigError(f"{predictor} predicts {count} points; wanted 68 in iBUG's order")
        self._path, self._upsampling = predictor, upsampling
        self._detector = dlib.get_frontal_face_detector()

    def find(self, image_id: str, pixels: NDArray[np.uint8]) -> list[Points]:
        """Landmarks of the faces that look at the camera."""
        boxes, scores, _ = self._detector.run(pixels, self._upsampling, 0.0)
        shapes = [self._predictor(pixels, boxes[index]) for index in np.argsort(-np.array(scores), kind="stable")]
        return [np.array([(part.x, part.y) for part in shape.parts()], dtype=np.float64) for shape in shapes]

    def describe(self) -> str:
        """The detector and its file."""
        return f"dlib with {self._path.name}"


class MtcnnFinder:
    """MTCNN, the detector that identity is reported with: five points of every face.

    It decides by classes and by MTCNN's own thresholds: the published identity score's, which are shares of a map's
    columns, fit its images of 256 pixels and not wide photos.
    """

    def __init__(self, published: Published, *, device: str = "auto"):
        """Load it.

        Args:
            published: where published networks lie; what is not there is taken from the package mtcnn.
            device: "auto", "cpu", "cuda".

        Raises:
            MissingWeightsError: neither the files nor the package are on this machine.
            CheckpointError: a file holds something else.
        """
        self._device = module_device(device)
        detector, self._source = load_available_detector(published, FOR_PHOTOS)
        self._detector = detector.to(self._device)

    def find(self, image_id: str, pixels: NDArray[np.uint8]) -> list[Points]:
        """Five points of every face; photos of more than 1024 pixels are looked at shrunk to that."""
        height, width = pixels.shape[:2]
        times = max(1.0, max(height, width) / LONGEST_SIDE)
        size = (max(1, round(width / times)), max(1, round(height / times)))
        looked_at = np.array(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR))
        (faces,) = self._detector.detect(from_uint8(looked_at[None]).to(self._device))
        per_pixel = np.array([width / size[0], height / size[1]])
        return list((faces.landmarks.numpy() + 0.5) * per_pixel - 0.5)

    def describe(self) -> str:
        """The detector, and whose weights it has."""
        return self._source
