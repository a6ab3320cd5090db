"""Tables of numbers, ready to be written in any form: a page, Markdown for people, Parquet for those who go on."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

import pyarrow as pa

from lsap_archive import to_parquet
from tasks.reports.statistics import NOTHING_MEASURED, Number
from tasks.reports.text import NOTHING, as_number, count_of
from tasks.visible_text import markdown_table


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        name: for machines, such as "lec/slant".
        title: for people, such as "LEC, slant".
        detail: the network, the unit or the like, in small print.
        better: "lower", "higher", or None where neither is.
        decimals: digits behind the point.
        group: what stands above several columns together, or "".
    """

    name: str
    title: str
    detail: str = ""
    better: str | None = "lower"
    decimals: int = 4
    group: str = ""

    @property
    def arrow(self) -> str:
        """Which way is better, as a sign."""
        return {"lower": "↓", "higher": "↑"}.get(self.better or "", "")


@dataclass(frozen=True)
class Cell:
    """A cell: what was measured, and what was published, a number or the paper's mark; either may be missing."""

    measured: Number = NOTHING_MEASURED
    paper: float | str | None = None


@dataclass(frozen=True)
class TableRow:
    """A row: name for machines, title for people, a cell for each column, and texts between title and cells."""

    name: str
    title: str
    cells: tuple[Cell, ...]
    texts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        name: such as "table1".
        title: headline.
        caption: what is seen in it, in a sentence or two.
        columns: of numbers, in order.
        rows: in order.
        paper: what the published numbers are, such as "paper"; None where they have no place here.
        notes: sentences below the table.
        heads: above the rows' titles and texts.
    """

    name: str
    title: str
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[TableRow, ...]
    paper: str | None = None
    notes: tuple[str, ...] = ()
    heads: tuple[str, ...] = ("",)

    def best(self, column: int) -> float | None:
        """The best measured value of a column, where rows print different ones."""
        about = self.columns[column]
        values = [row.cells[column].measured.mean for row in self.rows if row.cells[column].measured.is_there]
        if about.better is None or len({as_number(value, about.decimals) for value in values}) < 2:
            return None
        return min(values) if about.better == "lower" else max(values)

    def is_best(self, row: TableRow, column: int) -> bool:
        """Whether a number prints as the best one of its column does."""
        best, decimals = self.best(column), self.columns[column].decimals
        return best is not None and as_number(row.cells[column].measured.mean, decimals) == as_number(best, decimals)

    def has_paper(self, column: int) -> bool:
        """Whether a column has published numbers."""
        return any(row.cells[column].paper is not None for row in self.rows)


def table_markdown(table: Table) -> str:
    """Means, the best in bold, beside the published number where there is one."""
    heads = [*table.heads]
    for index, column in enumerate(table.columns):
        title = " ".join(filter(None, (column.group, column.title, column.arrow)))
        if column.detail:
            title += f" [{column.detail}]"
        heads += [f"{title}, {table.paper}", f"{title}, measured"] if table.has_paper(index) else [title]
    lines = [heads]
    for row in table.rows:
        line = [row.title, *row.texts]
        for index, (column, cell) in enumerate(zip(table.columns, row.cells, strict=True)):
            measured = as_number(cell.measured.mean, column.decimals)
            if table.has_paper(index):
                line.append(_published(cell.paper, column.decimals))
            line.append(f"**{measured}**" if table.is_best(row, index) else measured)
        lines.append(line)
    return markdown_table(lines)


def lines_with_margins(table: Table, margin: Callable[[Number], float]) -> list[list[str]]:
    """Heads and rows for Markdown: means ± what `margin` says of each."""
    lines = [[*table.heads, *(f"{column.title} {column.arrow}".rstrip() for column in table.columns)]]
    for row in table.rows:
        cells = [
            with_margin(cell.measured.mean, margin(cell.measured), column.decimals)
            for column, cell in zip(table.columns, row.cells, strict=True)
        ]
        lines.append([row.title, *row.texts, *cells])
    return lines


def with_margin(mean: float, margin: float, decimals: int) -> str:
    """A mean ± its margin, where there is one."""
    text = as_number(mean, decimals)
    return f"{text} ± {as_number(margin, decimals)}" if math.isfinite(margin) else text


TABLES_SCHEMA = pa.schema(
    [
        ("table", pa.string()),
        ("row", pa.string()),
        ("row_title", pa.string()),
        ("column", pa.string()),
        ("column_title", pa.string()),
        ("better", pa.string()),
        ("paper", pa.float64()),
        ("paper_mark", pa.string()),
        ("measured", pa.float64()),
        ("sd", pa.float64()),
        ("n", pa.int64()),
        ("skipped", pa.int64()),
        ("source", pa.string()),
        ("evaluations", pa.list_(pa.string())),
    ]
)
"""One row for each cell. `source` is the query over the archive's measurements that gives the number, or the object
and key that hold it; sd is over images; paper_mark is what the paper has in the place of a number."""


def tables_parquet(tables: Sequence[Table]) -> bytes:
    """Every cell of every table, with what was published, what was measured, and where that comes from."""
    records = []
    for table in tables:
        for row in table.rows:
            for column, cell in zip(table.columns, row.cells, strict=True):
                number, paper = cell.measured, cell.paper
                records.append(
                    {
                        "table": table.name,
                        "row": row.name,
                        "row_title": row.title,
                        "column": column.name,
                        "column_title": " ".join(filter(None, (column.group, column.title, column.detail))),
                        "better": column.better,
                        "paper": None if isinstance(paper, str) else paper,
                        "paper_mark": paper if isinstance(paper, str) else None,
                        "measured": number.mean if number.is_there else None,
                        "sd": number.deviation if math.isfinite(number.deviation) else None,
                        "n": number.count,
                        "skipped": number.skipped,
                        "source": number.source or None,
                        "evaluations": list(number.evaluations),
                    }
                )
    return to_parquet(pa.Table.from_pylist(records, schema=TABLES_SCHEMA))


@dataclass(frozen=True)
class ShownHead:
    column: Column
    span: int
    is_first: bool  # of its group


@dataclass(frozen=True)
class ShownCell:
    anchor: str
    paper: str | None  # None: the column has no published numbers
    text: str
    margin: str
    hover: str
    is_best: bool
    is_first: bool
    number: Number


@dataclass(frozen=True)
class ShownTable:
    """A table on a page, which `table.html.j2` draws.

    Attributes:
        table: the table.
        groups: names above several columns with their spans; empty where no column has one.
        heads: of the columns.
        kinds: what was published and what was measured, below the heads; empty where nothing was published.
        rows: title and cells of each.
        sources: row, column and cell of every number that says where it comes from.
    """

    table: Table
    groups: list[tuple[str, int]]
    heads: list[ShownHead]
    kinds: list[str]
    rows: list[tuple[str, list[ShownCell]]]
    sources: list[tuple[str, str, ShownCell]]


def shown(table: Table, margin: Callable[[Number], float]) -> ShownTable:
    """A table as a page shows it, every number with what `margin` says of it."""
    has_paper = [table.has_paper(index) for index in range(len(table.columns))]
    heads, kinds = [], []
    for index, column in enumerate(table.columns):
        is_first = index > 0 and (
            column.group != table.columns[index - 1].group or has_paper[index] or has_paper[index - 1]
        )
        heads.append(ShownHead(column, 2 if has_paper[index] else 1, is_first))
        kinds += [table.paper or "", "measured"] if has_paper[index] else [""]
    runs = groupby(heads, key=lambda head: head.column.group)
    groups = [(name, sum(head.span for head in members)) for name, members in runs]
    rows, sources = [], []
    for place, row in enumerate(table.rows):
        cells = []
        for index, (head, cell) in enumerate(zip(heads, row.cells, strict=True)):
            column, number = head.column, cell.measured
            far = margin(number)
            shown_cell = ShownCell(
                anchor=f"{table.name}-{place}-{index}",
                paper=_published(cell.paper, column.decimals) if has_paper[index] else None,
                text=as_number(number.mean, column.decimals),
                margin=as_number(far, column.decimals) if far > 0 else "",
                hover=_hover(number, column.decimals),
                is_best=table.is_best(row, index),
                is_first=head.is_first,
                number=number,
            )
            cells.append(shown_cell)
            if number.source:
                title = " ".join(filter(None, (column.group, column.title, f"[{column.detail}]" * bool(column.detail))))
                sources.append((row.title, title, shown_cell))
        rows.append((row.title, cells))
    return ShownTable(
        table, groups if any(name for name, _ in groups) else [], heads, kinds if any(kinds) else [], rows, sources
    )


def _published(value: float | str | None, decimals: int) -> str:
    if value is None:
        return NOTHING
    return value if isinstance(value, str) else as_number(value, decimals)


def _hover(number: Number, decimals: int) -> str:
    if not number.is_there:
        return ""
    parts = [f"standard deviation {as_number(number.deviation, decimals)}", f"over {count_of(number.count, 'image')}"]
    if number.skipped:
        parts.append(f"({number.skipped:,} without a value)")
    return " ".join(parts) if number.count else "of the whole set"
