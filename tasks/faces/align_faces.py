"""A source of photos -> a folder of aligned faces, with a line for every photo: what was cut out, or why not."""

from __future__ import annotations

import json
import os
import posixpath
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from lsap_archive.stores.credentials import credential_in
from lsap_core.errors import ConfigError
from tasks.decoding import decode_photo
from tasks.errors import BadImageError
from tasks.faces.face_crop import FacePoints, Points, crop_face, side_of
from tasks.faces.landmarks import FaceFinder
from tasks.source_items import SourceItem
from tasks.sources import Source, digest_bytes

REPORT = "report.json"
REPORT_VERSION = 1
ENLARGEMENT = 4  # a face is "too_small" when the crop would be more than so many times larger
MAX_NAME_BYTES = 255

FaceChoice = Literal["largest", "all", "only"] | int


@dataclass(frozen=True)
class AlignSettings:
    """How faces are cut out.

    Attributes:
        size: side of the pictures in pixels: 1024 for FFHQ generators, 256 for what encoders read.
        face: of several in a photo: the "largest", "all" of them, the "only" one (several are refused), or the one
            with this number, the surest being 0.
        min_side: a face whose square in the photo has fewer pixels than this is left out; None: a quarter of the size.
        supersampling: see `crop_face`.
    """

    size: int = 1024
    face: FaceChoice = "largest"
    min_side: int | None = None
    supersampling: int = 1

    def __post_init__(self) -> None:
        """Refuse what cannot be cut out."""
        if not 16 <= self.size <= 4096:
            raise ConfigError(f"size is {self.size}; wanted 16 to 4096 pixels")
        if not 1 <= self.supersampling <= 4:
            raise ConfigError(f"supersampling is {self.supersampling}; wanted 1 to 4")
        if self.min_side is not None and self.min_side < 1:
            raise ConfigError(f"min_side is {self.min_side}; wanted 1 pixel or more")
        if isinstance(self.face, int):
            if self.face < 0:
                raise ConfigError(f"face is {self.face}; wanted 0 (the surest) or more")
        elif self.face not in ("largest", "all", "only"):
            raise ConfigError(f'face is "{self.face}"; wanted largest, all, only, or a number')

    @property
    def least_side(self) -> float:
        """Side of the smallest square that is cut out, in pixels of the photo."""
        return self.size / ENLARGEMENT if self.min_side is None else self.min_side


@dataclass(frozen=True)
class AlignedFace:
    """What became of a photo, or of one face of it; a line of the report.

    Attributes:
        image_id: of the photo in its source.
        uri: where it lies.
        digest: SHA-256 of its bytes, or None when they cannot be read.
        status: "aligned", "no_face", "too_small", "several", "bad_landmarks", "unreadable" or "not_written".
        problem: what was found, wanted, and is to be done, in a sentence; None when aligned.
        output: file of the face, below the folder of the report; None when there is none.
        face: number of the face in its photo, the surest being 0.
        num_faces: how many faces the photo has.
        quad: corners in the upright photo, [[x, y]] * 4: top left, bottom left, bottom right, top right.
        landmarks: the points that the square follows from.
        width: of the upright photo, in pixels.
        height: likewise.
        was_aligned: whether the photo was such a crop already, within 5 % of its side.
        notes: what was done in decoding, and "enlarged" for a face of fewer pixels than the crop.
    """

    image_id: str
    uri: str
    digest: str | None = None
    status: str = "aligned"
    problem: str | None = None
    output: str | None = None
    face: int | None = None
    num_faces: int | None = None
    quad: list[list[float]] | None = None
    landmarks: list[list[float]] | None = None
    width: int | None = None
    height: int | None = None
    was_aligned: bool | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class AlignReport:
    """All lines, and how they came about."""

    source: str
    landmarks: str
    settings: AlignSettings
    faces: tuple[AlignedFace, ...]

    @property
    def counts(self) -> dict[str, int]:
        """Lines by status."""
        return dict(sorted(Counter(face.status for face in self.faces).items()))

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "kind": "aligned faces",
            "version": REPORT_VERSION,
            "source": self.source,
            "landmarks": self.landmarks,
            "settings": asdict(self.settings),
            "counts": self.counts,
            "faces": [asdict(face) for face in self.faces],
        }


def align_photos(source: Source, finder: FaceFinder, out: Path, settings: AlignSettings) -> AlignReport:
    """Cut the faces out of all photos of a source, and write them and `report.json` into a folder.

    A photo that cannot be used becomes a line of the report, and the others go on.

    Raises:
        SourceError: the source cannot be listed, or its storage does not answer.
        OSError: the folder cannot be written.
    """
    if credential_in(source.spec):
        raise ConfigError(f"{source.spec} carries a password, which would end up in the report")
    out.mkdir(parents=True, exist_ok=True)
    items = list(source.items())
    names = FileNames(items)
    faces = [face for item in items for face in _align_one(source, item, finder, out, settings, names)]
    report = AlignReport(_from_anywhere(source.spec), finder.describe(), settings, tuple(faces))
    write_whole(out / REPORT, json.dumps(report.to_dict(), indent=1).encode())
    return report


def _align_one(
    source: Source, item: SourceItem, finder: FaceFinder, out: Path, settings: AlignSettings, names: FileNames
) -> Iterator[AlignedFace]:
    known: dict[str, Any] = {"image_id": item.image_id, "uri": item.uri}
    try:
        data = source.read(item)
        known["digest"] = digest_bytes(data)
        photo = decode_photo(data)
    except BadImageError as problem:
        yield AlignedFace(**known, status="unreadable", problem=problem.message, notes=(problem.reason,))
        return
    known |= {"width": photo.width, "height": photo.height}
    found = finder.find(item.image_id, photo.pixels)
    known["num_faces"] = len(found)
    try:
        chosen = _choose(found, settings.face, finder.describe())
    except BadImageError as problem:
        yield AlignedFace(**known, status=problem.reason, problem=problem.message, notes=photo.notes)
        return
    picture = Image.fromarray(photo.pixels)
    for number in chosen:
        seen = known | {"face": number, "landmarks": found[number].tolist()}
        try:
            points = FacePoints.from_landmarks(found[number])
            points.check_inside(photo.width, photo.height)
            quad = points.quad()
            seen |= {"quad": quad.tolist(), "was_aligned": points.is_aligned(photo.width, photo.height)}
            _check_size(quad, settings)
            name = names.of(item, number if settings.face == "all" else None)
        except BadImageError as problem:
            yield AlignedFace(**seen, status=problem.reason, problem=problem.message, notes=photo.notes)
            continue
        face = crop_face(picture, quad, settings.size, supersampling=settings.supersampling)
        write_png(out / name, face)
        notes = (*photo.notes, *(("enlarged",) if side_of(quad) < settings.size else ()))
        yield AlignedFace(**seen, output=name, notes=notes)


def _choose(found: list[Points], face: FaceChoice, by: str) -> list[int]:
    """Numbers of the faces that are wanted."""
    if not found:
        raise BadImageError(
            "no_face", f"{by} has no face for this photo, one was wanted: give its landmarks, or take it out"
        )
    if face == "all":
        return list(range(len(found)))
    if face == "only" and len(found) > 1:
        raise BadImageError(
            "several", f"the photo has {len(found)} faces, one was wanted: choose largest, all, or a number"
        )
    if isinstance(face, int):
        if face >= len(found):
            raise BadImageError(
                "no_face", f"the photo has {len(found)} faces, number {face} was wanted: choose another"
            )
        return [face]
    # Landmarks that make no square count as the smallest, and are refused when they are chosen.
    return [int(np.argmax([_side_of_face(points) for points in found]))]


def _side_of_face(landmarks: Points) -> float:
    try:
        return side_of(FacePoints.from_landmarks(landmarks).quad())
    except BadImageError:
        return 0.0


def _check_size(quad: Points, settings: AlignSettings) -> None:
    if side_of(quad) < settings.least_side:
        raise BadImageError(
            "too_small",
            f"the face's square has sides of {side_of(quad):.0f} pixels in the photo, at least "
            f"{settings.least_side:.0f} were wanted for crops of {settings.size}: find a larger photo, or ask for less",
        )


class FileNames:
    """Names of the files that are written: those of the photos, ending in .png, with their folders."""

    def __init__(self, items: Iterable[SourceItem]):
        self._stems = Counter(_stem(_safe_path(item.image_id)) for item in items)
        self._taken: set[str] = {REPORT}
        self._folders: set[str] = set()

    def of(self, item: SourceItem, face: int | None) -> str:
        """Name of a photo's face, that of no other; photos that differ in the suffix only keep it.

        Raises:
            BadImageError: ("not_written") the name cannot be a file's, or is another face's.
        """
        path = _safe_path(item.image_id)
        name = _stem(path) if self._stems[_stem(path)] == 1 else path
        name = f"{name}{'' if face is None else f'.face-{face}'}.png"
        is_long = any(len(part.encode()) > MAX_NAME_BYTES for part in name.split("/"))
        folders = {name[: slash.start()] for slash in re.finditer("/", name)}
        is_taken = name in self._taken or name in self._folders or bool(folders & self._taken)
        if not path or is_long or is_taken or re.search(r"[\x00-\x1f]", name):
            raise BadImageError(
                "not_written",
                f"the name {name[:100]!r} is {'another face' if is_taken else 'no file'}'s, a new one was wanted: "
                "rename the photo",
            )
        self._taken.add(name)
        self._folders |= folders
        return name


def _safe_path(image_id: str) -> str:
    """An image_id as a path below a folder: manifests may have whole addresses as ids."""
    parts = re.split(r"[/\\]+", re.sub(r"^[A-Za-z][A-Za-z0-9+.-]*:", "", image_id))
    return "/".join(part for part in parts if part not in ("", ".", ".."))


def _stem(path: str) -> str:
    return posixpath.splitext(path)[0]


def _from_anywhere(spec: str) -> str:
    """A source's spec that holds in other working directories too."""
    return os.path.abspath(spec) if "://" not in spec and Path(spec.split("*")[0] or ".").exists() else spec


def write_png(path: Path, picture: Image.Image) -> None:
    """Write a picture as a whole file or not at all; its folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beginning = path.with_name(f".{path.stem[:100]}.{os.getpid()}.png")
    try:
        picture.save(beginning, "PNG")
        beginning.replace(path)
    finally:
        beginning.unlink(missing_ok=True)


def write_whole(path: Path, data: bytes) -> None:
    """Write a file as a whole or not at all."""
    beginning = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beginning.write_bytes(data)
        beginning.replace(path)
    finally:
        beginning.unlink(missing_ok=True)
