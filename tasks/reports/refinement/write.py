"""The report of refinements: measures beside those of their inversions, paired over images, and pictures."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lsap_archive import OK, Archive, open_archive
from tasks.archived.opening import open_writer
from tasks.measuring.of_inversions import COLUMNS as MEASURED
from tasks.refinement.request import RefinementRequest
from tasks.reports.index.write import put_page
from tasks.reports.page import VERSIONED, Tile, now, page_template, versions_of
from tasks.reports.statistics import HIGHER_IS_BETTER, Number, column_values
from tasks.visible_text import markdown_table
from tasks.workers.pool import Pool

LABELS = {
    "mse": "MSE",
    "lpips": "LPIPS",
    "lpips_judge": "LPIPS by the judge",
    "identity_similarity": "identity",
    "sncd": "SNCD",
    "seconds": "s/image",
}
DECIMALS = 4
_PAIRED = """
select r.method as refinement, i.method as inversion, r.image_id, {columns}
from latest r join history i on r.subject_run_id = i.run_id and r.subject_row = i.row
where r.edit is null and r.status = 'ok' and i.status = 'ok' and list_contains($names, r.method)
order by r.image_id
"""


@dataclass(frozen=True)
class Line:
    """A method of the table: means over the images that inversion and refinement both have.

    Attributes:
        name: such as "lsap_e" or "lsap_e/pti".
        count: images.
        means: by column.
        changes: of a refinement, by column, what became of the same images' values; none for an inversion.
    """

    name: str
    count: int
    means: Mapping[str, Number]
    changes: Mapping[str, Number]


@dataclass(frozen=True)
class RefinementPage:
    """What the page shows.

    Attributes:
        title: the headline.
        created: UTC time, ISO 8601.
        archive_url: where the archive is.
        config_yaml: the configuration, for print.
        heads: of the table.
        lines: of the table: whether it is a refinement, and its cells with what changed.
        sheet: rows of pictures, each a name and data: URIs by column; None where there is none.
        columns: of the sheet.
        is_pixelated: whether pictures are magnified.
        bytes_per_image: what is kept of an image, by refinement.
        versions: of what computed.
    """

    title: str
    created: str
    archive_url: str
    config_yaml: str
    heads: Sequence[str]
    lines: Sequence[tuple[bool, Sequence[tuple[str, str]]]]
    sheet: Sequence[tuple[str, Sequence[str | None]]]
    columns: Sequence[str]
    is_pixelated: bool
    bytes_per_image: Mapping[str, int]
    versions: Mapping[str, str]


@dataclass(frozen=True)
class RefinementReportRequest:
    """What the report is about.

    Attributes:
        refinement: what was asked for.
        bytes_per_image: what is kept of an image, by refinement.
        config_yaml: the configuration, for print.
        num_images: on the sheet.
        seconds: wall time of the command so far.
    """

    refinement: RefinementRequest
    bytes_per_image: Mapping[str, int]
    config_yaml: str
    num_images: int
    seconds: float


def write_report(asked: RefinementReportRequest, pool: Pool) -> tuple[str, str]:
    """Put the page into the archive under `reports/`; returns its URL, and the table as Markdown."""
    url = asked.refinement.archive
    archive, names = open_archive(url), list(asked.bytes_per_image)
    lines = refinement_lines(archive, names)
    table = refinement_table(lines)
    side = asked.refinement.generator.load().config.resolution
    columns, sheet = _sheet(asked, archive, lines, pool)
    page = RefinementPage(
        title=f"Refinement of {asked.refinement.source}",
        created=now(),
        archive_url=url,
        config_yaml=asked.config_yaml,
        heads=_heads(lines),
        lines=[(bool(line.changes), _cells(line, _measured(lines))) for line in lines],
        sheet=sheet,
        columns=columns,
        is_pixelated=side < 128,
        bytes_per_image=asked.bytes_per_image,
        versions=versions_of(VERSIONED),
    )
    tiles = [
        Tile("images", f"{max((line.count for line in lines), default=0):,}", "that inversion and refinement have"),
        Tile("refinements", str(len(names)), ", ".join(names)),
        Tile(
            "kept of an image", f"{max(asked.bytes_per_image.values(), default=0):,} bytes", "at most, beside its row"
        ),
    ]
    rendered = page_template("refinement").render(data=page, tiles=tiles, seconds=asked.seconds)
    writer = open_writer(url, asked.refinement.generator.load())
    writer.put_report("refine.md", table.encode())
    return put_page(writer, "refine.html", rendered), table


def refinement_lines(archive: Archive, names: Sequence[str]) -> list[Line]:
    """Inversions and their refinements, paired over the images that both have.

    Args:
        archive: where they are.
        names: of refinements, such as "lsap_e/pti".
    """
    columns = ", ".join(f"{part}.{column} as {part}_{column}" for part in "ir" for column in _SHOWN)
    rows = archive.sql(_PAIRED.format(columns=columns), names=list(names))
    lines: list[Line] = []
    told: set[tuple[str, int]] = set()
    for name in sorted(set(rows.column("refinement").to_pylist())):
        own = rows.filter(pc.equal(rows.column("refinement"), name))
        inversion = own.column("inversion")[0].as_py()
        if (inversion, own.num_rows) not in told:
            told.add((inversion, own.num_rows))
            lines.append(Line(inversion, own.num_rows, _numbers(own, "i"), {}))
        changes = {
            column: Number.of(column_values(own, f"r_{column}") - column_values(own, f"i_{column}"))
            for column in _SHOWN
            if column != "seconds"
        }
        lines.append(Line(name, own.num_rows, _numbers(own, "r"), changes))
    return lines


def refinement_table(lines: Sequence[Line]) -> str:
    """The table as Markdown: means, and in brackets the change of the same images with its 95 % interval."""
    measured = _measured(lines)
    cells = [[f"{mean} ({change})" if change else mean for mean, change in _cells(line, measured)] for line in lines]
    return markdown_table([_heads(lines), *cells])


_SHOWN = [column for column in LABELS if column in MEASURED or column == "seconds"]


def _numbers(rows: pa.Table, part: str) -> dict[str, Number]:
    return {column: Number.of(column_values(rows, f"{part}_{column}")) for column in _SHOWN}


def _measured(lines: Sequence[Line]) -> list[str]:
    return [column for column in _SHOWN if any(line.means[column].is_there for line in lines)]


def _heads(lines: Sequence[Line]) -> list[str]:
    return ["method", "images", *(f"{LABELS[column]} {_better(column)}".strip() for column in _measured(lines))]


def _better(column: str) -> str:
    """An arrow to what is better; SNCD and time have none."""
    if column in ("sncd", "seconds"):
        return ""
    return "↑" if column in HIGHER_IS_BETTER else "↓"


def _cells(line: Line, measured: Sequence[str]) -> list[tuple[str, str]]:
    """Each cell, and what became of the same images' values, or ""; "–" where the line has no value, such as no time of
    codes from elsewhere."""
    cells = [(line.name, ""), (str(line.count), "")]
    for column in measured:
        mean = line.means[column]
        if not mean.is_there:
            cells.append(("–", ""))
            continue
        told, change = "", line.changes.get(column)
        if change is not None and change.is_there and np.isfinite(change.interval[1]):
            half = change.interval[1] - change.mean
            told = f"{change.mean:+.{DECIMALS}f} ± {half:.{DECIMALS}f}".replace("-", "−")
        cells.append((f"{mean.mean:.{DECIMALS}f}", told))
    return cells


def _sheet(
    asked: RefinementReportRequest, archive: Archive, lines: Sequence[Line], pool: Pool
) -> tuple[list[str], list[tuple[str, list[str | None]]]]:
    """Originals, inversions and refinements of some images, as they are rendered from the archive."""
    methods = list(dict.fromkeys(line.name for line in lines))
    if asked.refinement.keep != "state":
        methods = [name for name in methods if name not in asked.bytes_per_image]
    if not methods:
        return [], []
    wanted = archive.sql(
        "select image_id, uri, digest, run_id from latest where method = $method and status = $ok "
        "order by image_id limit $num",
        method=lines[-1].name,
        ok=OK,
        num=asked.num_images,
    ).to_pylist()
    found: dict[str, dict[str, bytes]] = pool.call("preview", wanted, methods)
    columns = ["original", *methods]
    rows = [
        (image["image_id"], [_as_uri(found.get(name, {}).get(image["image_id"])) for name in columns])
        for image in wanted
    ]
    return columns, rows


def _as_uri(png: bytes | None) -> str | None:
    return None if png is None else f"data:image/png;base64,{base64.b64encode(png).decode()}"
