"""What the paper says of its tables, and whether the images of a run say so too."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from tasks.reports.paper.tables import Evidence
from tasks.reports.paper.traced_numbers import Measure, mean_difference
from tasks.reports.statistics import NOTHING_MEASURED, Number
from tasks.reports.text import as_number
from tasks.visible_text import in_markdown

Outcome = Literal["confirmed", "refuted", "not decided"]

LESS_ALIGNED = (
    ("lsap_e", "e4e"),
    ("lsap_e", "psp"),
    ("e4e", "psp"),
    ("lsap_o_w", "stylegan2_w"),
    ("lsap_o_w_plus", "stylegan2_w_plus"),
)
"""Pairs of methods: of the first the paper says that its codes are better aligned than the second's."""


INTERVAL_RULE = (
    "Confirmed: the 95 % interval of the mean difference over these images lies on the claimed side of zero; refuted: "
    "on the other side; else not decided. The interval is over images, with one training of each encoder and one run "
    "of each optimization; other seeds may differ by more."
)


@dataclass(frozen=True)
class Claim:
    """A sentence of the paper as a comparison of two methods, and what the measurements say of it.

    Attributes:
        topic: what is compared, such as "SNCD", or "".
        text: the claim.
        outcome: what the measurements say.
        first: mean of the method that is said to be lower or higher.
        second: mean of the other.
        difference: first minus second over the images that both have, where images decide.
        numbers: what it was decided by, where that is something else than two means.
        rule: how it was decided, where that is not by the rule of all.
    """

    topic: str
    text: str
    outcome: Outcome
    first: Number = NOTHING_MEASURED
    second: Number = NOTHING_MEASURED
    difference: Number = NOTHING_MEASURED
    numbers: str = ""
    rule: str = ""

    @property
    def interval(self) -> str:
        """Of the difference, for print."""
        return " to ".join(map(as_number, self.difference.interval))


def claims_markdown(claims: Sequence[Claim], rule: str) -> str:
    """A line for each claim with its numbers, and the rule that decided them."""
    lines = []
    for claim in claims:
        numbers = claim.numbers or f"{as_number(claim.first.mean)} and {as_number(claim.second.mean)}"
        if claim.difference.is_there:
            numbers += f"; difference {as_number(claim.difference.mean)}, 95 % interval {claim.interval}"
            numbers += f", {claim.difference.count:,} images"
        text = f"{claim.topic}: {claim.text}" if claim.topic else claim.text
        lines.append(f"- {in_markdown(text)}: **{claim.outcome}** ({numbers}).")
    return "\n".join([*lines, "", all_rules(claims, rule)])


def all_rules(claims: Sequence[Claim], rule: str) -> str:
    """The rule that decided these claims, and those of single ones."""
    return " ".join(dict.fromkeys([rule, *(claim.rule for claim in claims if claim.rule)]))


@dataclass(frozen=True)
class Comparison:
    """A claim before it is examined.

    Attributes:
        topic: what is compared.
        text: the claim.
        first: name of the method that is said to be lower or higher.
        second: name of the other.
        measure: of both.
        edit: after which edit, or None for the unedited images.
        sign: -1 where the first is said to be lower, 1 where it is said to be higher.
    """

    topic: str
    text: str
    first: str
    second: str
    measure: Measure
    edit: str | None = None
    sign: int = -1


def examine(evidence: Evidence) -> tuple[Claim, ...]:
    """Every claim whose methods and measures are there, with what these images say of it."""
    claims = (compare(evidence, comparison) for comparison in _comparisons(evidence))
    return tuple(claim for claim in claims if claim is not None)


def decide(difference: Number, sign: int) -> Outcome:
    """By the 95 % t interval of a mean difference: beyond zero on the claimed side, on the other side, or neither.

    Example:
        >>> decide(Number(-1.0, deviation=1.0, count=100), sign=-1)
        'confirmed'
        >>> decide(Number(-0.1, deviation=1.0, count=100), sign=-1)
        'not decided'
    """
    low, high = difference.interval
    if low > 0 or high < 0:
        return "confirmed" if difference.mean * sign > 0 else "refuted"
    return "not decided"


def _comparisons(evidence: Evidence) -> Iterator[Comparison]:
    titles = evidence.titles
    pairs = [pair for pair in LESS_ALIGNED if set(pair) <= set(titles)]
    for first, second in pairs:
        text = f"{titles[first]} has a lower SNCD than {titles[second]}"
        yield Comparison("SNCD", text, first, second, Measure("sncd"))
    lpips = [(f"LPIPS [{network}]", Measure("lpips", network)) for network in evidence.lpips]
    for topic, measure in (("MSE", Measure("mse")), *lpips):
        if {"lsap_e", "e4e"} <= set(titles):
            text = f"{titles['lsap_e']} is closer to the images than {titles['e4e']}"
            yield Comparison(topic, text, "lsap_e", "e4e", measure)
        if {"lsap_o_w_plus", "stylegan2_w_plus"} <= set(titles):
            text = f"{titles['stylegan2_w_plus']} is closer to the images than {titles['lsap_o_w_plus']}"
            yield Comparison(topic, text, "stylegan2_w_plus", "lsap_o_w_plus", measure)
    for edit in evidence.edits:
        for first, second in pairs:
            if {first, second} <= {"psp", "e4e", "lsap_e"}:
                text = f"{titles[first]} takes the edit {edit.title} back more consistently than {titles[second]}"
                yield Comparison("LEC", text, first, second, Measure("lec", edit.fixed))
    for edit in evidence.edits:
        for first, second in pairs:
            for network in evidence.identity[:1]:
                text = f"{titles[first]} keeps more of the identity after the edit {edit.title} than {titles[second]}"
                measure = Measure("identity", network)
                yield Comparison(f"identity [{network}]", text, first, second, measure, edit.compared, sign=1)


def compare(evidence: Evidence, comparison: Comparison) -> Claim | None:
    """What the images say of a comparison; None where they were not measured."""
    one, other = (evidence.subject(name, comparison.edit) for name in (comparison.first, comparison.second))
    difference = mean_difference(evidence.ask, one, other, comparison.measure)
    if not difference.is_there:
        return None
    first, second = (
        evidence.mean(name, comparison.measure.name, comparison.measure.by, edit=comparison.edit)
        for name in (comparison.first, comparison.second)
    )
    outcome = decide(difference, comparison.sign)
    return Claim(comparison.topic, comparison.text, outcome, first, second, difference)
