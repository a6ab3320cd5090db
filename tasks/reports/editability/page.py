"""The study of editability for people: one picture, tables in Markdown, and Parquet for those who go on from there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tasks.reports.editability.correlations import Interval, Values
from tasks.reports.editability.edited_alike import Quantity
from tasks.reports.editability.study import OUTCOMES, PREDICTORS, Family, Finding, MatchedPair, StudyTable
from tasks.reports.figure_style import figure_png
from tasks.reports.statistics import Number
from tasks.visible_text import markdown_table

COLORS: dict[Family, str] = {
    "W": "#0072B2",
    "W+": "#D55E00",
    "control": "#777777",
    "from encoder": "#CC79A7",
    "encoder": "#009E73",
}
FAMILY_TITLES: dict[Family, str] = {
    "W": "optimized in W",
    "W+": "optimized in W+",
    "control": "W+, control: L2 to the mean code",
    "from encoder": "W+ from an encoder's code",
    "encoder": "encoder",
}
DRAWN = tuple(one for one in OUTCOMES if one.name != "detour")


@dataclass(frozen=True)
class Study:
    """All that the study found.

    Attributes:
        table: every quantity of every image by every method.
        findings: of all methods, then of those that optimize in W+, then of encoders.
        pairs: aligned methods beside controls.
        references: SNCD of codes whose alignment is known, by printed label.
    """

    table: StudyTable
    findings: Sequence[Finding]
    pairs: Sequence[MatchedPair]
    references: Mapping[str, float]


def to_markdown(study: Study) -> str:
    """Means by method, correlations, and the control at matched LPIPS."""
    table = study.table
    parts = [
        f"{len(table.methods)} methods, {len(table.image_ids)} images.",
        "### Means over images",
        _means(table),
        "SNCD of codes whose alignment is known: "
        + "; ".join(f"{label} {value:.4f}" for label, value in study.references.items())
        + ".",
        "### Does it rank the methods?",
        "Spearman's correlation of the methods' means; 95 % intervals from drawing methods and images again.",
        *(_correlations(study, group, "across_methods") for group in _groups(study)),
        "### Does it rank the images of one method?",
        "Spearman's correlation over images within a method, mean over methods; 95 % intervals over images.",
        _correlations(study, "all", "within_methods"),
        "### Does it rank the codes of one image?",
        "Spearman's correlation over methods for one image, mean over images; 95 % intervals over images.",
        _correlations(study, "all", "within_images"),
        "### SNCD or plain shrinking, at the same LPIPS",
        _controls(study.pairs),
    ]
    return "\n\n".join(parts) + "\n"


def findings_table(findings: Sequence[Finding]) -> pa.Table:
    """One row for each correlation, with its interval."""
    kinds = ("across_methods", "within_methods", "within_images")
    return pa.Table.from_pylist(
        [
            {
                "group": found.group,
                "num_methods": found.num_methods,
                "predictor": found.predictor,
                "outcome": found.outcome,
                "kind": kind,
                "correlation": getattr(found, kind).value,
                "low": getattr(found, kind).low,
                "high": getattr(found, kind).high,
            }
            for found in findings
            for kind in kinds
        ]
    )


def draw(study: Study) -> bytes:
    """Outcomes against SNCD, one point for each method: a PNG file."""
    figure = Figure(figsize=(13, 8), dpi=120, layout="constrained")
    predictor = PREDICTORS[0]
    found = {one.outcome: one.across_methods for one in study.findings if (one.group, one.predictor) == ("all", "sncd")}
    axes = figure.subplots(2, 3)
    for ax, outcome in zip(axes.flat, DRAWN, strict=True):
        _panel(ax, study, predictor, outcome, found[outcome.name])
    handles = [
        axes[0, 0].scatter([], [], color=COLORS[family], label=FAMILY_TITLES[family])
        for family in COLORS
        if any(method.family == family for method in study.table.methods)
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=11)
    figure.suptitle(
        f"{len(study.table.methods)} ways to invert the same {len(study.table.image_ids)} images, each a point: "
        "mean and standard error. ρ: rank correlation over methods, with its 95 % interval.",
        fontsize=11,
        x=0.01,
        ha="left",
    )
    return figure_png(figure)


def _panel(ax: Axes, study: Study, predictor: Quantity, outcome: Quantity, found: Interval) -> None:
    x, y = study.table.values[predictor.name], study.table.values[outcome.name]
    for index, method in enumerate(study.table.methods):
        ax.errorbar(
            np.nanmean(x[index]),
            np.nanmean(y[index]),
            xerr=_error(x[index]),
            yerr=_error(y[index]),
            fmt="o",
            markersize=5,
            linewidth=0.8,
            color=COLORS[method.family],
        )
    better = {None: "1 is right", True: "higher is better", False: "lower is better"}[outcome.higher_is_better]
    ax.set_title(f"{outcome.title} ({better})\nρ = {_interval(found)}", fontsize=10, loc="left")
    ax.set_xlabel(predictor.title, fontsize=9)
    ax.tick_params(labelsize=8)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    if outcome.higher_is_better is None:
        ax.axhline(1, color="#999999", linewidth=0.6, zorder=0)
    ax.margins(y=0.12)
    for label, value in study.references.items():
        if label != "mean code":  # at the floor
            ax.axvline(value, color="#999999", linewidth=0.6, linestyle=(0, (3, 2)), zorder=0)
            name = label.replace("synthetic, psi", "ψ")
            ax.text(value, 0.0, f" {name}", transform=ax.get_xaxis_transform(), fontsize=7, rotation=90, ha="right")


def _error(values: Values) -> float:
    number = Number.of(values)
    return number.standard_error if number.count > 1 else 0.0


def _interval(found: Interval, decimals: int = 2) -> str:
    return f"{found.value:+.{decimals}f} [{found.low:+.{decimals}f}, {found.high:+.{decimals}f}]"


def _means(table: StudyTable) -> str:
    quantities = (*PREDICTORS, *OUTCOMES)
    lines = [["method", *map(_head, quantities)]]
    for index, method in enumerate(table.methods):
        line = [method.title]
        for one in quantities:
            values = table.values[one.name][index]
            digits = 4 if one.name in ("sncd", "lpips") else 3
            line.append(f"{np.nanmean(values):.{digits}f} ± {_error(values):.{digits}f}")
        lines.append(line)
    return markdown_table(lines)


def _name(quantity: Quantity) -> str:
    return quantity.name.replace("_", " ")


def _head(quantity: Quantity) -> str:
    return f"{_name(quantity)} {quantity.arrow}".rstrip()


def _groups(study: Study) -> list[str]:
    return list(dict.fromkeys(one.group for one in study.findings))


def _correlations(study: Study, group: str, kind: str) -> str:
    chosen = {(one.predictor, one.outcome): one for one in study.findings if one.group == group}
    num_methods = next(iter(chosen.values())).num_methods
    lines = [[f"{group}, {num_methods} methods", *map(_head, OUTCOMES)]]
    for predictor in PREDICTORS:
        found = [getattr(chosen[predictor.name, outcome.name], kind) for outcome in OUTCOMES]
        lines.append([predictor.title, *map(_interval, found)])
    return markdown_table(lines)


def _controls(pairs: Sequence[MatchedPair]) -> str:
    quantities = (PREDICTORS[0], *OUTCOMES)
    lines = [["aligned, control", "LPIPS ratio", *map(_name, quantities)]]
    for pair in pairs:
        mark = "" if pair.is_matched else " (not matched)"
        cells = [_interval(pair.differences[one.name], 3) for one in quantities]
        lines.append([f"{pair.aligned.title}; {pair.control.title}", f"{pair.lpips_ratio:.3f}{mark}", *cells])
    about = "Mean difference, aligned − control, on the same images; 95 % intervals from drawing images again."
    return f"{about}\n\n{markdown_table(lines)}"
