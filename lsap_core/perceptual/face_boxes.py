"""Arithmetic of MTCNN's boxes: left, top, right, bottom (the last pixel counts) and a score in each row."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Boxes = NDArray[np.float64]


def non_maximum_suppression(boxes: Boxes, overlap: float, *, of_smaller: bool = False) -> NDArray[np.int64]:
    """Which boxes stay when each box takes away the less sure ones that it overlaps.

    Args:
        boxes: [M, 5].
        overlap: shared area that is still allowed, as a share of the union.
        of_smaller: as a share of the smaller box instead.

    Returns:
        Row numbers, the surest first.

    Example:
        >>> boxes = np.array([[0, 0, 9, 9, 0.8], [1, 0, 10, 9, 0.9], [20, 0, 29, 9, 0.7]])
        >>> non_maximum_suppression(boxes, 0.5)
        array([1, 2])
    """
    left, top, right, bottom, score = boxes.T
    areas = (right - left + 1) * (bottom - top + 1)
    waiting = np.argsort(-score, kind="stable")
    kept: list[int] = []
    while len(waiting):
        best, others = waiting[0], waiting[1:]
        kept.append(int(best))
        width = np.minimum(right[best], right[others]) - np.maximum(left[best], left[others]) + 1
        height = np.minimum(bottom[best], bottom[others]) - np.maximum(top[best], top[others]) + 1
        shared = np.maximum(width, 0) * np.maximum(height, 0)
        whole = np.minimum(areas[best], areas[others]) if of_smaller else areas[best] + areas[others] - shared
        waiting = others[shared / whole <= overlap]
    return np.array(kept, dtype=np.int64)


def calibrate(boxes: Boxes, offsets: Boxes) -> Boxes:
    """Boxes [M, 5] moved by offsets [M, 4], which are shares of their width and height."""
    width, height = _sides(boxes)
    moved = boxes.copy()
    moved[:, :4] += np.stack([width, height, width, height], axis=1) * offsets
    return moved


def square(boxes: Boxes) -> Boxes:
    """Boxes [M, 5] widened to squares around their centres."""
    width, height = _sides(boxes)
    side = np.maximum(width, height)
    squares = boxes.copy()
    squares[:, 0] += (width - side) / 2
    squares[:, 1] += (height - side) / 2
    squares[:, 2] = squares[:, 0] + side - 1
    squares[:, 3] = squares[:, 1] + side - 1
    return squares


def to_whole_pixels(boxes: Boxes) -> Boxes:
    """Boxes [M, 5] with rounded corners."""
    return np.concatenate([np.round(boxes[:, :4]), boxes[:, 4:]], axis=1)


def _sides(boxes: Boxes) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Width and height, both corners counted."""
    return boxes[:, 2] - boxes[:, 0] + 1, boxes[:, 3] - boxes[:, 1] + 1
