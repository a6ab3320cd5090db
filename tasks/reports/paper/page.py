"""The page of a reproduction: every table, figure and contact sheet, and where each number comes from."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import groupby
from typing import Any

from jinja2 import Template

from tasks.reports.figure_style import Picture
from tasks.reports.page import page_template
from tasks.reports.paper.claims import Claim
from tasks.reports.paper.figure5 import EditedImage, page_uri, page_width
from tasks.reports.paper.files import CLAIM_RULE, paper_text
from tasks.reports.paper.published import NOT_MEASURED, UNNATURAL
from tasks.reports.paper.traced_numbers import Number, PaperTable
from tasks.reports.text import as_number, count_of


@dataclass(frozen=True)
class ContactSheets:
    """Figure 5 on the page.

    Attributes:
        images: in order.
        labels: of the pictures after the original, in order.
        files: name of the sheet at full resolution, beside the page, by image id.
    """

    images: tuple[EditedImage, ...]
    labels: tuple[str, ...]
    files: Mapping[str, str]


@dataclass(frozen=True)
class Reproduction:
    """All that the page tells.

    Attributes:
        title: the headline.
        created: UTC time, ISO 8601.
        domain: name of the domain.
        about: what its images are.
        source: where the evaluated images come from.
        num_images: how many they are.
        archives: URL of every archive that numbers come from, by what it holds; the first is that of most tables.
        table_archives: which of them a table reads, by the table's name; the first when it is not there.
        paper_problem: why the paper's numbers stand nowhere; None where they do.
        tables: in order.
        claims: of the paper, examined.
        figures: by headline.
        sheets: figure 5, or None.
        networks: what looked at the images, by role.
        provenance: name and value.
        config_yaml: the configuration.
        files: what lies beside the page, by what it is.
        seconds: wall time of the command.
    """

    title: str
    created: str
    domain: str
    about: str
    source: str
    num_images: int
    archives: Mapping[str, str]
    paper_problem: str | None
    tables: tuple[PaperTable, ...]
    claims: tuple[Claim, ...]
    figures: Mapping[str, Picture]
    sheets: ContactSheets | None
    networks: Mapping[str, str]
    provenance: Mapping[str, str]
    config_yaml: str
    files: Mapping[str, str]
    seconds: float
    table_archives: Mapping[str, str] = field(default_factory=dict)

    def archive_of(self, table: PaperTable) -> str:
        """URL of the archive that a table's queries are asked of."""
        return self.archives[self.table_archives.get(table.name, next(iter(self.archives)))]


def render_reproduction(data: Reproduction) -> str:
    """The page: no script, nothing loaded but what is in it, every text escaped."""
    numbers = [cell.measured for table in data.tables for row in table.rows for cell in row.cells]
    tables = [_shown(table) for table in data.tables]
    return _template().render(
        data=data,
        tiles=_tiles(data, sum(number.is_there for number in numbers)),
        tables=tables,
        sources=[
            (table, data.archive_of(table), _view_of(data.archive_of(table)), shown)
            for table, shown in zip(data.tables, tables, strict=True)
        ],
        marks={NOT_MEASURED: "not measured in the paper", UNNATURAL: "judged unnatural in the paper"},
        claim_rule=CLAIM_RULE,
        sheets=None if data.sheets is None else _blocks(data.sheets),
    )


@cache
def _template() -> Template:
    return page_template("paper")


@dataclass(frozen=True)
class _Tile:
    title: str
    value: str
    detail: str


def _tiles(data: Reproduction, num_numbers: int) -> list[_Tile]:
    tiles = [_Tile("Images", f"{data.num_images:,}", data.source)]
    outcomes = Counter(claim.outcome for claim in data.claims)
    if data.claims:
        detail = f"{outcomes['refuted']} refuted, {outcomes['not decided']} not decided, on these images"
        tiles.append(_Tile("Claims of the paper confirmed", f"{outcomes['confirmed']} of {len(data.claims)}", detail))
    if num_numbers:
        detail = "each a link to the query that gives it"
        tiles.append(_Tile("Numbers", f"{num_numbers:,}", f"in {count_of(len(data.tables), 'table')}, {detail}"))
    if data.sheets is not None:
        pictures = sum(len(made) for image in data.sheets.images for made in image.made.values())
        detail = f"of {count_of(len(data.sheets.images), 'image')}, inversions and edits"
        tiles.append(_Tile("Pictures", f"{pictures:,}", detail))
    return tiles


@dataclass(frozen=True)
class _Head:
    title: str
    arrow: str
    detail: str
    span: int
    is_first: bool  # of its group


@dataclass(frozen=True)
class _ShownCell:
    anchor: str
    paper: str | None  # None: the column has no published numbers
    text: str
    deviation: str
    hover: str
    is_best: bool
    is_first: bool
    number: Number


@dataclass(frozen=True)
class _ShownTable:
    name: str
    title: str
    caption: str
    paper: str | None
    groups: list[tuple[str, int]]
    heads: list[_Head]
    subheads: list[str]
    rows: list[tuple[str, list[_ShownCell]]]
    notes: tuple[str, ...]
    sources: list[tuple[str, str, _ShownCell]]


def _shown(table: PaperTable) -> _ShownTable:
    has_paper = [any(row.cells[index].paper is not None for row in table.rows) for index in range(len(table.columns))]
    firsts = [
        index > 0 and (column.group != table.columns[index - 1].group or has_paper[index] or has_paper[index - 1])
        for index, column in enumerate(table.columns)
    ]
    heads = [
        _Head(column.title, column.arrow, column.detail, 2 if has_paper[index] else 1, firsts[index])
        for index, column in enumerate(table.columns)
    ]
    runs = groupby(zip(table.columns, heads, strict=True), key=lambda pair: pair[0].group)
    groups = [(name, sum(head.span for _, head in members)) for name, members in runs]
    best = [table.best(index) for index in range(len(table.columns))]
    rows, sources = [], []
    for place, row in enumerate(table.rows):
        cells = []
        for index, (column, cell) in enumerate(zip(table.columns, row.cells, strict=True)):
            number = cell.measured
            shown = _ShownCell(
                anchor=f"{table.name}-{place}-{index}",
                paper=paper_text(cell.paper, column.decimals) if has_paper[index] else None,
                text=as_number(number.mean, column.decimals),
                deviation=as_number(number.deviation, column.decimals),
                hover=_hover(number, column.decimals),
                is_best=number.is_there and number.mean == best[index],
                is_first=firsts[index],
                number=number,
            )
            cells.append(shown)
            if number.source:
                title = " ".join(filter(None, (column.group, column.title, f"[{column.detail}]" * bool(column.detail))))
                sources.append((row.title, title, shown))
        rows.append((row.title, cells))
    subheads = []
    for index in range(len(table.columns)):
        subheads += [table.paper or "", "measured"] if has_paper[index] else [""]
    return _ShownTable(
        table.name,
        table.title,
        table.caption,
        table.paper,
        groups if any(name for name, _ in groups) else [],
        heads,
        subheads if any(subheads) else [],
        rows,
        table.notes,
        sources,
    )


def _hover(number: Number, decimals: int) -> str:
    if not number.is_there:
        return ""
    parts = [f"standard deviation {as_number(number.deviation, decimals)}", f"over {count_of(number.count, 'image')}"]
    if number.skipped:
        parts.append(f"({number.skipped:,} without a value)")
    return " ".join(parts) if number.count else "of the whole set"


def _view_of(archive: str) -> str:
    """How DuckDB alone sees an archive's measurements; the queries of the page run after it."""
    glob = f"{archive.rstrip('/')}/evaluations/*/shards/*.parquet".replace("'", "''")
    return f"duckdb -c {shlex.quote(f'create view measurements as from {chr(39)}{glob}{chr(39)}; <query>')}"


@dataclass(frozen=True)
class _Block:
    image_id: str
    original: str
    file: str
    rows: list[tuple[str, list[str]]]


@dataclass(frozen=True)
class _Blocks:
    labels: tuple[str, ...]
    blocks: list[_Block]
    width: int
    is_pixelated: bool


def _blocks(sheets: ContactSheets) -> _Blocks:
    width, is_pixelated = page_width(sheets.images[0].original) if sheets.images else (128, False)
    blocks = []
    for image in sheets.images:
        rows = [
            (title, [page_uri(made[label]) if label in made else "" for label in sheets.labels])
            for title, made in image.made.items()
        ]
        blocks.append(_Block(image.image_id, page_uri(image.original), sheets.files.get(image.image_id, ""), rows))
    return _Blocks(sheets.labels, blocks, width, is_pixelated)


def remarks(data: Reproduction) -> Sequence[str]:
    """What stands above the tables: on what they were measured, and why the paper's numbers are there or not."""
    said = [f"Domain {data.domain}: {count_of(data.num_images, 'image')} of {data.source}. Means over images."]
    if data.paper_problem is not None:
        said.append(f"The paper's numbers do not stand beside the measured ones: {data.paper_problem}.")
    return said


def provenance_of(generator: Any, versions: Mapping[str, str]) -> dict[str, str]:
    """The generator's sizes and digest, and the versions of what computed, as names and values."""
    config = generator.config
    return {
        "generator": f"StyleGAN2, {config.resolution} px, {config.num_ws} × {config.w_dim} values in a W+ code",
        "generator digest": generator.digest,
        **versions,
    }
