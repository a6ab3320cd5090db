"""What renders edits while somebody looks: asked for by the explorer, given by those who have torch and a generator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class LiveDirection:
    """A slider.

    Attributes:
        name: of the direction, as it is shown.
        low, high: ends of its strength; 0 lies between them and is the inversion itself.
        step: of the slider.
    """

    name: str
    low: float
    high: float
    step: float


class LiveRenderer(Protocol):
    """Renders images of an archive, edited by several directions at once."""

    @property
    def directions(self) -> Sequence[LiveDirection]:
        """The sliders, in the order in which they are shown."""
        ...

    def render(self, image_id: str, method: str, strengths: Mapping[str, float]) -> bytes:
        """A WebP or PNG file of an image; may be called from several threads.

        Args:
            image_id: of the archive.
            method: whose code is edited.
            strengths: by name of the direction, within its ends; a direction that is not named is at 0.

        Raises:
            ArchiveKeyError: the image has no code of the method.
            ArchiveError: anything else that can be told in a sentence.
        """
        ...
