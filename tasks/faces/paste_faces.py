"""Edited faces back into the photos that they were cut out of."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lsap_core.errors import ConfigError
from tasks.errors import BadImageError
from tasks.faces.align_faces import REPORT, REPORT_VERSION
from tasks.faces.face_crop import FARTHEST, Points, paste_face
from tasks.pictures.decoding import decode_photo
from tasks.pictures.folders import FileNames, write_png, write_whole
from tasks.sources.items import SourceItem, check_name
from tasks.sources.source import Source, digest_bytes, open_source

PASTE_REPORT = "pasted.json"
FEATHER = 0.05


@dataclass(frozen=True)
class CutFace:
    """Where a face lies, from the report of its alignment."""

    output: str
    quad: Points


@dataclass(frozen=True)
class CutPhoto:
    """A photo that faces were cut out of."""

    item: SourceItem
    digest: str
    faces: tuple[CutFace, ...]


@dataclass(frozen=True)
class PastedPhoto:
    """What became of a photo.

    Attributes:
        image_id: of the photo in its source.
        status: "pasted", "no_edit", "photo_changed", "unreadable" or "not_written".
        problem: a sentence; None when every face was pasted.
        output: file of the photo with its edited faces, or None.
        num_faces: how many were pasted.
    """

    image_id: str
    status: str = "pasted"
    problem: str | None = None
    output: str | None = None
    num_faces: int = 0


@dataclass(frozen=True)
class PasteReport:
    """All photos."""

    photos: tuple[PastedPhoto, ...]

    @property
    def counts(self) -> dict[str, int]:
        """Photos by status."""
        return dict(sorted(Counter(photo.status for photo in self.photos).items()))

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"kind": "pasted faces", "counts": self.counts, "photos": [asdict(photo) for photo in self.photos]}


def paste_photos(
    edited: Path, report: Path, out: Path, *, source: str | None = None, feather: float = FEATHER
) -> PasteReport:
    """Put edited faces back into their photos, in the photos' own size; written as PNG, with `pasted.json`.

    Args:
        edited: folder of faces under the names that the alignment gave them; any square size.
        report: `report.json` of the alignment.
        out: folder for the photos.
        source: of the photos, where they are no longer where the report says.
        feather: see `paste_face`.

    Raises:
        ConfigError: the report is none, or feather lies outside [0, 0.5).
        SourceError: the photos' source is not there.
    """
    if not 0 <= feather < 0.5:
        raise ConfigError(f"feather is {feather}; wanted 0 to below 0.5")
    if not edited.is_dir():
        raise ConfigError(f"{edited} is no folder; wanted that of the edited faces")
    spec, photos = read_align_report(report)
    out.mkdir(parents=True, exist_ok=True)
    with open_source(source or spec) as opened:
        if source is not None:
            photos = _found_in(opened, photos)
        names = FileNames([photo.item for photo in photos], [REPORT])
        pasted = PasteReport(tuple(_paste_one(opened, photo, edited, out, names, feather) for photo in photos))
    write_whole(out / PASTE_REPORT, json.dumps(pasted.to_dict(), indent=1).encode())
    return pasted


def read_align_report(path: Path) -> tuple[str, list[CutPhoto]]:
    """The source and the photos of an alignment's report, those with faces only.

    Raises:
        ConfigError: the file is missing, or no such report.
    """
    if not path.is_file():
        raise ConfigError(f"{path} does not exist; wanted the report.json that `lsap image align` wrote")
    wanted = "wanted the report.json that `lsap image align` wrote"
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["kind"] != "aligned faces" or document["version"] != REPORT_VERSION:
            raise ConfigError(f"{path} is a report of {document['kind']!r}, version {document['version']!r}; {wanted}")
        photos: dict[str, CutPhoto] = {}
        for line in document["faces"]:
            if line["output"] is None:
                continue
            item = SourceItem(str(line["image_id"]), str(line["uri"]))
            before = photos.get(item.image_id, CutPhoto(item, str(line["digest"]), ()))
            face = CutFace(_below(line["output"]), _quad(line["quad"]))
            photos[item.image_id] = CutPhoto(item, before.digest, (*before.faces, face))
        return str(document["source"]), list(photos.values())
    except ConfigError:
        raise
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ConfigError(f"{path} cannot be used ({type(error).__name__}: {error}); {wanted}") from error


def _below(name: object) -> str:
    """The name of a file below a folder."""
    if not isinstance(name, str) or check_name(name, "name of a face") is not None:
        raise ValueError(f"{name!r} is no name of a file below the folder")
    return name


def _quad(corners: object) -> Points:
    quad = np.asarray(corners, dtype=np.float64)
    if quad.shape != (4, 2) or not (np.abs(quad) < 10 * FARTHEST).all() or np.hypot(*(quad[3] - quad[0])) == 0:
        raise ValueError(f"{corners!r} are no corners of a square")
    return quad


def _found_in(source: Source, photos: list[CutPhoto]) -> list[CutPhoto]:
    """The same photos where another source has them."""
    items = {item.image_id: item for item in source.items()}
    lost = SourceItem("", "", BadImageError("unreadable", f"{source.spec} has no photo with this id"))
    return [
        CutPhoto(
            items.get(photo.item.image_id, SourceItem(photo.item.image_id, "", lost.problem)), photo.digest, photo.faces
        )
        for photo in photos
    ]


def _paste_one(
    source: Source, photo: CutPhoto, edited: Path, out: Path, names: FileNames, feather: float
) -> PastedPhoto:
    image_id = photo.item.image_id
    try:
        data = source.read(photo.item)
        if digest_bytes(data) != photo.digest:
            raise BadImageError(
                "photo_changed", f"{photo.item.uri} is not the photo that the face was cut out of: align it again"
            )
        result = Image.fromarray(decode_photo(data).pixels)
        faces = [(face, _read_face(edited / face.output)) for face in photo.faces]
        for face, picture in faces:
            result = paste_face(result, picture, face.quad, feather=feather)
        name = names.of(photo.item, None)
    except BadImageError as problem:
        status = problem.reason if problem.reason in ("photo_changed", "no_edit", "not_written") else "unreadable"
        return PastedPhoto(image_id, status, problem.message)
    write_png(out / name, result)
    return PastedPhoto(image_id, output=name, num_faces=len(faces))


def _read_face(path: Path) -> Image.Image:
    if not path.is_file():
        raise BadImageError(
            "no_edit", f"{path} does not exist, the edited face under the name of the aligned one was wanted"
        )
    face = decode_photo(path.read_bytes())
    if face.width != face.height:
        raise BadImageError("not_square", f"{path} is {face.width}x{face.height} pixels, a square was wanted")
    return Image.fromarray(face.pixels)
