"""What can be measured of a handwritten digit: how far it leans, and how thick its stroke is."""

from __future__ import annotations

import torch
from torch import Tensor

LEAST_INK = 4.0
"""Pixels' worth of ink below which there is no digit to measure."""


def slant(images: Tensor) -> Tensor:
    """How far each digit leans to the right, in degrees.

    The shear that second moments show: tan(slant) = -mu_11 / mu_02, with mu_pq the central moments of the ink over
    columns x (to the right) and rows y (downward). An upright bar has 0, "/" is positive.

    Args:
        images: [N, 1, H, W] in about [-1, 1], ink bright.

    Returns:
        [N], in (-90, 90); NaN where there is no ink.
    """
    ink = _ink(images)
    height, width = ink.shape[-2:]
    rows = torch.arange(height, dtype=ink.dtype, device=ink.device)[:, None]
    columns = torch.arange(width, dtype=ink.dtype, device=ink.device)[None]
    total = ink.sum(dim=(1, 2)).clamp_min(LEAST_INK)
    y = rows - ((ink * rows).sum(dim=(1, 2)) / total)[:, None, None]
    x = columns - ((ink * columns).sum(dim=(1, 2)) / total)[:, None, None]
    mixed, vertical = (ink * x * y).sum(dim=(1, 2)), (ink * y.square()).sum(dim=(1, 2))
    return _where_inked(ink, torch.rad2deg(torch.atan2(-mixed, vertical)))


def stroke_width(images: Tensor) -> Tensor:
    """How thick the stroke of each digit is, in pixels: 2 A / P.

    A is the area of the ink and P the length of its outline, as the total variation of the ink (both edges of a stroke
    count, so a long stroke or a ring of width w has exactly w; ends of strokes make it a little less).

    Args:
        images: [N, 1, H, W] in about [-1, 1], ink bright.

    Returns:
        [N], positive; NaN where there is no ink.
    """
    ink = _ink(images)
    padded = torch.nn.functional.pad(ink, (1, 1, 1, 1))
    # Central differences: the isotropic gradient, so that an edge counts the same in every direction.
    down = (padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1]) / 2
    right = (padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2]) / 2
    outline = torch.hypot(down, right).sum(dim=(1, 2))
    return _where_inked(ink, 2 * ink.sum(dim=(1, 2)) / outline.clamp_min(torch.finfo(ink.dtype).tiny))


def _ink(images: Tensor) -> Tensor:
    """Ink of each pixel in [0, 1], [N, H, W]; float64 because moments are differences of large sums."""
    return (images.detach().double().mean(dim=1) / 2 + 0.5).clamp(0, 1)


def _where_inked(ink: Tensor, values: Tensor) -> Tensor:
    return torch.where(ink.sum(dim=(1, 2)) >= LEAST_INK, values, torch.nan).float()
