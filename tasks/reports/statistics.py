"""The statistics of a report: means over images, and paired differences between methods."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from scipy.special import stdtrit

from lsap_archive import FAILED, OK
from tasks.measuring.measures import MEASURES
from tasks.measuring.of_inversions import COLUMNS
from tasks.reports.inversion.data import MethodInfo

CONFIDENCE = 0.95
MATCHED_WITHIN = 0.05  # mean LPIPS that differ by no more than this share count as equal

MEASURED = ("mse", "lpips", "lpips_judge", "identity_similarity", "sncd", "w_distance", "seconds", "final_loss")
COMPARED = ("sncd", "lpips", "mse", "identity_similarity")
HIGHER_IS_BETTER = frozenset(name for name, (measure, _) in COLUMNS.items() if MEASURES[measure].better == "higher")


@dataclass(frozen=True)
class Estimate:
    """Mean of the finite values and its standard error; NaN where there are too few of them."""

    mean: float
    standard_error: float
    num_values: int

    @classmethod
    def of(cls, values: NDArray[np.float64]) -> Estimate:
        """The estimate from one value per image; what is not finite is left out and not counted."""
        finite = values[np.isfinite(values)]
        mean = float(finite.mean()) if finite.size else math.nan
        error = float(finite.std(ddof=1) / math.sqrt(finite.size)) if finite.size > 1 else math.nan
        return cls(mean, error, int(finite.size))


@dataclass(frozen=True)
class MethodSummary:
    """What became of a method's images, and the means over those that are ok.

    Attributes:
        method: its name.
        num_ok: images with a code.
        num_failed: images with a reason instead.
        num_duplicate: images that share the code of another one; they enter no mean.
        num_steps: the largest number of steps taken, passes through the encoder included, or None.
        mse: in the range [-1, 1].
        lpips: by the network in the loss.
        lpips_judge: by the network that no method has seen.
        identity_similarity: cosine, higher is closer.
        sncd: to be read beside its references.
        w_distance: from the code to the mean code.
        seconds: wall time per image.
        final_loss: value of the objective at the last step; an encoder has none.
    """

    method: str
    num_ok: int
    num_failed: int
    num_duplicate: int
    num_steps: int | None
    mse: Estimate
    lpips: Estimate
    lpips_judge: Estimate
    identity_similarity: Estimate
    sncd: Estimate
    w_distance: Estimate
    seconds: Estimate
    final_loss: Estimate

    @property
    def num_images(self) -> int:
        """All images of the method."""
        return self.num_ok + self.num_failed + self.num_duplicate


def summarize_rows(rows: pa.Table, methods: Sequence[MethodInfo]) -> list[MethodSummary]:
    """Counts, means and standard errors of each method, in the order of `methods`."""
    summaries = []
    for method in methods:
        newest = newest_rows(rows, method.name)
        ok, num_failed = with_status(newest, OK), with_status(newest, FAILED).num_rows
        summaries.append(
            MethodSummary(
                method=method.name,
                num_ok=ok.num_rows,
                num_failed=num_failed,
                num_duplicate=newest.num_rows - ok.num_rows - num_failed,
                num_steps=pc.max(ok.column("num_steps")).as_py(),
                **{name: Estimate.of(column_values(ok, name)) for name in MEASURED},
            )
        )
    return summaries


def newest_rows(rows: pa.Table, method: str) -> pa.Table:
    """One row per image. Where several runs embedded it, the newest counts, which stands last."""
    table = rows.filter(pc.equal(rows.column("method"), method))
    newest = {image_id: index for index, image_id in enumerate(table.column("image_id").to_pylist())}
    return table if len(newest) == table.num_rows else table.take(pa.array(sorted(newest.values()), pa.int64()))


def with_status(table: pa.Table, status: str) -> pa.Table:
    return table.filter(pc.equal(table.column("status"), status))


def image_ids(table: pa.Table) -> set[str]:
    return set(table.column("image_id").to_pylist())


def column_values(table: pa.Table, column: str) -> NDArray[np.float64]:
    """A column of measurements, [N]; null becomes NaN."""
    return np.asarray(table.column(column).cast(pa.float64()).to_numpy(), dtype=np.float64)


def finite_values(table: pa.Table, column: str) -> NDArray[np.float64]:
    """Those of the measurements that are finite, [n <= N]."""
    values = column_values(table, column)
    return values[np.isfinite(values)]


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
    mean, mean_other = (Estimate.of(values).mean for values in _both_finite(here, there, "lpips"))
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
    size = gains.size
    estimate = Estimate.of(gains)
    margin = float(stdtrit(size - 1, (1 + CONFIDENCE) / 2)) * estimate.standard_error if size > 1 else math.nan
    improved = gains > 0 if metric in HIGHER_IS_BETTER else gains < 0
    return PairedDifference(
        method=method,
        other=other,
        relation=relation,
        metric=metric,
        num_images=size,
        mean=Estimate.of(values).mean,
        mean_other=Estimate.of(values_other).mean,
        mean_difference=estimate.mean,
        low=estimate.mean - margin,
        high=estimate.mean + margin,
        share_improved=float(improved.mean()) if size else math.nan,
        is_matched=is_matched,
    )
