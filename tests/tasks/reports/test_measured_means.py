"""Means that are gathered part by part are those of all values together."""

from __future__ import annotations

import numpy as np
import pytest

from tasks.reports.measured_means import _Moments
from tasks.reports.statistics import Number


@pytest.mark.parametrize("sizes", [(1,), (1, 1, 1), (3, 40, 1, 200)])
def test_parts_have_the_mean_and_deviation_of_the_whole(sizes: tuple[int, ...]) -> None:
    parts = [np.random.default_rng(size).normal(1e4, 0.1, size) for size in sizes]
    moments = _Moments()
    for part in parts:
        moments.merge(part.size, float(part.mean()), float(part.var() * part.size))
    found, whole = moments.number(("one",)), Number.of(np.concatenate(parts))
    assert (found.count, found.evaluations) == (whole.count, ("one",))
    assert found.mean == pytest.approx(whole.mean, rel=1e-12)
    assert found.deviation == pytest.approx(whole.deviation, rel=1e-6, nan_ok=True)
