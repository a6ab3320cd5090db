"""Numbers of a table, each with the query that gives it: what is printed is what the query answers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import duckdb
import pyarrow as pa

from tasks.reports.statistics import NOTHING_MEASURED, Number

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


def mean_difference_of_changes(
    ask: Ask, one: tuple[Subject, Subject], other: tuple[Subject, Subject], measure: Measure
) -> Number:
    """The mean over images of how much further one edit moves a measure than another, image by image.

    Args:
        ask: answers the query.
        one: edited and unedited images.
        other: those of which the change is subtracted, of the same images.
        measure: of all.
    """
    subjects = dict(zip(("edited", "unedited", "other_edited", "other_unedited"), (*one, *other), strict=True))
    if not all(subject.evaluations for subject in subjects.values()):
        return NOTHING_MEASURED
    first, *others = subjects
    joined = " ".join(f"join measurements {name} using (image_id)" for name in others)
    where = "\n  and ".join(_where(f"{name}.", subject, measure) for name, subject in subjects.items())
    evaluations = tuple(dict.fromkeys(one for subject in subjects.values() for one in subject.evaluations))
    value = "(edited.value - unedited.value) - (other_edited.value - other_unedited.value)"
    return _answer(ask, f"from measurements {first} {joined}\nwhere {where}", value, evaluations)


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
