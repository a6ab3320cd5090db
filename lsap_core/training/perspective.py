"""Random perspective of images: what HFGI's alignment network learns to undo."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from lsap_core.errors import ShapeError

CORNERS = ((-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, 1.0))
"""Top left, top right, bottom right, bottom left of an image, x and y from edge to edge."""


def random_perspective(
    images: Tensor, streams: Sequence[torch.Generator], *, distortion: float, probability: float
) -> Tensor:
    """Images of which each is warped in its own way, or left as it is.

    Every corner moves inward by up to `distortion` half sides in x and in y, as torchvision's `RandomPerspective` does
    it (where moves are whole pixels, and one warp serves the whole batch).

    Args:
        images: [N, C, H, W].
        streams: one random stream for each image, on the CPU; each gives a coin and 8 moves.
        distortion: 0 to below 1.
        probability: of being warped.

    Returns:
        The same shape; 0 where an image no longer reaches.

    Raises:
        ShapeError: there are not as many streams as images.
    """
    if len(streams) != len(images):
        raise ShapeError(f"{len(streams)} random streams for {len(images)} images; wanted one for each")
    numbers = torch.stack([torch.rand(9, generator=each) for each in streams])  # [N, 9]
    corners = images.new_tensor(CORNERS, device="cpu")
    moved = corners * (1 - distortion * numbers[:, 1:].view(-1, 4, 2))
    is_warped = (numbers[:, 0] < probability).to(images.device)
    return torch.where(is_warped[:, None, None, None], perspective(images, moved), images)


def perspective(images: Tensor, corners: Tensor) -> Tensor:
    """Images whose corners are moved, by the homography that moves them; bilinear, 0 outside.

    Args:
        images: [N, C, H, W].
        corners: where `CORNERS` go, [N, 4, 2], on the CPU.

    Returns:
        The same shape.
    """
    height, width = images.shape[-2:]
    y, x = torch.meshgrid(_centers(height), _centers(width), indexing="ij")
    points = torch.stack([x, y, torch.ones_like(x)], dim=-1)  # [H, W, 3] of the output
    sources = torch.einsum("nij,hwj->nhwi", _to_corners(corners), points)
    grid = sources[..., :2] / sources[..., 2:]  # [N, H, W, 2]
    return F.grid_sample(images, grid.to(images), mode="bilinear", padding_mode="zeros", align_corners=False)


def _to_corners(moved: Tensor) -> Tensor:
    """Homographies [N, 3, 3] that map moved corners [N, 4, 2] back to `CORNERS`, float64.

    With (X, Y) = (a x + b y + c, d x + e y + f) / (g x + h y + 1) every corner gives two equations in a, ..., h.
    """
    x, y = moved.double().unbind(dim=-1)  # [N, 4]
    target = torch.tensor(CORNERS, dtype=torch.float64).expand(len(moved), 4, 2)
    one, zero = torch.ones_like(x), torch.zeros_like(x)
    in_x = torch.stack([x, y, one, zero, zero, zero, -x * target[..., 0], -y * target[..., 0]], dim=-1)
    in_y = torch.stack([zero, zero, zero, x, y, one, -x * target[..., 1], -y * target[..., 1]], dim=-1)
    equations = torch.cat([in_x, in_y], dim=1)  # [N, 8, 8]
    values = torch.cat([target[..., 0], target[..., 1]], dim=1)
    coefficients = torch.linalg.solve(equations, values)  # [N, 8]
    return torch.cat([coefficients, one[:, :1]], dim=1).view(-1, 3, 3)


def _centers(side: int) -> Tensor:
    """Centers of pixels where edges are at -1 and 1."""
    return (2 * torch.arange(side, dtype=torch.float64) + 1) / side - 1
