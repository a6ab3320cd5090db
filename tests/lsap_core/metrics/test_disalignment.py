"""Distances of predicted from true codes, against their definitions in float64."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from lsap_core.errors import ShapeError
from lsap_core.generators import Generator
from lsap_core.metrics import disalignment_of
from lsap_core.spaces.styles import StyleSet, style_positions


@pytest.fixture(scope="module")
def generator(random_generator: Callable[..., Generator]) -> Generator:
    return random_generator().freeze()


@pytest.mark.parametrize("style_set", ["authors", "conv", "full"])
def test_values_are_those_of_the_definitions(
    generator: Generator, numbers: Callable[..., Tensor], style_set: StyleSet
) -> None:
    w, w_plus = numbers(3, 24), numbers(3, generator.config.num_ws, 24, seed=1)
    found = disalignment_of(w_plus, w, generator, style_set=style_set)
    positions = style_positions(generator.config, style_set)
    for image in range(3):
        true_rows = np.repeat(w[image].double().numpy()[None], generator.config.num_ws, axis=0)
        rows = w_plus[image].double().numpy()
        squares = np.square(rows - true_rows).sum(axis=1)
        assert found.w.per_layer[image].item() == pytest.approx(squares.mean(), rel=1e-5)
        assert found.w.per_entry[image].item() == pytest.approx(squares.mean() / 24, rel=1e-5)
        assert found.w.frobenius[image].item() == pytest.approx(np.linalg.norm(rows - true_rows), rel=1e-5)

        styles, true_styles = (
            [generator.styles(codes[image : image + 1])[position][0].double().numpy() for position in positions]
            for codes in (w_plus, w)
        )
        gaps = [a - b for a, b in zip(styles, true_styles, strict=True)]
        flat = np.concatenate(gaps)
        assert found.s.per_layer[image].item() == pytest.approx(np.mean([gap @ gap for gap in gaps]), rel=1e-5)
        assert found.s.per_entry[image].item() == pytest.approx(np.square(flat).mean(), rel=1e-5)
        assert found.s.frobenius[image].item() == pytest.approx(np.linalg.norm(flat), rel=1e-5)
        cosines = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(styles, true_styles, strict=True)]
        assert found.s_n[image].item() == pytest.approx(1 - np.mean(cosines), rel=1e-4)


def test_codes_that_were_found_exactly_have_none(generator: Generator, numbers: Callable[..., Tensor]) -> None:
    w = numbers(4, 24)
    found = disalignment_of(generator.expand(w), w, generator)
    assert torch.equal(found.w.per_layer, torch.zeros(4)) and torch.equal(found.s.frobenius, torch.zeros(4))
    torch.testing.assert_close(found.s_n, torch.zeros(4), atol=1e-6, rtol=0)


def test_pairs_are_compared_and_not_sets(generator: Generator, numbers: Callable[..., Tensor]) -> None:
    w = numbers(4, 24)
    swapped = disalignment_of(w.flip(0), w, generator)
    assert swapped.w.per_layer.min() > 1 and swapped.s_n.min() > 0.01


def test_every_code_needs_its_true_one(generator: Generator) -> None:
    with pytest.raises(ShapeError, match="3 predicted codes for 2 true ones"):
        disalignment_of(torch.zeros(3, 24), torch.zeros(2, 24), generator)
    with pytest.raises(ShapeError, match=r"\[2, 23\]"):
        disalignment_of(torch.zeros(2, 24), torch.zeros(2, 23), generator)
