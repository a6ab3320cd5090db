"""The paper's comparison of encoders: means over images, spread over training seeds, and what became of its claims."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
from scipy.stats import spearmanr

from lsap_archive import OK
from tasks.reports.statistics import column_values, newest_rows, with_status

METRICS = ("mse", "lpips", "lpips_judge", "identity_similarity", "sncd")
LEAST_WEIGHTS = 5  # of a sweep: a rank correlation of 0.9 over five is found by chance in 4 % of cases
LEAST_CORRELATION = 0.9

Outcome = Literal["confirmed", "refuted", "not decided"]


@dataclass(frozen=True)
class Variant:
    """One row of the comparison: a way to train, with as many encoders as seeds.

    Attributes:
        name: such as "lsap_e-0.25"; with "-seed<n>" behind it the name of an encoder.
        title: as printed.
        method: the training method.
        sncd_weight: lambda of its objective.
    """

    name: str
    title: str
    method: str
    sncd_weight: float

    def encoder(self, seed: int) -> str:
        """Name of the encoder of one seed; the archive's rows carry it as their method."""
        return f"{self.name}-seed{seed}"


@dataclass(frozen=True)
class Spread:
    """One metric of one variant: a mean over images for each seed.

    Attributes:
        values: by seed, in the order of the seeds; NaN where a domain has no network for the metric.
    """

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Over seeds."""
        return float(np.mean(self.values))

    @property
    def deviation(self) -> float:
        """Standard deviation over seeds (n - 1); NaN for a single one."""
        return float(np.std(self.values, ddof=1)) if len(self.values) > 1 else math.nan


@dataclass(frozen=True)
class Row:
    """A variant and its metrics.

    Attributes:
        variant: what was trained.
        seeds: of its trainings.
        num_images: images that every seed's encoder inverted.
        metrics: by column of the archive's rows.
    """

    variant: Variant
    seeds: tuple[int, ...]
    num_images: int
    metrics: Mapping[str, Spread]


@dataclass(frozen=True)
class Claim:
    """A claim of the paper, and what the seeds say.

    Attributes:
        text: the claim in a sentence.
        outcome: of two encoders "confirmed" when every seed of the one stands below every seed of the other,
            "refuted" when it is the other way round, "not decided" when they overlap, or with fewer than two seeds;
            of a trend by the rank correlation of every seed's sweep.
        numbers: the compared means, for print.
    """

    text: str
    outcome: Outcome
    numbers: str


@dataclass(frozen=True)
class EncoderComparison:
    """Everything that is printed.

    Attributes:
        encoders: rows of pSp, e4e and LSAP_E as published (the encoder rows of Table 1).
        sweep: rows of LSAP_E over lambda (Table 3), by rising lambda.
        references: SNCD of codes whose alignment is known, by printed label.
        claims: what the paper says of these rows.
    """

    encoders: tuple[Row, ...]
    sweep: tuple[Row, ...]
    references: Mapping[str, float]
    claims: tuple[Claim, ...]


def compare_encoders(
    rows: pa.Table,
    encoders: Sequence[Variant],
    seeds: Sequence[int],
    sweep: Sequence[Variant],
    sweep_seeds: Sequence[int],
    references: Mapping[str, float],
) -> EncoderComparison:
    """Reduce one row per image and encoder to the two tables and the claims.

    Args:
        rows: of the archive, in ROW_SCHEMA; their column `method` holds `Variant.encoder(seed)`.
        encoders: pSp, e4e and LSAP_E.
        seeds: of their trainings.
        sweep: LSAP_E by rising lambda.
        sweep_seeds: of their trainings.
        references: by printed label.
    """
    first = tuple(_row(rows, variant, seeds) for variant in encoders)
    second = tuple(_row(rows, variant, sweep_seeds) for variant in sweep)
    return EncoderComparison(first, second, references, (*_encoder_claims(first), *_sweep_claims(second)))


def order_of(lower: Spread, higher: Spread) -> Outcome:
    """Whether all values of the one stand below all of the other.

    Example:
        >>> order_of(Spread((1.0, 2.0)), Spread((3.0, 4.0)))
        'confirmed'
        >>> order_of(Spread((1.0, 3.5)), Spread((3.0, 4.0)))
        'not decided'
    """
    if min(len(lower.values), len(higher.values)) < 2:
        return "not decided"
    if max(lower.values) < min(higher.values):
        return "confirmed"
    if min(lower.values) > max(higher.values):
        return "refuted"
    return "not decided"


def _row(rows: pa.Table, variant: Variant, seeds: Sequence[int]) -> Row:
    """Means of each seed over the images that all seeds have inverted."""
    tables = [with_status(newest_rows(rows, variant.encoder(seed)), OK) for seed in seeds]
    shared = set.intersection(*(set(table.column("image_id").to_pylist()) for table in tables))
    wanted = pa.array(sorted(shared), pa.string())
    tables = [table.filter(pa.compute.is_in(table.column("image_id"), wanted)) for table in tables]
    metrics = {name: Spread(tuple(_mean(table, name) for table in tables)) for name in METRICS}
    return Row(variant, tuple(seeds), len(shared), metrics)


def _mean(table: pa.Table, metric: str) -> float:
    values = column_values(table, metric)
    return float(np.mean(values)) if values.size else math.nan


def _encoder_claims(rows: Sequence[Row]) -> list[Claim]:
    by_method = {row.variant.method: row.metrics for row in rows}
    if not {"psp", "e4e", "lsap_e"} <= set(by_method):
        return []
    psp, e4e, lsap_e = (by_method[name] for name in ("psp", "e4e", "lsap_e"))
    return [
        _claim("LSAP_E has a lower SNCD than e4e", "sncd", lsap_e, e4e),
        _claim("LSAP_E has a lower SNCD than pSp", "sncd", lsap_e, psp),
        _claim("e4e has a lower SNCD than pSp", "sncd", e4e, psp),
        _claim("LSAP_E is closer to the images than e4e (LPIPS)", "lpips", lsap_e, e4e),
        _claim("LSAP_E is closer to the images than e4e (MSE)", "mse", lsap_e, e4e),
        _claim("pSp is closer to the images than LSAP_E (LPIPS)", "lpips", psp, lsap_e),
        _claim("pSp is closer to the images than LSAP_E (MSE)", "mse", psp, lsap_e),
    ]


def _claim(text: str, metric: str, lower: Mapping[str, Spread], higher: Mapping[str, Spread]) -> Claim:
    first, second = lower[metric], higher[metric]
    return Claim(text, order_of(first, second), f"{first.mean:.4f} and {second.mean:.4f}")


def _sweep_claims(rows: Sequence[Row]) -> list[Claim]:
    if len(rows) < LEAST_WEIGHTS:
        return []
    return [
        _trend("SNCD falls as lambda grows", "sncd", rows, sign=-1),
        _trend("LPIPS rises as lambda grows", "lpips", rows, sign=1),
        _trend("MSE rises as lambda grows", "mse", rows, sign=1),
    ]


def _trend(text: str, metric: str, rows: Sequence[Row], *, sign: int) -> Claim:
    weights = [row.variant.sncd_weight for row in rows]
    by_seed = zip(*(row.metrics[metric].values for row in rows), strict=True)
    ranks = [sign * float(spearmanr(weights, values).statistic) for values in by_seed]
    outcome: Outcome = "not decided"
    if min(ranks) >= LEAST_CORRELATION:
        outcome = "confirmed"
    elif max(ranks) <= -LEAST_CORRELATION:
        outcome = "refuted"
    shown = ", ".join(f"{sign * rank:.2f}" for rank in ranks)
    return Claim(text, outcome, f"rank correlation by seed {shown}")
