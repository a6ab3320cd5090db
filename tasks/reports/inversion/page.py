"""The report of a run: one HTML page that needs nothing but itself."""

from __future__ import annotations

import base64
import itertools
import math
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from jinja2 import Template

from lsap_archive import FAILED, OK
from tasks.pictures.sheets import width_on_page
from tasks.reports.inversion.comparisons import compare_in_words, comparison_notes
from tasks.reports.inversion.data import GROUPS, MethodInfo, ReportData
from tasks.reports.inversion.differences import compare_pairs
from tasks.reports.inversion.figures import Shown, draw_distribution, draw_scatter, method_color
from tasks.reports.inversion.headline import headline_tiles, place_sncd
from tasks.reports.inversion.losses import loss_table
from tasks.reports.inversion.summaries import summarize_rows
from tasks.reports.inversion.table import comparison_table, counts_of, reference_lines
from tasks.reports.page import page_template
from tasks.reports.statistics import Number, finite_values, newest_rows, with_status
from tasks.reports.tables import shown, with_margin
from tasks.reports.text import as_number, decimals_for, shortened

SHOWN_FAILURES = 50
PICTURE_WIDTH = 128  # at most, in CSS pixels


def render_report(data: ReportData) -> str:
    """The report as one HTML page: no script, no address to load from, every text escaped."""
    summaries = summarize_rows(data.rows, data.methods)
    table = comparison_table(data, summaries)
    newest = {method.name: newest_rows(data.rows, method.name) for method in data.methods}
    tables = {name: with_status(table, OK) for name, table in newest.items()}
    sncd, lpips = (
        {name: finite_values(table, metric) for name, table in tables.items()} for metric in ("sncd", "lpips")
    )
    known = _rows_of_shown(data, newest)
    shown_images = _shown(data, known)
    references = {label: value for label, value in data.references.items() if math.isfinite(value)}
    return _template().render(
        data=data,
        colors=[method_color(index) for index in range(len(data.methods))],
        tiles=headline_tiles(data, summaries),
        table=shown(table, lambda number: number.standard_error),
        counts=[counts_of(summary) for summary in summaries],
        reference_lines=reference_lines(data, table),
        placements=[
            (method.title, as_number(summary.sncd.mean), place_sncd(summary.sncd.mean, references))
            for method, summary in zip(data.methods, summaries, strict=True)
        ],
        references=data.references,
        comparisons=compare_in_words(data, compare_pairs(data.rows, data.methods)),
        comparison_notes=comparison_notes(data),
        sheet=_sheet(data, known),
        is_choice=any(row.group in ("worst", "best") for row in data.contact),
        distributions=[
            picture
            for picture in (
                draw_distribution(data.methods, sncd, "SNCD", references, _valued(shown_images, "sncd")),
                draw_distribution(data.methods, lpips, data.metric_labels["lpips"], {}, _valued(shown_images, "lpips")),
            )
            if picture is not None
        ],
        scatter=draw_scatter(data.methods, tables, data.metric_labels["lpips"], references, shown_images),
        costs=list(zip(data.methods, summaries, strict=True)),
        losses=loss_table(data),
        failures=_failures(data, newest),
        snippets=_snippets(data, tables),
        differing=_differing_settings(data.methods),
    )


@cache
def _template() -> Template:
    return page_template("inversion", estimate=_as_estimate)


def _as_estimate(number: Number) -> str:
    return with_margin(number.mean, number.standard_error, decimals_for([number.mean], least=2))


@dataclass(frozen=True)
class _SheetCell:
    reconstruction: str
    difference: str
    numbers: str
    problem: str


@dataclass(frozen=True)
class _SheetRow:
    anchor: str
    image_id: str
    original: str
    cells: tuple[_SheetCell, ...]


@dataclass(frozen=True)
class _Sheet:
    groups: tuple[tuple[str, tuple[_SheetRow, ...]], ...]  # by title
    side: int  # how wide a picture is shown
    is_pixelated: bool


def _sheet(data: ReportData, known: Mapping[tuple[str, str], Mapping[str, Any]]) -> _Sheet:
    """The contact sheet: small images at a whole multiple of their size, so that pixels stay square."""
    groups: dict[str, list[_SheetRow]] = {}
    for index, row in enumerate(data.contact):
        cells = []
        for method in data.methods:
            cell, measured = row.cells.get(method.name), known.get((method.name, row.image_id))
            if cell is None:
                cells.append(_SheetCell("", "", "", _absence(measured)))
                continue
            numbers = "" if measured is None else f"{as_number(measured['lpips'])} · {as_number(measured['sncd'])}"
            cells.append(_SheetCell(_png_uri(cell.reconstruction_png), _png_uri(cell.difference_png), numbers, ""))
        shown_row = _SheetRow(_anchor(index), row.image_id, _png_uri(row.original_png), tuple(cells))
        groups.setdefault(row.group, []).append(shown_row)
    sizes = [_png_size(row.original_png) for row in data.contact]
    width, is_pixelated = width_on_page(*max(sizes, default=(128, 128)), PICTURE_WIDTH)
    titled = tuple((GROUPS[name] if len(groups) > 1 else "", tuple(rows)) for name, rows in groups.items())
    return _Sheet(titled, width, is_pixelated)


def _anchor(index: int) -> str:
    """The id of an image of the contact sheet on the page."""
    return f"image-{index}"


def _rows_of_shown(data: ReportData, newest: Mapping[str, pa.Table]) -> dict[tuple[str, str], dict[str, Any]]:
    """Rows of the images on the contact sheet by method and id."""
    wanted = pa.array([row.image_id for row in data.contact], pa.string())
    return {
        (method, row["image_id"]): row
        for method, table in newest.items()
        for row in table.filter(pc.is_in(table.column("image_id"), wanted)).to_pylist()
    }


def _shown(data: ReportData, known: Mapping[tuple[str, str], Mapping[str, Any]]) -> dict[str, list[Shown]]:
    """By method, what it inverted of the contact sheet."""

    def value(row: Mapping[str, Any], metric: str) -> float:
        return math.nan if row[metric] is None else float(row[metric])

    return {
        method.name: [
            Shown(row.image_id, _anchor(index), value(measured, "lpips"), value(measured, "sncd"))
            for index, row in enumerate(data.contact)
            if (measured := known.get((method.name, row.image_id))) is not None and measured["status"] == OK
        ]
        for method in data.methods
    }


def _valued(shown_images: Mapping[str, Sequence[Shown]], metric: str) -> dict[str, list[tuple[float, Shown]]]:
    return {name: [(getattr(one, metric), one) for one in images] for name, images in shown_images.items()}


def _absence(row: Mapping[str, Any] | None) -> str:
    """Why a method has no picture of an image."""
    if row is None:
        return "not inverted"
    if row["status"] == OK:
        return "inverted, no picture kept"
    if row["status"] == FAILED:
        return f"not inverted: {row['reason']}"
    return shortened(f"same content as {row['duplicate_of']}", 60)


def _png_uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _png_size(png: bytes) -> tuple[int, int]:
    """Width and height of a PNG file in pixels: the first fields of its first chunk."""
    return int.from_bytes(png[16:20], "big"), int.from_bytes(png[20:24], "big")


@dataclass(frozen=True)
class _Failure:
    image_id: str
    anchor: str  # of the image on the page, or ""
    reason: str
    message: str
    methods: str


@dataclass(frozen=True)
class _Failures:
    reasons: tuple[tuple[str, int, str], ...]  # reason, images, methods
    shown: tuple[_Failure, ...]
    num_all: int


def _failures(data: ReportData, newest: Mapping[str, pa.Table]) -> _Failures:
    """Failed images; a file that no method could open is one failure, not one for each method."""
    titles = {method.name: method.title for method in data.methods}
    anchors = {row.image_id: _anchor(index) for index, row in enumerate(data.contact)}
    found: dict[tuple[str, str, str], list[str]] = {}
    for name, table in newest.items():
        for row in table.filter(pc.equal(table.column("status"), FAILED)).to_pylist():
            key = (row["image_id"], row["reason"] or "no reason given", row["message"] or "")
            found.setdefault(key, []).append(titles[name])
    by_reason: dict[str, tuple[set[str], list[str]]] = {}
    for (image_id, reason, _), methods in found.items():
        images, of_methods = by_reason.setdefault(reason, (set(), []))
        images.add(image_id)
        of_methods += [title for title in methods if title not in of_methods]

    def whose(methods: Sequence[str]) -> str:
        return "every method" if len(methods) == len(titles) > 1 else ", ".join(methods)

    reasons = sorted(by_reason.items(), key=lambda item: (-len(item[1][0]), item[0]))
    return _Failures(
        reasons=tuple((reason, len(images), whose(methods)) for reason, (images, methods) in reasons),
        shown=tuple(
            _Failure(image_id, anchors.get(image_id, ""), reason, message, whose(methods))
            for (image_id, reason, message), methods in itertools.islice(found.items(), SHOWN_FAILURES)
        ),
        num_all=len(found),
    )


def _snippets(data: ReportData, tables: Mapping[str, pa.Table]) -> list[tuple[str, str]]:
    """Three ways into the archive, ready to copy."""
    python = [
        "from lsap_archive import open_archive",
        "",
        f"archive = open_archive({data.archive_url!r})",
        "archive.sql(\"select method, avg(sncd) from latest where status = 'ok' group by 1\").to_pylist()",
    ]
    example = next(((name, table) for name, table in tables.items() if table.num_rows), None)
    if example is not None:
        name, table = example
        shape = f"[1, {data.generator['num_ws']}, {data.generator['w_dim']}]"
        image_id = table.column("image_id")[0].as_py()
        python.append(f"archive.codes([{image_id!r}], {name!r})  # {shape}")
    glob = f"{data.archive_url.rstrip('/')}/runs/*/rows/*.parquet".replace("'", "''")
    query = f"select method, status, count(*), avg(lpips), avg(sncd) from '{glob}' group by all"
    quoted = shlex.quote(query) if re.search(r'["$`\\!]', query) else f'"{query}"'  # the latter is easier to read
    return [
        ("Command line", f"lsap archive describe {shlex.quote(data.archive_url)}"),
        ("Python, without torch", "\n".join(python)),
        ("DuckDB, without this project", f"duckdb -c {quoted}"),
    ]


def _differing_settings(methods: Sequence[MethodInfo]) -> list[str]:
    """Settings that are not the same for all methods; those of an optimization are not asked of an encoder."""
    names = dict.fromkeys(name for method in methods for name in method.settings)

    def differs(name: str) -> bool:
        asked = [method for method in methods if name in method.settings or method.is_optimization]
        return len({repr(method.settings.get(name)) for method in asked}) > 1

    return [name for name in names if differs(name)]
