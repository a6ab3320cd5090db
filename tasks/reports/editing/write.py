"""The report of edits: pictures of some images, strengths, and what was measured of the edits so far."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from lsap_archive import FAILED, OK, Archive, open_archive
from tasks.archived.opening import open_writer
from tasks.editing.request import EditRequest
from tasks.reports.edit_sheet import EditSheet, ShownMethod, draw_edits, make_sheet, shown_methods, signed
from tasks.reports.kept import WrittenReport, digest_of_shown, keep_report, kept_report
from tasks.reports.measure_tables import (
    ShownMeasures,
    measure_tables,
    shown_measures,
    subjects_of,
    tables_with_intervals,
)
from tasks.reports.measured_means import measured_means, newest_evaluations
from tasks.reports.page import VERSIONED, Tile, now, page_template, versions_of
from tasks.reports.text import NOTHING, count_of
from tasks.visible_text import markdown_table
from tasks.workers.pool import Pool

STEM = "edit"


@dataclass(frozen=True)
class EditingReportRequest:
    """What the report is about.

    Attributes:
        editing: what was asked for.
        edits: names of the edits that were asked for of each method, such as "lsap_e/slant".
        refused: why one of equal effect has no strength, by edited method.
        config_yaml: the configuration, for print.
        images: how many images are shown, or which ones.
        seconds: wall time of the command so far.
    """

    editing: EditRequest
    edits: Sequence[str]
    refused: Mapping[str, str]
    config_yaml: str
    images: int | Sequence[str]
    seconds: float


@dataclass(frozen=True)
class EditLine:
    """An edit of a method: its strength in words, how many images have it, and how many have not."""

    strength: str
    num_ok: int
    num_failed: int

    @property
    def images(self) -> str:
        """How many images have it."""
        return count_of(self.num_ok, "image")

    @property
    def failed(self) -> str:
        """How many have not, or ""."""
        return f"{self.num_failed:,} without" if self.num_failed else ""


@dataclass(frozen=True)
class EditingPage:
    """What the page shows.

    Attributes:
        title: the headline.
        created: UTC time, ISO 8601.
        archive_url: where the archive is.
        generator: digest of the generator.
        sheet: pictures.
        methods: that are edited, in order.
        edits: by name, in order.
        lines: each edit of each method, by both names.
        refused: edit and reason where there is no strength.
        failures: reason, images and edits.
        measured: tables of what was measured; None where nothing was.
        config_yaml: the configuration, for print.
        versions: of what computed.
    """

    title: str
    created: str
    archive_url: str
    generator: str
    sheet: EditSheet
    methods: Sequence[ShownMethod]
    edits: Sequence[str]
    lines: Mapping[tuple[str, str], EditLine]
    refused: Sequence[tuple[str, str]]
    failures: Sequence[tuple[str, int, str]]
    measured: ShownMeasures | None
    config_yaml: str
    versions: Mapping[str, str]


def write_editing_report(asked: EditingReportRequest, open_pool: Callable[[], Pool]) -> WrittenReport:
    """Put the report into the archive under `reports/`, unless it is there already as it would be now."""
    url = asked.editing.archive
    archive = open_archive(url)
    edits = [name for name in asked.edits if name in archive.edits]
    methods = shown_methods(archive, edits)
    names = [name for one in methods for name in (one.name, *(f"{one.name}/{edit}" for edit in one.strengths))]
    evaluations = newest_evaluations(archive, names)
    runs = [(run.run_id, run.num_rows) for run in archive.runs if run.method in names]
    refused = sorted(asked.refused.items())
    digest = digest_of_shown((asked.config_yaml, runs, refused, sorted(evaluations.items())))
    if (kept := kept_report(url, STEM, digest)) is not None:
        return kept
    lines = _lines(archive, methods)
    subjects = subjects_of(archive, list(evaluations))
    means = measured_means(archive, evaluations)
    tables = measure_tables(subjects, means, {}, None)
    page = EditingPage(
        title=f"Edits of {url}",
        created=now(),
        archive_url=url,
        generator=archive.generator["digest"],
        sheet=make_sheet(archive, methods, asked.images, open_pool),
        methods=methods,
        edits=list(dict.fromkeys(edit for one in methods for edit in one.strengths)),
        lines=lines,
        refused=refused,
        failures=_failures(archive, edits),
        measured=shown_measures(subjects, means, tables) if tables else None,
        config_yaml=asked.config_yaml,
        versions=versions_of(VERSIONED),
    )
    tiles = [
        Tile("edited images", f"{max((line.num_ok for line in lines.values()), default=0):,}", "of each method"),
        Tile("methods", f"{len(methods):,}", ", ".join(one.name for one in methods)),
        Tile("edits", f"{len(page.edits):,}", ", ".join(page.edits)),
    ]
    rendered = page_template("editing").render(data=page, tiles=tiles, seconds=asked.seconds)
    told = [_markdown(lines)]
    told += [tables_with_intervals(tables)] if tables else []
    writer = open_writer(url, asked.editing.generator.load())
    return keep_report(
        writer, STEM, digest, page=rendered, markdown="\n\n".join(told) + "\n", picture=draw_edits(page.sheet)
    )


def _lines(archive: Archive, methods: Sequence[ShownMethod]) -> dict[tuple[str, str], EditLine]:
    """Each edit of each method with its strength and numbers of images."""
    names = {(one.name, edit): f"{one.name}/{edit}" for one in methods for edit in one.strengths}
    counted = archive.sql(
        "select method, status, count(*) as n from latest where list_contains($names, method) group by all",
        names=list(names.values()),
    )
    counts = {(row["method"], row["status"]): row["n"] for row in counted.to_pylist()}
    lines = {}
    for one in methods:
        for edit, strength in one.strengths.items():
            name = names[one.name, edit]
            told = NOTHING if strength is None else signed(strength)
            lines[one.name, edit] = EditLine(told, counts.get((name, OK), 0), counts.get((name, FAILED), 0))
    return lines


def _markdown(lines: Mapping[tuple[str, str], EditLine]) -> str:
    told = [(*names, one.strength, f"{one.num_ok:,}", f"{one.num_failed:,}") for names, one in lines.items()]
    return markdown_table([("method", "edit", "strength", "images", "without"), *told], "llr")


def _failures(archive: Archive, edits: Sequence[str]) -> list[tuple[str, int, str]]:
    rows = archive.sql(
        "select reason, count(distinct image_id) as n, string_agg(distinct method, ', ' order by method) as methods "
        "from latest where status = $failed and list_contains($names, method) group by reason order by n desc, reason",
        failed=FAILED,
        names=list(edits),
    )
    return [(row["reason"] or "", row["n"], row["methods"]) for row in rows.to_pylist()]
