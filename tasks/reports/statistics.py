"""Numbers of a report: means with how far they spread and how sure they are, and the rows that they are taken from."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from scipy.special import stdtrit

from tasks.measuring.measures import MEASURES
from tasks.measuring.of_inversions import COLUMNS

CONFIDENCE = 0.95
MATCHED_WITHIN = 0.05  # mean LPIPS that differ by no more than this share count as equal

HIGHER_IS_BETTER = frozenset(name for name, (measure, _) in COLUMNS.items() if MEASURES[measure].better == "higher")


@dataclass(frozen=True)
class Number:
    """A mean over images, or over whatever else was counted.

    Attributes:
        mean: NaN where nothing was measured.
        deviation: standard deviation (n - 1); NaN with fewer than two values.
        count: values.
        skipped: images that were looked at and gave none.
        problem: code of why one of them gave none, or "".
        source: the query, or the object and key, that gives the number.
        evaluations: ids of the evaluations that it comes from.
    """

    mean: float
    deviation: float = math.nan
    count: int = 0
    skipped: int = 0
    problem: str = ""
    source: str = ""
    evaluations: tuple[str, ...] = ()

    @classmethod
    def of(cls, values: NDArray[np.float64]) -> Number:
        """From one value per image; what is not finite is left out and counted as skipped."""
        finite = values[np.isfinite(values)]
        mean = float(finite.mean()) if finite.size else math.nan
        deviation = float(finite.std(ddof=1)) if finite.size > 1 else math.nan
        return cls(mean, deviation, int(finite.size), int(values.size - finite.size))

    @property
    def is_there(self) -> bool:
        """Whether anything was measured."""
        return math.isfinite(self.mean)

    @property
    def standard_error(self) -> float:
        """Of the mean; NaN with fewer than two values."""
        return self.deviation / math.sqrt(self.count) if self.count > 1 else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """Ends of the 95 % t interval of the mean; NaN with fewer than two values.

        Example:
            >>> tuple(round(end, 2) for end in Number(-1.0, deviation=1.0, count=100).interval)
            (-1.2, -0.8)
        """
        if self.count < 2:
            return math.nan, math.nan
        quantile = float(stdtrit(self.count - 1, (1 + CONFIDENCE) / 2))  # of Student's t
        return self.mean - quantile * self.standard_error, self.mean + quantile * self.standard_error


NOTHING_MEASURED = Number(math.nan)


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
