"""Slant and stroke width against shapes whose slant and width are known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from domains.digits.attributes import slant, stroke_width
from domains.digits.data import load_split
from lsap_core.images import from_uint8

SIDE = 48
Y, X = torch.meshgrid(torch.arange(SIDE) - (SIDE - 1) / 2, torch.arange(SIDE) - (SIDE - 1) / 2, indexing="ij")


def drawn(ink: Tensor) -> Tensor:
    return (ink.clamp(0, 1) * 2 - 1)[None, None]


def bar(shear: float, *, half_height: float = 15.0, half_width: float = 2.5) -> Tensor:
    return drawn((half_width - (X + shear * Y).abs() + 0.5) * (Y.abs() < half_height))


def ring(width: float, *, radius: float = 14.0) -> Tensor:
    return drawn(width / 2 - (torch.hypot(X, Y) - radius).abs() + 0.5)


@pytest.mark.parametrize("shear", [-0.5, -0.2, 0.0, 0.3])
def test_a_sheared_bar_leans_by_its_shear(shear: float) -> None:
    assert slant(bar(shear)).item() == pytest.approx(math.degrees(math.atan(shear)), abs=0.01)


@pytest.mark.parametrize("width", [2.0, 3.0, 4.0, 5.0])
def test_a_ring_is_as_thick_as_it_was_drawn(width: float) -> None:
    # Of a ring of radius r: A = 2 pi r w and P = 4 pi r, so 2 A / P = w.
    assert stroke_width(ring(width)).item() == pytest.approx(width, rel=0.07)


def test_neither_depends_on_the_other_nor_on_the_place() -> None:
    moved = bar(0.3).roll((3, -4), dims=(2, 3))
    assert slant(moved).item() == pytest.approx(slant(bar(0.3)).item(), abs=1e-4)
    assert stroke_width(moved).item() == pytest.approx(stroke_width(bar(0.3)).item(), abs=1e-4)
    assert slant(ring(2)).item() == pytest.approx(slant(ring(5)).item(), abs=0.01)


def test_an_empty_image_has_no_value_and_its_neighbours_keep_theirs() -> None:
    images = torch.cat([bar(0.3), -torch.ones(1, 1, SIDE, SIDE)])
    for measure in (slant, stroke_width):
        values = measure(images)
        assert values[0] == measure(bar(0.3))[0]
        assert values[1].isnan()


def test_every_real_digit_has_values_that_a_pen_can_make() -> None:
    images = from_uint8(load_split("test").images[..., None])
    assert slant(images).abs().max() < 60
    assert 1.5 < stroke_width(images).min() < stroke_width(images).max() < 7
