"""Distance to the k-th real image, against sorting all of them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from lsap_core.errors import ShapeError
from lsap_core.metrics import distance_to_neighbours


@pytest.mark.parametrize("k", [1, 3, 7])
def test_it_is_the_kth_smallest_of_all_distances(numbers: Callable[..., Tensor], k: int) -> None:
    embeddings, reference = numbers(6, 5) + 100, numbers(40, 5, seed=1) + 100  # far from 0: no digit may be lost
    gaps = embeddings.double().numpy()[:, None] - reference.double().numpy()[None]
    wanted = np.sort(np.sqrt(np.square(gaps).sum(axis=2)), axis=1)[:, k - 1]
    np.testing.assert_allclose(distance_to_neighbours(embeddings, reference, k=k), wanted, rtol=1e-4)


def test_the_order_of_the_reference_does_not_count(numbers: Callable[..., Tensor]) -> None:
    embeddings, reference = numbers(6, 5), numbers(40, 5, seed=1)
    assert torch.equal(
        distance_to_neighbours(embeddings, reference), distance_to_neighbours(embeddings, reference.flip(0))
    )


def test_a_reference_that_cannot_answer_is_refused() -> None:
    with pytest.raises(ShapeError, match="neighbour 3 of 2 real images"):
        distance_to_neighbours(torch.zeros(1, 4), torch.zeros(2, 4))
    with pytest.raises(ShapeError, match=r"\[1, 4\].*\[9, 5\]"):
        distance_to_neighbours(torch.zeros(1, 4), torch.zeros(9, 5))
