"""Directions: the published numbers, every circulating shape, conditional boundaries."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lsap_core.editing import Direction, along, conditional, to_distance
from lsap_core.errors import ConfigError, ShapeError

Numbers = Callable[..., Tensor]


@pytest.fixture(scope="module")
def published(reference: Callable[[str], Any]) -> Any:
    return reference("edit_linear")


def boundary(published: Any, index: int) -> Direction:
    return Direction(f"boundary {index}", published[f"boundary_{index}"])


def test_an_edit_is_that_of_the_published_program(published: Any) -> None:
    direction = Direction.from_array(published["direction"], name="age", num_ws=18, w_dim=512)
    published.check("interfacegan", along(direction, float(published["factor"]))(published["latent"]))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_conditional_boundaries_are_the_published_ones(published: Any, count: int) -> None:
    found = conditional(boundary(published, 0), [boundary(published, index) for index in range(1, count + 1)])
    published.check(f"boundary_cond{count}", found.vectors)


def test_distances_are_those_of_the_published_interpolation_in_w(published: Any) -> None:
    """For W codes the coordinate is set, for W+ codes it is added to: `to_distance` and `along`."""
    direction, latent = boundary(published, 0), published["latent"]
    in_w = torch.cat([to_distance(direction, d)(latent[:1, :1])[:, 0] for d in np.linspace(-3, 3, 5).tolist()])
    published.check("interpolate_w", in_w)
    in_w_plus = torch.cat([along(direction, d)(latent[:1]) for d in np.linspace(-2, 2, 3).tolist()])
    published.check("interpolate_wplus", in_w_plus)


def test_every_row_comes_to_its_distance(numbers: Numbers) -> None:
    direction = Direction("many", numbers(6, 5), space="w_plus")  # of any length
    edited = to_distance(direction, torch.tensor([2.0, -1.0]))(numbers(2, 6, 5, seed=1))
    unit = direction.vectors / direction.vectors.norm(dim=1, keepdim=True)
    found = (edited * unit).sum(dim=2)
    torch.testing.assert_close(found, torch.tensor([[2.0], [-1.0]]).expand(2, 6))


@pytest.mark.parametrize("shape", [(5,), (1, 5), (1, 1, 5)])
@pytest.mark.parametrize("make", [torch.ones, np.ones])
def test_one_vector_comes_in_many_shapes(shape: tuple[int, ...], make: Callable[[Any], Any]) -> None:
    direction = Direction.from_array(make(shape), name="one", num_ws=6, w_dim=5)
    assert direction.vectors.shape == (1, 5) and direction.space == "w"
    assert direction.vectors.dtype == torch.float32


@pytest.mark.parametrize("leading", [(), (1,)])
def test_different_rows_stay_and_equal_ones_become_one(leading: tuple[int, ...], numbers: Numbers) -> None:
    rows = numbers(6, 5)
    many = Direction.from_array(rows.reshape(*leading, 6, 5), name="many", num_ws=6, w_dim=5)
    assert torch.equal(many.vectors, rows) and many.space == "w_plus"
    same = rows[:1].expand(6, -1).reshape(*leading, 6, 5)
    for num_ws in (6, 8):  # as pose.pt of an 18-row generator on another
        one = Direction.from_array(same, name="pose", num_ws=num_ws, w_dim=5)
        assert torch.equal(one.vectors, rows[:1])
        assert one.digest == Direction.from_array(rows[0], name="rotation", num_ws=6, w_dim=5).digest


def test_a_direction_of_another_generator_is_refused(numbers: Numbers) -> None:
    with pytest.raises(ShapeError, match="has 6 different rows; this generator has 8"):
        Direction.from_array(numbers(6, 5), name="many", num_ws=8, w_dim=5)
    with pytest.raises(ShapeError, match=r'"age" is \[1, 512\]; this generator wants width 5'):
        Direction.from_array(numbers(1, 512), name="age", num_ws=6, w_dim=5)
    with pytest.raises(ShapeError, match=r"\[2, 6, 5\]"):
        Direction.from_array(numbers(2, 6, 5), name="two", num_ws=6, w_dim=5)


def test_a_broken_direction_is_refused() -> None:
    with pytest.raises(ConfigError, match="not finite"):
        Direction.from_array(torch.tensor([1.0, torch.nan]), name="broken", num_ws=6, w_dim=2)
    with pytest.raises(ConfigError, match="all 0"):
        Direction("zero", torch.zeros(1, 5))
    with pytest.raises(ShapeError, match=r"\[5\]; wanted \[1, D\]"):
        Direction("flat", torch.ones(5))


@pytest.mark.parametrize("num_conditions", [1, 2, 5])
@pytest.mark.parametrize("rows", [1, 6])
def test_a_conditional_direction_is_orthogonal_to_its_conditions(
    num_conditions: int, rows: int, numbers: Numbers
) -> None:
    def make(seed: int, count: int) -> Direction:
        return Direction(f"{seed}", numbers(count, 24, seed=seed), space="w" if count == 1 else "w_plus")

    conditions = [make(seed, rows if seed % 2 else 1) for seed in range(1, 1 + num_conditions)]
    found = conditional(make(0, rows), conditions)
    torch.testing.assert_close(found.vectors.norm(dim=1), torch.ones(len(found.vectors)))
    for condition in conditions:
        unit = condition.vectors / condition.vectors.norm(dim=1, keepdim=True)
        assert (found.vectors * unit).sum(dim=1).abs().max() <= 1e-6
    assert [one["name"] for one in found.provenance["conditional_on"]] == [one.name for one in conditions]


def test_conditions_that_say_the_same_count_once(numbers: Numbers) -> None:
    direction, condition = Direction("n", numbers(1, 8)), Direction("c", numbers(1, 8, seed=1))
    doubled = Direction("2c", 2 * condition.vectors)
    once, twice = conditional(direction, [condition]), conditional(direction, [condition, doubled])
    torch.testing.assert_close(once.vectors, twice.vectors)
    assert conditional(direction, []).vectors.norm().item() == pytest.approx(1)


def test_a_direction_in_the_span_of_its_conditions_is_refused(numbers: Numbers) -> None:
    a, b = Direction("a", numbers(1, 8)), Direction("b", numbers(1, 8, seed=1))
    within = Direction("within", 2 * a.vectors - 3 * b.vectors)
    with pytest.raises(ConfigError, match=r'"within" lies in the span of its conditions \(a, b\)'):
        conditional(within, [a, b])


def test_conditions_of_another_generator_are_refused(numbers: Numbers) -> None:
    ours, theirs = (Direction("d", numbers(1, 8, seed=seed), generator="ab"[seed]) for seed in range(2))
    with pytest.raises(ConfigError, match=r"belongs to generator b, direction .* to a"):
        conditional(ours, [theirs])
    with pytest.raises(ShapeError, match=r"\[1, 9\]"):
        conditional(ours, [Direction("wide", numbers(1, 9))])
