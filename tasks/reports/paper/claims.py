"""What the paper says of its tables, and whether the images of a run say so too."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from scipy.special import stdtrit

from tasks.reports.paper.tables import Evidence
from tasks.reports.paper.traced_numbers import Measure, Number, mean_difference

CONFIDENCE = 0.95

Outcome = Literal["confirmed", "refuted", "not decided"]

LESS_ALIGNED = (
    ("lsap_e", "e4e"),
    ("lsap_e", "psp"),
    ("e4e", "psp"),
    ("lsap_o_w", "stylegan2_w"),
    ("lsap_o_w_plus", "stylegan2_w_plus"),
)
"""Pairs of methods: of the first the paper says that its codes are better aligned than the second's."""


@dataclass(frozen=True)
class Claim:
    """A sentence of the paper as a comparison of two methods on the same images.

    Attributes:
        topic: what is compared, such as "SNCD".
        text: the claim.
        outcome: by the 95 % interval of the mean difference over images: beyond zero on the claimed side, on the
            other side, or neither.
        first: mean of the method that is said to be lower or higher.
        second: mean of the other.
        difference: first minus second over the images that both have.
        low: lower end of the interval.
        high: upper end.
    """

    topic: str
    text: str
    outcome: Outcome
    first: Number
    second: Number
    difference: Number
    low: float
    high: float


@dataclass(frozen=True)
class _Comparison:
    topic: str
    text: str
    first: str
    second: str
    measure: Measure
    edit: str | None = None
    sign: int = -1  # the first is said to be lower


def examine(evidence: Evidence) -> tuple[Claim, ...]:
    """Every claim whose methods and measures are there, with what these images say of it."""
    claims = (_examine(evidence, comparison) for comparison in _comparisons(evidence))
    return tuple(claim for claim in claims if claim is not None)


def decide(difference: Number, sign: int) -> tuple[Outcome, float, float]:
    """The outcome, and the 95 % t interval of a mean difference.

    Example:
        >>> decide(Number(-1.0, deviation=1.0, count=100), sign=-1)[0]
        'confirmed'
        >>> decide(Number(-0.1, deviation=1.0, count=100), sign=-1)[0]
        'not decided'
    """
    if difference.count < 2:
        return "not decided", math.nan, math.nan
    quantile = float(stdtrit(difference.count - 1, (1 + CONFIDENCE) / 2))
    margin = quantile * difference.deviation / math.sqrt(difference.count)
    low, high = difference.mean - margin, difference.mean + margin
    if low <= 0 <= high:
        return "not decided", low, high
    return ("confirmed" if difference.mean * sign > 0 else "refuted"), low, high


def _comparisons(evidence: Evidence) -> Iterator[_Comparison]:
    titles = evidence.titles
    pairs = [pair for pair in LESS_ALIGNED if set(pair) <= set(titles)]
    for first, second in pairs:
        text = f"{titles[first]} has a lower SNCD than {titles[second]}"
        yield _Comparison("SNCD", text, first, second, Measure("sncd"))
    lpips = [(f"LPIPS [{network}]", Measure("lpips", network)) for network in evidence.lpips]
    for topic, measure in (("MSE", Measure("mse")), *lpips):
        if {"lsap_e", "e4e"} <= set(titles):
            text = f"{titles['lsap_e']} is closer to the images than {titles['e4e']}"
            yield _Comparison(topic, text, "lsap_e", "e4e", measure)
        if {"lsap_o_w_plus", "stylegan2_w_plus"} <= set(titles):
            text = f"{titles['stylegan2_w_plus']} is closer to the images than {titles['lsap_o_w_plus']}"
            yield _Comparison(topic, text, "stylegan2_w_plus", "lsap_o_w_plus", measure)
    for edit in evidence.edits:
        for first, second in pairs:
            if {first, second} <= {"psp", "e4e", "lsap_e"}:
                text = f"{titles[first]} takes the edit {edit.title} back more consistently than {titles[second]}"
                yield _Comparison("LEC", text, first, second, Measure("lec", edit.fixed))
    for edit in evidence.edits:
        for first, second in pairs:
            for network in evidence.identity[:1]:
                text = f"{titles[first]} keeps more of the identity after the edit {edit.title} than {titles[second]}"
                measure = Measure("identity", network)
                yield _Comparison(f"identity [{network}]", text, first, second, measure, edit.compared, sign=1)


def _examine(evidence: Evidence, comparison: _Comparison) -> Claim | None:
    subjects = [evidence.subject(name, comparison.edit) for name in (comparison.first, comparison.second)]
    difference = mean_difference(evidence.ask, *subjects, comparison.measure)
    if not difference.is_there:
        return None
    outcome, low, high = decide(difference, comparison.sign)
    means = [
        evidence.mean(name, comparison.measure.name, comparison.measure.by, edit=comparison.edit)
        for name in (comparison.first, comparison.second)
    ]
    return Claim(comparison.topic, comparison.text, outcome, means[0], means[1], difference, low, high)
