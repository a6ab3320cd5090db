"""Attributes by name: what an edit is meant to change, as one number for each image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from domains.digits.attributes import slant, stroke_width
from lsap_core.errors import ConfigError
from tasks.faces.face_attributes import face_points, smile, yaw
from tasks.weights.faces import load_face_detector
from tasks.weights.published import Published


@dataclass(frozen=True)
class Attribute:
    """Something that can be measured of an image.

    Attributes:
        name: what configurations call it.
        title: what people call it.
        unit: of the values.
        measure: images [N, C, R, R] in about [-1, 1] to one value each, [N]; NaN where there is nothing to measure.
    """

    name: str
    title: str
    unit: str
    measure: Callable[[Tensor], Tensor]


DIGITS = {
    "slant": Attribute("slant", "slant", "degrees", slant),
    "stroke_width": Attribute("stroke_width", "stroke width", "pixels", stroke_width),
}

FACES = {  # title, unit, and what the five points of a face tell
    "yaw": ("turn of the head", "degrees", yaw),
    "smile": ("width of the mouth", "distances between the eyes", smile),
}


def load_attribute(name: str, *, device: torch.device, published: Published) -> Attribute:
    """An attribute with the networks that it needs.

    Args:
        name: of the attribute.
        device: where its networks go.
        published: where published networks lie.

    Raises:
        ConfigError: no such attribute.
        MissingWeightsError: one of its networks is not on this machine.
    """
    if name in DIGITS:
        return DIGITS[name]
    if name in FACES:
        title, unit, of_points = FACES[name]
        detector = load_face_detector(published).to(device)
        return Attribute(name, title, unit, lambda images: of_points(face_points(detector, images)))
    raise ConfigError(f'attribute "{name}" is not known; wanted one of {", ".join((*DIGITS, *FACES))}')
