"""Sizes of a generator's inputs, with noise maps that are squares or not."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lsap_archive import ArchiveMismatchError, CorruptArchiveError, Geometry, noise_arrays

TALL = Geometry(num_ws=4, w_dim=8, noise_sides=((4, 2), (8, 4), (8, 4)))


def test_maps_that_are_no_squares_have_height_and_width() -> None:
    assert [one.item_shape for one in noise_arrays(TALL)] == [(4, 2), (8, 4), (8, 4)] == list(TALL.noise_sizes)
    read = Geometry.from_dict(json.loads(json.dumps(TALL.to_dict())), "archive.json")
    assert read == TALL != Geometry(4, 8, ((2, 4), (4, 8), (4, 8)))


def test_a_square_is_its_side_as_before() -> None:
    squares = Geometry(4, 8, ((4, 4), (8, 8), (8, 8)))
    assert squares == Geometry(4, 8, (4, 8, 8))
    assert squares.to_dict() == {"num_ws": 4, "w_dim": 8, "noise_sides": [4, 8, 8]}
    assert squares.noise_sizes == ((4, 4), (8, 8), (8, 8))


@pytest.mark.parametrize("sides", [[[4]], [[4, 2, 1]], [[4, 0]], [["4", 2]], [0], [4.5], [[2**14, 2**14]], ["4"]])
def test_other_sides_are_refused(sides: Any) -> None:
    with pytest.raises((CorruptArchiveError, ArchiveMismatchError), match=r"archive\.json"):
        Geometry.from_dict({"num_ws": 4, "w_dim": 8, "noise_sides": sides}, "archive.json")
