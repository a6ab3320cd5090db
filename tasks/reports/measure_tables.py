"""Tables of what was measured: a row for each method and edit, a column for each measure and network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lsap_archive import Archive
from tasks.archived.runs import title_of
from tasks.measuring.measures import MEASURES
from tasks.reports.measured_means import Means, Measured
from tasks.reports.statistics import NOTHING_MEASURED, Number
from tasks.reports.tables import Cell, Column, ShownTable, Table, TableRow, lines_with_margins, shown
from tasks.reports.text import decimals_for
from tasks.visible_text import in_markdown, markdown_table

FRECHET = "frechet"
TITLES = {
    "mse": "MSE",
    "psnr": "PSNR",
    "ms_ssim": "MS-SSIM",
    "lpips": "LPIPS",
    "sncd": "SNCD",
    "w_distance": "distance to the mean code",
    "attribute": "after",
    "attribute_of_original": "of the original",
    "class_confidence": "confidence in the class",
    "lec": "LEC",
    FRECHET: "Fréchet distance",
}
"""Names of measures for people, where they are not their own."""
GROUPS = {
    "Closeness to the originals": ("mse", "psnr", "ms_ssim", "lpips", "identity", "class_kept"),
    "Alignment and editability": ("sncd", "w_distance", "lec"),
    "Attributes": ("attribute_of_original", "attribute"),
    "Among other images": (FRECHET, "distance_to_real", "class_confidence"),
}
FURTHER = "Further measures"
"""Everything that is in no group."""
DECIMALS = {"psnr": 2, "attribute": 3, "attribute_of_original": 3}
UNRANKED = ("sncd",)
"""Neither lower nor higher is better, whatever an optimization minimizes: the best SNCD is that of one code for all."""


@dataclass(frozen=True)
class Subject:
    """What is measured: an inversion, a refinement or an edit.

    Attributes:
        name: such as "lsap_e/slant".
        title: for people.
        is_edit: whether it is an edit of the one above it.
    """

    name: str
    title: str
    is_edit: bool = False


def subjects_of(archive: Archive | None, names: Sequence[str]) -> list[Subject]:
    """These methods and edits for people, in the order in which they were made, every edit below its method.

    Args:
        archive: where they are; None for encoders of which nothing is archived.
        names: in any order; what is not in the archive stays in theirs.
    """
    newest = {} if archive is None else {run.method: run for run in archive.runs}  # the oldest comes first
    found: dict[str, list[Subject]] = {}
    places = {name: place for place, name in enumerate(newest)}
    for name in sorted(names, key=lambda one: places.get(one, len(places))):
        run = newest.get(name)
        is_edit = run is not None and run.subject is not None and run.subject.is_edit
        above = run.subject.method if is_edit and run is not None and run.subject is not None else name
        found.setdefault(above, []).append(Subject(name, name if run is None else title_of(run), is_edit))
    return [one for of_method in found.values() for one in sorted(of_method, key=lambda one: one.is_edit)]


def measure_tables(
    subjects: Sequence[Subject], means: Means, frechet: Mapping[str, Number], frechet_network: str | None
) -> list[Table]:
    """What was measured, in a few tables that each fit a page; a measure without any value is left out.

    Args:
        subjects: the rows.
        means: of their images.
        frechet: distances of whole sets by name.
        frechet_network: whose features these are of.
    """
    names = [one.name for one in subjects]
    numbers = {key: one for key, one in means.numbers.items() if key.method in names and one.is_there}
    numbers |= {Measured(name, FRECHET, frechet_network): one for name, one in frechet.items() if name in names}
    measured = sorted({(key.measure, key.by) for key in numbers}, key=lambda one: (one[0], one[1] or ""))
    grouped = {measure for group in GROUPS.values() for measure in group}
    further = tuple(dict.fromkeys(measure for measure, _ in measured if measure not in grouped))
    tables = []
    for title, group in {**GROUPS, FURTHER: further}.items():
        asked = [(name, by) for name in group for measure, by in measured if measure == name]
        if asked:
            tables.append(_table(title, asked, subjects, numbers))
    return tables


@dataclass(frozen=True)
class ShownMeasures:
    """Tables of measures as `measure_tables.html.j2` draws them.

    Attributes:
        shown: the tables.
        edits: names of the rows that are edits.
        missing: measure, code of the reason, values and methods of what has no value.
    """

    shown: tuple[ShownTable, ...]
    edits: frozenset[str]
    missing: tuple[tuple[str, str, int, str], ...]


def shown_measures(subjects: Sequence[Subject], means: Means, tables: Sequence[Table]) -> ShownMeasures:
    """The tables of these subjects, and what is missing in them."""
    titles = {one.name: one.title for one in subjects}
    missing: dict[tuple[str, str], dict[str, int]] = {}
    for (key, why), count in means.missing.items():
        if key.method in titles:
            name = key.measure if key.by is None else f"{key.measure} [{key.by}]"
            missing.setdefault((name, why), {})[titles[key.method]] = count
    lines = [(*key, sum(of.values()), "; ".join(of)) for key, of in sorted(missing.items())]
    edits = frozenset(one.name for one in subjects if one.is_edit)
    return ShownMeasures(tuple(shown(table, half_interval) for table in tables), edits, tuple(lines))


def half_interval(number: Number) -> float:
    """Half the width of the 95 % interval of a mean; NaN where there is none."""
    return number.interval[1] - number.mean


def tables_with_intervals(tables: Sequence[Table]) -> str:
    """The tables as Markdown: means ± half their 95 % interval."""
    parts = []
    for table in tables:
        heads = [" ".join(filter(None, (_whole_title(one), one.arrow))) for one in table.columns]
        _, *lines = lines_with_margins(table, half_interval)
        parts.append(f"### {in_markdown(table.title)}\n\n{markdown_table([[*table.heads, *heads], *lines])}")
    return "\n\n".join(parts)


def _table(
    title: str,
    asked: Sequence[tuple[str, str | None]],
    subjects: Sequence[Subject],
    numbers: Mapping[Measured, Number],
) -> Table:
    def of(subject: Subject, measure: str, by: str | None) -> Number:
        return numbers.get(Measured(subject.name, measure, by), NOTHING_MEASURED)

    columns = tuple(_column(*one, [of(subject, *one).mean for subject in subjects]) for one in asked)
    rows = []
    for subject in subjects:
        found = [of(subject, *one) for one in asked]
        count = max(one.count for one in found)
        if count:
            rows.append(TableRow(subject.name, subject.title, tuple(map(Cell, found)), (f"{count:,}",)))
    name = title.lower().replace(" ", "-")
    return Table(name, title, "Means over images.", columns, tuple(rows), heads=("method", "images"))


def _column(measure: str, by: str | None, means: Sequence[float]) -> Column:
    about = MEASURES.get(measure)
    better = "lower" if measure == FRECHET else None if about is None or measure in UNRANKED else about.better
    title, group = TITLES.get(measure, measure.replace("_", " ")), ""
    if measure in GROUPS["Attributes"] and by is not None:
        group, by = by.replace("_", " "), None
    detail = ", ".join(filter(None, (by, "" if about is None else about.unit)))
    decimals = DECIMALS.get(measure) or decimals_for(means, least=4)
    return Column(f"{measure}/{by}" if by else measure, title, detail, better, decimals, group)


def _whole_title(column: Column) -> str:
    told = " ".join(filter(None, (column.group, column.title)))
    return f"{told} [{column.detail}]" if column.detail else told
