"""Attributes by name: what an edit is meant to change, as one number for each image."""

from __future__ import annotations

import torch

from domains.embedded import Attribute, embedded_attributes
from lsap_core.errors import ConfigError
from tasks.faces.face_attributes import face_points, smile, yaw
from tasks.weights.faces import load_face_detector
from tasks.weights.published import Published

EMBEDDED = embedded_attributes()
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
    if name in EMBEDDED:
        return EMBEDDED[name]
    if name in FACES:
        title, unit, of_points = FACES[name]
        detector = load_face_detector(published).to(device)
        return Attribute(name, title, unit, lambda images: of_points(face_points(detector, images)))
    raise ConfigError(f'attribute "{name}" is not known; wanted one of {", ".join((*EMBEDDED, *FACES))}')
