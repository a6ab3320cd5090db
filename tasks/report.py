"""The report of a run: one HTML page that needs nothing but itself, and its main table as Markdown."""

from __future__ import annotations

import base64
import io
import itertools
import math
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.special import stdtrit

from lsap_archive.schema import DUPLICATE, FAILED, OK

CONFIDENCE = 0.95
MATCHED_WITHIN = 0.05  # mean LPIPS that differ by no more than this share count as equal
SHOWN_FAILURES = 50
COLLAPSED_WITHIN = 0.1  # of the way from the mean code's SNCD to that of psi = 1

MEASURED = ("mse", "lpips", "lpips_judge", "identity_similarity", "sncd", "w_distance", "seconds", "final_loss")
COMPARED = ("sncd", "lpips", "mse", "identity_similarity")
HIGHER_IS_BETTER = frozenset({"identity_similarity"})


# --- what a report is made from ----------------------------------------------------------------------


@dataclass(frozen=True)
class MethodInfo:
    """A method of the run.

    Attributes:
        name: as in the column `method` of the rows, such as "lsap_o_w".
        title: what the paper calls it, such as "LSAP_O-W".
        settings: its constants; `sncd_weight` and `mean_code_weight` say which methods align and which only shrink.
        base: name of the method that it adds a term to, or None.
    """

    name: str
    title: str
    settings: dict[str, Any]
    base: str | None

    @property
    def is_aligned(self) -> bool:
        """SNCD is a part of its loss."""
        return bool(self.settings.get("sncd_weight", 0) > 0)

    @property
    def is_control(self) -> bool:
        """It shrinks codes toward the mean code and knows nothing of SNCD."""
        return bool(self.settings.get("mean_code_weight", 0) > 0 and not self.is_aligned)


@dataclass(frozen=True)
class ContactCell:
    """What one method made of one image: two PNG files; the difference is absolute, black where both agree."""

    reconstruction_png: bytes
    difference_png: bytes


@dataclass(frozen=True)
class ContactRow:
    """One image of the contact sheet; a method that is missing in `cells` did not invert it."""

    image_id: str
    original_png: bytes
    cells: dict[str, ContactCell]


@dataclass(frozen=True)
class ReportData:
    """All that a report tells.

    Attributes:
        title: the headline.
        created: UTC time, ISO 8601.
        archive_url: where the archive is.
        config_yaml: the configuration of the run.
        domain: name of the domain.
        generator: name, digest, resolution, num_ws, w_dim, image_channels.
        perceptual: the network in the loss, of the column `lpips`.
        judge: a network that no method has seen, of the column `lpips_judge`, or None.
        identity: the network of the column `identity_similarity`, or None.
        methods: in the order they are shown.
        rows: table in ROW_SCHEMA; where an image has several rows of one method, the last one counts.
        references: SNCD of codes whose alignment is known, by printed label.
        contact: the images to show.
        summary: wall_seconds, images_per_second, num_workers, device, commit, versions.
        locations: what lies where, by label.
    """

    title: str
    created: str
    archive_url: str
    config_yaml: str
    domain: str
    generator: dict[str, Any]
    perceptual: str
    judge: str | None
    identity: str | None
    methods: tuple[MethodInfo, ...]
    rows: pa.Table
    references: dict[str, float]
    contact: tuple[ContactRow, ...]
    summary: dict[str, Any]
    locations: dict[str, str]


# --- means -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Estimate:
    """Mean of the finite values and its standard error; NaN where there are too few of them."""

    mean: float
    standard_error: float
    num_values: int

    @classmethod
    def of(cls, values: NDArray[np.float64]) -> Estimate:
        """The estimate from one value per image; what is not finite is left out and not counted."""
        finite = values[np.isfinite(values)]
        mean = float(finite.mean()) if finite.size else math.nan
        error = float(finite.std(ddof=1) / math.sqrt(finite.size)) if finite.size > 1 else math.nan
        return cls(mean, error, int(finite.size))


@dataclass(frozen=True)
class MethodSummary:
    """What became of a method's images, and the means over those that are ok.

    Attributes:
        method: its name.
        num_ok: images with a code.
        num_failed: images with a reason instead.
        num_duplicate: images that share the code of another one; they enter no mean.
        num_steps: the largest number of steps taken, or None.
        mse: in the range [-1, 1].
        lpips: by the network in the loss.
        lpips_judge: by the network that no method has seen.
        identity_similarity: cosine, higher is closer.
        sncd: to be read beside its references.
        w_distance: from the code to the mean code.
        seconds: wall time per image.
        final_loss: value of the objective at the last step.
    """

    method: str
    num_ok: int
    num_failed: int
    num_duplicate: int
    num_steps: int | None
    mse: Estimate
    lpips: Estimate
    lpips_judge: Estimate
    identity_similarity: Estimate
    sncd: Estimate
    w_distance: Estimate
    seconds: Estimate
    final_loss: Estimate

    @property
    def num_images(self) -> int:
        """All images of the method."""
        return self.num_ok + self.num_failed + self.num_duplicate


def summarize_rows(rows: pa.Table, methods: Sequence[MethodInfo]) -> list[MethodSummary]:
    """Counts, means and standard errors of each method, in the order of `methods`."""
    summaries = []
    for method in methods:
        newest = _newest_rows(rows, method.name)
        ok, num_failed = _with_status(newest, OK), _with_status(newest, FAILED).num_rows
        summaries.append(
            MethodSummary(
                method=method.name,
                num_ok=ok.num_rows,
                num_failed=num_failed,
                num_duplicate=newest.num_rows - ok.num_rows - num_failed,
                num_steps=pc.max(ok.column("num_steps")).as_py(),
                **{name: Estimate.of(_values(ok, name)) for name in MEASURED},
            )
        )
    return summaries


def _newest_rows(rows: pa.Table, method: str) -> pa.Table:
    """One row per image. Where several runs embedded it, the newest counts, which stands last."""
    table = rows.filter(pc.equal(rows.column("method"), method))
    newest = {image_id: index for index, image_id in enumerate(table.column("image_id").to_pylist())}
    return table if len(newest) == table.num_rows else table.take(pa.array(sorted(newest.values()), pa.int64()))


def _with_status(table: pa.Table, status: str) -> pa.Table:
    return table.filter(pc.equal(table.column("status"), status))


def _values(table: pa.Table, column: str) -> NDArray[np.float64]:
    """A column of measurements, [N]; null becomes NaN."""
    return np.asarray(table.column(column).cast(pa.float64()).to_numpy(), dtype=np.float64)


# --- paired differences ------------------------------------------------------------------------------

Verdict = Literal["lower", "higher", "no clear difference", "undetermined"]


@dataclass(frozen=True)
class PairedDifference:
    """One metric of a method minus that of another one, on the images that both have.

    Attributes:
        method: the method in question.
        other: the one that it is held against.
        relation: "base" (it adds a term to the other) or "control" (the other only shrinks toward the mean code).
        metric: the column.
        num_images: images with a finite value of both.
        mean: of the method, over these images.
        mean_other: of the other.
        mean_difference: mean - mean_other.
        low: lower end of the 95 % t interval of the mean difference; NaN with fewer than two images.
        high: upper end.
        share_improved: share of images where the method is closer (higher identity, else lower); for SNCD this
            says "lower", which is not always better.
        is_matched: for a control, whether the mean LPIPS of both agree within 5 %; None for a base.
    """

    method: str
    other: str
    relation: Literal["base", "control"]
    metric: str
    num_images: int
    mean: float
    mean_other: float
    mean_difference: float
    low: float
    high: float
    share_improved: float
    is_matched: bool | None

    @property
    def verdict(self) -> Verdict:
        """What the interval allows to say."""
        if self.num_images < 2:
            return "undetermined"
        if self.low <= 0 <= self.high:
            return "no clear difference"
        return "lower" if self.high < 0 else "higher"

    @property
    def relative(self) -> float:
        """The difference as a share of the other's mean; NaN where that is zero."""
        return self.mean_difference / abs(self.mean_other) if self.mean_other else math.nan


def compare_pairs(rows: pa.Table, methods: Sequence[MethodInfo]) -> list[PairedDifference]:
    """Each method against its base, and each aligned method against the control of the same base.

    The interval is the mean difference +- t(N - 1) times its standard error: over images, not over generators or
    random streams. Images count as the same when id and content agree.

    Returns:
        The metrics of COMPARED for each pair, in the order of `methods`, bases before controls.
    """
    by_name = {method.name: method for method in methods}
    tables = {name: _with_status(_newest_rows(rows, name), OK) for name in by_name}
    based: list[tuple[str, str, Literal["base", "control"]]] = [
        (method.name, method.base, "base") for method in methods if method.base in by_name and method.base
    ]
    controlled: list[tuple[str, str, Literal["base", "control"]]] = [
        (method.name, control.name, "control")
        for method in methods
        for control in methods
        if method.is_aligned and control.is_control and method.base == control.base
    ]
    differences = []
    for name, other, relation in based + controlled:
        here, there = _same_images(tables[name], tables[other])
        lpips, lpips_other = _both_finite(here, there, "lpips")
        is_matched = None
        if relation == "control":
            mean, mean_other = Estimate.of(lpips).mean, Estimate.of(lpips_other).mean
            is_matched = abs(mean - mean_other) <= MATCHED_WITHIN * abs(mean_other)  # False where one is NaN
        for metric in COMPARED:
            values, values_other = _both_finite(here, there, metric)
            differences.append(_difference(name, other, relation, metric, values, values_other, is_matched))
    return differences


def _same_images(here: pa.Table, there: pa.Table) -> tuple[pa.Table, pa.Table]:
    """The rows of both tables for the images that both have, in the same order."""

    def keys(table: pa.Table) -> Iterable[tuple[str, str]]:
        return zip(table.column("image_id").to_pylist(), table.column("digest").to_pylist(), strict=True)

    places = {key: index for index, key in enumerate(keys(there))}
    pairs = [(index, places[key]) for index, key in enumerate(keys(here)) if key in places]
    return (
        here.take(pa.array([index for index, _ in pairs], pa.int64())),
        there.take(pa.array([place for _, place in pairs], pa.int64())),
    )


def _both_finite(here: pa.Table, there: pa.Table, metric: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    values, values_other = _values(here, metric), _values(there, metric)
    finite = np.isfinite(values) & np.isfinite(values_other)
    return values[finite], values_other[finite]


def _difference(
    method: str,
    other: str,
    relation: Literal["base", "control"],
    metric: str,
    values: NDArray[np.float64],
    values_other: NDArray[np.float64],
    is_matched: bool | None,
) -> PairedDifference:
    gains = values - values_other
    size = gains.size
    estimate = Estimate.of(gains)
    margin = float(stdtrit(size - 1, (1 + CONFIDENCE) / 2)) * estimate.standard_error if size > 1 else math.nan
    improved = gains > 0 if metric in HIGHER_IS_BETTER else gains < 0
    return PairedDifference(
        method=method,
        other=other,
        relation=relation,
        metric=metric,
        num_images=size,
        mean=Estimate.of(values).mean,
        mean_other=Estimate.of(values_other).mean,
        mean_difference=estimate.mean,
        low=estimate.mean - margin,
        high=estimate.mean + margin,
        share_improved=float(improved.mean()) if size else math.nan,
        is_matched=is_matched,
    )


# --- numbers and names as text -----------------------------------------------------------------------

NOTHING = "–"
HARD_SPACE = "\N{NO-BREAK SPACE}"


def _decimals(values: Iterable[float], significant: int = 3, least: int = 4) -> int:
    """Decimals that show the smallest of the values with some significant digits."""
    sizes = [abs(value) for value in values if math.isfinite(value) and value]
    wanted = significant - 1 - math.floor(math.log10(min(sizes))) if sizes else least
    return max(least, min(wanted, 7))


def _number(value: float | None, decimals: int = 4) -> str:
    if value is None or not math.isfinite(value):
        return NOTHING
    return f"{value:,.{decimals}f}".replace("-", "−")


def _percent(share: float) -> str:
    return f"{100 * share:.0f}{HARD_SPACE}%" if math.isfinite(share) else NOTHING


def _change(share: float) -> str:
    return f"{100 * share:+.0f}{HARD_SPACE}%".replace("-", "−") if math.isfinite(share) else NOTHING


def _duration(seconds: float | None) -> str:
    if seconds is None or not math.isfinite(seconds):
        return NOTHING
    if seconds < 10:
        return f"{seconds:.2f}{HARD_SPACE}s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = [(hours, "h"), (minutes, "min")] if hours else [(minutes, "min"), (rest, "s")]
    return HARD_SPACE.join(f"{amount}{HARD_SPACE}{unit}" for amount, unit in parts if amount)


def _count_of(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _shortened(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length // 2]} … {text[-length // 2 :]}"


def _visible(text: str, kept: str = HARD_SPACE) -> str:
    r"""The text with its control, format and surrogate characters written out, such as \n or \u202e.

    Names of images are anybody's: a newline breaks a table, a direction mark turns a line around and a lone
    surrogate cannot be encoded at all.
    """
    return "".join(
        char if char.isprintable() or char in kept else char.encode("unicode_escape").decode() for char in text
    )


def _reference_title(label: str) -> str:
    """The label as it is printed: psi as the letter, and no line break within "ψ = 1"."""
    return label.replace("psi = ", f"ψ{HARD_SPACE}={HARD_SPACE}")


def _short_reference_title(label: str) -> str:
    return _reference_title(label.removeprefix("synthetic, "))


def _labels(data: ReportData) -> dict[str, str]:
    """The compared columns that the domain has networks for, as they are named in sentences."""
    labels = {"mse": "MSE", "lpips": f"LPIPS [{data.perceptual}]", "sncd": "SNCD"}
    if data.judge is not None:
        labels["lpips_judge"] = f"LPIPS [{data.judge}]"
    if data.identity is not None:
        labels["identity_similarity"] = "identity similarity"
    return labels


# --- the comparison table ----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Column:
    metric: str
    title: str
    network: str | None
    arrow: str
    unit: str

    @property
    def full_title(self) -> str:
        return f"{self.title} [{self.network}]" if self.network else self.title


@dataclass(frozen=True)
class _Cell:
    text: str
    margin: str
    is_best: bool


@dataclass(frozen=True)
class _TableRow:
    title: str
    color: str
    num_ok: str
    others: str
    cells: tuple[_Cell, ...]


@dataclass(frozen=True)
class _Table:
    columns: tuple[_Column, ...]
    rows: tuple[_TableRow, ...]
    references: tuple[tuple[str, str, str], ...]  # label, SNCD, meaning


_REFERENCE_MEANINGS = {
    "floor": "the least that any codes can score: every code along the mean style",
    "mean code": "the mean code, whatever the image",
    "synthetic, psi = 0.5": "the generator's own codes, pulled half way to the mean",
    "synthetic, psi = 0.7": "the generator's own codes, pulled toward the mean",
    "synthetic, psi = 1": "the generator's own codes as they are",
}


def _comparison_table(data: ReportData, summaries: Sequence[MethodSummary]) -> _Table:
    columns = [
        _Column("mse", "MSE", None, "↓", "range [−1, 1]"),
        _Column("lpips", "LPIPS", data.perceptual, "↓", "in the loss"),
    ]
    if data.judge is not None:
        columns.append(_Column("lpips_judge", "LPIPS", data.judge, "↓", "not in the loss"))
    if data.identity is not None:
        columns.append(_Column("identity_similarity", "Identity", data.identity, "↑", "cosine similarity"))
    columns.append(_Column("sncd", "SNCD", None, "", "cosine distance"))
    cells: list[list[_Cell]] = []
    for column in columns:
        estimates = [getattr(summary, column.metric) for summary in summaries]
        shown = [estimate.mean for estimate in estimates]
        if column.metric == "sncd":
            shown += data.references.values()
        decimals = _decimals(shown)
        means = [_number(estimate.mean, decimals) for estimate in estimates]
        best = None
        finite = [estimate.mean for estimate in estimates if estimate.num_values]
        if column.metric != "sncd" and len(finite) > 1:
            best = _number(max(finite) if column.metric in HIGHER_IS_BETTER else min(finite), decimals)
        cells.append(
            [
                _Cell(mean, _number(estimate.standard_error, decimals), mean == best)
                for mean, estimate in zip(means, estimates, strict=True)
            ]
        )
    decimals = _decimals([*data.references.values(), *(summary.sncd.mean for summary in summaries)])
    return _Table(
        columns=tuple(columns),
        rows=tuple(
            _TableRow(
                title=method.title,
                color=_color(index),
                num_ok=f"{summary.num_ok:,} ok" if summary.num_images else "no rows",
                others=_unsuccessful(summary.num_failed, summary.num_duplicate),
                cells=tuple(column[index] for column in cells),
            )
            for index, (method, summary) in enumerate(zip(data.methods, summaries, strict=True))
        ),
        references=tuple(
            (_reference_title(label), _number(value, decimals), _REFERENCE_MEANINGS.get(label, ""))
            for label, value in data.references.items()
        ),
    )


def _unsuccessful(num_failed: int, num_duplicate: int) -> str:
    counts = [f"{num_failed:,} failed"] if num_failed else []
    return ", ".join([*counts, _count_of(num_duplicate, "duplicate")] if num_duplicate else counts)


def _table_notes(data: ReportData, summaries: Sequence[MethodSummary]) -> list[str]:
    """What a reader has to know before comparing the means."""
    notes = []
    labels = _labels(data)
    for method, summary in zip(data.methods, summaries, strict=True):
        for name, label in labels.items():
            missing = summary.num_ok - getattr(summary, name).num_values
            if missing:
                notes.append(
                    f"{method.title}: {missing:,} of {summary.num_ok:,} ok images have no finite {label}; "
                    "its mean leaves them out."
                )
        if not summary.num_ok:
            notes.append(f"{method.title}: no image was inverted, so there is nothing to average.")
    inverted = [_image_ids(_with_status(_newest_rows(data.rows, method.name), OK)) for method in data.methods]
    if any(images != inverted[0] for images in inverted):
        notes.append(
            "The methods did not all invert the same images, so their means stand for different sets. "
            "The paired differences use only images that both methods inverted."
        )
    if data.judge is None:
        notes.append(
            f"No judge network: LPIPS is measured by the network that is minimized ({data.perceptual}), "
            "which flatters every method."
        )
    if data.identity is None:
        notes.append("No identity network in this domain, so no identity similarity.")
    unlisted = sorted(set(data.rows.column("method").unique().to_pylist()) - {method.name for method in data.methods})
    if unlisted:
        notes.append(f"The rows also hold methods that this report was not asked for: {_listed(unlisted)}.")
    return notes


def render_markdown_table(data: ReportData) -> str:
    """The comparison table with its reference rows as Markdown, for a Prefect artifact or a terminal."""
    table = _comparison_table(data, summarize_rows(data.rows, data.methods))
    lines = [["Method", "Images", *(f"{column.full_title} {column.arrow}".rstrip() for column in table.columns)]]
    for row in table.rows:
        counts = ", ".join(part for part in (row.num_ok, row.others) if part)
        lines.append([row.title, counts, *(_with_margin(cell) for cell in row.cells)])
    for label, value, _ in table.references:
        lines.append([f"reference: {label}", "", *("" for _ in table.columns[:-1]), value])
    lines = [[_visible(cell).replace("\\", "\\\\").replace("|", "\\|") for cell in line] for line in lines]
    widths = [max(3, *(len(line[index]) for line in lines)) for index in range(len(lines[0]))]
    rule = ["-" * width if index < 2 else "-" * (width - 1) + ":" for index, width in enumerate(widths)]
    rows = [
        " | ".join(
            cell.ljust(width) if index < 2 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in (lines[0], rule, *lines[1:])
    ]
    return "\n".join(f"| {row} |" for row in rows) + (
        "\n\nMeans over ok images ± standard error. Lower SNCD is not always better: the floor is collapse, "
        "ψ = 1 the level of the generator's own codes.\n"
    )


def _with_margin(cell: _Cell) -> str:
    return cell.text if cell.margin == NOTHING else f"{cell.text} ± {cell.margin}"


# --- sentences made from numbers ---------------------------------------------------------------------


@dataclass(frozen=True)
class _Tile:
    title: str
    value: str
    detail: str


def _tiles(data: ReportData, summaries: Sequence[MethodSummary]) -> list[_Tile]:
    """The three numbers that a reader needs: how many images, how close, how well aligned."""
    by_name = {method.name: (method, summary) for method, summary in zip(data.methods, summaries, strict=True)}
    inverted = [pair for pair in by_name.values() if pair[1].num_ok]
    newest = [_newest_rows(data.rows, name) for name in by_name]
    everywhere = set.intersection(*(_image_ids(_with_status(table, OK)) for table in newest)) if newest else set()
    left = set[str]().union(*(_image_ids(table) for table in newest)) - everywhere
    total, parts = len(everywhere | left), ["by every method"] if len(newest) > 1 else []
    failed, duplicate = (
        set[str]().union(*(left & _image_ids(_with_status(table, status)) for table in newest))
        for status in (FAILED, DUPLICATE)
    )
    duplicate -= failed
    left -= failed | duplicate
    parts += [_unsuccessful(len(failed), len(duplicate))] if failed or duplicate else []
    parts += [f"{len(left):,} not tried by every method"] if left else []
    tiles = [_Tile("Images inverted", f"{len(everywhere):,} of {total:,}", "; ".join(parts))]
    if not inverted:
        return [*tiles, _Tile("LPIPS", NOTHING, "no image inverted"), _Tile("SNCD", NOTHING, "no image inverted")]
    method, summary = next((pair for pair in reversed(inverted) if pair[0].is_aligned), inverted[-1])
    base, base_summary = by_name.get(method.base or "", (None, None))
    level = data.references.get("synthetic, psi = 1")
    for metric, label in (("lpips", "LPIPS"), ("sncd", "SNCD")):
        mean, details = getattr(summary, metric).mean, []
        decimals = _decimals([mean])
        if base and base_summary and base_summary.num_ok:
            details.append(f"{_number(getattr(base_summary, metric).mean, decimals)} with {base.title}")
        if metric == "sncd" and level is not None:
            details.append(f"{_number(level, decimals)} for the generator's own codes")
        detail = "; ".join(details) or "nothing to compare with"
        tiles.append(_Tile(f"{label}, {method.title}", _number(mean, decimals), detail))
    return tiles


def _image_ids(table: pa.Table) -> set[str]:
    return set(table.column("image_id").to_pylist())


def _placement(value: float, references: Mapping[str, float]) -> str:
    """Where a mean SNCD lies among its references."""
    if not math.isfinite(value):
        return "has no SNCD to place"
    level, mean_code = references.get("synthetic, psi = 1"), references.get("mean code")
    if level is None or mean_code is None:
        return "cannot be placed: the references were not measured"
    if value <= mean_code + COLLAPSED_WITHIN * (level - mean_code):
        return "lies at the level of the mean code: its codes have collapsed toward the mean"
    if value > level:
        share = f"{_percent(value / level - 1)} " if level > 0 else ""
        return (
            f"lies {share}above {_short_reference_title('synthetic, psi = 1')}: its codes point further from the mean "
            "style than the generator's own"
        )
    ordered = sorted(references.items(), key=lambda item: item[1])
    below = [label for label, reference in ordered if reference <= value][-1]
    above = next(label for label, reference in ordered if reference >= value)
    where = (
        f"lies at {_short_reference_title(above)}"
        if above == below
        else f"lies between {_short_reference_title(below)} and {_short_reference_title(above)}"
    )
    return f"{where}: its codes point along the mean style more than the generator's own"


@dataclass(frozen=True)
class _ComparisonRow:
    label: str
    mean: str
    mean_other: str
    difference: str
    interval: str
    share: str
    words: str
    tone: str


@dataclass(frozen=True)
class _Comparison:
    heading: str
    title: str
    other: str
    sentences: tuple[str, ...]
    rows: tuple[_ComparisonRow, ...]


def _comparisons(data: ReportData, differences: Sequence[PairedDifference]) -> list[_Comparison]:
    titles = {method.name: method.title for method in data.methods}
    labels = _labels(data)
    comparisons = []
    for (name, other, relation), group in itertools.groupby(
        differences, key=lambda one: (one.method, one.other, one.relation)
    ):
        shown = [one for one in group if one.metric in labels]
        by_metric = {one.metric: one for one in shown}
        role = "its base" if relation == "base" else "the control that only shrinks toward the mean code"
        sentences = [_sncd_sentence(by_metric["sncd"], titles)]
        if relation == "control":
            sentences.insert(0, _matched_sentence(by_metric.pop("lpips")))
        sentences += _price_sentences(by_metric.values(), labels)
        if relation == "control" and by_metric["sncd"].verdict == "lower":
            sentences.append(_CONTROL_CAUTION)
        comparisons.append(
            _Comparison(
                heading=f"{titles[name]} against {titles[other]}, {role}",
                title=titles[name],
                other=titles[other],
                sentences=tuple(sentences),
                rows=tuple(_comparison_row(one, labels[one.metric]) for one in shown),
            )
        )
    return comparisons


_CONTROL_CAUTION = (
    "The aligned method minimizes SNCD and the control does not: a lower SNCD here shows that the term works, not yet "
    "that edits get better."
)


def _sncd_sentence(difference: PairedDifference, titles: Mapping[str, str]) -> str:
    title, other = titles[difference.method], titles[difference.other]
    size = _count_of(difference.num_images, "image")
    if difference.verdict == "undetermined":
        return f"SNCD: {size} with a value of both methods, too few to compare."
    decimals = _difference_decimals(difference)
    amount = f"{_number(abs(difference.mean_difference), decimals)} ({_percent(abs(difference.relative))})"
    interval = f"95 % interval of the difference {_interval(difference)}, {size}"
    if difference.verdict == "lower":
        return f"SNCD of {title} is lower than that of {other} by {amount}; {interval}."
    if difference.verdict == "higher":
        return f"SNCD of {title} is NOT lower than that of {other}: it is higher by {amount}; {interval}."
    return f"SNCD of {title} is not clearly lower than that of {other}: no clear difference; {interval}."


def _matched_sentence(lpips: PairedDifference) -> str:
    if lpips.num_images == 0:
        return "LPIPS cannot be matched: no image has a value of both methods."
    means = f"{_number(lpips.mean)} against {_number(lpips.mean_other)}, {_change(lpips.relative)}"
    if lpips.is_matched:
        return f"LPIPS is matched ({means}), so SNCD is compared at equal fidelity."
    return (
        f"LPIPS is not matched ({means}): the two sit at different points between fidelity and alignment, and the "
        "SNCD difference does not tell which term is better. Change sncd_weight or mean_code_weight until LPIPS "
        f"agrees within {_percent(MATCHED_WITHIN)}."
    )


def _price_sentences(differences: Iterable[PairedDifference], labels: Mapping[str, str]) -> list[str]:
    """What the rest did while SNCD moved: worse, better, unclear."""
    groups: dict[str, list[str]] = {"worse": [], "better": [], "unclear": []}
    for one in differences:
        if one.metric == "sncd" or one.verdict == "undetermined":
            continue
        if one.verdict == "no clear difference":
            groups["unclear"].append(labels[one.metric])
        else:
            groups[_tone(one)].append(f"{labels[one.metric]} ({_change(one.relative)})")
    sentences = []
    if groups["worse"]:
        sentences.append(f"Worse: {_listed(groups['worse'])}.")
    if groups["better"]:
        sentences.append(f"Better: {_listed(groups['better'])}.")
    if groups["unclear"]:
        sentences.append(f"No clear difference in {_listed(groups['unclear'])}.")
    return sentences


def _tone(difference: PairedDifference) -> str:
    """Worse or better; neither for SNCD, whose lower end is collapse."""
    if difference.metric == "sncd" or difference.verdict not in ("lower", "higher"):
        return ""
    is_better = (difference.verdict == "higher") == (difference.metric in HIGHER_IS_BETTER)
    return "better" if is_better else "worse"


def _comparison_row(difference: PairedDifference, label: str) -> _ComparisonRow:
    decimals = _difference_decimals(difference)
    words: str = difference.verdict
    if words == "undetermined":
        words = "too few images"
    elif _tone(difference):
        words = f"{words}, {_tone(difference)}"
    closer = "higher" if difference.metric in HIGHER_IS_BETTER else "lower"
    return _ComparisonRow(
        label=label[0].upper() + label[1:],
        mean=_number(difference.mean, decimals),
        mean_other=_number(difference.mean_other, decimals),
        difference=_number(difference.mean_difference, decimals),
        interval=_interval(difference),
        share=f"{closer} on {_percent(difference.share_improved)}" if difference.num_images else NOTHING,
        words=words,
        tone=_tone(difference),
    )


def _difference_decimals(difference: PairedDifference) -> int:
    return _decimals([difference.mean_difference, difference.high - difference.low], significant=2)


def _interval(difference: PairedDifference) -> str:
    decimals = _difference_decimals(difference)
    if not math.isfinite(difference.low):
        return NOTHING
    return f"{_number(difference.low, decimals)} to {_number(difference.high, decimals)}"


def _comparison_notes(data: ReportData) -> list[str]:
    """Comparisons that a reader would look for and that cannot be made."""
    names = {method.name for method in data.methods}
    titles = {method.name: method.title for method in data.methods}
    notes = [
        f"{method.title} is not compared with its base: {titles.get(method.base, method.base)} was not run."
        for method in data.methods
        if method.base and method.base not in names
    ]
    uncontrolled = [
        method.title
        for method in data.methods
        if method.is_aligned and not any(other.is_control and other.base == method.base for other in data.methods)
    ]
    if uncontrolled:
        notes.append(
            f"No control for {_listed(uncontrolled)}: without a method that only shrinks codes toward the mean code, "
            "this report cannot tell alignment from shrinkage."
        )
    return notes


# --- figures -----------------------------------------------------------------------------------------

# Okabe and Ito's palette: told apart with every common colour blindness, and visible on light and dark.
_PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
_MARKERS = "osD^vP"
_INK = "#010203"  # stands for the page's text colour until the SVG is written
_SCATTER_POINTS = 20_000  # per method


@dataclass(frozen=True)
class _Picture:
    uri: str
    alternative: str
    caption: str


def _color(index: int) -> str:
    return _PALETTE[index % len(_PALETTE)]


def _distribution(
    data: ReportData, values: Mapping[str, NDArray[np.float64]], label: str, references: Mapping[str, float]
) -> _Picture | None:
    """Histograms of one metric, a row for each method, over shared bins."""
    everything = np.concatenate([*values.values(), np.zeros(0)])
    if not everything.size:
        return None
    low, high, num_beyond = _limits(everything, references.values())
    num_bins = int(np.clip(math.sqrt(max(one.size for one in values.values())) * 2, 12, 48))
    bins = np.linspace(low, high, num_bins + 1)
    num_rows = len(data.methods)
    figure = Figure(figsize=(5.2, 1.15 + 0.72 * num_rows))  # the same for every metric: rows stand side by side
    axes = figure.subplots(num_rows, 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    for index, (method, ax) in enumerate(zip(data.methods, axes, strict=True)):
        own = values[method.name]
        _strip(ax)
        ax.spines["left"].set_visible(False)
        ax.set_yticks([])
        mean = f"mean {_number(float(own.mean()), _decimals([float(own.mean())]))}" if own.size else "no values"
        _write(ax, 0, 1.02, f"{method.title}  ·  {mean}", ha="left", va="bottom", transform=ax.transAxes)
        for value in references.values():
            ax.axvline(value, color=_INK, alpha=0.45, linewidth=0.8, linestyle=(0, (3, 2)))
        if own.size:
            shares = np.full(own.size, 1 / own.size)
            clipped = np.clip(own, low, high)
            ax.hist(clipped, bins, weights=shares, color=_color(index), alpha=0.85)
            ax.plot([own.mean()], [0], marker="^", markersize=6, color=_INK, clip_on=False, zorder=3)
    axes[-1].set_xlim(low, high)
    _name_axes(axes[-1], label, "")
    height = figure.get_figheight()
    figure.subplots_adjust(left=0.03, right=0.97, top=1 - 0.68 / height, bottom=0.48 / height, hspace=0.55)
    _label_references(axes[0], references, low, high)
    caption = "Share of a method's images in each bin; all rows have the same axes. ▲ marks the mean."
    if num_beyond:
        caption += f" The outermost bins also hold {_count_of(num_beyond, 'value')} beyond the axis."
    return _Picture(_svg_uri(figure), f"Histograms of {label}, one for each method", caption)


def _limits(values: NDArray[np.float64], references: Iterable[float] = ()) -> tuple[float, float, int]:
    """Ends of an axis, and how many values lie beyond it: a few strays must not squeeze all others."""
    low, high = float(values.min()), float(values.max())
    first, middle, last = (float(value) for value in np.quantile(values, [0.01, 0.5, 0.99]))
    reach = 2.5 * max(last - middle, middle - first)
    if reach > 0:
        low, high = max(low, middle - reach), min(high, middle + reach)
    known = [value for value in references if math.isfinite(value)]
    low, high = min([low, *known]), max([high, *known])
    margin = 0.03 * (high - low) or 0.05 * abs(high) or 0.05
    low, high = low - margin, high + margin
    return low, high, int(((values < low) | (values > high)).sum())


def _label_references(ax: Axes, references: Mapping[str, float], low: float, high: float) -> None:
    """Names above the reference lines, on as many levels as keep them apart; equal lines share a label."""
    gathered: list[tuple[float, str]] = []
    for label, value in sorted(references.items(), key=lambda item: item[1]):
        short = _short_reference_title(label)
        if gathered and value - gathered[-1][0] < 0.012 * (high - low):
            gathered[-1] = (gathered[-1][0], f"{gathered[-1][1]}, {short}")
        else:
            gathered.append((value, short))
    ends = [-math.inf] * 3
    for value, label in gathered:
        place, width = (value - low) / (high - low), 0.0115 * len(label) + 0.015  # shares of the axis
        start = min(max(place - width / 2, 0), 1 - width)
        level = next((index for index, end in enumerate(ends) if start > end), len(ends) - 1)
        ends[level] = start + width
        _write(
            ax,
            start + width / 2,
            1.4 + 0.26 * level,
            label,
            ha="center",
            va="bottom",
            transform=ax.transAxes,
            fontsize=7.5,
            alpha=0.8,
        )


def _scatter(data: ReportData, tables: Mapping[str, pa.Table]) -> _Picture | None:
    """LPIPS against SNCD, a point for each image and a large mark for each method's mean."""
    points = {}
    for name, table in tables.items():
        pairs = np.stack([_values(table, "lpips"), _values(table, "sncd")])
        points[name] = pairs[:, np.isfinite(pairs).all(axis=0)]
    everything = np.concatenate([*points.values(), np.zeros((2, 0))], axis=1)
    if not everything.shape[1]:
        return None
    references = {
        label: data.references[label]
        for label in ("floor", "synthetic, psi = 1")
        if math.isfinite(data.references.get(label, math.nan))
    }
    x_limits, y_limits = _limits(everything[0]), _limits(everything[1], references.values())
    figure = Figure(figsize=(10.6, 4.8), dpi=160)
    ax = figure.subplots()
    _strip(ax)
    num_left_out = 0
    for index, method in enumerate(data.methods):
        own = points[method.name]
        if not own.shape[1]:
            continue
        stride = math.ceil(own.shape[1] / _SCATTER_POINTS)
        num_left_out += own.shape[1] - own[:, ::stride].shape[1]
        marker = _MARKERS[index % len(_MARKERS)]
        ax.plot(
            *own[:, ::stride],
            linestyle="",
            marker=marker,
            markersize=4 if own.shape[1] < 500 else 2.5,
            markeredgewidth=0,
            color=_color(index),
            alpha=0.5,
            rasterized=True,
        )
        ax.plot(
            *own.mean(axis=1, keepdims=True),
            linestyle="",
            marker=marker,
            markersize=11,
            markeredgecolor=_INK,
            markeredgewidth=1.4,
            color=_color(index),
            label=_visible(method.title),
            zorder=4,
        )
    ax.set_xlim(x_limits[:2])
    ax.set_ylim(y_limits[:2])
    for label, value in references.items():
        ax.axhline(value, color=_INK, alpha=0.45, linewidth=0.8, linestyle=(0, (3, 2)))
        _write(ax, 1.012, value, _reference_title(label), ha="left", va="center", transform=ax.get_yaxis_transform())
    _name_axes(ax, f"{_labels(data)['lpips']}: further from the original →", "SNCD")
    legend = ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False, fontsize=8.5, labelcolor=_INK)
    for text in legend.get_texts():
        text.set_parse_math(False)
    legend_rows = math.ceil(sum(bool(own.shape[1]) for own in points.values()) / 3)
    figure.subplots_adjust(left=0.06, right=0.89, top=0.985 - 0.055 * legend_rows, bottom=0.11)
    caption = "A point is an image, an outlined mark the mean of a method."
    num_beyond = x_limits[2] + y_limits[2]
    if num_beyond:
        caption += f" {_count_of(num_beyond, 'value')} beyond the axes."
    if num_left_out:
        caption += f" Of each method at most {_SCATTER_POINTS:,} images are drawn; the means use all."
    return _Picture(_svg_uri(figure), "Scatter plot of LPIPS and SNCD, coloured by method", caption)


def _strip(ax: Axes) -> None:
    """Axes that step back behind the data, in the page's text colour."""
    ax.set_facecolor("none")
    ax.spines[["top", "right"]].set_visible(False)
    for spine in ax.spines.values():
        spine.set_color(_INK)
        spine.set_alpha(0.5)
    ax.tick_params(colors=_INK, labelsize=8, length=3)


def _name_axes(ax: Axes, x_name: str, y_name: str) -> None:
    ax.set_xlabel(_visible(x_name), color=_INK, fontsize=9, parse_math=False)
    ax.set_ylabel(_visible(y_name), color=_INK, fontsize=9, parse_math=False)


def _write(ax: Axes, x: float, y: float, text: str, **style: Any) -> None:
    """Text that is not read as mathematics: names hold what they like."""
    ax.text(x, y, _visible(text), parse_math=False, **{"color": _INK, "fontsize": 8} | style)


# Inside an <img> the drawing cannot see the page's colours, so it brings its own for light, dark and paper.
_INK_STYLE = "<style>svg{color:#1d2329}@media screen and (prefers-color-scheme:dark){svg{color:#dde3e9}}</style>"


def _svg_uri(figure: Figure) -> str:
    """The figure as a data: URI, the same bytes for the same figure.

    The figure API keeps no global state, unlike pyplot, so reports can be drawn in threads. Matplotlib salts its
    ids at random unless a global setting says otherwise; they are numbered here instead.
    """
    figure.patch.set_alpha(0)
    drawn = io.StringIO()
    nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
    FigureCanvasSVG(figure).print_svg(drawn, metadata=nothing)
    svg = drawn.getvalue()
    svg = svg[svg.index("<svg") :].replace(_INK, "currentColor")
    for number, salted in enumerate(dict.fromkeys(re.findall(r'id="([A-Za-z]+[0-9a-f]{10})"', svg))):
        svg = svg.replace(salted, f"i{number}")
    end_of_tag = svg.index(">") + 1
    svg = svg[:end_of_tag] + _INK_STYLE + svg[end_of_tag:]
    return f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}"


# --- contact sheet, failures, places -----------------------------------------------------------------


@dataclass(frozen=True)
class _SheetCell:
    reconstruction: str
    difference: str
    numbers: str
    problem: str


@dataclass(frozen=True)
class _SheetRow:
    image_id: str
    original: str
    cells: tuple[_SheetCell, ...]


@dataclass(frozen=True)
class _Sheet:
    rows: tuple[_SheetRow, ...]
    side: int
    is_pixelated: bool


def _sheet(data: ReportData, newest: Mapping[str, pa.Table]) -> _Sheet:
    """The contact sheet: small images at a whole multiple of their size, so that pixels stay square."""
    wanted = pa.array([row.image_id for row in data.contact], pa.string())
    known = {
        (method, row["image_id"]): row
        for method, table in newest.items()
        for row in table.filter(pc.is_in(table.column("image_id"), wanted)).to_pylist()
    }
    rows = []
    for row in data.contact:
        cells = []
        for method in data.methods:
            cell, measured = row.cells.get(method.name), known.get((method.name, row.image_id))
            if cell is None:
                cells.append(_SheetCell("", "", "", _absence(measured)))
                continue
            numbers = "" if measured is None else f"{_number(measured['lpips'])} · {_number(measured['sncd'])}"
            cells.append(_SheetCell(_png_uri(cell.reconstruction_png), _png_uri(cell.difference_png), numbers, ""))
        rows.append(_SheetRow(row.image_id, _png_uri(row.original_png), tuple(cells)))
    widths = [_png_width(row.original_png) for row in data.contact]
    width = max(widths, default=0)
    if not 0 < width <= 72:
        return _Sheet(tuple(rows), side=128, is_pixelated=False)
    return _Sheet(tuple(rows), side=width * max(1, round(72 / width)), is_pixelated=True)


def _absence(row: Mapping[str, Any] | None) -> str:
    """Why a method has no picture of an image."""
    if row is None:
        return "not inverted"
    if row["status"] == OK:
        return "inverted, no picture kept"
    if row["status"] == FAILED:
        return f"not inverted: {row['reason']}"
    return _shortened(f"same content as {row['duplicate_of']}", 60)


def _png_uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _png_width(png: bytes) -> int:
    """Width of a PNG file in pixels: the first field of its first chunk."""
    return int.from_bytes(png[16:20], "big")


@dataclass(frozen=True)
class _Failure:
    image_id: str
    reason: str
    message: str
    methods: str


@dataclass(frozen=True)
class _Failures:
    reasons: tuple[tuple[str, int, str], ...]  # reason, images, methods
    shown: tuple[_Failure, ...]
    num_all: int


def _failures(data: ReportData, newest: Mapping[str, pa.Table]) -> _Failures:
    """Failed images; a file that no method could open is one failure, not one for each method."""
    titles = {method.name: method.title for method in data.methods}
    found: dict[tuple[str, str, str], list[str]] = {}
    for name, table in newest.items():
        for row in table.filter(pc.equal(table.column("status"), FAILED)).to_pylist():
            key = (row["image_id"], row["reason"] or "no reason given", row["message"] or "")
            found.setdefault(key, []).append(titles[name])
    by_reason: dict[str, tuple[set[str], list[str]]] = {}
    for (image_id, reason, _), methods in found.items():
        images, of_methods = by_reason.setdefault(reason, (set(), []))
        images.add(image_id)
        of_methods += [title for title in methods if title not in of_methods]

    def whose(methods: Sequence[str]) -> str:
        return "every method" if len(methods) == len(titles) > 1 else ", ".join(methods)

    reasons = sorted(by_reason.items(), key=lambda item: (-len(item[1][0]), item[0]))
    return _Failures(
        reasons=tuple((reason, len(images), whose(methods)) for reason, (images, methods) in reasons),
        shown=tuple(
            _Failure(image_id, reason, message, whose(methods))
            for (image_id, reason, message), methods in itertools.islice(found.items(), SHOWN_FAILURES)
        ),
        num_all=len(found),
    )


def _snippets(data: ReportData, tables: Mapping[str, pa.Table]) -> list[tuple[str, str]]:
    """Three ways into the archive, ready to copy."""
    python = [
        "from lsap_archive import open_archive",
        "",
        f"archive = open_archive({data.archive_url!r})",
        "archive.sql(\"select method, avg(sncd) from rows where status = 'ok' group by 1\").to_pylist()",
    ]
    example = next(((name, table) for name, table in tables.items() if table.num_rows), None)
    if example is not None:
        name, table = example
        shape = f"[1, {data.generator['num_ws']}, {data.generator['w_dim']}]"
        image_id = table.column("image_id")[0].as_py()
        python.append(f"archive.codes([{image_id!r}], {name!r})  # {shape}")
    glob = f"{data.archive_url.rstrip('/')}/runs/*/rows/*.parquet".replace("'", "''")
    query = f"select method, status, count(*), avg(lpips), avg(sncd) from '{glob}' group by all"
    quoted = shlex.quote(query) if re.search(r'["$`\\!]', query) else f'"{query}"'  # the latter is easier to read
    return [
        ("Command line", f"lsap archive describe {shlex.quote(data.archive_url)}"),
        ("Python, without torch", "\n".join(python)),
        ("DuckDB, without this project", f"duckdb -c {quoted}"),
    ]


def _differing_settings(methods: Sequence[MethodInfo]) -> list[str]:
    """Settings that are not the same for all methods."""
    names = dict.fromkeys(name for method in methods for name in method.settings)
    return [name for name in names if len({repr(method.settings.get(name)) for method in methods}) > 1]


# --- the page ----------------------------------------------------------------------------------------


def render_report(data: ReportData) -> str:
    """The report as one HTML page: no script, no address to load from, every text escaped."""
    summaries = summarize_rows(data.rows, data.methods)
    newest = {method.name: _newest_rows(data.rows, method.name) for method in data.methods}
    tables = {name: _with_status(table, OK) for name, table in newest.items()}
    finite = {
        metric: {name: values[np.isfinite(values)] for name, values in _by_method(tables, metric).items()}
        for metric in ("sncd", "lpips")
    }
    references = {label: value for label, value in data.references.items() if math.isfinite(value)}
    return _template().render(
        data=data,
        colors=[_color(index) for index in range(len(data.methods))],
        tiles=_tiles(data, summaries),
        table=_comparison_table(data, summaries),
        table_notes=_table_notes(data, summaries),
        placements=[
            (method.title, _number(summary.sncd.mean), _placement(summary.sncd.mean, references))
            for method, summary in zip(data.methods, summaries, strict=True)
        ],
        references=data.references,
        comparisons=_comparisons(data, compare_pairs(data.rows, data.methods)),
        comparison_notes=_comparison_notes(data),
        sheet=_sheet(data, newest),
        distributions=[
            picture
            for picture in (
                _distribution(data, finite["sncd"], "SNCD", references),
                _distribution(data, finite["lpips"], _labels(data)["lpips"], {}),
            )
            if picture is not None
        ],
        scatter=_scatter(data, tables),
        costs=list(zip(data.methods, summaries, strict=True)),
        failures=_failures(data, newest),
        snippets=_snippets(data, tables),
        differing=_differing_settings(data.methods),
    )


def _by_method(tables: Mapping[str, pa.Table], metric: str) -> dict[str, NDArray[np.float64]]:
    return {name: _values(table, metric) for name, table in tables.items()}


@cache
def _template() -> Template:
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: _visible(value) if type(value) is str else value,
    )
    environment.filters |= {
        "change": _change,
        "duration": _duration,
        "estimate": _estimate_text,
        "lines": lambda text: Markup(escape(_visible(text, kept=f"\n{HARD_SPACE}"))),
        "number": _number,
        "shortened": _shortened,
    }
    return environment.from_string(resources.files("tasks").joinpath("report.html.j2").read_text("utf-8"))


def _estimate_text(estimate: Estimate) -> str:
    decimals = _decimals([estimate.mean], least=2)
    mean, margin = _number(estimate.mean, decimals), _number(estimate.standard_error, decimals)
    return mean if margin == NOTHING else f"{mean} ± {margin}"
