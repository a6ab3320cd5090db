"""The report of what an archive shows: rows, reference rows, a contact sheet, and where everything lies."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import duckdb
import pyarrow as pa

from lsap_archive import (
    OK,
    Archive,
    ArchiveNotFoundError,
    CorruptArchiveError,
    Store,
    decode_document,
    encode_document,
    open_archive,
    report_key,
)
from lsap_core.alignment.references import reference_rows
from lsap_core.inversion.by_optimization import OptimizationSettings
from lsap_core.presets import Method
from tasks.archived.anchors import open_anchor
from tasks.archived.opening import open_writer
from tasks.archived.rendering import Preview
from tasks.archived.runs import current_rows, current_runs
from tasks.inversion.plan import InversionFacts
from tasks.inversion.request import InversionRequest
from tasks.pictures.decoding import decode_photo
from tasks.pictures.sheets import SMALLEST_TILE, as_jpeg, draw_sheet
from tasks.reports.index.write import put_page
from tasks.reports.inversion.data import ContactCell, ContactRow, MethodInfo, ReportData
from tasks.reports.inversion.page import render_report
from tasks.reports.inversion.table import render_markdown_table
from tasks.reports.page import VERSIONED, now, versions_of
from tasks.weights.generators import LoadedGenerator
from tasks.workers.pool import Pool

SMALL_SHEET_ROWS = 8


@dataclass(frozen=True)
class ReportRequest:
    """What the report is about.

    Attributes:
        inversion: what was asked for.
        facts: what follows from it.
        title: headline.
        config_yaml: the configuration, for print.
        num_images: images on the contact sheet.
        measured: numbers of the command: seconds, embedded, num_workers, device.
    """

    inversion: InversionRequest
    facts: InversionFacts
    title: str
    config_yaml: str
    num_images: int
    measured: Mapping[str, Any]


@dataclass(frozen=True)
class Report:
    """Where the report lies, and its table.

    Attributes:
        url: of the HTML page.
        table: the comparison with its reference rows, Markdown.
        sheet: URL of the contact sheet as one small JPEG file, or None where there is nothing to show.
    """

    url: str
    table: str
    sheet: str | None


def write_report(request: ReportRequest, pool: Pool) -> Report:
    """Render the report and put it into the archive under `reports/`."""
    archive = open_archive(request.inversion.archive)
    loaded = request.inversion.generator.load()
    data = _report_data(request, archive, loaded, pool)
    table = render_markdown_table(data)
    writer = open_writer(request.inversion.archive, loaded)
    url = put_page(writer, "invert.html", render_report(data))
    writer.put_report("invert.md", table.encode())
    sheet = writer.put_report("invert.jpg", _small_sheet(data)) if data.contact else None
    kept = {"shown": _shown(request, archive), "has_sheet": sheet is not None}
    writer.put_report("invert.json", encode_document(kept, report_key("invert.json")))
    return Report(url, table, sheet)


def kept_report(request: ReportRequest) -> Report | None:
    """The report that the archive has, if it was written for the same request and shows all that there is."""
    store = Store.from_url(request.inversion.archive)
    try:
        kept = decode_document(store.get(report_key("invert.json")), store.join(report_key("invert.json")))
        table = store.get(report_key("invert.md")).decode()
    except (ArchiveNotFoundError, CorruptArchiveError, UnicodeDecodeError):  # a report is written anew by any run
        return None
    if kept.get("shown") != _shown(request, open_archive(request.inversion.archive)):
        return None
    sheet = store.join(report_key("invert.jpg")) if kept.get("has_sheet") else None
    return Report(store.join(report_key("invert.html")), table, sheet)


def _shown(request: ReportRequest, archive: Archive) -> str:
    """Digest of what was asked for, and of the runs that are shown for it."""
    facts = request.facts
    asked = (
        request.config_yaml,
        facts.methods,
        request.inversion.networks,
        facts.anchor,
        sorted(facts.encoders.items()),
    )
    shown = current_runs(archive, facts.methods, facts.anchor, facts.encoders)
    runs = [(run.run_id, run.num_rows) for run in shown]
    return hashlib.sha256(repr((asked, runs)).encode()).hexdigest()


def _report_data(request: ReportRequest, archive: Archive, loaded: LoadedGenerator, pool: Pool) -> ReportData:
    config = loaded.config
    anchor = open_anchor(request.inversion.archive, request.facts.anchor)
    rows = current_rows(archive, request.facts.methods, request.facts.anchor, request.facts.encoders)
    seconds, embedded = request.measured["seconds"], request.measured["embedded"]
    return ReportData(
        title=request.title,
        created=now(),
        archive_url=request.inversion.archive,
        config_yaml=request.config_yaml,
        domain=request.inversion.domain,
        generator={
            "name": f"StyleGAN2, {config.shown_size} px",
            "digest": loaded.digest,
            "size": config.size,
            "num_ws": config.num_ws,
            "w_dim": config.w_dim,
            "image_channels": config.image_channels,
        },
        perceptual=request.inversion.networks.metric_perceptual,
        judge=request.inversion.networks.judge,
        identity=request.inversion.networks.identity,
        methods=tuple(
            MethodInfo(
                method.name,
                method.title,
                _settings_of(method),
                method.base,
                method.encoder and f"{method.encoder}, {request.facts.encoders[method.encoder]}",
                is_optimization=method.settings.kind == OptimizationSettings.kind,
            )
            for method in request.facts.methods
        ),
        rows=rows,
        references=reference_rows(loaded.generator.eval(), anchor).labelled(),
        contact=_contact_sheet(request, archive, rows, pool),
        summary={
            "wall_seconds": seconds,
            "images_per_second": embedded / seconds if seconds and embedded else None,
            "num_workers": request.measured["num_workers"],
            "device": request.measured["device"],
            "versions": versions_of(VERSIONED),
        },
        locations=_locations(request, archive),
    )


def _settings_of(method: Method) -> dict[str, Any]:
    """Settings of a method, and what is kept of the noise maps where it gives any."""
    kept = {"keep_noise": method.keep_noise} if method.settings.keeps_noise else {}
    return {**asdict(method.settings), **kept}


def _contact_sheet(request: ReportRequest, archive: Archive, rows: pa.Table, pool: Pool) -> tuple[ContactRow, ...]:
    """Images that as many methods as possible have inverted; among them the ones that were inverted last."""
    digest_of = {run.run_id: run.method_digest for run in archive.runs}
    results: dict[str, list[dict[str, Any]]] = {}
    for row in _newest_results(rows, list(digest_of), request.num_images):
        results.setdefault(row["image_id"], []).append(row)
    wanted: dict[str, list[dict[str, Any]]] = {}  # by digest, which one method has: runs of others may have its name
    for image_id in results:
        for row in results[image_id]:
            wanted.setdefault(digest_of[row["run_id"]], []).append(row)
    previews: dict[str, dict[str, Preview]] = {image_id: {} for image_id in results}
    if wanted:
        for digest, made in pool.call("preview", wanted).items():
            method = wanted[digest][0]["method"]
            for image_id, preview in made.items():
                previews[image_id][method] = preview
    return tuple(
        ContactRow(
            image_id,
            next(iter(shown.values())).original,
            {name: ContactCell(view.reconstruction, view.difference) for name, view in shown.items()},
        )
        for image_id, shown in previews.items()
        if shown
    )


def _small_sheet(data: ReportData) -> bytes:
    """A JPEG file of the first images: originals, and what each method made of them. The whole sheet is on the page."""
    rows = []
    for row in data.contact[:SMALL_SHEET_ROWS]:
        cells = [row.cells.get(method.name) for method in data.methods]
        pictures = [row.original_png, *(None if cell is None else cell.reconstruction_png for cell in cells)]
        rows.append([None if png is None else decode_photo(png, min_side=1).pixels for png in pictures])
    labels = ["original", *(method.title for method in data.methods)]
    return as_jpeg(draw_sheet(rows, column_labels=labels, largest=SMALLEST_TILE))


def _newest_results(rows: pa.Table, runs: Sequence[str], num_images: int) -> list[dict[str, Any]]:
    """The good rows of the images to show, one for each method, the best image first; `runs` are from old to new."""
    with duckdb.connect() as connection:
        connection.register(
            "shown_rows", rows.select(["image_id", "uri", "digest", "status", "method", "run_id", "row"])
        )
        found: list[dict[str, Any]] = (
            connection.sql(
                "with placed as (select *, row_number() over () as place from shown_rows), "
                "newest as (select * from placed "
                "  qualify row_number() over (partition by image_id, method order by place desc) = 1), "
                "good as (select *, list_position(?, run_id) as age from newest where status = ?), "
                'ranked as (select image_id, count(*) as methods, max(age) as age, min("row") as first from good '
                "  group by image_id order by methods desc, age desc, first, image_id limit ?) "
                "select good.* exclude (place, age, status) from good join ranked using (image_id) "
                "order by ranked.methods desc, ranked.age desc, ranked.first, image_id, place",
                params=[list(runs), OK, num_images],
            )
            .to_arrow_table()
            .to_pylist()
        )
    return found


def _locations(request: ReportRequest, archive: Archive) -> dict[str, str]:
    base = request.inversion.archive.rstrip("/")
    shown = current_runs(archive, request.facts.methods, request.facts.anchor, request.facts.encoders)
    newest = shown[-1].run_id if shown else "<run>"
    return {
        "archive": base,
        "codes (Zarr)": f"{base}/runs/{newest}/w_plus",
        "rows (Parquet)": f"{base}/runs/{newest}/rows",
        "manifest": f"{base}/runs/{newest}/_manifest.json",
        "report": f"{base}/reports/invert.html",
    }
