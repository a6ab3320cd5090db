"""A reproduction as Markdown for people, and as Parquet for those who go on from its numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import pyarrow as pa

from lsap_archive import to_parquet
from tasks.reports.paper.claims import Claim
from tasks.reports.paper.traced_numbers import PaperTable
from tasks.reports.text import NOTHING, as_number
from tasks.visible_text import in_markdown

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


def tables_parquet(tables: Sequence[PaperTable]) -> bytes:
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


def tables_markdown(title: str, tables: Sequence[PaperTable], claims: Sequence[Claim], remarks: Iterable[str]) -> str:
    """Everything but the pictures."""
    parts = [f"# {in_markdown(title)}", *map(in_markdown, remarks)]
    for table in tables:
        parts += [f"## {table.title}", in_markdown(table.caption), table_markdown(table)]
        parts += map(in_markdown, table.notes)
    if claims:
        parts += ["## What the paper says", _claims(claims)]
    return "\n\n".join(parts) + "\n"


def table_markdown(table: PaperTable) -> str:
    """One table: means, beside the published number where there is one."""
    heads, marks = [""], ["---"]
    for index, column in enumerate(table.columns):
        title = " ".join(filter(None, (column.group, column.title, column.arrow)))
        if column.detail:
            title += f" [{column.detail}]"
        heads += [f"{title}, {table.paper}", f"{title}, measured"] if _has_paper(table, index) else [title]
        marks += ["---:"] * (2 if _has_paper(table, index) else 1)
    lines = [_line(heads), _line(marks)]
    for row in table.rows:
        cells = [row.title]
        for index, (column, cell) in enumerate(zip(table.columns, row.cells, strict=True)):
            measured = as_number(cell.measured.mean, column.decimals)
            if cell.measured.is_there and cell.measured.mean == table.best(index):
                measured = f"**{measured}**"
            if _has_paper(table, index):
                cells.append(paper_text(cell.paper, column.decimals))
            cells.append(measured)
        lines.append(_line(cells))
    return "\n".join(lines)


def paper_text(value: float | str | None, decimals: int) -> str:
    """A published number, or the paper's mark, as text."""
    if value is None:
        return NOTHING
    return value if isinstance(value, str) else as_number(value, decimals)


def _has_paper(table: PaperTable, column: int) -> bool:
    return any(row.cells[column].paper is not None for row in table.rows)


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(map(in_markdown, cells))} |"


def _claims(claims: Sequence[Claim]) -> str:
    lines = [
        f"- {in_markdown(f'{claim.topic}: {claim.text}')}: **{claim.outcome}** ({as_number(claim.first.mean)} and "
        f"{as_number(claim.second.mean)}; difference {as_number(claim.difference.mean)}, 95 % interval "
        f"{as_number(claim.low)} to {as_number(claim.high)}, {claim.difference.count:,} images)."
        for claim in claims
    ]
    return "\n".join([*lines, "", CLAIM_RULE])


CLAIM_RULE = (
    "Confirmed: the 95 % interval of the mean difference over these images lies on the claimed side of zero; refuted: "
    "on the other side; else not decided. The interval is over images, with one training of each encoder and one run "
    "of each optimization; other seeds may differ by more."
)
