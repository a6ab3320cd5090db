"""Numbers of a table, each with the query that gives it: what is printed is what the query answers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import duckdb
import pyarrow as pa

from tasks.reports.paper.published import Published

Ask = Callable[[str], pa.Table]
"""Answers SQL over a table `measurements`."""


def asking(measurements: pa.Table) -> Ask:
    """Answers of DuckDB over these measurements, in MEASUREMENT_SCHEMA."""
    connection = duckdb.connect(config={"python_enable_replacements": False})
    connection.register("measurements", measurements)

    def ask(query: str) -> pa.Table:
        return connection.sql(query).to_arrow_table()

    return ask


@dataclass(frozen=True)
class Number:
    """A mean over images.

    Attributes:
        mean: NaN where nothing was measured.
        deviation: standard deviation over the images (n - 1); NaN with fewer than two.
        count: images with a value.
        skipped: images that were looked at and gave none.
        problem: code of why one of them gave none, or "".
        source: the query, or the object and key, that gives the number.
        evaluations: ids of the evaluations that it comes from.
    """

    mean: float
    deviation: float = math.nan
    count: int = 0
    skipped: int = 0
    problem: str = ""
    source: str = ""
    evaluations: tuple[str, ...] = ()

    @property
    def is_there(self) -> bool:
        """Whether anything was measured."""
        return math.isfinite(self.mean)


NOTHING_MEASURED = Number(math.nan)


@dataclass(frozen=True)
class Subject:
    """Whose images are measured: a method's inversions, or one edit of them.

    Attributes:
        method: as in the column `method` of the measurements, such as "lsap_e" or "lsap_e/slant".
        evaluations: ids of the evaluations that count.
    """

    method: str
    evaluations: tuple[str, ...]


@dataclass(frozen=True)
class Measure:
    """What is measured.

    Attributes:
        name: column `measure`, such as "lpips".
        by: column `by`, such as the network; None where there is none.
    """

    name: str
    by: str | None = None


def mean_of(ask: Ask, subject: Subject, measure: Measure) -> Number:
    """The mean of a measure over a subject's images."""
    if not subject.evaluations:
        return NOTHING_MEASURED
    tables = f"from measurements\nwhere {_where('', subject, measure)}"
    return _answer(ask, tables, "value", subject.evaluations, more=", max(problem) as problem")


def mean_strength(ask: Ask, subject: Subject) -> Number:
    """The strength that an edit was applied with; with spread where it differs between images."""
    if not subject.evaluations:
        return NOTHING_MEASURED
    tables = f"from (select distinct image_id, strength from measurements\nwhere {_subject('', subject)})"
    return _answer(ask, tables, "strength", subject.evaluations)


def mean_difference(ask: Ask, one: Subject, other: Subject, measure: Measure, *, size: bool = False) -> Number:
    """The mean over images of a measure of one subject minus that of another, image by image.

    Args:
        ask: answers the query.
        one: the subject.
        other: what is subtracted, of the same images.
        measure: of both.
        size: the size of each difference instead of the difference.
    """
    if not one.evaluations or not other.evaluations:
        return NOTHING_MEASURED
    value = "one.value - other.value"
    tables = (
        f"from measurements one join measurements other using (image_id)\nwhere {_where('one.', one, measure)}\n"
        f"  and {_where('other.', other, measure)}"
    )
    evaluations = tuple(dict.fromkeys((*one.evaluations, *other.evaluations)))
    return _answer(ask, tables, f"abs({value})" if size else value, evaluations)


def quoted(text: str) -> str:
    """A text as SQL writes it."""
    return "'" + text.replace("'", "''") + "'"


def _answer(ask: Ask, tables: str, value: str, evaluations: tuple[str, ...], more: str = "") -> Number:
    columns = f"avg({value}) as mean, stddev_samp({value}) as deviation, count({value}) as n, count(*) as seen"
    query = f"select {columns}{more}\n{tables}"
    found = ask(query).to_pylist()[0]
    mean, deviation = (math.nan if found[name] is None else float(found[name]) for name in ("mean", "deviation"))
    skipped = found["seen"] - found["n"]
    return Number(mean, deviation, found["n"], skipped, found.get("problem") or "", query, evaluations)


def _where(table: str, subject: Subject, measure: Measure) -> str:
    by = f'{table}"by" is null' if measure.by is None else f'{table}"by" = {quoted(measure.by)}'
    return f"{_subject(table, subject)} and {table}measure = {quoted(measure.name)} and {by}"


def _subject(table: str, subject: Subject) -> str:
    return f"{table}evaluation_id in ({_listed(subject.evaluations)}) and {table}method = {quoted(subject.method)}"


def _listed(texts: Sequence[str]) -> str:
    return ", ".join(quoted(text) for text in texts)


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
    """A cell: what was published, and what was measured; either may be missing."""

    measured: Number = NOTHING_MEASURED
    paper: Published | None = None


@dataclass(frozen=True)
class TableRow:
    """A row: name for machines, title for people, a cell for each column."""

    name: str
    title: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class PaperTable:
    """A table, ready to be written in any form.

    Attributes:
        name: such as "table1".
        title: headline.
        caption: what is seen in it, in a sentence or two.
        columns: in order.
        rows: in order.
        paper: what the published numbers are, such as "paper"; None where they have no place here.
        notes: sentences below the table.
    """

    name: str
    title: str
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[TableRow, ...]
    paper: str | None = None
    notes: tuple[str, ...] = ()

    def best(self, column: int) -> float | None:
        """The best measured value of a column, where rows differ in it."""
        values = {row.cells[column].measured.mean for row in self.rows if row.cells[column].measured.is_there}
        if len(values) < 2 or self.columns[column].better is None:
            return None
        return min(values) if self.columns[column].better == "lower" else max(values)
