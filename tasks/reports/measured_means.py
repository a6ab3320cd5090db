"""Means over images of what evaluations have measured, each with its spread, in memory that does not grow with them."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from lsap_archive import Archive
from tasks.reports.statistics import Number

_KEYS = ["method", "measure", "by", "problem"]


class Measured(NamedTuple):
    """A measure of a method or edit, by what measured it; `by` is None where nothing is needed for it."""

    method: str
    measure: str
    by: str | None = None


@dataclass
class _Moments:
    """Count, mean and sum of squared differences from it, of what is finite; and how many values were not."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0
    skipped: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    def merge(self, count: int, mean: float, squares: float) -> None:
        """Add those of other values (Chan, Golub and LeVeque, 1979)."""
        total, shift = self.count + count, mean - self.mean
        self.squares += squares + shift * shift * self.count * count / total
        self.mean += shift * count / total
        self.count = total

    def number(self, evaluations: tuple[str, ...]) -> Number:
        """As a number of a report."""
        return Number(
            self.mean if self.count else math.nan,
            math.sqrt(self.squares / (self.count - 1)) if self.count > 1 else math.nan,
            self.count,
            sum(self.skipped.values()),
            evaluations=evaluations,
        )


@dataclass(frozen=True)
class Means:
    """What evaluations came to.

    Attributes:
        numbers: mean over images by method or edit, measure and network; what is infinite, such as the PSNR of equal
            images, counts as without a value.
        missing: images without a value, by the same and the code of the reason.
    """

    numbers: Mapping[Measured, Number]
    missing: Mapping[tuple[Measured, str], int]


def measured_means(archive: Archive, evaluations: Mapping[str, Sequence[str]]) -> Means:
    """Every measure by method or edit, over the images that readers see.

    Args:
        archive: opened when they were published.
        evaluations: ids by method or edit.
    """
    found: defaultdict[Measured, _Moments] = defaultdict(_Moments)
    ids = [evaluation_id for of_method in evaluations.values() for evaluation_id in of_method]
    for part in archive.measurement_parts([*_KEYS, "value"], evaluations=ids):
        is_finite = pc.fill_null(pc.is_finite(part.column("value")), False)
        values = [("value", "count"), ("value", "mean"), ("value", "variance")]
        for row in _grouped(part.filter(is_finite), _KEYS[:-1], values):
            count = row["value_count"]
            found[_key(row)].merge(count, row["value_mean"], row["value_variance"] * count)
        for row in _grouped(part.filter(pc.invert(is_finite)), _KEYS, [([], "count_all")]):
            found[_key(row)].skipped[row["problem"] or "infinite"] += row["count_all"]
    numbers = {key: one.number(tuple(evaluations.get(key.method, ()))) for key, one in found.items()}
    missing = {(key, why): count for key, one in found.items() for why, count in one.skipped.items()}
    return Means(numbers, missing)


def frechet_numbers(archive: Archive, evaluations: Mapping[str, tuple[str, ...]]) -> dict[str, Number]:
    """Distances of sets of images by method, each over all images of the method that readers see.

    Args:
        archive: where they were measured.
        evaluations: ids of the evaluations that count, by method or edit.
    """
    numbers: dict[str, Number] = {}
    for one in archive.sets:
        if one.problem is None and one.summary is not None and set(one.parts) & set(evaluations.get(one.method, ())):
            value, count = one.summary["value"], one.summary["num_images"]
            numbers[one.method] = Number(value, count=count, source=f"{one.source}.value", evaluations=tuple(one.parts))
    return numbers


def newest_evaluations(archive: Archive, names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Of each run of these methods and edits the newest evaluation that was published, by name.

    Args:
        archive: where they are.
        names: in order; those of which none was measured are left out.
    """
    newest = {one.run_id: one for one in archive.evaluations if one.run_id is not None}  # the oldest comes first
    found: dict[str, tuple[str, ...]] = {}
    for name in names:
        ids = tuple(one.evaluation_id for one in newest.values() if one.method == name)
        if ids:
            found[name] = ids
    return found


def _grouped(part: pa.Table, keys: Sequence[str], values: Sequence[tuple[Any, str]]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = part.group_by(list(keys)).aggregate(list(values)).to_pylist()
    return rows


def _key(row: Mapping[str, Any]) -> Measured:
    return Measured(row["method"], row["measure"], row["by"])
