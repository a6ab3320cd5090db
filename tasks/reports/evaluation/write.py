"""The report of an evaluation: pictures of some images and their edits, then every measure with its interval."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from lsap_archive import Archive, open_archive
from tasks.archived.opening import open_writer
from tasks.evaluation.request import EvaluationRequest
from tasks.reports.edit_sheet import EditSheet, ShownMethod, draw_edits, make_sheet, shown_methods
from tasks.reports.kept import WrittenReport, digest_of_shown, keep_report, kept_report
from tasks.reports.measure_tables import (
    ShownMeasures,
    measure_tables,
    shown_measures,
    subjects_of,
    tables_with_intervals,
)
from tasks.reports.measured_means import frechet_numbers, measured_means
from tasks.reports.page import VERSIONED, Tile, now, page_template, versions_of
from tasks.reports.text import count_of
from tasks.weights.networks import network_digest
from tasks.workers.pool import Pool

STEM, SYNTHETIC = "evaluate", "evaluate_synthetic"
"""Names of the files of a report: of what is in the archive, and of encoders on synthetic images."""


@dataclass(frozen=True)
class EvaluationReportRequest:
    """What the report is about.

    Attributes:
        evaluation: what was asked for.
        evaluations: ids of the evaluations that count, by method or edit.
        refused: why an edit of the editing consistency has no strength, by edited method.
        notes: what whoever asked should know, a sentence each.
        config_yaml: the configuration, for print.
        images: how many images are shown, or which ones.
        seconds: wall time of the command so far.
    """

    evaluation: EvaluationRequest
    evaluations: Mapping[str, tuple[str, ...]]
    refused: Mapping[str, str]
    notes: Sequence[str]
    config_yaml: str
    images: int | Sequence[str]
    seconds: float


@dataclass(frozen=True)
class EvaluationPage:
    """What the page shows.

    Attributes:
        title: the headline.
        created: UTC time, ISO 8601.
        archive_url: where the archive is.
        generator: digest of the generator.
        sheet: pictures; None of synthetic images, which are not kept.
        measured: tables of what was measured.
        refused: edit and reason where there is no strength.
        notes: sentences.
        networks: digest of each network by name.
        config_yaml: the configuration, for print.
        versions: of what computed.
    """

    title: str
    created: str
    archive_url: str
    generator: str
    sheet: EditSheet | None
    measured: ShownMeasures
    refused: Sequence[tuple[str, str]]
    notes: Sequence[str]
    networks: Mapping[str, str]
    config_yaml: str
    versions: Mapping[str, str]


def write_evaluation_report(asked: EvaluationReportRequest, open_pool: Callable[[], Pool]) -> WrittenReport:
    """Put the report into the archive under `reports/`, unless it is there already as it would be now."""
    request = asked.evaluation
    url, archive = request.archive, open_archive(request.archive)
    frechet = frechet_numbers(archive, asked.evaluations)
    refused = sorted(asked.refused.items())
    distances = sorted((name, one.mean, one.count) for name, one in frechet.items())
    shown = (asked.config_yaml, sorted(asked.evaluations.items()), distances, refused, sorted(asked.notes))
    runs = [(run.run_id, run.num_rows) for run in archive.runs if run.method in asked.evaluations]
    digest = digest_of_shown((*shown, runs))
    is_synthetic = request.synthetic is not None
    stem = SYNTHETIC if is_synthetic else STEM
    if (kept := kept_report(url, stem, digest)) is not None:
        return kept
    subjects = subjects_of(None if is_synthetic else archive, list(asked.evaluations))
    means = measured_means(archive, asked.evaluations)
    tables = measure_tables(subjects, means, frechet, request.frechet)
    sheet = None if is_synthetic else make_sheet(archive, _shown(archive, asked), asked.images, open_pool)
    page = EvaluationPage(
        title=f"Evaluation of {'encoders on synthetic images' if is_synthetic else url}",
        created=now(),
        archive_url=url,
        generator=archive.generator["digest"],
        sheet=sheet,
        measured=shown_measures(subjects, means, tables),
        refused=refused,
        notes=list(asked.notes),
        networks=_networks(request),
        config_yaml=asked.config_yaml,
        versions=versions_of(VERSIONED),
    )
    num_edits = sum(one.is_edit for one in subjects)
    tiles = [
        Tile("images", f"{max((one.count for one in means.numbers.values()), default=0):,}", "measured of each method"),
        Tile("methods", f"{len(subjects) - num_edits:,}", f"and {count_of(num_edits, 'edit')} of them"),
        Tile("measures", f"{sum(len(table.columns) for table in tables):,}", f"{len(page.networks):,} networks looked"),
    ]
    rendered = page_template("evaluation").render(data=page, tiles=tiles, seconds=asked.seconds)
    picture = None if sheet is None else draw_edits(sheet)
    writer = open_writer(url, request.generator.load())
    markdown = tables_with_intervals(tables) + "\n"
    return keep_report(writer, stem, digest, page=rendered, markdown=markdown, picture=picture)


def _shown(archive: Archive, asked: EvaluationReportRequest) -> list[ShownMethod]:
    """The methods that were measured, or of which edits were, with these edits."""
    made = dict.fromkeys(run.method for run in archive.runs if run.method in asked.evaluations)  # the oldest first
    edits = [name for name in made if name in archive.edits]
    return shown_methods(archive, edits, [name for name in made if name not in edits])


def _networks(request: EvaluationRequest) -> dict[str, str]:
    names = [*request.networks.lpips, *request.networks.identity, request.networks.judge]
    return {name: network_digest(name, request.published) for name in dict.fromkeys(names) if name is not None}
