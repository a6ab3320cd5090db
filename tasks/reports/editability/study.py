"""Does SNCD predict how well codes can be edited? Gathered from an archive's rows and measurements, per image."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa

from tasks.reports.editability.correlations import (
    Interval,
    Values,
    across_methods,
    paired_difference,
    within_images,
    within_methods,
)
from tasks.reports.editability.edited_alike import OUTCOMES_OF_EDITS, ByImage, Quantity, outcomes_of_edits
from tasks.reports.statistics import MATCHED_WITHIN

Ask = Callable[..., pa.Table]
"""Answers SQL over the tables `rows` and `measurements`, as `Archive.sql` does."""

Family = Literal["W", "W+", "control", "from encoder", "encoder"]

MIDPOINT = "midpoint"

PREDICTORS = (
    Quantity("sncd", "SNCD"),
    Quantity("w_distance", "distance to the mean code"),
    Quantity("lpips", "LPIPS"),
)
OUTCOMES = (
    *OUTCOMES_OF_EDITS,
    Quantity("midpoint", "midpoints: distance to real images", False),
    Quantity("detour", "midpoints: the same beyond their ends", False),
)


@dataclass(frozen=True)
class StudiedMethod:
    """A method of the study.

    Attributes:
        name: as in the archive.
        title: for people.
        family: what kind of method it is.
        pair: name shared by an aligned method and the control at the same LPIPS, or None.
    """

    name: str
    title: str
    family: Family
    pair: str | None = None


@dataclass(frozen=True)
class StudyTable:
    """Every quantity of every image by every method.

    Attributes:
        methods: M.
        image_ids: N, those that every method has.
        values: by name of the quantity, [M, N]; NaN where there is none.
    """

    methods: tuple[StudiedMethod, ...]
    image_ids: tuple[str, ...]
    values: Mapping[str, Values]

    def to_arrow(self) -> pa.Table:
        """One row for each method and image."""
        num_methods, num_images = len(self.methods), len(self.image_ids)
        columns = {
            "method": np.repeat([method.name for method in self.methods], num_images),
            "family": np.repeat([method.family for method in self.methods], num_images),
            "image_id": np.tile(self.image_ids, num_methods),
            **{name: values.reshape(-1) for name, values in self.values.items()},
        }
        return pa.table(columns)

    def of(self, methods: Sequence[str]) -> StudyTable:
        """The part of some methods."""
        chosen = [index for index, method in enumerate(self.methods) if method.name in methods]
        return StudyTable(
            tuple(self.methods[index] for index in chosen),
            self.image_ids,
            {name: values[chosen] for name, values in self.values.items()},
        )


@dataclass(frozen=True)
class Finding:
    """How well one predictor ranks one outcome; positive means that a higher value of the one goes with the other's.

    Attributes:
        predictor, outcome: names of the quantities.
        group: "all", or the families that it is about.
        num_methods: how many methods.
        across_methods, within_methods, within_images: rank correlations.
    """

    predictor: str
    outcome: str
    group: str
    num_methods: int
    across_methods: Interval
    within_methods: Interval
    within_images: Interval


@dataclass(frozen=True)
class MatchedPair:
    """An aligned method and the control at the same LPIPS: mean differences, aligned - control, on the same images."""

    aligned: StudiedMethod
    control: StudiedMethod
    lpips_ratio: float
    differences: Mapping[str, Interval]

    @property
    def is_matched(self) -> bool:
        """Whether their LPIPS agree closely enough to compare the rest."""
        return abs(self.lpips_ratio - 1) <= MATCHED_WITHIN


def gather(
    ask: Ask,
    methods: Sequence[StudiedMethod],
    attributes: Mapping[str, float],
    partners: Mapping[str, str],
    *,
    judge: str,
) -> StudyTable:
    """The study's table from an archive.

    Args:
        ask: answers SQL over `rows` and `measurements`.
        methods: the inversions to compare.
        attributes: by name, the change that a step makes on the generator's own codes, and an edit of equal effect on
            those of every method.
        partners: by image, the other end of its midpoint.
        judge: the network, in no loss of any method, that looks at identity, class and naturalness.

    Returns:
        effect, success, identity, class_kept, leakage: as `outcomes_of_edits` gives them.
        midpoint: of the code halfway to another image of its class, distance to the nearest real images.
        detour: the same minus the mean of that of the two images that the midpoint lies between.
    """
    rows = _rows(ask)
    measured = ByImage.of_measurements(ask('select method, image_id, measure, "by", value from measurements'))
    ids = sorted(set.intersection(*(rows.images(method.name) for method in methods)))
    per_method: dict[str, list[Values]] = {quantity.name: [] for quantity in (*PREDICTORS, *OUTCOMES)}
    for method in methods:
        for name in ("sncd", "w_distance", "lpips"):
            per_method[name].append(rows.column(method.name, name, ids))
        outcomes = _outcomes(measured, method.name, attributes, ids, partners, judge)
        for name, values in outcomes.items():
            per_method[name].append(values)
    stacked = {name: np.stack(lists) for name, lists in per_method.items()}
    return StudyTable(tuple(methods), tuple(ids), stacked)


def correlate(table: StudyTable, group: str = "all") -> list[Finding]:
    """Every predictor against every outcome."""
    return [
        Finding(
            predictor.name,
            outcome.name,
            group,
            len(table.methods),
            across_methods(table.values[predictor.name], table.values[outcome.name]),
            within_methods(table.values[predictor.name], table.values[outcome.name]),
            within_images(table.values[predictor.name], table.values[outcome.name]),
        )
        for predictor in PREDICTORS
        for outcome in OUTCOMES
    ]


def compare_with_controls(table: StudyTable) -> list[MatchedPair]:
    """Each aligned method beside the control of its pair."""
    pairs = []
    for index, aligned in enumerate(table.methods):
        if aligned.pair is None or aligned.family == "control":
            continue
        for other, control in enumerate(table.methods):
            if control.pair == aligned.pair and control.family == "control":
                ratio = table.values["lpips"][index].mean() / table.values["lpips"][other].mean()
                differences = {
                    quantity.name: paired_difference(
                        table.values[quantity.name][index], table.values[quantity.name][other]
                    )
                    for quantity in (PREDICTORS[0], *OUTCOMES)
                }
                pairs.append(MatchedPair(aligned, control, float(ratio), differences))
    return pairs


def _rows(ask: Ask) -> ByImage:
    found = ByImage()
    for row in ask("select method, image_id, sncd, w_distance, lpips from rows where status = 'ok'").to_pylist():
        found.put(row["method"], row["image_id"], {name: row[name] for name in ("sncd", "w_distance", "lpips")})
    return found


def _outcomes(
    measured: ByImage,
    method: str,
    attributes: Mapping[str, float],
    ids: Sequence[str],
    partners: Mapping[str, str],
    judge: str,
) -> dict[str, Values]:
    real = f"distance_to_real/{judge}"
    midpoint = measured.column(f"{method}/{MIDPOINT}", real, ids)
    ends = [measured.column(method, real, names) for names in (ids, [partners[image_id] for image_id in ids])]
    return {
        **outcomes_of_edits(measured, method, attributes, ids, judge=judge),
        "midpoint": midpoint,
        "detour": midpoint - np.mean(ends, axis=0),
    }
