"""What finds the segments of images for SAM, by name: superpixels, the face parser, or label maps in files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lsap_archive import (
    ArchiveMismatchError,
    ArchiveNotFoundError,
    open_file_system,
    scheme_of,
    storage_errors,
)
from lsap_core.errors import CheckpointError, ConfigError, MissingWeightsError
from lsap_core.generators.checkpoints import read_torch
from lsap_core.images import as_rgb
from lsap_core.refinement.face_parser import (
    FACE_MERGES,
    FACE_MERGES_WITH_HAIR,
    FaceParser,
    build_face_parser,
)
from lsap_core.refinement.sam_networks import Segment
from tasks.weights.networks import digest_of_file
from tasks.weights.published import Published

SUPERPIXELS = "superpixels"
MAPS = "maps:"
FACE_PARSER_FILE = "79999_iter.pth"
# Labels that become one: as in the authors' own program, and as in GANInverter.
FACE_PARSERS = {"face": FACE_MERGES, "face_with_hair": FACE_MERGES_WITH_HAIR}


@dataclass(frozen=True)
class SuperpixelSettings:
    """How SLIC finds superpixels (Achanta et al. 2012); the defaults are those of superpixels in GANInverter.

    Attributes:
        num_segments: of an image, about.
        compactness: how much more nearness in the picture counts than likeness of colours, in units of CIELAB.
        sigma: standard deviation of the blur before, in pixels.
    """

    num_segments: int = 200
    compactness: float = 30.0
    sigma: float = 1.0


@dataclass(frozen=True)
class Segmenter:
    """What decides the segments of images, as runs keep it; of label maps where they lie, and not what is in them.

    Attributes:
        name: "superpixels", "face", "face_with_hair", or "maps:" and a folder of label maps.
        digest: of the file of its weights, or None where it has none.
        superpixels: how they are found, or None of others.
    """

    name: str
    digest: str | None = None
    superpixels: SuperpixelSettings | None = None

    @property
    def maps(self) -> str | None:
        """Path or URL of the folder of label maps, or None of those that look at images."""
        return self.name.removeprefix(MAPS) if self.name.startswith(MAPS) else None


def check_segmenter_name(name: str) -> None:
    """Make sure that a name is one of a segmenter.

    Raises:
        ConfigError: it is not.
    """
    is_folder = name.startswith(MAPS) and name != MAPS
    if not is_folder and name not in (SUPERPIXELS, *FACE_PARSERS):
        raise ConfigError(
            f'segmenter "{name}" is not known; wanted one of {", ".join([SUPERPIXELS, *FACE_PARSERS])}, or '
            f"{MAPS}<folder or URL> of label maps"
        )


def choose_segmenter(name: str, published: Published) -> Segmenter:
    """The segmenter of a name, whose files are there and can be read.

    Args:
        name: of the segmenter.
        published: where published networks lie.

    Raises:
        ConfigError: it is not known, or there is no such folder of label maps.
        MissingWeightsError: its weights are not on this machine.
        CheckpointError: their file holds something else.
        StoreUnavailableError: the storage of the maps does not answer.
    """
    check_segmenter_name(name)
    if name == SUPERPIXELS:
        return Segmenter(name, superpixels=SuperpixelSettings())
    if name in FACE_PARSERS:
        segmenter = Segmenter(name, digest_of_file(_find_face_parser(name, published)))
        _load_face_parser(segmenter, published)  # raises where it is something else
        return segmenter
    folder = name.removeprefix(MAPS)
    folder = folder.rstrip("/") or folder
    _check_folder(folder)
    return Segmenter(f"{MAPS}{folder}")


def load_segmenter(segmenter: Segmenter, published: Published) -> Segment | None:
    """What finds the segments of images, on the CPU; None of label maps, which are read for each image.

    Raises:
        MissingWeightsError: its weights are not on this machine.
        CheckpointError: their file holds something else, or other weights than those that were chosen.
    """
    if segmenter.name in FACE_PARSERS:
        return _load_face_parser(segmenter, published)
    return None if segmenter.superpixels is None else Superpixels(segmenter.superpixels)


class Superpixels:
    """Segments of about one colour each, by SLIC; the same image gives the same ones."""

    def __init__(self, settings: SuperpixelSettings):
        self.settings = settings

    def __call__(self, images: Tensor) -> Tensor:
        """Labels [N, h, w], int64, on the CPU, of images [N, C, h, w] in [-1, 1]."""
        from skimage.segmentation import slic  # half a second, which no other refiner has to wait for

        settings = self.settings
        colours = ((as_rgb(images) + 1) / 2).clamp(0, 1)  # gray ones too: in CIELAB all are on one scale
        labels = [
            slic(one, n_segments=settings.num_segments, compactness=settings.compactness, sigma=settings.sigma)
            for one in colours.permute(0, 2, 3, 1).double().cpu().numpy()
        ]
        return torch.from_numpy(np.stack(labels).astype(np.int64))


def _find_face_parser(name: str, published: Published) -> Path:
    path = published.find(FACE_PARSER_FILE)
    if path is None:
        raise MissingWeightsError(
            f"segmenter {name} needs {FACE_PARSER_FILE}, not found in {published}; nothing is downloaded at run time: "
            "copy the file there, name its folder in the variable LSAP_BACKBONES, or set `segmenter: superpixels`"
        )
    return path


def _load_face_parser(segmenter: Segmenter, published: Published) -> FaceParser:
    path = _find_face_parser(segmenter.name, published)
    if (found := digest_of_file(path)) != segmenter.digest:
        raise CheckpointError(
            f"{path} has SHA-256 {found}, the refinement was planned with {segmenter.digest}: put that file in its "
            "place, or start the same command again"
        )
    try:
        return build_face_parser(read_torch(path.read_bytes()), merges=FACE_PARSERS[segmenter.name])
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _check_folder(folder: str) -> None:
    """Make sure that a folder of label maps is there, as far as its storage tells."""
    try:
        filesystem, path = open_file_system(folder)
        if scheme_of(folder) in ("http", "https"):  # has no folders; a map that is not there is told of its image
            return
        with storage_errors("list", folder):
            is_there = filesystem.isdir(path)
    except (ArchiveMismatchError, ArchiveNotFoundError) as error:
        raise ConfigError(f"segmenter {MAPS}: {error}") from None
    if not is_there:
        raise ConfigError(
            f"segmenter {MAPS}{folder} names no folder that is there; wanted one of label maps, PNG files named like "
            "the images"
        )
