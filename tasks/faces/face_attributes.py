"""What can be measured of a face's five points: where it looks, and how wide the mouth is."""

from __future__ import annotations

import math

import torch
from torch import Tensor

NOSE_DEPTH = 0.43
"""How far the tip of the nose lies before the eyes, in distances between the eyes: about 27 of 63 millimetres."""


def yaw(points: Tensor) -> Tensor:
    """How far each head is turned to the right of the image, in degrees: atan(r / 0.43).

    r is how far the tip of the nose lies beside the middle of the eyes, along the line between them, in distances
    between the eyes. For a head turned by t about its own axis, parallel projection gives r = d sin t / cos t with d
    the depth of the nose; d = 0.43 is a typical head's, so degrees of different people are comparable only roughly,
    while those of one face before and after an edit differ by the turn.

    Args:
        points: eyes, tip of the nose, corners of the mouth [N, 5, 2].

    Returns:
        [N], in (-90, 90); 0 looks straight ahead.
    """
    across, distance = _between_eyes(points)
    nose = points[:, 2] - (points[:, 0] + points[:, 1]) / 2
    return torch.rad2deg(torch.atan((nose * across).sum(dim=1) / distance / NOSE_DEPTH)).float()


def smile(points: Tensor) -> Tensor:
    """How wide each mouth is, in distances between the eyes: |corners| / |eyes|.

    A smile draws the corners apart; the division cancels the face's size and, to first order, its turn. About 0.8 for
    a mouth at rest.

    Args:
        points: eyes, tip of the nose, corners of the mouth [N, 5, 2].

    Returns:
        [N], positive.
    """
    _, distance = _between_eyes(points)
    width: Tensor = torch.linalg.vector_norm(points[:, 4] - points[:, 3], dim=1) / distance
    return width.float()


def _between_eyes(points: Tensor) -> tuple[Tensor, Tensor]:
    """Direction from the left eye to the right one [N, 2], and distance [N]; NaN where they are in one place."""
    eyes = points[:, 1] - points[:, 0]
    distance = torch.linalg.vector_norm(eyes, dim=1)
    distance = torch.where(distance > 0, distance, math.nan)
    return eyes / distance[:, None], distance
