"""What every edit keeps: shapes, its input, the way back, the order of a sequence."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lsap_core.editing import (
    Components,
    Direction,
    Edit,
    along,
    along_component,
    compose,
    interpolate,
    mix,
    to_distance,
)
from lsap_core.errors import ConfigError, ShapeError

N, K, D = 3, 6, 5
Numbers = Callable[..., Tensor]


def components(numbers: Numbers) -> Components:
    vectors = torch.linalg.qr(numbers(D, D, seed=7)).Q[:3]
    return Components("pca", vectors, deviations=torch.tensor([2.0, 1.0, 0.5]), mean=numbers(D, seed=8))


def every_edit(numbers: Numbers) -> dict[str, Edit]:
    one, many = Direction("one", numbers(1, D, seed=1)), Direction("many", numbers(K, D, seed=2), space="w_plus")
    pca, other = components(numbers), numbers(N, K, D, seed=3)
    return {
        "along": along(one, 1.5),
        "along, rows": along(many, -2.0, layers=(1, 4)),
        "along, per image": along(one, torch.tensor([1.0, -2.0, 0.0])),
        "distance": to_distance(many, 0.7),
        "distance, per image": to_distance(one, torch.tensor([1.0, -2.0, 0.0])),
        "absolute": along_component(pca, 1, 3.0),
        "absolute, first rows": along_component(pca, 0, 3.0, layers=(0, 2)),
        "absolute, without row 0": along_component(pca, 0, torch.tensor([1.0, 2.0, -3.0]), layers=(2, 99)),
        "offset": along_component(pca, 2, 3.0, mode="offset"),
        "mix": mix(other, (2, 4)),
        "mix with one": mix(other[:1], (0, 99)),
        "interpolation": interpolate(other, 0.3),
        "interpolation, all the way": interpolate(other[:1], 1.0),
        "sequence": compose(along(one, 1.5), along_component(pca, 0, 1.0), mix(other, (0, 1))),
    }


EDITS = list(every_edit(lambda *shape, seed=0: torch.randn(*shape, generator=torch.Generator().manual_seed(seed))))


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_makes_new_codes_and_its_inverse_takes_them_back(name: str, numbers: Numbers) -> None:
    edit, codes = every_edit(numbers)[name], numbers(N, K, D)
    kept = codes.clone()
    edited = edit(codes)
    assert edited.shape == codes.shape
    assert edited.data_ptr() != codes.data_ptr() and torch.equal(codes, kept)
    assert not torch.equal(edited, codes)
    torch.testing.assert_close(edit.inverse(codes)(edited), codes, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_and_its_inverse_describe_themselves_in_json(name: str, numbers: Numbers) -> None:
    edit = every_edit(numbers)[name]
    for one in (edit, edit.inverse(numbers(N, K, D))):
        described = one.describe()
        assert json.loads(json.dumps(described, allow_nan=False)) == described
        assert described["kind"]


def test_every_kind_of_edit_describes_itself_differently(numbers: Numbers) -> None:
    told = [json.dumps(edit.describe(), sort_keys=True) for edit in every_edit(numbers).values()]
    assert len(set(told)) == len(told)


def test_images_are_edited_each_on_its_own(numbers: Numbers) -> None:
    edits, codes = every_edit(numbers), numbers(N, K, D)
    for name in ("along", "along, rows", "distance", "absolute", "offset", "mix with one"):
        alone = torch.cat([edits[name](codes[row : row + 1]) for row in range(N)])
        torch.testing.assert_close(edits[name](codes), alone)
    one = Direction("one", numbers(1, D, seed=1))
    each = torch.cat([along(one, s)(codes[row : row + 1]) for row, s in enumerate((1.0, -2.0, 0.0))])
    torch.testing.assert_close(edits["along, per image"](codes), each)


@pytest.mark.parametrize("zero", [0.0, -0.0, torch.zeros(N)], ids=["0", "-0", "per image"])
def test_strength_0_of_an_offset_returns_the_codes_bit_for_bit(zero: float | Tensor, numbers: Numbers) -> None:
    codes = numbers(N, K, D)
    codes[0, 0] = -0.0  # -0. + 0. is 0.
    direction = Direction("one", numbers(1, D, seed=1))
    edits = (along(direction, zero), along_component(components(numbers), 0, zero, mode="offset"))
    for edit in (*edits, compose(*edits), compose(), interpolate(numbers(N, K, D, seed=3), 0.0)):
        assert torch.equal(edit(codes).view(torch.int32), codes.view(torch.int32))


def test_a_sequence_is_cumulative_and_its_order_counts(numbers: Numbers) -> None:
    codes, other = numbers(N, K, D), numbers(1, K, D, seed=3)
    step, replaced = along(Direction("one", numbers(1, D, seed=1)), 2.0), mix(other, (0, 3))
    assert torch.equal(compose(step, step)(codes), step(step(codes)))
    assert torch.equal(compose(step, replaced)(codes), replaced(step(codes)))
    assert torch.equal(compose(replaced, step)(codes), step(replaced(codes)))
    assert not torch.equal(compose(replaced, step)(codes), compose(step, replaced)(codes))


def test_gradients_pass_through_edits(numbers: Numbers) -> None:
    codes = numbers(N, K, D).requires_grad_()
    along(Direction("one", numbers(1, D, seed=1)), 2.0, layers=(1, 3))(codes).sum().backward()
    assert torch.equal(codes.grad, torch.ones(N, K, D))


def test_the_type_of_the_codes_is_kept(numbers: Numbers) -> None:
    for name, edit in every_edit(numbers).items():
        assert edit(numbers(N, K, D, dtype=torch.float64)).dtype == torch.float64, name


@pytest.mark.parametrize("layers", [(3, 3), (4, 2), (-1, 2)])
def test_a_range_without_rows_is_refused(layers: tuple[int, int]) -> None:
    with pytest.raises(ConfigError, match=r"layers are .* wanted \(first, end\)"):
        along(Direction("one", torch.ones(1, D)), 1.0, layers=layers)


def test_layers_beyond_the_last_row_are_cut_off_and_refused_when_none_is_left(numbers: Numbers) -> None:
    codes, one = numbers(N, K, D), Direction("one", torch.ones(1, D))
    assert torch.equal(along(one, 1.0, layers=(4, 18))(codes), along(one, 1.0, layers=(4, K))(codes))
    with pytest.raises(ConfigError, match="layers begin at row 6; the codes have rows 0 to 5 only"):
        along(one, 1.0, layers=(6, 18))(codes)


def test_strengths_that_are_none_are_refused(numbers: Numbers) -> None:
    one = Direction("one", torch.ones(1, D))
    with pytest.raises(ConfigError, match="strength is nan; wanted finite"):
        along(one, float("nan"))
    with pytest.raises(ShapeError, match=r"\[2, 1\].*one for each image"):
        along(one, torch.zeros(2, 1))
    with pytest.raises(ShapeError, match="2 strengths for 3 images"):
        along(one, torch.zeros(2))(numbers(N, K, D))
    with pytest.raises(ConfigError, match="weight is inf"):
        interpolate(numbers(1, K, D), float("inf"))


def test_codes_of_another_generator_are_refused(numbers: Numbers) -> None:
    for edit in every_edit(numbers).values():
        with pytest.raises(ShapeError, match=r"codes are \[3, 6, 4\]"):
            edit(numbers(N, K, 4))
    with pytest.raises(ShapeError, match=r"codes are \[3, 7, 5\]; this edit wants W\+ \[N, 6, 5\]"):
        every_edit(numbers)["along, rows"](numbers(N, 7, D))
    with pytest.raises(ShapeError, match=r"wanted W\+ \[1, K, D\]"):
        mix(numbers(K, D), (0, 1))
