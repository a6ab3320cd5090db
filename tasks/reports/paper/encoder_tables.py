"""The comparison of encoders for people: Markdown, a figure, and Parquet for those who go on from there."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from tasks.reports.paper.encoder_comparison import LEAST_CORRELATION, METRICS, EncoderComparison, Row, Spread
from tasks.reports.statistics import HIGHER_IS_BETTER

TITLES = {
    "mse": "MSE",
    "lpips": "LPIPS",
    "lpips_judge": "LPIPS of the judge",
    "identity_similarity": "identity similarity",
    "sncd": "SNCD",
}
_COLORS = {"psp": "#0072B2", "e4e": "#E69F00", "lsap_e": "#009E73"}


def to_markdown(comparison: EncoderComparison) -> str:
    """Both tables, the reference rows of SNCD, and what became of the paper's claims."""
    parts = ["Means over held-out images, then mean ± standard deviation over the seeds of training."]
    if comparison.encoders:
        parts += [f"### The encoders{_seeds(comparison.encoders)}", _table(comparison.encoders)]
    if comparison.sweep:
        parts += [f"### LSAP_E over λ{_seeds(comparison.sweep)}", _table(comparison.sweep)]
    levels = "; ".join(f"{label} {value:.4f}" for label, value in comparison.references.items())
    parts.append(
        f"SNCD of codes whose alignment is known: {levels}. A value near the floor or the mean code means codes that "
        "point along the mean style, not better ones."
    )
    parts += ["### What the paper says", _claims(comparison)]
    return "\n\n".join(parts) + "\n"


def to_parquet(comparison: EncoderComparison) -> bytes:
    """One row for each encoder (variant and seed) with its means."""
    records = {}
    for row in (*comparison.sweep, *comparison.encoders):  # a variant of both tables has its seeds of both
        for index, seed in enumerate(row.seeds):
            records[row.variant.encoder(seed)] = {
                "encoder": row.variant.encoder(seed),
                "variant": row.variant.name,
                "method": row.variant.method,
                "sncd_weight": row.variant.sncd_weight,
                "seed": seed,
                "num_images": row.num_images,
                **{name: spread.values[index] for name, spread in row.metrics.items()},
            }
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(list(records.values())), sink, compression="zstd")
    data: bytes = sink.getvalue().to_pybytes()
    return data


def draw(comparison: EncoderComparison) -> bytes:
    """LPIPS against SNCD, one point for each encoder, the sweep over lambda as a line: a PNG file."""
    figure = Figure(figsize=(6.4, 4.4), dpi=150, layout="constrained")
    ax = figure.subplots()
    if comparison.sweep:
        means = [(row.metrics["sncd"].mean, row.metrics["lpips"].mean) for row in comparison.sweep]
        ax.plot(*zip(*means, strict=True), color=_COLORS["lsap_e"], linewidth=1, alpha=0.7, zorder=1)
    for row in comparison.sweep:
        _points(ax, row, _COLORS["lsap_e"], f"λ = {row.variant.sncd_weight:g}")
    for row in comparison.encoders:
        if row.variant.method != "lsap_e" or not comparison.sweep:
            _points(ax, row, _COLORS.get(row.variant.method, "#555555"), row.variant.title)
    ax.margins(0.08)
    low, high = ax.get_xlim()
    for label, value in comparison.references.items():
        if low <= value <= high:
            ax.axvline(value, color="#888888", linewidth=0.8, linestyle=(0, (3, 2)), zorder=0)
            above = {"transform": ax.get_xaxis_transform(), "ha": "center", "va": "bottom"}
            ax.text(value, 1.01, label.replace("psi", "ψ"), fontsize=7, color="#555555", **above)
    ax.set_xlabel("SNCD (lower: codes closer to the mean style)")
    ax.set_ylabel("LPIPS (lower: closer to the image)")
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    ax.set_title(
        "Held-out images; a small point for each seed, a large one for their mean", fontsize=9, loc="left", pad=16
    )
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()


def _seeds(rows: Sequence[Row]) -> str:
    seeds = rows[0].seeds
    return f", seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"


def _points(ax: Axes, row: Row, color: str, label: str) -> None:
    sncd, lpips = row.metrics["sncd"], row.metrics["lpips"]
    ax.scatter(sncd.values, lpips.values, s=14, color=color, alpha=0.5, linewidths=0, zorder=2)
    ax.scatter([sncd.mean], [lpips.mean], s=46, color=color, zorder=3)
    ax.annotate(label, (sncd.mean, lpips.mean), xytext=(6, 4), textcoords="offset points", fontsize=8)


def _table(rows: Sequence[Row]) -> str:
    shown = [name for name in METRICS if any(math.isfinite(row.metrics[name].mean) for row in rows)]
    heads = [f"{TITLES[name]} {'↑' if name in HIGHER_IS_BETTER else '↓'}" for name in shown]
    lines = [f"| encoder | images | {' | '.join(heads)} |", "|---|---:|" + "---:|" * len(shown)]
    for row in rows:
        cells = " | ".join(_cell(row.metrics[name]) for name in shown)
        lines.append(f"| {row.variant.title} | {row.num_images} | {cells} |")
    return "\n".join(lines)


def _cell(spread: Spread) -> str:
    if math.isnan(spread.deviation):
        return f"{spread.mean:.4f}"
    return f"{spread.mean:.4f} ± {spread.deviation:.4f}"


def _claims(comparison: EncoderComparison) -> str:
    lines = [f"- {claim.text}: **{claim.outcome}** ({claim.numbers})." for claim in comparison.claims]
    rule = (
        "Of two encoders, confirmed means that every seed of the one stands below every seed of the other, refuted "
        f"the reverse. Of a trend, that every seed's sweep has a rank correlation of {LEAST_CORRELATION} or more in "
        "that direction. Everything else is not decided by these seeds."
    )
    return "\n".join([*lines, "", rule])
