"""The comparisons of a report in words: each method against its base and its control, and what cannot be compared."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from tasks.reports.inversion.data import ReportData
from tasks.reports.inversion.differences import PairedDifference
from tasks.reports.statistics import HIGHER_IS_BETTER, MATCHED_WITHIN
from tasks.reports.text import NOTHING, as_change, as_number, as_percent, count_of, decimals_for, listed

_CONTROL_CAUTION = (
    "The aligned method minimizes SNCD and the control does not: a lower SNCD here shows that the term works, not yet "
    "that edits get better."
)


@dataclass(frozen=True)
class ComparisonRow:
    label: str
    mean: str
    mean_other: str
    difference: str
    interval: str
    share: str
    words: str
    tone: str


@dataclass(frozen=True)
class Comparison:
    heading: str
    title: str
    other: str
    sentences: tuple[str, ...]
    rows: tuple[ComparisonRow, ...]


def compare_in_words(data: ReportData, differences: Sequence[PairedDifference]) -> list[Comparison]:
    """Each pair of methods with its verdict on SNCD, what that cost, and the numbers behind both."""
    titles = {method.name: method.title for method in data.methods}
    labels = data.metric_labels
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
            Comparison(
                heading=f"{titles[name]} against {titles[other]}, {role}",
                title=titles[name],
                other=titles[other],
                sentences=tuple(sentences),
                rows=tuple(_comparison_row(one, labels[one.metric]) for one in shown),
            )
        )
    return comparisons


def _sncd_sentence(difference: PairedDifference, titles: Mapping[str, str]) -> str:
    title, other = titles[difference.method], titles[difference.other]
    size = count_of(difference.num_images, "image")
    if difference.verdict == "undetermined":
        return f"SNCD: {size} with a value of both methods, too few to compare."
    decimals = _difference_decimals(difference)
    amount = f"{as_number(abs(difference.mean_difference), decimals)} ({as_percent(abs(difference.relative))})"
    interval = f"95 % interval of the difference {_interval(difference)}, {size}"
    if difference.verdict == "lower":
        return f"SNCD of {title} is lower than that of {other} by {amount}; {interval}."
    if difference.verdict == "higher":
        return f"SNCD of {title} is NOT lower than that of {other}: it is higher by {amount}; {interval}."
    return f"SNCD of {title} is not clearly lower than that of {other}: no clear difference; {interval}."


def _matched_sentence(lpips: PairedDifference) -> str:
    if lpips.num_images == 0:
        return "LPIPS cannot be matched: no image has a value of both methods."
    means = f"{as_number(lpips.mean)} against {as_number(lpips.mean_other)}, {as_change(lpips.relative)}"
    if lpips.is_matched:
        return f"LPIPS is matched ({means}), so SNCD is compared at equal fidelity."
    return (
        f"LPIPS is not matched ({means}): the two sit at different points between fidelity and alignment, and the "
        "SNCD difference does not tell which term is better. Change sncd_weight or mean_code_weight until LPIPS "
        f"agrees within {as_percent(MATCHED_WITHIN)}."
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
            groups[_tone(one)].append(f"{labels[one.metric]} ({as_change(one.relative)})")
    sentences = []
    if groups["worse"]:
        sentences.append(f"Worse: {listed(groups['worse'])}.")
    if groups["better"]:
        sentences.append(f"Better: {listed(groups['better'])}.")
    if groups["unclear"]:
        sentences.append(f"No clear difference in {listed(groups['unclear'])}.")
    return sentences


def _tone(difference: PairedDifference) -> str:
    """Worse or better; neither for SNCD, whose lower end is collapse."""
    if difference.metric == "sncd" or difference.verdict not in ("lower", "higher"):
        return ""
    is_better = (difference.verdict == "higher") == (difference.metric in HIGHER_IS_BETTER)
    return "better" if is_better else "worse"


def _comparison_row(difference: PairedDifference, label: str) -> ComparisonRow:
    decimals = _difference_decimals(difference)
    words: str = difference.verdict
    if words == "undetermined":
        words = "too few images"
    elif _tone(difference):
        words = f"{words}, {_tone(difference)}"
    closer = "higher" if difference.metric in HIGHER_IS_BETTER else "lower"
    return ComparisonRow(
        label=label[0].upper() + label[1:],
        mean=as_number(difference.mean, decimals),
        mean_other=as_number(difference.mean_other, decimals),
        difference=as_number(difference.mean_difference, decimals),
        interval=_interval(difference),
        share=f"{closer} on {as_percent(difference.share_improved)}" if difference.num_images else NOTHING,
        words=words,
        tone=_tone(difference),
    )


def _difference_decimals(difference: PairedDifference) -> int:
    return decimals_for([difference.mean_difference, difference.high - difference.low], significant=2)


def _interval(difference: PairedDifference) -> str:
    decimals = _difference_decimals(difference)
    if not math.isfinite(difference.low):
        return NOTHING
    return f"{as_number(difference.low, decimals)} to {as_number(difference.high, decimals)}"


def comparison_notes(data: ReportData) -> list[str]:
    """Comparisons that a reader would look for and that cannot be made."""
    names = {method.name for method in data.methods}
    titles = {method.name: method.title for method in data.methods}
    notes = [
        f"{method.title} is not compared with its base: {titles.get(method.base, method.base)} was not run."
        for method in data.methods
        if method.base and method.base not in names
    ]
    aligned = {method.name for method in data.methods if method.is_aligned}
    uncontrolled = [
        method.title
        for method in data.methods
        if method.is_aligned
        and method.base not in aligned  # what its base has is compared there
        and not any(other.is_control and other.base == method.base for other in data.methods)
    ]
    if uncontrolled:
        notes.append(
            f"No control for {listed(uncontrolled)}: without a method that only shrinks codes toward the mean code, "
            "this report cannot tell alignment from shrinkage."
        )
    return notes
