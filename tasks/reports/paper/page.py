"""The page of a reproduction: every table, figure and sheet, and where each number comes from; its text as Markdown."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from jinja2 import Template

from lsap_archive import duckdb_view
from tasks.pictures.sheets import width_on_page
from tasks.reports.figure_style import Picture
from tasks.reports.page import Tile, page_template
from tasks.reports.paper.claims import INTERVAL_RULE, Claim, all_rules, claims_markdown
from tasks.reports.paper.figure5 import PAGE_SIDE, EditedImage, page_uri
from tasks.reports.paper.published import NOT_MEASURED, UNNATURAL
from tasks.reports.tables import Table, shown, table_markdown
from tasks.reports.text import count_of
from tasks.visible_text import in_markdown


@dataclass(frozen=True)
class ContactSheets:
    """Figure 3 or 5 on the page.

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
        refined_sheets: figure 3, which shows refined methods beside their embeddings, or None.
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
    tables: tuple[Table, ...]
    claims: tuple[Claim, ...]
    figures: Mapping[str, Picture]
    sheets: ContactSheets | None
    networks: Mapping[str, str]
    provenance: Mapping[str, str]
    config_yaml: str
    files: Mapping[str, str]
    seconds: float
    table_archives: Mapping[str, str] = field(default_factory=dict)
    refined_sheets: ContactSheets | None = None

    @property
    def all_sheets(self) -> tuple[ContactSheets, ...]:
        """Figures 3 and 5, as far as they are there."""
        return tuple(one for one in (self.refined_sheets, self.sheets) if one is not None)

    def archive_of(self, table: Table) -> str:
        """URL of the archive that a table's queries are asked of."""
        return self.archives[self.table_archives.get(table.name, next(iter(self.archives)))]


def render_reproduction(data: Reproduction) -> str:
    """The page: no script, nothing loaded but what is in it, every text escaped."""
    tables = [shown(table, lambda number: number.deviation) for table in data.tables]
    num_numbers = sum(cell.number.is_there for table in tables for _, cells in table.rows for cell in cells)
    archives = [data.archive_of(table) for table in data.tables]
    sheets = {name: _blocks(one) for name, one in (("figure3", data.refined_sheets), ("figure5", data.sheets)) if one}
    return _template().render(
        data=data,
        tiles=_tiles(data, num_numbers),
        shown_tables=tables,
        views=[_view_of(archive) for archive in archives],
        marks={NOT_MEASURED: "not measured in the paper", UNNATURAL: "judged unnatural in the paper"},
        claim_rule=all_rules(data.claims, INTERVAL_RULE),
        sheets=sheets,
        layout=next(iter(sheets.values()), None),
    )


def tables_markdown(title: str, tables: Sequence[Table], claims: Sequence[Claim], remarks: Iterable[str]) -> str:
    """Everything but the pictures."""
    parts = [f"# {in_markdown(title)}", *map(in_markdown, remarks)]
    for table in tables:
        parts += [f"## {table.title}", in_markdown(table.caption), table_markdown(table)]
        parts += map(in_markdown, table.notes)
    if claims:
        parts += ["## What the paper says", claims_markdown(claims, INTERVAL_RULE)]
    return "\n\n".join(parts) + "\n"


@cache
def _template() -> Template:
    return page_template("paper")


def _tiles(data: Reproduction, num_numbers: int) -> list[Tile]:
    tiles = [Tile("Images", f"{data.num_images:,}", data.source)]
    outcomes = Counter(claim.outcome for claim in data.claims)
    if data.claims:
        detail = f"{outcomes['refuted']} refuted, {outcomes['not decided']} not decided, on these images"
        tiles.append(Tile("Claims of the paper confirmed", f"{outcomes['confirmed']} of {len(data.claims)}", detail))
    if num_numbers:
        detail = "each a link to the query that gives it"
        tiles.append(Tile("Numbers", f"{num_numbers:,}", f"in {count_of(len(data.tables), 'table')}, {detail}"))
    if images := [image for sheets in data.all_sheets for image in sheets.images]:
        pictures = sum(len(made) for image in images for made in image.made.values())
        detail = f"of {count_of(len({image.image_id for image in images}), 'image')}, inversions and edits"
        tiles.append(Tile("Pictures", f"{pictures:,}", detail))
    return tiles


def _view_of(archive: str) -> str:
    """How DuckDB alone sees an archive's measurements, also older ones; the queries of the page run after it."""
    view = duckdb_view(archive, "all_measurements", "measurements")
    return f"duckdb -c {shlex.quote(f'{view}; <query>')}"


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
    height, width = sheets.images[0].original.shape[:2] if sheets.images else (128, 128)
    width, is_pixelated = width_on_page(width, height, PAGE_SIDE)
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
        "generator": f"StyleGAN2, {config.shown_size} px, {config.num_ws} × {config.w_dim} values in a W+ code",
        "generator digest": generator.digest,
        **versions,
    }
