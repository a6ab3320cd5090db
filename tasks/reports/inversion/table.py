"""The main table of a report, methods by metrics: for the page, and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lsap_archive import OK
from tasks.reports.inversion.data import ReportData
from tasks.reports.statistics import (
    HIGHER_IS_BETTER,
    Estimate,
    MethodSummary,
    image_ids,
    newest_rows,
    summarize_rows,
    with_status,
)
from tasks.reports.text import NOTHING, as_number, decimals_for, failed_and_duplicate, listed, reference_title
from tasks.visible_text import in_markdown


@dataclass(frozen=True)
class Column:
    metric: str
    title: str
    network: str | None
    arrow: str
    unit: str

    @property
    def full_title(self) -> str:
        return f"{self.title} [{self.network}]" if self.network else self.title


@dataclass(frozen=True)
class Cell:
    text: str
    margin: str
    is_best: bool


@dataclass(frozen=True)
class TableRow:
    title: str
    num_ok: str
    others: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class ComparisonTable:
    columns: tuple[Column, ...]
    rows: tuple[TableRow, ...]
    references: tuple[tuple[str, str, str], ...]  # label, SNCD, meaning


_REFERENCE_MEANINGS = {
    "floor": "the least that any codes can score: every code along the mean style",
    "mean code": "the mean code, whatever the image",
    "synthetic, psi = 0.5": "the generator's own codes, pulled half way to the mean",
    "synthetic, psi = 0.7": "the generator's own codes, pulled toward the mean",
    "synthetic, psi = 1": "the generator's own codes as they are",
}


def comparison_table(data: ReportData, summaries: Sequence[MethodSummary]) -> ComparisonTable:
    """Means and standard errors, the best of each metric marked; all numbers of a column with the same decimals."""
    columns = _columns(data)
    cells = [
        _cells(data, column.metric, [getattr(summary, column.metric) for summary in summaries]) for column in columns
    ]
    decimals = decimals_for([*data.references.values(), *(summary.sncd.mean for summary in summaries)])
    return ComparisonTable(
        columns=tuple(columns),
        rows=tuple(
            TableRow(
                title=method.title,
                num_ok=f"{summary.num_ok:,} ok" if summary.num_images else "no rows",
                others=failed_and_duplicate(summary.num_failed, summary.num_duplicate),
                cells=tuple(column[index] for column in cells),
            )
            for index, (method, summary) in enumerate(zip(data.methods, summaries, strict=True))
        ),
        references=tuple(
            (reference_title(label), as_number(value, decimals), _REFERENCE_MEANINGS.get(label, ""))
            for label, value in data.references.items()
        ),
    )


def _columns(data: ReportData) -> list[Column]:
    columns = [
        Column("mse", "MSE", None, "↓", "range [−1, 1]"),
        Column("lpips", "LPIPS", data.perceptual, "↓", "in the loss"),
    ]
    if data.judge is not None:
        columns.append(Column("lpips_judge", "LPIPS", data.judge, "↓", "not in the loss"))
    if data.identity is not None:
        columns.append(Column("identity_similarity", "Identity", data.identity, "↑", "cosine similarity"))
    return [*columns, Column("sncd", "SNCD", None, "", "cosine distance")]


def _cells(data: ReportData, metric: str, estimates: Sequence[Estimate]) -> list[Cell]:
    """One metric of every method. Several may be best: those that print the same; of SNCD none is."""
    references = data.references.values() if metric == "sncd" else ()
    decimals = decimals_for([*(estimate.mean for estimate in estimates), *references])
    best = None
    finite = [estimate.mean for estimate in estimates if estimate.num_values]
    if metric != "sncd" and len(finite) > 1:
        best = as_number(max(finite) if metric in HIGHER_IS_BETTER else min(finite), decimals)
    means = [as_number(estimate.mean, decimals) for estimate in estimates]
    return [
        Cell(mean, as_number(estimate.standard_error, decimals), is_best=mean == best)
        for mean, estimate in zip(means, estimates, strict=True)
    ]


def table_notes(data: ReportData, summaries: Sequence[MethodSummary]) -> list[str]:
    """What a reader has to know before comparing the means."""
    notes = []
    for method, summary in zip(data.methods, summaries, strict=True):
        for name, label in data.metric_labels.items():
            missing = summary.num_ok - getattr(summary, name).num_values
            if missing:
                notes.append(
                    f"{method.title}: {missing:,} of {summary.num_ok:,} ok images have no finite {label}; "
                    "its mean leaves them out."
                )
        if not summary.num_ok:
            notes.append(f"{method.title}: no image was inverted, so there is nothing to average.")
    inverted = [image_ids(with_status(newest_rows(data.rows, method.name), OK)) for method in data.methods]
    if any(images != inverted[0] for images in inverted):
        notes.append(
            "The methods did not all invert the same images, so their means stand for different sets. "
            "The paired differences use only images that both methods inverted."
        )
    if data.judge is None:
        notes.append(
            f"No judge network: LPIPS is measured by the network that is minimized ({data.perceptual}), "
            "which flatters every method."
        )
    if data.identity is None:
        notes.append("No identity network in this domain, so no identity similarity.")
    unlisted = sorted(set(data.rows.column("method").unique().to_pylist()) - {method.name for method in data.methods})
    if unlisted:
        notes.append(f"The rows also hold methods that this report was not asked for: {listed(unlisted)}.")
    return notes


def render_markdown_table(data: ReportData) -> str:
    """The comparison table with its reference rows as Markdown, for a Prefect artifact or a terminal."""
    table = comparison_table(data, summarize_rows(data.rows, data.methods))
    lines = [["Method", "Images", *(f"{column.full_title} {column.arrow}".rstrip() for column in table.columns)]]
    for row in table.rows:
        counts = ", ".join(part for part in (row.num_ok, row.others) if part)
        lines.append([row.title, counts, *(_with_margin(cell) for cell in row.cells)])
    for label, value, _ in table.references:
        lines.append([f"reference: {label}", "", *("" for _ in table.columns[:-1]), value])
    lines = [[in_markdown(cell) for cell in line] for line in lines]
    widths = [max(3, *(len(line[index]) for line in lines)) for index in range(len(lines[0]))]
    rule = ["-" * width if index < 2 else "-" * (width - 1) + ":" for index, width in enumerate(widths)]
    rows = [
        " | ".join(
            cell.ljust(width) if index < 2 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in (lines[0], rule, *lines[1:])
    ]
    return "\n".join(f"| {row} |" for row in rows) + (
        "\n\nMeans over ok images ± standard error. Lower SNCD is not always better: the floor is collapse, "
        "ψ = 1 the level of the generator's own codes.\n"
    )


def _with_margin(cell: Cell) -> str:
    return cell.text if cell.margin == NOTHING else f"{cell.text} ± {cell.margin}"
