"""The main table of a report, methods by metrics: for the page, and as Markdown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from lsap_archive import BETWEEN_WORDS, FITTED, OK
from tasks.pictures.decoding import ALTERATIONS
from tasks.reports.inversion.data import ReportData
from tasks.reports.inversion.summaries import MethodSummary, summarize_rows
from tasks.reports.statistics import image_ids, newest_rows, with_status
from tasks.reports.tables import Cell, Column, Table, TableRow, lines_with_margins
from tasks.reports.text import as_number, decimals_for, failed_and_duplicate, listed, reference_title
from tasks.visible_text import markdown_table

_REFERENCE_MEANINGS = {
    "floor": "the least that any codes can score: every code along the mean style",
    "mean code": "the mean code, whatever the image",
    "synthetic, psi = 0.5": "the generator's own codes, pulled half way to the mean",
    "synthetic, psi = 0.7": "the generator's own codes, pulled toward the mean",
    "synthetic, psi = 1": "the generator's own codes as they are",
}


def comparison_table(data: ReportData, summaries: Sequence[MethodSummary]) -> Table:
    """The means of each method; all numbers of a column with the same decimals, SNCD with neither arrow nor best."""
    columns = [
        _column(data, summaries, "mse", "MSE", "range [−1, 1]"),
        _column(data, summaries, "lpips", f"LPIPS [{data.perceptual}]", "in the loss"),
    ]
    if data.judge is not None:
        columns.append(_column(data, summaries, "lpips_judge", f"LPIPS [{data.judge}]", "not in the loss"))
    if data.identity is not None:
        title = f"Identity [{data.identity}]"
        columns.append(_column(data, summaries, "identity_similarity", title, "cosine similarity", "higher"))
    columns.append(_column(data, summaries, "sncd", "SNCD", "cosine distance", None))
    rows = tuple(
        TableRow(
            method.name,
            method.title,
            tuple(Cell(getattr(summary, column.name)) for column in columns),
            (", ".join(filter(None, counts_of(summary))),),
        )
        for method, summary in zip(data.methods, summaries, strict=True)
    )
    notes = tuple(_notes(data, summaries))
    return Table("methods", "Methods", "", tuple(columns), rows, notes=notes, heads=("Method", "Images"))


def counts_of(summary: MethodSummary) -> tuple[str, str]:
    """How many images of a method are ok, and how many are not."""
    num_ok = f"{summary.num_ok:,} ok" if summary.num_images else "no rows"
    return num_ok, failed_and_duplicate(summary.num_failed, summary.num_duplicate)


def reference_lines(data: ReportData, table: Table) -> list[tuple[str, str, str]]:
    """Label, SNCD and meaning of the codes whose alignment is known."""
    decimals = table.columns[-1].decimals
    return [
        (reference_title(label), as_number(value, decimals), _REFERENCE_MEANINGS.get(label, ""))
        for label, value in data.references.items()
    ]


def _column(
    data: ReportData,
    summaries: Sequence[MethodSummary],
    metric: str,
    title: str,
    detail: str,
    better: str | None = "lower",
) -> Column:
    references = data.references.values() if metric == "sncd" else ()
    decimals = decimals_for([*(getattr(summary, metric).mean for summary in summaries), *references])
    return Column(metric, title, detail, better, decimals)


def _notes(data: ReportData, summaries: Sequence[MethodSummary]) -> list[str]:
    """What a reader has to know before comparing the means."""
    notes = []
    for method, summary in zip(data.methods, summaries, strict=True):
        for name, label in data.metric_labels.items():
            missing = summary.num_ok - getattr(summary, name).count
            if missing:
                notes.append(
                    f"{method.title}: {missing:,} of {summary.num_ok:,} ok images have no finite {label}; "
                    "its mean leaves them out."
                )
        altered = _alterations(with_status(newest_rows(data.rows, method.name), OK))
        if fitted := [
            f"{altered[word]:,} {'was' if altered[word] == 1 else 'were'} {word}" for word in FITTED if altered[word]
        ]:
            notes.append(
                f"{method.title}: of {summary.num_ok:,} ok images {listed(fitted)}, because they have not the "
                "generator's shape; `altered` in the rows tells which."
            )
        if told := [
            f"{count:,} {ALTERATIONS.get(word, word)}" for word, count in sorted(altered.items()) if word not in FITTED
        ]:
            notes.append(
                f"{method.title}: what was done to the files of ok images: {'; '.join(told)}. `altered` in the rows "
                "tells which."
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


def _alterations(rows: pa.Table) -> Counter[str]:
    """How many of these images were altered in each way."""
    counts: Counter[str] = Counter()
    for told in pc.value_counts(rows.column("altered")).to_pylist():
        counts.update({word: told["counts"] for word in (told["values"] or "").split(BETWEEN_WORDS) if word})
    return counts


def render_markdown_table(data: ReportData) -> str:
    """The comparison table with its reference rows as Markdown, for a Prefect artifact or a terminal."""
    table = comparison_table(data, summarize_rows(data.rows, data.methods))
    lines = lines_with_margins(table, lambda number: number.standard_error)
    blank = [""] * len(table.columns)
    lines += [[f"reference: {label}", *blank, value] for label, value, _ in reference_lines(data, table)]
    return markdown_table(lines, "llr", is_padded=True) + (
        "\n\nMeans over ok images ± standard error. Lower SNCD is not always better: the floor is collapse, "
        "ψ = 1 the level of the generator's own codes.\n"
    )
