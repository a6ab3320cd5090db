"""A few photographs that packages bring along."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import skimage
import sklearn
from PIL import Image

SKIMAGE = Path(skimage.__file__).parent / "data"
MATPLOTLIB = Path(matplotlib.__file__).parent / "mpl-data" / "sample_data"
SKLEARN = Path(sklearn.__file__).parent / "datasets" / "images"


@dataclass(frozen=True)
class Photo:
    """A part of a photograph.

    Attributes:
        file: of the package.
        box: left, top, right, bottom in its pixels.
        size: width and height that the part is brought to.
    """

    file: Path
    box: tuple[int, int, int, int]
    size: tuple[int, int]


FACES = (
    Photo(SKIMAGE / "astronaut.png", (120, 0, 330, 210), (256, 256)),
    Photo(MATPLOTLIB / "grace_hopper.jpg", (126, 60, 396, 330), (256, 256)),
    Photo(SKIMAGE / "chelsea.png", (90, 20, 360, 290), (256, 256)),  # a cat
)
VEHICLES = (
    Photo(SKIMAGE / "motorcycle_left.png", (40, 0, 680, 480), (512, 384)),
    Photo(SKIMAGE / "rocket.jpg", (50, 30, 570, 420), (512, 384)),
    Photo(SKLEARN / "china.jpg", (50, 30, 562, 414), (512, 384)),
)


def write_photos(photos: Sequence[Photo], folder: Path) -> None:
    """Write them as PNG files."""
    folder.mkdir(parents=True, exist_ok=True)
    for photo in photos:
        with Image.open(photo.file) as image:
            part = image.convert("RGB").crop(photo.box).resize(photo.size, Image.Resampling.LANCZOS)
            part.save(folder / f"{photo.file.stem}.png")
