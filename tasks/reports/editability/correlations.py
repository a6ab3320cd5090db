"""Does one measure of codes predict another? Rank correlations across methods and images, with their uncertainty."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from tasks.reports.statistics import CONFIDENCE

Values = NDArray[np.float64]

DRAWS = 2000


@dataclass(frozen=True)
class Interval:
    """A number and its 95 % bootstrap interval; NaN where there is nothing to tell."""

    value: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether the sign is certain."""
        return self.low > 0 or self.high < 0


def rank_correlation(x: Values, y: Values) -> float:
    """Spearman's correlation of the pairs that are both finite; NaN below three of them or without variation.

    Example:
        >>> rank_correlation(np.array([1.0, 2.0, 3.0]), np.array([1.0, 10.0, 100.0]))
        1.0
    """
    both = np.isfinite(x) & np.isfinite(y)
    return float(_correlations_of_ranks(x[None, both], y[None, both])[0]) if both.sum() >= 3 else float("nan")


def _rank_correlations(x: Values, y: Values) -> Values:
    """`rank_correlation` of each row, [B, n] and [B, n] to [B]; rows without a gap are ranked together."""
    is_whole = (np.isfinite(x) & np.isfinite(y)).all(axis=1) & (x.shape[1] >= 3)
    found = np.empty(len(x))
    found[is_whole] = _correlations_of_ranks(x[is_whole], y[is_whole])
    for row in np.flatnonzero(~is_whole):
        found[row] = rank_correlation(x[row], y[row])
    return found


def _correlations_of_ranks(x: Values, y: Values) -> Values:
    """Spearman's correlation of each row of finite values; NaN where one of them does not vary."""
    ranks = np.stack([rankdata(x, axis=1), rankdata(y, axis=1)])
    ranks -= ranks.mean(axis=2, keepdims=True)
    lengths = np.sqrt((ranks**2).sum(axis=2))
    with np.errstate(invalid="ignore"):
        correlations: Values = np.clip((ranks[0] * ranks[1]).sum(axis=1) / (lengths[0] * lengths[1]), -1.0, 1.0)
    return correlations


def across_methods(predictor: Values, outcome: Values, *, seed: int = 0) -> Interval:
    """Correlation of the methods' means, which ranks methods.

    Methods and images are drawn again together: the interval covers other images and other methods like these.

    Args:
        predictor: [M methods, N images].
        outcome: the same shape; NaN where there is no value.
        seed: of the draws.
    """

    stream = np.random.default_rng(seed)
    num_methods, num_images = predictor.shape
    drawn: list[tuple[Any, Any]] = [(np.arange(num_methods), np.arange(num_images))]
    for _ in range(DRAWS):
        drawn.append((stream.integers(num_methods, size=num_methods), stream.integers(num_images, size=num_images)))
    means = [np.stack([_means(of[methods][:, images]) for methods, images in drawn]) for of in (predictor, outcome)]
    value, *draws = _rank_correlations(*means)
    return _interval(float(value), draws)


def within_methods(predictor: Values, outcome: Values, *, seed: int = 0) -> Interval:
    """Correlation over images inside each method, averaged over methods: does it rank the images of one method?"""
    return _mean_of_correlations(predictor, outcome, seed)


def within_images(predictor: Values, outcome: Values, *, seed: int = 0) -> Interval:
    """Correlation over methods for each image, averaged over images: does it rank the codes of one image?"""
    return _mean_of_correlations(predictor.T, outcome.T, seed, draws_rows=True)


def paired_difference(first: Values, second: Values, *, seed: int = 0) -> Interval:
    """Mean of first - second over the images that both have, [N] each, images drawn again."""
    differences = (first - second)[np.isfinite(first - second)]
    if not differences.size:
        return Interval(float("nan"), float("nan"), float("nan"))
    stream = np.random.default_rng(seed)
    drawn = stream.integers(differences.size, size=(DRAWS, differences.size))
    return _interval(float(differences.mean()), list(differences[drawn].mean(axis=1)))


def _mean_of_correlations(predictor: Values, outcome: Values, seed: int, *, draws_rows: bool = False) -> Interval:
    """The mean over rows of the correlation along each; images, which are the rows or the columns, are drawn again."""
    stream = np.random.default_rng(seed)
    each = _rank_correlations(predictor, outcome)
    if draws_rows:
        finite = each[np.isfinite(each)]
        size = (DRAWS, finite.size)
        draws = list(finite[stream.integers(finite.size, size=size)].mean(axis=1)) if finite.size else []
        return _interval(float(_means(each[None])[0]), draws)
    draws = []
    for _ in range(DRAWS // 10):  # each draw ranks every row anew
        columns = stream.integers(predictor.shape[1], size=predictor.shape[1])
        found = _rank_correlations(predictor[:, columns], outcome[:, columns])
        draws.append(float(_means(found[None])[0]))
    return _interval(float(_means(each[None])[0]), draws)


def _means(values: Values) -> Values:
    """Means along the last axis of what is finite; NaN for a row without any."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of a row that is empty
        means: Values = np.nanmean(np.where(np.isfinite(values), values, np.nan), axis=-1)
    return means


def _interval(value: float, draws: list[float]) -> Interval:
    finite = np.array(draws)[np.isfinite(draws)] if draws else np.empty(0)
    if not finite.size:
        return Interval(value, float("nan"), float("nan"))
    low, high = np.quantile(finite, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(value, float(low), float(high))
