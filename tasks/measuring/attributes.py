"""Attributes by name: what an edit is meant to change, as one number for each image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from domains.embedded import Attribute, embedded_attributes
from lsap_core.errors import ConfigError, did_you_mean
from tasks.faces.face_attributes import smile, yaw
from tasks.measuring.face_points import FacePoints
from tasks.measuring.looks import Looks
from tasks.weights.published import Published

EMBEDDED = embedded_attributes()
FACES = {  # title, unit, and what the five points of a face tell
    "yaw": ("turn of the head", "degrees", yaw),
    "smile": ("width of the mouth", "distances between the eyes", smile),
}


@dataclass(frozen=True)
class FaceAttribute:
    """What the five points of a face tell; an `Attribute` whose points others may have found before.

    Attributes:
        name, title, unit: as an attribute has them.
        points: finds them.
        of_points: points [N, 5, 2] to one value each, [N]; NaN where they are NaN.
    """

    name: str
    title: str
    unit: str
    points: FacePoints
    of_points: Callable[[Tensor], Tensor]

    def measure(self, images: Tensor) -> Tensor:
        """One value for each image [N, C, H, W] in about [-1, 1]: [N], NaN where there is no face."""
        return self.of_points(self.points.find(images))


AnyAttribute = Attribute | FaceAttribute


def load_attribute(
    name: str, *, device: torch.device, published: Published, points: FacePoints | None = None
) -> AnyAttribute:
    """An attribute with the networks that it needs.

    Args:
        name: of the attribute.
        device: where its networks go.
        published: where published networks lie.
        points: of faces, on that device, where somebody has loaded their detector already.

    Raises:
        ConfigError: no such attribute.
        MissingWeightsError: one of its networks is not on this machine.
    """
    if name in EMBEDDED:
        return EMBEDDED[name]
    if name in FACES:
        title, unit, of_points = FACES[name]
        return FaceAttribute(name, title, unit, points or FacePoints.load(published, device), of_points)
    known = (*EMBEDDED, *FACES)
    raise ConfigError(f'attribute "{name}" is not known; {did_you_mean(name, known)}wanted one of {", ".join(known)}')


def attribute_in(looks: Looks, attribute: AnyAttribute) -> Tensor:
    """An attribute of each picture, [N]; the detector runs once for all that want a face's points."""
    if isinstance(attribute, FaceAttribute):
        return attribute.of_points(attribute.points.find_in(looks))
    return attribute.measure(looks.pictures)
