"""Rank correlations: equal to an independent implementation, and wide where little is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import spearmanr

from tasks.reports.editability.correlations import (
    across_methods,
    paired_difference,
    rank_correlation,
    within_images,
    within_methods,
)

RNG = np.random.default_rng(5)
LEVELS = np.arange(8.0)[:, None]  # of eight methods
NOISE = RNG.normal(size=(8, 60))


def test_a_rank_correlation_is_spearmans() -> None:
    x, y = RNG.integers(0, 9, size=50).astype(float), RNG.normal(size=50)
    assert rank_correlation(x, y) == pytest.approx(spearmanr(x, y).statistic, abs=1e-12)


def test_pairs_without_a_value_do_not_count() -> None:
    x, y = RNG.normal(size=20), RNG.normal(size=20)
    y[3], x[7] = np.nan, np.inf
    kept = np.delete(np.arange(20), [3, 7])
    assert rank_correlation(x, y) == pytest.approx(spearmanr(x[kept], y[kept]).statistic, abs=1e-12)


@pytest.mark.parametrize("x", [np.ones(9), np.array([1.0, 2.0])])
def test_nothing_is_said_without_variation_or_pairs(x: np.ndarray) -> None:
    assert math.isnan(rank_correlation(x, np.arange(float(len(x)))))


def test_a_predictor_of_methods_need_not_be_one_of_images() -> None:
    predictor, outcome = LEVELS + 0.01 * NOISE, LEVELS + 0.01 * RNG.permuted(NOISE, axis=1)
    assert across_methods(predictor, outcome).value == pytest.approx(1.0)
    within = within_methods(predictor, outcome)
    assert within.low < 0 < within.high


def test_a_predictor_of_images_need_not_be_one_of_methods() -> None:
    predictor, outcome = LEVELS + NOISE, -LEVELS + NOISE
    assert within_methods(predictor, outcome).value == pytest.approx(1.0)
    assert across_methods(predictor, outcome).value == pytest.approx(-1.0)
    assert within_images(10 * LEVELS + NOISE, -10 * LEVELS + NOISE).value == pytest.approx(-1.0)


def test_a_certain_order_has_a_narrow_interval_and_an_unrelated_one_holds_zero() -> None:
    assert across_methods(LEVELS + 0.1 * NOISE, LEVELS + 0.1 * NOISE).low > 0.9
    unrelated = across_methods(NOISE, RNG.normal(size=(8, 60)))
    assert unrelated.low < 0 < unrelated.high
    assert unrelated.high - unrelated.low > 0.5
    assert not unrelated.excludes_zero


def test_the_same_seed_gives_the_same_interval() -> None:
    assert across_methods(NOISE, -NOISE, seed=3) == across_methods(NOISE, -NOISE, seed=3)


def test_a_paired_difference_sees_what_varies_together() -> None:
    base = RNG.normal(size=200) * 10
    found = paired_difference(base + 0.5, base + 0.01 * RNG.normal(size=200))
    assert found.value == pytest.approx(0.5, abs=0.01)
    assert 0.49 < found.low < found.high < 0.51
    assert math.isnan(paired_difference(np.array([np.nan]), np.array([1.0])).value)
