"""One photo, wherever it comes from, as the generator's images are."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from lsap_core.errors import ConfigError
from lsap_core.generators.config import GeneratorConfig
from lsap_core.images import crop, from_uint8, to_uint8
from tasks.measuring.familiarity import change
from tasks.pictures.decoding import ALTERATIONS, Fit, decode_image, place_content
from tasks.pictures.saved import png_file
from tasks.sources.source import open_source

Source = str | os.PathLike[str] | bytes | Image.Image | NDArray[np.uint8]
"""A path or URL, the bytes of a file, a picture of Pillow, or an array [H, W] or [H, W, C] of uint8."""


LARGEST = 256
"""Pixels on the longer side of what is tried to make a photo look alike."""


@dataclass(frozen=True)
class Photo:
    """A photo as it is inverted.

    Attributes:
        name: of its file, or "photo"; with a seed it decides the random state, as an image's id does in an archive.
        pixels: uint8 [R, R, C], the size of the generator's images.
        notes: what was done to it beside decoding, in words.
        large: what it shows, uint8 [n h, n w, C], where the file has n times as many pixels on a side; else n is 1.
    """

    name: str
    pixels: NDArray[np.uint8]
    notes: tuple[str, ...]
    large: NDArray[np.uint8]

    @property
    def tensor(self) -> Tensor:
        """[1, C, R, R] in [-1, 1]."""
        return from_uint8(self.pixels[None])

    def shown(self, config: GeneratorConfig) -> Tensor:
        """What it shows, [1, C, h, w] in [-1, 1]: without what lies around the content box."""
        return crop(self.tensor, config.content_box)


def read_photo(source: Source, config: GeneratorConfig, *, fit: Fit, name: str | None = None) -> Photo:
    """A photo in the size and channels of a generator's images.

    Args:
        source: a path or URL, the bytes of a file, a picture of Pillow, or uint8 pixels [H, W] or [H, W, C].
        config: of the generator.
        fit: what to do with a photo of another shape: "refuse", "crop", "letterbox" or "stretch".
        name: in the place of the file's.

    Raises:
        BadImageError: it cannot be used; `reason` is one word, the message says what to do.
        SourceError: its storage does not answer, or has no such file.
        ConfigError: an array of another kind, or a path of more than one image.
    """
    found, data = _named_bytes(source)
    image = decode_image(data, size=config.content_size, channels=config.image_channels, fit=fit)
    pixels = place_content(image.pixels, size=config.size, content_box=config.content_box)
    height, width = config.content_size
    times = min(LARGEST // max(height, width), image.height // height, image.width // width)
    large = image.pixels
    if times > 1:
        large = decode_image(data, size=(times * height, times * width), channels=config.image_channels, fit=fit).pixels
    return Photo(name or found, pixels, tuple(ALTERATIONS[note] for note in image.notes), large)


def _named_bytes(source: Any) -> tuple[str, bytes]:
    if isinstance(source, bytes):
        return "photo", source
    if isinstance(source, Image.Image):
        file = io.BytesIO()
        is_of_png = source.mode in ("1", "L", "LA", "I;16", "P", "RGB", "RGBA")
        (source if is_of_png else source.convert("RGB")).save(file, "PNG")
        return "photo", file.getvalue()
    if isinstance(source, np.ndarray):
        is_image = source.ndim == 2 or (source.ndim == 3 and source.shape[2] in (1, 3, 4))
        if source.dtype != np.uint8 or not is_image:
            raise ConfigError(
                f"the photo is an array {source.dtype} {list(source.shape)}; wanted uint8 [H, W] or [H, W, C] with "
                "C = 1, 3 or 4, from 0 to 255"
            )
        return "photo", png_file(source[:, :, None] if source.ndim == 2 else source)
    place = os.fspath(source)
    with open_source(place) as opened:
        items = list(opened.items())
        if len(items) != 1:
            raise ConfigError(
                f"{place} holds {len(items)} images; wanted one photo: name it, or invert a set with `lsap run invert`"
            )
        return items[0].image_id or Path(place).name, opened.read(items[0])


def adapted(photo: Photo, name: str, config: GeneratorConfig) -> Photo:
    """The photo changed so that it looks like what a generator makes.

    Args:
        photo: that does not.
        name: one of `CHANGES`.
        config: of the generator.
    """
    shown = to_uint8(change(from_uint8(photo.large[None]), name, config.content_size))[0]
    pixels = place_content(shown, size=config.size, content_box=config.content_box)
    return replace(photo, pixels=pixels, notes=(*photo.notes, f"made alike the generator's images: {name}"))
