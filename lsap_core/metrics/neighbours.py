"""How far images lie from real ones in the embedding of a network."""

from __future__ import annotations

import torch
from torch import Tensor

from lsap_core.errors import ShapeError

NEIGHBOURS = 3
"""As in improved precision and recall (Kynkäänniemi et al. 2019)."""


def distance_to_neighbours(embeddings: Tensor, reference: Tensor, *, k: int = NEIGHBOURS) -> Tensor:
    """Euclidean distance of each embedding to the k-th nearest of a reference set; lower is closer to real images.

    An image that is itself in the reference set finds itself at distance 0 as its first neighbour.

    Args:
        embeddings: [N, D].
        reference: embeddings of real images, [M, D], M at least k.
        k: which neighbour.

    Returns:
        One value for each image, [N], at least 0.

    Raises:
        ShapeError: the widths differ, or the reference set is smaller than k.

    Example:
        >>> distance_to_neighbours(torch.zeros(1, 2), torch.tensor([[3.0, 4.0], [1.0, 0.0]]), k=2)
        tensor([5.])
    """
    if embeddings.ndim != 2 or reference.ndim != 2 or embeddings.shape[1] != reference.shape[1]:
        raise ShapeError(
            f"embeddings are {list(embeddings.shape)}, the reference {list(reference.shape)}; wanted [N, D] and [M, D]"
        )
    if not 1 <= k <= len(reference):
        raise ShapeError(
            f"neighbour {k} of {len(reference)} real images; wanted 1 to {len(reference)}: take more images"
        )
    # Direct differences: the faster expansion through products loses small distances to rounding.
    distances = torch.cdist(embeddings, reference, compute_mode="donot_use_mm_for_euclid_dist")
    return distances.kthvalue(k, dim=1).values
