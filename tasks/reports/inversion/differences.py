"""Paired differences: each method against its base and its control, on the images that both have."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lsap_archive import OK
from tasks.reports.inversion.data import MethodInfo
from tasks.reports.statistics import HIGHER_IS_BETTER, MATCHED_WITHIN, Number, column_values, newest_rows, with_status

COMPARED = ("sncd", "lpips", "mse", "identity_similarity")

Verdict = Literal["lower", "higher", "no clear difference", "undetermined"]
Relation = Literal["base", "control"]


@dataclass(frozen=True)
class PairedDifference:
    """One metric of a method minus that of another one, on the images that both have.

    Attributes:
        method: the method in question.
        other: the one that it is held against.
        relation: "base" (it adds a term to the other) or "control" (the other only shrinks toward the mean code).
        metric: the column.
        num_images: images with a finite value of both.
        mean: of the method, over these images.
        mean_other: of the other.
        mean_difference: mean - mean_other.
        low: lower end of the 95 % t interval of the mean difference; NaN with fewer than two images.
        high: upper end.
        share_improved: share of images where the method is closer (higher identity, else lower); for SNCD this
            says "lower", which is not always better.
        is_matched: for a control, whether the mean LPIPS of both agree within 5 %; None for a base.
    """

    method: str
    other: str
    relation: Relation
    metric: str
    num_images: int
    mean: float
    mean_other: float
    mean_difference: float
    low: float
    high: float
    share_improved: float
    is_matched: bool | None

    @property
    def verdict(self) -> Verdict:
        """What the interval allows to say."""
        if self.num_images < 2:
            return "undetermined"
        if self.low <= 0 <= self.high:
            return "no clear difference"
        return "lower" if self.high < 0 else "higher"

    @property
    def relative(self) -> float:
        """The difference as a share of the other's mean; NaN where that is zero."""
        return self.mean_difference / abs(self.mean_other) if self.mean_other else math.nan


def compare_pairs(rows: pa.Table, methods: Sequence[MethodInfo]) -> list[PairedDifference]:
    """Each method against its base, and each aligned method against the control of the same base.

    The interval is the mean difference +- t(N - 1) times its standard error: over images, not over generators or
    random streams. Images count as the same when id and content agree.

    Returns:
        The metrics of COMPARED for each pair, in the order of `methods`, bases before controls.
    """
    tables = {method.name: with_status(newest_rows(rows, method.name), OK) for method in methods}
    differences = []
    for name, other, relation in _pairs(methods):
        here, there = _same_images(tables[name], tables[other])
        is_matched = _is_matched(here, there) if relation == "control" else None
        for metric in COMPARED:
            values, values_other = _both_finite(here, there, metric)
            differences.append(_difference(name, other, relation, metric, values, values_other, is_matched))
    return differences


def _pairs(methods: Sequence[MethodInfo]) -> Iterator[tuple[str, str, Relation]]:
    """Names of a method and of the one that it is held against: first the bases, then the controls."""
    names = {method.name for method in methods}
    for method in methods:
        if method.base and method.base in names:
            yield method.name, method.base, "base"
    for method in methods:
        for control in methods:
            if method.is_aligned and control.is_control and method.base == control.base:
                yield method.name, control.name, "control"


def _is_matched(here: pa.Table, there: pa.Table) -> bool:
    """Both reach the same mean LPIPS, so that SNCD is compared at equal fidelity. False where a mean is NaN."""
    mean, mean_other = (Number.of(values).mean for values in _both_finite(here, there, "lpips"))
    return abs(mean - mean_other) <= MATCHED_WITHIN * abs(mean_other)


def _same_images(here: pa.Table, there: pa.Table) -> tuple[pa.Table, pa.Table]:
    """The rows of both tables for the images that both have, in the same order."""

    def keys(table: pa.Table) -> Iterable[tuple[str, str]]:
        return zip(table.column("image_id").to_pylist(), table.column("digest").to_pylist(), strict=True)

    places = {key: index for index, key in enumerate(keys(there))}
    pairs = [(index, places[key]) for index, key in enumerate(keys(here)) if key in places]
    return (
        here.take(pa.array([index for index, _ in pairs], pa.int64())),
        there.take(pa.array([place for _, place in pairs], pa.int64())),
    )


def _both_finite(here: pa.Table, there: pa.Table, metric: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    values, values_other = column_values(here, metric), column_values(there, metric)
    finite = np.isfinite(values) & np.isfinite(values_other)
    return values[finite], values_other[finite]


def _difference(
    method: str,
    other: str,
    relation: Relation,
    metric: str,
    values: NDArray[np.float64],
    values_other: NDArray[np.float64],
    is_matched: bool | None,
) -> PairedDifference:
    gains = values - values_other
    difference = Number.of(gains)
    low, high = difference.interval
    improved = gains > 0 if metric in HIGHER_IS_BETTER else gains < 0
    return PairedDifference(
        method=method,
        other=other,
        relation=relation,
        metric=metric,
        num_images=difference.count,
        mean=Number.of(values).mean,
        mean_other=Number.of(values_other).mean,
        mean_difference=difference.mean,
        low=low,
        high=high,
        share_improved=float(improved.mean()) if gains.size else math.nan,
        is_matched=is_matched,
    )
