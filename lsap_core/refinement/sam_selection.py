"""Which latent space inverts which part of an image (Parmar et al. 2022, section 3): choices, and masks of them."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from lsap_core.errors import ShapeError
from lsap_core.generators.config import GeneratorConfig

LANCZOS_LOBES = 3


def segment_means(errors: Tensor, segments: Tensor) -> tuple[Tensor, Tensor]:
    """The mean error of every latent space in every segment of every image.

    Args:
        errors: predicted errors, [N, spaces, h, w].
        segments: labels, [N, h, w], integers.

    Returns:
        The labels that occur, [U], ascending, and the means [N, spaces, U], float64; NaN where an image does not have
        the label.

    Raises:
        ShapeError: errors and segments are not of the same images in the same size.
    """
    _check_segments(errors, segments)
    labels, index = segments.unique(return_inverse=True)  # [U], [N, h, w]
    index = index.flatten(1)[:, None].expand(-1, errors.shape[1], -1)  # [N, spaces, h w]
    sums = errors.new_zeros(*errors.shape[:2], len(labels), dtype=torch.float64)
    counts = torch.zeros_like(sums)
    values = errors.flatten(2).double()
    sums.scatter_add_(2, index, values)
    counts.scatter_add_(2, index, torch.ones_like(values))
    return labels, sums / counts


def choose_spaces(errors: Tensor, segments: Tensor, *, threshold: float) -> Tensor:
    """The most editable latent space that inverts a segment well enough, for every pixel of it.

    A space is good enough where its mean error in the segment is at most the threshold; where none is, the least
    editable one is taken. Every space is asked for itself: W+ may pass where F6 does not.

    Args:
        errors: predicted errors, [N, spaces, h, w], the most editable space (W+) first.
        segments: labels, [N, h, w], integers.
        threshold: tau, in units of LPIPS; 0.225 as published.

    Returns:
        Indices of spaces, [N, h, w].

    Raises:
        ShapeError: errors and segments are not of the same images in the same size.

    Example:
        >>> errors = torch.tensor([[[[0.3, 0.1]], [[0.2, 0.1]], [[0.1, 0.0]]]])
        >>> choose_spaces(errors, torch.tensor([[[7, 9]]]), threshold=0.225)
        tensor([[[1, 0]]])
    """
    labels, means = segment_means(errors, segments)
    is_accepted = means <= threshold  # [N, spaces, U]
    first = is_accepted.int().argmax(dim=1)  # [N, U]: of equal ones the first
    chosen = torch.where(is_accepted.any(dim=1), first, errors.shape[1] - 1)
    index = torch.searchsorted(labels, segments.contiguous())
    return chosen.gather(1, index.flatten(1)).view_as(segments)


def masks_of_choice(choice: Tensor, num_spaces: int, config: GeneratorConfig) -> Tensor:
    """One mask for each latent space, 1 where it was chosen and 0 elsewhere, of the generator's whole square image.

    Args:
        choice: indices of spaces, [N, h, w], of the content box in any size.
        num_spaces: of them.
        config: of the generator; rows and columns outside its content box belong to no mask.

    Returns:
        [N, spaces, side, side], float32.
    """
    masks = F.one_hot(choice, num_spaces).permute(0, 3, 1, 2).float()  # [N, spaces, h, w]
    return F.pad(masks, _margins(masks.shape[-2], masks.shape[-1], config))


def resize_masks(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Masks of another size, with soft borders: Lanczos on floats, clipped to what the mask had, [0, its maximum].

    Args:
        masks: [N, M, h, w], not negative.
        size: height and width of the result.

    Returns:
        [N, M, *size].
    """
    rows = lanczos_matrix(masks.shape[-2], size[0]).to(masks.device)
    columns = lanczos_matrix(masks.shape[-1], size[1]).to(masks.device)
    resized = (rows @ (masks.double() @ columns.T)).to(masks)
    return resized.clamp_min(0).minimum(masks.amax(dim=(2, 3), keepdim=True))


def lanczos_matrix(size: int, new_size: int) -> Tensor:
    """What resampling by Lanczos' filter with three lobes is as a matrix, [new_size, size], float64; rows sum to 1.

    As in image libraries the filter is widened where the size shrinks, and cut off and normalized at the borders.

    Example:
        >>> bool(lanczos_matrix(5, 5).round(decimals=9).equal(torch.eye(5).double()))
        True
    """
    scale = size / new_size
    width = max(scale, 1.0)
    support = LANCZOS_LOBES * width
    centers = (torch.arange(new_size, dtype=torch.float64) + 0.5) * scale  # [new_size]
    positions = torch.arange(size, dtype=torch.float64)
    first = (centers - support + 0.5).clamp_min(0).floor()[:, None]
    last = (centers + support + 0.5).floor().clamp_max(size)[:, None]
    distance = (positions + 0.5 - centers[:, None]) / width  # [new_size, size]
    weights = torch.sinc(distance) * torch.sinc(distance / LANCZOS_LOBES)
    is_in_reach = (positions >= first) & (positions < last) & (distance.abs() < LANCZOS_LOBES)
    weights = torch.where(is_in_reach, weights, 0.0)
    return weights / weights.sum(dim=1, keepdim=True)


def _margins(height: int, width: int, config: GeneratorConfig) -> tuple[int, int, int, int]:
    """Left, right, top and bottom margins around a view of the content box that make it the whole image."""
    if config.content_box is None:
        return 0, 0, 0, 0
    top, bottom, left, right = config.content_box
    scale = max(height, width) / max(bottom - top, right - left)
    rows, columns = (math.floor(side * scale + 0.5) for side in config.size)
    rows, columns = max(rows, height), max(columns, width)
    above = min(math.floor(top * scale + 0.5), rows - height)
    before = min(math.floor(left * scale + 0.5), columns - width)
    return before, columns - width - before, above, rows - height - above


def _check_segments(errors: Tensor, segments: Tensor) -> None:
    if errors.ndim != 4 or segments.shape != (errors.shape[0], *errors.shape[2:]) or segments.is_floating_point():
        raise ShapeError(
            f"segments are {segments.dtype} {list(segments.shape)}, errors {list(errors.shape)}; wanted integers "
            "[N, h, w] beside [N, spaces, h, w]: segment the images that the errors were predicted of, in their size"
        )
