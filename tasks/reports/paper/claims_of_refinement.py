"""What the paper says of the second stage, and whether the images of a run say so too.

Refinement raises fidelity; perception and editability are inherited from the code that it starts from (LSAP, section
3.1 and Table 1): the same edit does as much, and what was better before is better after.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tasks.reports.paper.claims import LESS_ALIGNED, Claim, Comparison, Outcome, compare
from tasks.reports.paper.tables import Evidence
from tasks.reports.paper.traced_numbers import Measure, mean_difference, mean_difference_of_changes
from tasks.reports.statistics import Number
from tasks.reports.text import as_number

TENTH = 0.1
EQUALITY_RULE = (
    "Of effects that are said to be the same: confirmed if the interval lies within a tenth of the embedding's effect, "
    "on both sides of zero; refuted if it lies outside of that."
)
SOME_RULE = (
    "Of at least one method: confirmed if all intervals of one of them lie below zero; refuted if each has one above "
    "zero; else not decided."
)


def examine_refinements(evidence: Evidence) -> tuple[Claim, ...]:
    """Every claim about refined methods that were measured, with what these images say of it."""
    found = (compare(evidence, comparison) for comparison in _comparisons(evidence))
    claims = [claim for claim in found if claim is not None]
    return (*claims, *_inherited_effects(evidence), *_closer_at_equal_effect(evidence))


def decide_equal(difference: Number, margin: float) -> Outcome:
    """By the 95 % t interval of a mean difference: within the margin on both sides of zero, outside of it, or neither.

    Example:
        >>> decide_equal(Number(0.1, deviation=1.0, count=100), margin=0.5)
        'confirmed'
        >>> decide_equal(Number(1.0, deviation=1.0, count=100), margin=0.5)
        'refuted'
    """
    low, high = difference.interval
    if -margin <= low and high <= margin:
        return "confirmed"
    return "refuted" if low > margin or high < -margin else "not decided"


def _refined(evidence: Evidence) -> list[tuple[str, str]]:
    """Refined methods whose embedding is shown too, each with it."""
    pairs = [(name, name.partition("/")[0]) for name in evidence.titles if "/" in name]
    return [pair for pair in pairs if pair[1] in evidence.titles]


def _comparisons(evidence: Evidence) -> Iterator[Comparison]:
    titles = evidence.titles
    lpips = [(f"LPIPS [{network}]", Measure("lpips", network)) for network in evidence.lpips]
    fidelity = [("MSE", Measure("mse")), *lpips]
    identity = [(f"identity [{network}]", Measure("identity", network)) for network in evidence.identity[:1]]
    for name, embedding in _refined(evidence):
        closer = f"{titles[name]} is closer to the images than {titles[embedding]}"
        for topic, measure in fidelity:
            yield Comparison(topic, closer, name, embedding, measure)
        for topic, measure in identity:
            for edit in (None, *evidence.edits):
                after = "" if edit is None else f" after the edit {edit.title}"
                text = f"{titles[name]} keeps more of the identity{after} than {titles[embedding]}"
                at = None if edit is None else edit.compared
                yield Comparison(topic, text, name, embedding, measure, at, sign=1)
    for first, second in _pairs(evidence):
        if first.startswith("lsap_e/") and second.startswith("e4e/"):
            closer = f"{titles[first]} is closer to the images than {titles[second]}"
            for topic, measure in fidelity:
                yield Comparison(topic, closer, first, second, measure)
        for topic, measure in identity:
            for edit in evidence.edits:
                text = f"{titles[first]} keeps more of the identity after the edit {edit.title} than {titles[second]}"
                yield Comparison(topic, text, first, second, measure, edit.compared, sign=1)


def _pairs(evidence: Evidence) -> list[tuple[str, str]]:
    """Refinements by one refiner of two embeddings, of which the paper says that the first is better aligned."""
    refiners = dict.fromkeys(name.partition("/")[2] for name, _ in _refined(evidence))
    pairs = [(f"{first}/{refiner}", f"{second}/{refiner}") for refiner in refiners for first, second in LESS_ALIGNED]
    return [pair for pair in pairs if set(pair) <= set(evidence.titles)]


def _inherited_effects(evidence: Evidence) -> Iterator[Claim]:
    """At one strength an edit of a refined method does as much as that of its embedding."""
    titles = evidence.titles
    for name, embedding in _refined(evidence):
        for edit in evidence.edits:
            if edit.attribute is None:
                continue
            before, after = ((evidence.subject(one, edit.fixed), evidence.subject(one)) for one in (embedding, name))
            measure = Measure("attribute", edit.attribute)
            difference = mean_difference_of_changes(evidence.ask, after, before, measure)
            if difference.is_there:
                first, second = (evidence.change(one, edit.fixed, edit.attribute) for one in (name, embedding))
                text = f"The edit {edit.title} does as much to {titles[name]} as to {titles[embedding]}, within a tenth"
                outcome = decide_equal(difference, TENTH * abs(second.mean))
                topic = f"effect, {edit.unit}" if edit.unit else "effect"
                yield Claim(topic, text, outcome, first, second, difference, rule=EQUALITY_RULE)


@dataclass(frozen=True)
class _AfterEdit:
    """How much further from the originals a refined method's edited images are than its embedding's, by measure."""

    title: str
    differences: tuple[tuple[str, Number], ...]

    @property
    def is_below(self) -> bool:
        return all(number.interval[1] < 0 for _, number in self.differences)

    @property
    def is_above_somewhere(self) -> bool:
        return any(number.interval[0] > 0 for _, number in self.differences)

    @property
    def text(self) -> str:
        told = [
            f"{measure} {as_number(number.mean)} ({' to '.join(map(as_number, number.interval))})"
            for measure, number in self.differences
        ]
        return f"{self.title} minus its embedding: {', '.join(told)}"


def _closer_at_equal_effect(evidence: Evidence) -> Iterator[Claim]:
    """Where edits of both have the same effect, some refined method is closer to the originals than its embedding."""
    measures = [("MSE", Measure("mse")), *((f"LPIPS [{one}]", Measure("lpips", one)) for one in evidence.lpips[:1])]
    for edit in evidence.edits:
        found = []
        for name, embedding in _refined(evidence) if edit.equal is not None else ():
            subjects = evidence.subject(name, edit.equal), evidence.subject(embedding, edit.equal)
            numbers = [(topic, mean_difference(evidence.ask, *subjects, measure)) for topic, measure in measures]
            if there := tuple((topic, number) for topic, number in numbers if number.is_there):
                found.append(_AfterEdit(evidence.titles[name], there))
        if found:
            text = (
                f"After the edit {edit.title}, at equal effect, at least one refined method is closer to the images "
                "than its embedding"
            )
            topic, told = ", ".join(topic for topic, _ in measures), "; ".join(one.text for one in found)
            yield Claim(topic, text, _some(found), numbers=told, rule=SOME_RULE)


def _some(found: Sequence[_AfterEdit]) -> Outcome:
    """Of at least one method, as `SOME_RULE` has it."""
    if any(one.is_below for one in found):
        return "confirmed"
    return "refuted" if all(one.is_above_somewhere for one in found) else "not decided"
