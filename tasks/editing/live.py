"""Edits while somebody looks: pictures of an archive's images, moved along directions as far as sliders say."""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lsap_archive import Archive, ArchiveKeyError, LiveDirection
from lsap_core.editing import Direction, Edit, StyleDirection, along, along_component, along_styles, compose
from lsap_core.errors import ConfigError, LsapError, did_you_mean
from lsap_core.generators.config import GeneratorConfig
from lsap_core.images import to_uint8
from tasks.archived.rendering import Renderer, Stored
from tasks.editing.spec import place_of
from tasks.pictures.previews import preview_file
from tasks.weights.directions import load_subject

LONGEST_SIDE = 512
"""Of a picture that is rendered live, pixels; larger ones are reduced."""
FARTHEST = 3.0
"""Ends of a slider: so many lengths of a direction, or standard deviations of a component of GANSpace, either way."""
STEPS = 60
FIRST_COMPONENTS = 5
"""Of a file of components, those that get a slider each."""
IMAGES_KEPT = 4
"""Loaded images: what a refinement keeps of one may be a whole generator."""


@dataclass(frozen=True)
class Slider:
    """A direction that can be followed any distance.

    Attributes:
        name: as it was asked for; of components with their number.
        edit: the edit at a strength; 0 is the inversion itself.
    """

    name: str
    edit: Callable[[float], Edit]


def sliders_of(
    asked: str, directions: Mapping[str, str], *, config: GeneratorConfig, generator_digest: str
) -> list[Slider]:
    """The slider of a direction in W, W+ or S, or those of the first components of a file, as offsets.

    Args:
        asked: the name of one of the domain's directions, a file, or one of many in it as FILE#NAME.
        directions: places of the domain's, by name.
        config: sizes of the generator.
        generator_digest: its digest.

    Raises:
        ConfigError: a bare word that is no name of the domain's.
        CheckpointError, ShapeError: the file does not fit the generator.
    """
    found = load_subject(place_of(asked, directions), config=config, generator_digest=generator_digest)
    if isinstance(found, Direction):
        return [Slider(asked, functools.partial(along, found))]
    if isinstance(found, StyleDirection):
        return [Slider(asked, functools.partial(along_styles, found))]
    along_one = functools.partial(along_component, found, mode="offset")
    count = min(FIRST_COMPONENTS, len(found.vectors))
    return [Slider(f"{asked} {index}", functools.partial(along_one, index)) for index in range(count)]


class LiveEdits:
    """What the sliders of an archive's page are rendered by (`lsap_archive.LiveRenderer`): one image at a time.

    Attributes:
        directions: the sliders, in the order in which their edits follow one another.
    """

    def __init__(self, archive: Archive, renderer: Renderer, sliders: Sequence[Slider], *, farthest: float = FARTHEST):
        """For the images of an archive.

        Args:
            archive: where they are.
            renderer: of its generator.
            sliders: with names of their own each.
            farthest: strength at the right end of each, and with a minus at the left.

        Raises:
            ConfigError: two sliders of one name, or ends that are none.
        """
        if not 0 < farthest < math.inf:
            raise ConfigError(f"sliders were to end at strength {farthest:g}; wanted a number above 0, such as 3")
        self._edits = {slider.name: slider.edit for slider in sliders}
        if len(self._edits) < len(sliders):
            raise ConfigError("a direction is named twice: name each once")
        step = farthest * 2 / STEPS
        self.directions = tuple(LiveDirection(name, -farthest, farthest, step) for name in self._edits)
        self._one_at_a_time = threading.Lock()
        self._stored = functools.lru_cache(IMAGES_KEPT)(
            lambda image_id, method: Stored.of_images(renderer, archive, [image_id], method)
        )

    def render(self, image_id: str, method: str, strengths: Mapping[str, float]) -> bytes:
        """A WebP file of an image that is edited along several directions, at most 512 pixels wide and high.

        Args:
            image_id: of the archive.
            method: name of an inversion, a refinement or an edit.
            strengths: by name of the direction, within its ends; the others are at 0.

        Raises:
            ArchiveKeyError: no such image, method, direction or strength, or something that it is made of is not there.
            CorruptArchiveError, StoreUnavailableError: the archive cannot be read.
        """
        return preview_file(self.pixels(image_id, method, strengths), LONGEST_SIDE)

    def pixels(self, image_id: str, method: str, strengths: Mapping[str, float]) -> np.ndarray:
        """What `render` shows, whole, uint8 [h, w, C]: of one direction what `lsap run edit` makes at this strength."""
        edit = self._edit(strengths)
        with self._one_at_a_time:
            try:
                shown = self._stored(image_id, method).edited(edit)
            except LsapError as error:
                raise ArchiveKeyError(f"{method} of {image_id} cannot be rendered: {error}") from error
        pixels: np.ndarray = to_uint8(shown)[0]
        return pixels

    def _edit(self, strengths: Mapping[str, float]) -> Edit:
        ends = {one.name: one.high for one in self.directions}
        for name, strength in strengths.items():
            if name not in ends:
                known = ", ".join(ends) or "none: the command that serves the page names them (--direction)"
                raise ArchiveKeyError(f"there is no direction {name}; {did_you_mean(name, ends)}there are {known}")
            if not abs(strength) <= ends[name]:
                raise ArchiveKeyError(f"{name} was to be {strength:g}; wanted {-ends[name]:g} to {ends[name]:g}")
        return compose(*(edit(strengths[name]) for name, edit in self._edits.items() if strengths.get(name)))
