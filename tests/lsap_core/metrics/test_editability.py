"""Latent editing consistency against the published program, and strengths of equal effect."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lsap_core.editing import Components, Direction, along, along_component, compose, interpolate, to_distance
from lsap_core.errors import ConfigError, OutOfReachError, ShapeError
from lsap_core.metrics import batch_means, editing_consistency, equal_effect, trimmed_mean
from lsap_core.metrics.editability import kept_by_trimming


@dataclass
class Shift:
    """A linear edit."""

    offset: Tensor

    def __call__(self, w_plus: Tensor) -> Tensor:
        return w_plus + self.offset

    def inverse(self, w_plus: Tensor) -> Callable[[Tensor], Tensor]:
        return Shift(-self.offset)


@dataclass
class SetCoordinate:
    """A projection, as GANSpace's edits: what it does depends on the code, and so does what undoes it."""

    direction: Tensor  # [D], of length 1
    value: Tensor | float

    def __call__(self, w_plus: Tensor) -> Tensor:
        coordinate = w_plus @ self.direction
        return w_plus + (self.value - coordinate)[..., None] * self.direction

    def inverse(self, w_plus: Tensor) -> Callable[[Tensor], Tensor]:
        return SetCoordinate(self.direction, w_plus @ self.direction)


@dataclass
class LinearPair:
    """Images that are linear in the codes, and an encoder that is linear in the images."""

    encoding: Tensor
    decoding: Tensor
    w_avg: Tensor

    def encode(self, images: Tensor) -> Tensor:
        return (images.flatten(1) @ self.encoding).view(len(images), *self.w_avg.shape) + self.w_avg

    def generate(self, codes: Tensor) -> Tensor:
        return (codes.flatten(1) @ self.decoding).view(len(codes), 3, 8, 8)


@pytest.fixture(scope="module")
def published(reference: Callable[[str], Any]) -> tuple[Any, LinearPair]:
    numbers = reference("metric_lec")
    return numbers, LinearPair(numbers["A"], numbers["B"], numbers["latent_avg"])


@pytest.fixture
def exact(numbers: Callable[..., Tensor]) -> LinearPair:
    """An encoder that inverts its generator."""
    decoding = numbers(96, 192, seed=1).double()
    return LinearPair(torch.linalg.pinv(decoding), decoding, torch.zeros(4, 24, dtype=torch.float64))


def consistency(pair: LinearPair, codes: Tensor, edit: Any) -> Tensor:
    return editing_consistency(codes, encode=pair.encode, generate=pair.generate, edit=edit)


def test_batch_means_are_those_of_the_published_program(published: tuple[Any, LinearPair]) -> None:
    numbers, pair = published
    codes = pair.encode(numbers["images"])
    values = consistency(pair, codes, Shift(numbers["factor"] * numbers["direction"]))
    assert values.shape == (20,)
    means = batch_means(values, 4)
    numbers.check("batch_values", means)
    numbers.check("lec", torch.tensor(trimmed_mean(means)))
    assert trimmed_mean(values) == pytest.approx(values.mean().item(), rel=1e-6)  # 20 values: nothing is dropped


def test_trimming_keeps_what_the_published_program_keeps(reference: Callable[[str], Any]) -> None:
    numbers = reference("metric_lec")
    values = numbers["filter_values"]
    kept = kept_by_trimming(values)
    np.testing.assert_array_equal(kept.numpy(), numbers.expected("filter_kept").astype(bool))
    assert 0 < int((~kept).sum()) < 10
    numbers.check("filter_mean", torch.tensor(trimmed_mean(values)))


def test_each_image_is_measured_for_itself(published: tuple[Any, LinearPair]) -> None:
    numbers, pair = published
    codes = pair.encode(numbers["images"])
    edit = Shift(3 * numbers["direction"])
    alone = torch.cat([consistency(pair, codes[row : row + 1], edit) for row in range(4)])
    torch.testing.assert_close(consistency(pair, codes, edit)[:4], alone)


@pytest.mark.parametrize("value", [5.0, -2.0])
def test_an_exact_encoder_has_none_whatever_the_edit(exact: LinearPair, value: float) -> None:
    codes = torch.randn(5, 4, 24, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    direction = torch.nn.functional.normalize(torch.ones(24, dtype=torch.float64), dim=0)
    for edit in (Shift(value * direction), SetCoordinate(direction, value)):
        assert consistency(exact, codes, edit).max() < 1e-10


def test_edits_of_every_kind_are_undone(exact: LinearPair, numbers: Callable[..., Tensor]) -> None:
    """With an exact encoder only an edit that is not taken back would leave something."""
    codes, vectors = numbers(5, 4, 24), torch.linalg.qr(numbers(24, 3, seed=2)).Q.T
    single = LinearPair(exact.encoding.float(), exact.decoding.float(), exact.w_avg.float())
    direction = Direction("any", vectors[:1])
    components = Components("pca", vectors, deviations=torch.tensor([3.0, 2.0, 1.0]), mean=numbers(24, seed=3))
    edits = [
        along(direction, 3.0, layers=(1, 3)),
        to_distance(direction, 2.0),
        along_component(components, 1, 5.0, layers=(0, 2), mode="absolute"),
        compose(along(direction, -2.0), along_component(components, 0, 4.0, mode="absolute")),
        interpolate(numbers(1, 4, 24, seed=4), 0.5),
    ]
    for edit in edits:
        assert (edit(codes) - codes).norm() > 1
        assert consistency(single, codes, edit).max() < 1e-3, edit.describe()


def test_an_edit_that_does_nothing_leaves_the_error_of_encoding_again(published: tuple[Any, LinearPair]) -> None:
    numbers, pair = published
    codes = pair.encode(numbers["images"])
    again = pair.encode(pair.generate(codes))
    found = consistency(pair, codes, Shift(torch.zeros(24)))
    torch.testing.assert_close(found, (codes - again).square().sum(dim=(1, 2)).sqrt())
    assert found.min() > 1


def test_the_encoder_sees_256_pixels_of_the_content_box_neither_clamped_nor_quantized() -> None:
    seen: list[Tensor] = []

    def encode(images: Tensor) -> Tensor:
        seen.append(images)
        return torch.zeros(2, 4, 6)

    image = 3 * torch.randn(2, 1, 512, 512, generator=torch.Generator().manual_seed(0))
    editing_consistency(
        torch.zeros(2, 4, 6),
        encode=encode,
        generate=lambda codes: image,
        edit=Shift(torch.zeros(6)),
        content_box=(64, 448, 0, 512),
    )
    blocks = image.view(2, 1, 256, 2, 256, 2).mean(dim=(3, 5))  # rows 32:224 of the image pooled to 256
    torch.testing.assert_close(seen[0], blocks[:, :, 32:224], atol=1e-6, rtol=1e-6)


def test_an_encoder_of_other_codes_is_refused(published: tuple[Any, LinearPair]) -> None:
    _, pair = published
    with pytest.raises(ShapeError, match=r"\[2, 3, 24\].*\[2, 4, 24\]"):
        editing_consistency(
            torch.zeros(2, 4, 24),
            encode=lambda images: torch.zeros(2, 3, 24),
            generate=pair.generate,
            edit=Shift(torch.zeros(24)),
        )


def test_an_incomplete_batch_is_left_out_of_batch_means_only() -> None:
    values = torch.tensor([1.0, 3.0, 5.0, 7.0, 100.0])
    assert batch_means(values, 2).tolist() == [2.0, 6.0]
    assert trimmed_mean(values) == pytest.approx(23.2)
    with pytest.raises(ConfigError, match="batches of 6 from 5 values"):
        batch_means(values, 6)


def test_both_percentiles_belong_to_what_is_kept() -> None:
    values = torch.arange(201.0).flip(0)  # the 1st percentile is 2, the 99th 198
    assert values[~kept_by_trimming(values)].tolist() == [200.0, 199.0, 1.0, 0.0]
    with pytest.raises(ShapeError, match="at least 1"):
        trimmed_mean(torch.zeros(0))
    with pytest.raises(ConfigError, match="1 of 3 values to trim are not finite"):
        trimmed_mean(torch.tensor([1.0, torch.nan, 2.0]))


CURVES: dict[str, tuple[Callable[[float], float], float]] = {
    "linear": (lambda strength: 0.7 * strength, 1 / 0.7),
    "saturating": (lambda strength: 1.2 * math.tanh(strength / 2), 2 * math.atanh(1 / 1.2)),
    "negative": (lambda strength: -0.5 * strength, -2.0),
    "not monotone": (lambda strength: 1.5 * math.sin(strength), math.asin(1 / 1.5)),
    "steep": (lambda strength: strength**5 / 1000, 1000**0.2),
}


@pytest.mark.parametrize("name", CURVES)
def test_the_smallest_strength_of_the_wanted_effect_is_found(name: str) -> None:
    curve, strength = CURVES[name]
    found = equal_effect(curve, target=1.0, bounds=(-6.0, 8.0), tolerance=1e-4)
    assert found.strength == pytest.approx(strength, rel=1e-3)
    assert found.response == curve(found.strength) == pytest.approx(1.0, abs=1e-4)
    assert (found.strength, found.response) in found.evaluations
    assert all(response == curve(tried) for tried, response in found.evaluations)
    assert len(found.evaluations) < 25


def test_two_methods_are_brought_to_the_same_effect() -> None:
    def strong(strength: float) -> float:
        return math.tanh(strength)

    def weak(strength: float) -> float:
        return math.tanh(strength / 3)

    options = {"target": -0.5, "bounds": (-10.0, 10.0), "tolerance": 1e-3}
    a, b = equal_effect(strong, **options), equal_effect(weak, **options)
    assert b.strength == pytest.approx(3 * a.strength, rel=0.01)
    assert a.response == pytest.approx(b.response, abs=2e-3)


def test_where_nothing_can_be_measured_the_search_goes_no_further() -> None:
    def gone_beyond_four(strength: float) -> float:
        return strength / 10 if strength < 4 else math.nan

    found = equal_effect(gone_beyond_four, target=0.15, bounds=(0, 10), tolerance=1e-3)
    assert found.strength == pytest.approx(1.5, abs=0.02)
    with pytest.raises(OutOfReachError, match=r"goes from 0 to 0\.25"):
        equal_effect(gone_beyond_four, target=0.8, bounds=(0, 10), tolerance=1e-3)


@pytest.mark.parametrize(
    ("curve", "message"),
    [
        (lambda strength: 0.0, "does not vary between strength -4 and 8"),
        (lambda strength: math.nan, "cannot be measured of any image"),
        (lambda strength: 0.05 * strength, r"a change of 1 is out of reach: .* goes from -0\.2 to 0\.4"),
        (lambda strength: float(strength > 2.5) * 2, r"jumps from 0 to 2 at strength 2\.5"),
    ],
)
def test_what_has_no_answer_is_refused_with_the_reached_range(curve: Callable[[float], float], message: str) -> None:
    with pytest.raises(OutOfReachError, match=message):
        equal_effect(curve, target=1.0, bounds=(-4.0, 8.0), tolerance=1e-2)


@pytest.mark.parametrize(
    ("question", "message"),
    [
        ({"bounds": (1.0, 2.0)}, "a range that holds 0"),
        ({"bounds": (0.0, math.inf)}, "from 0.0 to inf"),
        ({"target": 0.0}, "a change that is not 0"),
        ({"tolerance": 2.0}, "within 2.0"),
    ],
)
def test_a_question_without_sense_is_refused(question: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        equal_effect(lambda strength: strength, **{"target": 1.0, "bounds": (0.0, 5.0), "tolerance": 0.1, **question})
