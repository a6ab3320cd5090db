"""The paper's comparison of encoders over training seeds: Table 1's encoders, Table 3's sweep, and what came of them.

Means are taken over images first, then over seeds: ± is the standard deviation over trainings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import spearmanr

from lsap_archive import OK, open_archive, to_parquet
from lsap_core.alignment.references import reference_rows
from tasks.archived.anchors import open_anchor
from tasks.archived.opening import open_writer
from tasks.archived.runs import current_rows
from tasks.inversion.plan import facts_of
from tasks.inversion.request import InversionRequest
from tasks.reports.figure_style import figure_png
from tasks.reports.index.write import write_index
from tasks.reports.paper.claims import Claim, Outcome, claims_markdown
from tasks.reports.statistics import Number, column_values, image_ids, newest_rows, with_status
from tasks.reports.tables import Cell, Column, Table, TableRow, lines_with_margins
from tasks.visible_text import markdown_table

COLUMNS = (
    Column("mse", "MSE"),
    Column("lpips", "LPIPS"),
    Column("lpips_judge", "LPIPS of the judge"),
    Column("identity_similarity", "identity similarity", better="higher"),
    Column("sncd", "SNCD"),
)
LEAST_WEIGHTS = 5  # of a sweep: a rank correlation of 0.9 over five is found by chance in 4 % of cases
LEAST_CORRELATION = 0.9
COLORS = {"psp": "#0072B2", "e4e": "#E69F00", "lsap_e": "#009E73"}

SEEDS_RULE = (
    "Of two encoders, confirmed means that every seed of the one stands below every seed of the other, refuted "
    f"the reverse. Of a trend, that every seed's sweep has a rank correlation of {LEAST_CORRELATION} or more in "
    "that direction. Everything else is not decided by these seeds."
)

BySeed = tuple[float, ...]
"""A mean over images for each seed; NaN where a domain has no network for the metric."""


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
class Trained:
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
    metrics: Mapping[str, BySeed]

    def over_seeds(self, metric: str) -> Number:
        """Mean and spread of a metric over the trainings."""
        values = self.metrics[metric]
        deviation = float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")
        return Number(float(np.mean(values)), deviation, len(values))


@dataclass(frozen=True)
class EncoderComparison:
    """Everything that is printed.

    Attributes:
        encoders: pSp, e4e and LSAP_E as published (the encoder rows of Table 1).
        sweep: LSAP_E over lambda (Table 3), by rising lambda.
        references: SNCD of codes whose alignment is known, by printed label.
        claims: what the paper says of these rows.
    """

    encoders: tuple[Trained, ...]
    sweep: tuple[Trained, ...]
    references: Mapping[str, float]
    claims: tuple[Claim, ...]


def write_table3(
    request: InversionRequest,
    published: Sequence[Variant],
    seeds: Sequence[int],
    sweep: Sequence[Variant],
    sweep_seeds: Sequence[int],
) -> tuple[str, tuple[str, ...]]:
    """Compare what the archive shows of these encoders, and put that into the archive under `reports/`.

    Args:
        request: the inversion that filled the archive.
        published: variants of the first table.
        seeds: of their trainings.
        sweep: variants of the second, by rising lambda.
        sweep_seeds: of their trainings.

    Returns:
        The text, Markdown, and the URLs of text, figure and Parquet file.
    """
    facts = facts_of(request)
    loaded = request.generator.load()
    rows = current_rows(open_archive(request.archive), facts.methods, facts.anchor, facts.encoders)
    references = reference_rows(loaded.generator.eval(), open_anchor(request.archive, facts.anchor)).labelled()
    comparison = compare_encoders(rows, published, seeds, sweep, sweep_seeds, references)
    text = comparison_markdown(comparison)
    writer = open_writer(request.archive, loaded)
    files = {"table3.md": text.encode(), "table3.png": draw(comparison), "table3.parquet": encoders_parquet(comparison)}
    urls = tuple(writer.put_report(name, data) for name, data in files.items())
    write_index(writer)
    return text, urls


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
    first = tuple(_trained(rows, variant, seeds) for variant in encoders)
    second = tuple(_trained(rows, variant, sweep_seeds) for variant in sweep)
    return EncoderComparison(first, second, references, (*_encoder_claims(first), *_sweep_claims(second)))


def order_of(lower: BySeed, higher: BySeed) -> Outcome:
    """Whether all values of the one stand below all of the other ("confirmed"), or all above ("refuted").

    Example:
        >>> order_of((1.0, 2.0), (3.0, 4.0))
        'confirmed'
        >>> order_of((1.0, 3.5), (3.0, 4.0))
        'not decided'
    """
    if min(len(lower), len(higher)) < 2:
        return "not decided"
    if max(lower) < min(higher):
        return "confirmed"
    return "refuted" if min(lower) > max(higher) else "not decided"


def comparison_markdown(comparison: EncoderComparison) -> str:
    """Both tables, the reference rows of SNCD, and what became of the paper's claims."""
    parts = ["Means over held-out images, then mean ± standard deviation over the seeds of training."]
    for title, trained in (("The encoders", comparison.encoders), ("LSAP_E over λ", comparison.sweep)):
        if trained:
            table = seeds_table(title, trained)
            lines = lines_with_margins(table, lambda number: number.deviation)
            parts += [f"### {table.title}", markdown_table(lines)]
    levels = "; ".join(f"{label} {value:.4f}" for label, value in comparison.references.items())
    parts.append(
        f"SNCD of codes whose alignment is known: {levels}. A value near the floor or the mean code means codes that "
        "point along the mean style, not better ones."
    )
    parts += ["### What the paper says", claims_markdown(comparison.claims, SEEDS_RULE)]
    return "\n\n".join(parts) + "\n"


def seeds_table(title: str, trained: Sequence[Trained]) -> Table:
    """A row for each variant, a column for each metric that the domain has a network for."""
    seeds = trained[0].seeds
    columns = tuple(column for column in COLUMNS if any(one.over_seeds(column.name).is_there for one in trained))
    rows = tuple(
        TableRow(
            one.variant.name,
            one.variant.title,
            tuple(Cell(one.over_seeds(column.name)) for column in columns),
            (str(one.num_images),),
        )
        for one in trained
    )
    title = f"{title}, seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"
    return Table("table3", title, "", columns, rows, heads=("encoder", "images"))


def encoders_parquet(comparison: EncoderComparison) -> bytes:
    """One row for each encoder (variant and seed) with its means."""
    records = {}
    for one in (*comparison.sweep, *comparison.encoders):  # a variant of both tables has its seeds of both
        for index, seed in enumerate(one.seeds):
            records[one.variant.encoder(seed)] = {
                "encoder": one.variant.encoder(seed),
                "variant": one.variant.name,
                "method": one.variant.method,
                "sncd_weight": one.variant.sncd_weight,
                "seed": seed,
                "num_images": one.num_images,
                **{name: values[index] for name, values in one.metrics.items()},
            }
    return to_parquet(pa.Table.from_pylist(list(records.values())))


def draw(comparison: EncoderComparison) -> bytes:
    """LPIPS against SNCD, one point for each encoder, the sweep over lambda as a line: a PNG file."""
    figure = Figure(figsize=(6.4, 4.4), dpi=150, layout="constrained")
    ax = figure.subplots()
    if comparison.sweep:
        means = [(one.over_seeds("sncd").mean, one.over_seeds("lpips").mean) for one in comparison.sweep]
        ax.plot(*zip(*means, strict=True), color=COLORS["lsap_e"], linewidth=1, alpha=0.7, zorder=1)
    for one in comparison.sweep:
        _points(ax, one, COLORS["lsap_e"], f"λ = {one.variant.sncd_weight:g}")
    for one in comparison.encoders:
        if one.variant.method != "lsap_e" or not comparison.sweep:
            _points(ax, one, COLORS.get(one.variant.method, "#555555"), one.variant.title)
    ax.margins(0.08)
    low, high = ax.get_xlim()
    for label, value in comparison.references.items():
        if low <= value <= high:
            ax.axvline(value, color="#888888", linewidth=0.8, linestyle=(0, (3, 2)), zorder=0)
            above: dict[str, Any] = {"transform": ax.get_xaxis_transform(), "ha": "center", "va": "bottom"}
            ax.text(value, 1.01, label.replace("psi", "ψ"), fontsize=7, color="#555555", **above)
    ax.set_xlabel("SNCD (lower: codes closer to the mean style)")
    ax.set_ylabel("LPIPS (lower: closer to the image)")
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    ax.set_title(
        "Held-out images; a small point for each seed, a large one for their mean", fontsize=9, loc="left", pad=16
    )
    return figure_png(figure)


def _trained(rows: pa.Table, variant: Variant, seeds: Sequence[int]) -> Trained:
    """Means of each seed over the images that all seeds have inverted."""
    tables = [with_status(newest_rows(rows, variant.encoder(seed)), OK) for seed in seeds]
    wanted = pa.array(sorted(set.intersection(*map(image_ids, tables))), pa.string())
    tables = [table.filter(pa.compute.is_in(table.column("image_id"), wanted)) for table in tables]
    metrics = {column.name: tuple(_mean(table, column.name) for table in tables) for column in COLUMNS}
    return Trained(variant, tuple(seeds), len(wanted), metrics)


def _mean(table: pa.Table, metric: str) -> float:
    return float(np.mean(column_values(table, metric))) if table.num_rows else float("nan")


def _encoder_claims(encoders: Sequence[Trained]) -> list[Claim]:
    by_method = {one.variant.method: one for one in encoders}
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


def _claim(text: str, metric: str, lower: Trained, higher: Trained) -> Claim:
    outcome = order_of(lower.metrics[metric], higher.metrics[metric])
    return Claim("", text, outcome, lower.over_seeds(metric), higher.over_seeds(metric))


def _sweep_claims(sweep: Sequence[Trained]) -> list[Claim]:
    if len(sweep) < LEAST_WEIGHTS:
        return []
    return [
        _trend("SNCD falls as lambda grows", "sncd", sweep, sign=-1),
        _trend("LPIPS rises as lambda grows", "lpips", sweep, sign=1),
        _trend("MSE rises as lambda grows", "mse", sweep, sign=1),
    ]


def _trend(text: str, metric: str, sweep: Sequence[Trained], *, sign: int) -> Claim:
    weights = [one.variant.sncd_weight for one in sweep]
    by_seed = zip(*(one.metrics[metric] for one in sweep), strict=True)
    ranks = [sign * float(spearmanr(weights, values).statistic) for values in by_seed]
    outcome: Outcome = "not decided"
    if min(ranks) >= LEAST_CORRELATION:
        outcome = "confirmed"
    elif max(ranks) <= -LEAST_CORRELATION:
        outcome = "refuted"
    shown = ", ".join(f"{sign * rank:.2f}" for rank in ranks)
    return Claim("", text, outcome, numbers=f"rank correlation by seed {shown}")


def _points(ax: Axes, one: Trained, color: str, label: str) -> None:
    mean = one.over_seeds("sncd").mean, one.over_seeds("lpips").mean
    ax.scatter(one.metrics["sncd"], one.metrics["lpips"], s=14, color=color, alpha=0.5, linewidths=0, zorder=2)
    ax.scatter(*mean, s=46, color=color, zorder=3)
    ax.annotate(label, mean, xytext=(6, 4), textcoords="offset points", fontsize=8)
