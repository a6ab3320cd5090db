"""Measures of sample quality on sets whose values are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from domains.making.quality import SampleQuality, frechet_distance, judge_samples, look, precision_recall


def normal(count: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, width))


# --- Fréchet distance ---------------------------------------------------------------------------------


def test_equal_sets_are_at_no_distance() -> None:
    features = normal(500, 6)
    assert frechet_distance(features, features) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(features, features[::-1]) == pytest.approx(0, abs=1e-9)


def test_shifted_sets_are_at_the_square_of_the_shift() -> None:
    features = normal(500, 6)
    assert frechet_distance(features, features + np.array([1, 0, -2, 0, 0, 0.5])) == pytest.approx(5.25, rel=1e-9)


def test_two_gaussians_are_at_the_distance_of_the_closed_form() -> None:
    """In two dimensions tr (AB)^(1/2) = (tr AB + 2 (det A det B)^(1/2))^(1/2), also where A and B do not commute."""
    one = normal(400, 2) @ np.array([[2.0, 0.0], [0.0, 0.5]])
    other = normal(300, 2, seed=1) @ np.array([[1.0, 0.7], [-0.3, 1.5]]) + [3, 1]
    a, b = np.cov(one.T), np.cov(other.T)
    assert np.abs(a @ b - b @ a).max() > 0.4
    root = math.sqrt(np.trace(a @ b) + 2 * math.sqrt(np.linalg.det(a) * np.linalg.det(b)))
    wanted = np.square(one.mean(axis=0) - other.mean(axis=0)).sum() + np.trace(a) + np.trace(b) - 2 * root
    assert frechet_distance(one, other) == pytest.approx(wanted, rel=1e-9)
    assert frechet_distance(other, one) == pytest.approx(wanted, rel=1e-9)


def test_fewer_images_than_features_still_have_a_distance() -> None:
    features = normal(10, 24)
    assert frechet_distance(features, features) == pytest.approx(0, abs=1e-5)
    assert frechet_distance(features, features + 1) == pytest.approx(24, abs=1e-5)


def test_collapsed_samples_have_a_distance() -> None:
    real = normal(50, 3)
    collapsed = np.tile(real[:1], (50, 1))
    wanted = np.square(real[0] - real.mean(axis=0)).sum() + np.trace(np.cov(real.T))
    assert frechet_distance(collapsed, real) == pytest.approx(wanted)
    assert frechet_distance(real, collapsed) == pytest.approx(wanted)
    assert frechet_distance(collapsed, collapsed) == pytest.approx(0, abs=1e-12)


# --- precision and recall -----------------------------------------------------------------------------


def test_equal_sets_are_within_each_others_reach() -> None:
    features = normal(100, 4)
    assert precision_recall(features, features) == (1.0, 1.0)


def test_sets_far_apart_are_out_of_reach() -> None:
    assert precision_recall(normal(100, 4), normal(100, 4, seed=1) + 100) == (0.0, 0.0)


def test_samples_of_a_part_are_precise_and_do_not_cover() -> None:
    part, rest = normal(60, 3), normal(40, 3, seed=1) + 100
    assert precision_recall(part, np.concatenate([part, rest])) == (1.0, 0.6)
    assert precision_recall(np.concatenate([part, rest]), part) == (0.6, 1.0)


def test_a_set_reaches_as_far_as_its_kth_neighbour() -> None:
    real = np.array([[0.0], [1.0], [2.0], [3.0], [4.0]])
    # With k = 1 every reach is 1; with k = 3 those of 0 ... 4 are 3, 2, 2, 2, 3.
    samples = np.array([[-2.5], [-0.5], [4.9], [5.5], [7.5]])
    assert precision_recall(samples, real, k=1)[0] == pytest.approx(2 / 5)
    assert precision_recall(samples, real, k=3)[0] == pytest.approx(4 / 5)
    assert precision_recall(real, samples, k=1)[1] == precision_recall(samples, real, k=1)[0]


# --- through a judge ----------------------------------------------------------------------------------


class Reader(nn.Module):
    """Reads the class of an image from its first pixel, and how sure it is from its second."""

    def features(self, images: Tensor) -> Tensor:
        return images[:, 0, 0, :3]

    def forward(self, images: Tensor) -> Tensor:
        digit = ((images[:, 0, 0, 0] + 1) * 10).round().long()
        return nn.functional.one_hot(digit, 10) * images[:, 0, 0, 1:2] * 20


def images_of(digits: list[int], sure: list[bool] | None = None) -> Tensor:
    images = torch.rand(len(digits), 1, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    images[:, 0, 0, 0] = torch.tensor(digits) / 10 - 1
    images[:, 0, 0, 1] = torch.tensor(sure if sure is not None else [True] * len(digits)).float()
    return images


EVEN = images_of([digit for digit in range(10) for _ in range(5)])


def test_even_coverage_has_entropy_1() -> None:
    found = judge_samples(Reader(), EVEN, EVEN)
    assert found == SampleQuality(
        frechet=pytest.approx(0, abs=1e-6),
        class_entropy=pytest.approx(1),
        rarest_class=pytest.approx(0.1),
        confident=1.0,
        precision=1.0,
        recall=1.0,
    )


@pytest.mark.parametrize(
    ("digits", "entropy"), [([7] * 8, 0.0), ([1, 3] * 4, math.log10(2)), ([0] * 6 + [1] * 2, None)]
)
def test_uneven_coverage_has_the_entropy_of_its_classes(digits: list[int], entropy: float | None) -> None:
    if entropy is None:
        entropy = -(0.75 * math.log10(0.75) + 0.25 * math.log10(0.25))
    found = judge_samples(Reader(), images_of(digits), EVEN)
    assert found.class_entropy == pytest.approx(entropy)
    assert found.rarest_class == 0


def test_the_share_of_sure_judgements_is_counted() -> None:
    images = images_of([0, 1, 2, 3, 4, 5, 6, 7], [True] * 6 + [False] * 2)
    assert judge_samples(Reader(), images, EVEN).confident == 0.75


def test_sets_of_unequal_size_are_compared_with_equal_parts() -> None:
    """Precision and recall depend on how densely a set is sampled, so both are cut to the smaller one."""
    few = judge_samples(Reader(), EVEN[:20], EVEN)
    assert (few.precision, few.recall) == (1.0, 1.0)
    assert few.rarest_class == 0  # of all images, not of the part


def test_a_judge_looks_at_every_image_in_batches() -> None:
    images = images_of([index % 10 for index in range(1203)])
    features, probabilities = look(Reader(), images)
    np.testing.assert_array_equal(features, images[:, 0, 0, :3].double().numpy())
    assert features.dtype == np.float64
    assert probabilities.argmax(axis=1).tolist() == [index % 10 for index in range(1203)]
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)


def test_measures_are_rounded_for_print() -> None:
    quality = SampleQuality(1.23456789, 0.98765, 0.1, 0.5, 1.0, 0.0)
    assert quality.as_dict() == {
        "frechet": 1.2346,
        "class_entropy": 0.9877,
        "rarest_class": 0.1,
        "confident": 0.5,
        "precision": 1.0,
        "recall": 0.0,
    }
