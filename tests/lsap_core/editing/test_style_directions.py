"""Directions in S: every list that circulates, edits along them, and what they add to images."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lsap_core.editing import Direction, StyleDirection, along, along_styles, compose, style_shift
from lsap_core.errors import ConfigError, ShapeError
from lsap_core.generators import Generator, GeneratorConfig
from lsap_core.generators.generator import style_widths
from lsap_core.spaces.styles import style_positions

CONFIG = GeneratorConfig(32, (12, 10, 8, 6), z_dim=6, w_dim=8, num_mapping_layers=2, image_channels=1)
WIDTHS = style_widths(CONFIG)
FACES = GeneratorConfig.config_f(1024)
Numbers = Callable[..., Tensor]


@pytest.fixture(scope="module")
def generator(random_generator: Callable[..., Generator]) -> Generator:
    return random_generator(CONFIG).freeze()


def styles(numbers: Numbers, positions: tuple[int, ...]) -> list[Tensor]:
    return [numbers(1, WIDTHS[at], seed=at) for at in positions]


@pytest.mark.parametrize(("style_set", "count"), [("full", 26), ("authors", 18), ("conv", 17)])
def test_every_list_of_style_vectors_finds_its_layers(style_set: str, count: int, numbers: Numbers) -> None:
    positions = style_positions(FACES, style_set)  # type: ignore[arg-type]
    assert len(positions) == count
    vectors = [numbers(1, style_widths(FACES)[at], seed=at) for at in positions]
    direction = StyleDirection.from_vectors(vectors, name="smile", config=FACES)
    assert tuple(direction.vectors) == positions
    assert all(torch.equal(direction.vectors[at], one[0]) for at, one in zip(positions, vectors, strict=True))


def test_lists_of_other_widths_and_layers_that_are_not_there_are_refused(numbers: Numbers) -> None:
    with pytest.raises(ShapeError, match=r"26 style vectors of widths 512.*this generator wants 11 of 12, 12, 12, 10"):
        StyleDirection.from_vectors([numbers(width) for width in style_widths(FACES)], name="smile", config=CONFIG)
    with pytest.raises(ConfigError, match="layer 11 of S was asked for; this generator has layers 0 to 10"):
        StyleDirection.of_channel(11, 0, CONFIG)
    with pytest.raises(ConfigError, match="channel 12 of layer 0 was asked for; it has channels 0 to 11"):
        StyleDirection.of_channel(0, 12, CONFIG)
    with pytest.raises(ConfigError, match="is all 0"):
        StyleDirection("none", {0: torch.zeros(12)})


def test_an_edit_in_s_shifts_the_styles_of_any_code(generator: Generator, numbers: Numbers) -> None:
    direction = StyleDirection.from_vectors(styles(numbers, tuple(range(11))), name="all", config=CONFIG)
    codes = numbers(2, CONFIG.num_ws, 8, seed=30)
    edit = along_styles(direction, torch.tensor([2.0, -1.0]))
    assert torch.equal(edit(codes), codes)
    shifted = [
        style + torch.tensor([[2.0], [-1.0]]) * direction.vectors[at]
        for at, style in enumerate(generator.styles(codes))
    ]
    found = generator.synthesize(codes, style_shift=style_shift(edit, codes))
    assert torch.equal(found, generator.synthesize_styles(shifted).image)
    assert style_shift(along_styles(direction, 0.0), codes) == {}


def test_edits_in_s_and_in_w_plus_follow_one_another_in_any_order(generator: Generator, numbers: Numbers) -> None:
    codes = numbers(2, CONFIG.num_ws, 8, seed=30)
    channel = along_styles(StyleDirection.of_channel(3, 5, CONFIG), 4.0)
    other = along_styles(StyleDirection.of_channel(3, 5, CONFIG), -1.5)
    moved = along(Direction("up", numbers(1, 8)), 2.0)
    one, two = compose(channel, moved, other), compose(compose(other, channel), moved)
    assert torch.equal(one(codes), moved(codes)) and torch.equal(two(codes), moved(codes))
    for edit in (one, two):
        shift = style_shift(edit, codes)
        assert list(shift) == [3] and shift[3].nonzero().tolist() == [[0, 5]] and shift[3][0, 5] == 2.5
        assert style_shift(compose(edit, edit.inverse(codes)), codes) == {}
    assert style_shift(moved, codes) == {}


def test_a_shift_of_another_generator_is_refused(generator: Generator, numbers: Numbers) -> None:
    for shift in ({11: torch.ones(1, 6)}, {0: torch.ones(1, 512)}):
        with pytest.raises(ShapeError, match="it is of another generator"):
            generator.synthesize(numbers(1, 8), style_shift=shift)


def test_digests_tell_layers_apart_and_nothing_else() -> None:
    one = StyleDirection("a", {0: torch.ones(12)})
    assert one.digest == StyleDirection("b", {1: torch.zeros(12), 0: torch.ones(12)}).digest
    assert one.digest != StyleDirection("a", {1: torch.ones(12)}).digest
