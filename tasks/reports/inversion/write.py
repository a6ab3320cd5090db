"""The report of what an archive shows: rows, reference rows, a contact sheet, and where everything lies."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa

from lsap_archive import (
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
from tasks.reports.inversion.choice import ChosenImage, choose_images
from tasks.reports.inversion.data import Choice, ContactCell, ContactRow, MethodInfo, ReportData
from tasks.reports.inversion.losses import loss_parts
from tasks.reports.inversion.page import render_report
from tasks.reports.inversion.table import render_markdown_table
from tasks.reports.inversion.worked import WorkedImages, worked_images
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
        measured: of the command: seconds, shards (run and number of each), num_workers, device.
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
        worked: images of the command; none where a report of an earlier one is shown.
    """

    url: str
    table: str
    sheet: str | None
    worked: WorkedImages = field(default_factory=WorkedImages)


def write_report(request: ReportRequest, pool: Pool) -> Report:
    """Render the report and put it into the archive under `reports/`."""
    archive = open_archive(request.inversion.archive)
    loaded = request.inversion.generator.load()
    data = _report_data(request, archive, loaded, pool)
    table = render_markdown_table(data)
    writer = open_writer(request.inversion.archive, loaded)
    writer.keep_published_lists()  # the page says how to read by them
    url = put_page(writer, "invert.html", render_report(data))
    writer.put_report("invert.md", table.encode())
    sheet = writer.put_report("invert.jpg", _small_sheet(data)) if data.contact else None
    kept = {"shown": _shown(request, archive), "has_sheet": sheet is not None}
    writer.put_report("invert.json", encode_document(kept, report_key("invert.json")))
    return Report(url, table, sheet, worked_images(data.rows, request.measured["shards"]))


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
    seconds, worked = request.measured["seconds"], worked_images(rows, request.measured["shards"])
    methods = tuple(
        MethodInfo(
            method.name,
            method.title,
            _settings_of(method),
            method.base,
            method.encoder and f"{method.encoder}, {request.facts.encoders[method.encoder]}",
            is_optimization=method.settings.kind == OptimizationSettings.kind,
        )
        for method in request.facts.methods
    )
    choice, contact = _contact_sheet(request, archive, rows, methods, pool)
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
        methods=methods,
        rows=rows,
        references=reference_rows(loaded.generator.eval(), anchor).labelled(),
        contact=contact,
        choice=choice,
        losses=loss_parts(archive, rows, request.facts.methods),
        summary={
            "wall_seconds": seconds,
            "images_per_second": worked.num_ok / seconds if seconds and worked.num_ok else None,
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


def _contact_sheet(
    request: ReportRequest, archive: Archive, rows: pa.Table, methods: tuple[MethodInfo, ...], pool: Pool
) -> tuple[Choice, tuple[ContactRow, ...]]:
    """Pictures of the images that were chosen, as far as their originals are still there."""
    digest_of = {run.run_id: run.method_digest for run in archive.runs}
    chosen = choose_images(rows, list(digest_of), request.num_images, methods)
    contact = _pictured(chosen.images, digest_of, pool)
    if missing := len(chosen.images) - len(contact):
        contact += _pictured(chosen.spare[:missing], digest_of, pool)
    return chosen.choice, tuple(contact)


def _pictured(images: Sequence[ChosenImage], digest_of: Mapping[str, str], pool: Pool) -> list[ContactRow]:
    """Images with their pictures, without those whose originals are not there any more."""
    wanted: dict[str, list[dict[str, Any]]] = {}  # by digest, which one method has: runs of others may have its name
    for image in images:
        for row in image.results:
            wanted.setdefault(digest_of[row["run_id"]], []).append(row)
    previews: dict[str, dict[str, Preview]] = {image.image_id: {} for image in images}
    if wanted:
        for digest, made in pool.call("preview", wanted).items():
            method = wanted[digest][0]["method"]
            for image_id, preview in made.items():
                previews[image_id][method] = preview
    rows = []
    for image in images:
        if shown := previews[image.image_id]:
            cells = {name: ContactCell(view.reconstruction, view.difference) for name, view in shown.items()}
            rows.append(ContactRow(image.image_id, next(iter(shown.values())).original, cells, image.group))
    return rows


def _small_sheet(data: ReportData) -> bytes:
    """A JPEG file of some images of every group: originals, and what each method made of them. The page has all."""
    rows = []
    for row in data.contact[:: -(-len(data.contact) // SMALL_SHEET_ROWS)]:
        cells = [row.cells.get(method.name) for method in data.methods]
        pictures = [row.original_png, *(None if cell is None else cell.reconstruction_png for cell in cells)]
        rows.append([None if png is None else decode_photo(png, min_side=1).pixels for png in pictures])
    labels = ["original", *(method.title for method in data.methods)]
    return as_jpeg(draw_sheet(rows, column_labels=labels, largest=SMALLEST_TILE))


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
