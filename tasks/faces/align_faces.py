"""A source of photos -> a folder of aligned faces, with a line for every photo: what was cut out, or why not."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from lsap_archive import credential_in
from lsap_core.errors import ConfigError
from tasks.errors import BadImageError
from tasks.faces.face_crop import FacePoints, Points, crop_face, side_of
from tasks.faces.landmarks import FaceFinder
from tasks.pictures.decoding import decode_photo
from tasks.pictures.folders import FileNames, write_png, write_whole
from tasks.sources.items import SourceItem
from tasks.sources.source import Source, digest_bytes

REPORT = "report.json"
REPORT_VERSION = 1
ENLARGEMENT = 4  # a face is "too_small" when the crop would be more than so many times larger

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
    names = FileNames(items, [REPORT])
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


def _from_anywhere(spec: str) -> str:
    """A source's spec that holds in other working directories too."""
    return os.path.abspath(spec) if "://" not in spec and Path(spec.split("*")[0] or ".").exists() else spec
