"""Tables of numbers: which are bold, and how they stand in Markdown."""

from __future__ import annotations

import pytest

from tasks.reports.statistics import Number
from tasks.reports.tables import Cell, Column, Table, TableRow, lines_with_margins, table_markdown
from tasks.visible_text import markdown_table


def table(values: list[float], **column: object) -> Table:
    rows = tuple(TableRow(f"m{index}", f"m{index}", (Cell(Number(value)),)) for index, value in enumerate(values))
    return Table("t", "T", "", (Column("mse", "MSE", decimals=2, **column),), rows)


@pytest.mark.parametrize(
    ("values", "better", "bold"),
    [
        ([0.301, 0.1, 0.2], "lower", ["**0.10**"]),
        ([0.301, 0.1, 0.2], "higher", ["**0.30**"]),
        ([0.304, 0.1, 0.3], "higher", ["**0.30**", "**0.30**"]),  # a reader cannot tell them apart
        ([0.301, 0.302, 0.303], "lower", []),
        ([0.301, float("nan")], "lower", []),
        ([0.1, 0.2], None, []),
    ],
)
def test_bold_is_what_prints_the_same_as_the_best(values: list[float], better: str | None, bold: list[str]) -> None:
    written = table_markdown(table(values, better=better))
    assert [cell for line in written.splitlines() for cell in line.split(" | ") if "**" in cell] == [
        *(f"{cell} |" for cell in bold)
    ]


def test_margins_stand_where_there_are_some_and_columns_stand_straight_on_a_terminal() -> None:
    both = Table("t", "T", "", (Column("mse", "MSE"),), (
        TableRow("a", "a|b", (Cell(Number(1234.5, 2.0, 4)),)), TableRow("c", "long", (Cell(Number(0.5, count=1)),))
    ))  # fmt: skip
    lines = lines_with_margins(both, lambda number: number.standard_error)
    assert lines == [["", "MSE ↓"], ["a|b", "1,234.5000 ± 1.0000"], ["long", "0.5000"]]
    assert markdown_table(lines, is_padded=True).splitlines() == [
        "|      |               MSE ↓ |",
        "| ---- | ------------------: |",
        "| a\\|b | 1,234.5000 ± 1.0000 |",
        "| long |              0.5000 |",
    ]
