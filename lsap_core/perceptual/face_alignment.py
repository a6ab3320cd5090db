"""Five points of a face -> the 112 x 112 picture that face recognition networks are trained on."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lsap_core.errors import ShapeError

FACE_SIDE = 112
REFERENCE_POINTS = (
    (38.2946, 51.6963),
    (73.5318, 51.5014),
    (56.0252, 71.7366),
    (41.5493, 92.3655),
    (70.7299, 92.2041),
)
"""Where the eyes, the tip of the nose and the corners of the mouth come to lie: (x, y) in pixels, left in the image
first."""


def similarity_transform(landmarks: Tensor) -> Tensor:
    """The map from an image to the aligned face: x' = s R x + t.

    Fitted by least squares from the reference points to the landmarks, then inverted, which is not the same as a fit
    from the landmarks to the reference points. A mirrored map is fitted too; the better of the two in the aligned
    face is taken, the unmirrored one in case of doubt.

    Args:
        landmarks: (x, y) in pixels of the image [N, 5, 2]: eyes, tip of the nose, corners of the mouth.

    Returns:
        [N, 2, 3], float64; NaN where the landmarks are NaN or all in one place.

    Raises:
        ShapeError: another shape.

    Example:
        >>> (transform,) = similarity_transform(2 * torch.tensor(REFERENCE_POINTS)[None] + 10)
        >>> transform.round(decimals=4) + 0
        tensor([[ 0.5000,  0.0000, -5.0000],
                [ 0.0000,  0.5000, -5.0000]], dtype=torch.float64)
    """
    if landmarks.ndim != 3 or landmarks.shape[1:] != (5, 2):
        raise ShapeError(f"landmarks are {list(landmarks.shape)}; wanted five points each, [N, 5, 2]")
    points = landmarks.to(torch.float64)
    reference = torch.tensor(REFERENCE_POINTS, dtype=torch.float64, device=landmarks.device)
    mirror = torch.tensor([-1.0, 1.0], dtype=torch.float64, device=landmarks.device)
    plain = _inverse(_fit(reference, points))
    mirrored = _inverse(_fit(reference * mirror, points)) * mirror[:, None]  # and back to the unmirrored face
    is_better = _residual(mirrored, points, reference) < _residual(plain, points, reference)
    return torch.where(is_better[:, None, None], mirrored, plain)


def align_faces(images: Tensor, transforms: Tensor) -> Tensor:
    """Faces cut out of images: bilinear, black outside the image, rounded to 8 bits as saved crops are.

    Args:
        images: [N, C, H, W] in about [-1, 1].
        transforms: from pixels of the image to those of the aligned face [N, 2, 3].

    Returns:
        [N, C, 112, 112] in [-1, 1].
    """
    if not len(images):
        return images.new_zeros(0, images.shape[1], FACE_SIDE, FACE_SIDE)
    height, width = images.shape[-2:]
    steps = torch.arange(FACE_SIDE, dtype=torch.float64, device=images.device)
    rows, columns = torch.meshgrid(steps, steps, indexing="ij")
    to_image = _inverse(transforms.to(torch.float64))
    at = torch.stack([columns, rows], dim=-1) @ to_image[:, None, :, :2].mT + to_image[:, None, None, :, 2]
    size = torch.tensor([width, height], dtype=torch.float64, device=images.device)
    grid = ((2 * at + 1) / size - 1).to(images.dtype)  # pixel centres, as grid_sample counts them
    light = (images.clamp(-1, 1) + 1) * 127.5
    levels = F.grid_sample(light, grid, mode="bilinear", padding_mode="zeros", align_corners=False).round()
    return levels / 127.5 - 1


def _fit(source: Tensor, target: Tensor) -> Tensor:
    """Least squares of target [N, 5, 2] = s R source [5, 2] + t: the matrices [N, 2, 3]."""
    source_mean, target_mean = source.mean(dim=-2), target.mean(dim=-2)
    (x, y), (u, v) = (source - source_mean).unbind(-1), (target - target_mean[:, None]).unbind(-1)
    total = (x.square() + y.square()).sum(-1)
    a, b = (x * u + y * v).sum(-1) / total, (x * v - y * u).sum(-1) / total
    turn = torch.stack([torch.stack([a, -b], dim=-1), torch.stack([b, a], dim=-1)], dim=-2)
    return torch.cat([turn, (target_mean - turn @ source_mean)[..., None]], dim=-1)


def _inverse(transforms: Tensor) -> Tensor:
    """The maps back [N, 2, 3]; NaN where there is none."""
    (a, b), (c, d) = transforms[..., :2].unbind(-2)[0].unbind(-1), transforms[..., :2].unbind(-2)[1].unbind(-1)
    determinant = a * d - b * c
    determinant = torch.where(determinant == 0, torch.nan, determinant)[..., None, None]
    turn = torch.stack([torch.stack([d, -b], dim=-1), torch.stack([-c, a], dim=-1)], dim=-2) / determinant
    return torch.cat([turn, -turn @ transforms[..., 2:]], dim=-1)


def _residual(transforms: Tensor, points: Tensor, reference: Tensor) -> Tensor:
    """How far the points come to lie from the reference, [N]."""
    landed = points @ transforms[..., :2].mT + transforms[:, None, :, 2]
    return (landed - reference).square().sum(dim=(1, 2))
