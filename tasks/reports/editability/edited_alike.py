"""All methods edited alike: each attribute up and down, by a fixed step and at equal effect; and what came of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from tasks.reports.editability.correlations import Values
from tasks.reports.editability.synthetic_steps import SyntheticStep

Kind = Literal["step", "equal"]

SIGNS = {"more": 1.0, "less": -1.0}
RIGHT_EFFECT = (0.5, 1.5)
"""A fixed step succeeds if its effect lies within these shares of that on synthetic codes, and the class is kept."""


@dataclass(frozen=True)
class Quantity:
    """Something known of every image and method.

    Attributes:
        name: column of the written tables.
        title: for people.
        higher_is_better: of an outcome; None for a predictor, and for an effect, which can be too large.
    """

    name: str
    title: str
    higher_is_better: bool | None = None

    @property
    def arrow(self) -> str:
        """Which way is better, as a sign."""
        return "" if self.higher_is_better is None else "↑" if self.higher_is_better else "↓"


OUTCOMES_OF_EDITS = (
    Quantity("effect", "effect of a fixed step"),
    Quantity("success", "fixed steps that succeed", True),
    Quantity("identity", "identity at equal effect", True),
    Quantity("class_kept", "class kept at equal effect", True),
    Quantity("leakage", "leakage at equal effect", False),
)


def edited(method: str, attribute: str, sign: str, kind: Kind) -> str:
    """Name of an edit of a method in the archive, such as "lsap_e/slant-more-step"."""
    return f"{method}/{attribute}-{sign}-{kind}"


def edits_alike(
    directions: Mapping[str, str], changes: Mapping[str, float], steps: Mapping[str, SyntheticStep]
) -> dict[str, dict[str, Any]]:
    """The edits by name, as a run of `edit` takes them.

    Args:
        directions: name of the direction by attribute.
        changes: how far each attribute is edited, in its standard deviations over synthetic images.
        steps: the strengths that move synthetic codes as far.
    """
    edits: dict[str, dict[str, Any]] = {}
    for name, direction in directions.items():
        for sign, factor in SIGNS.items():
            strength = getattr(steps[name], sign)
            edits[f"{name}-{sign}-step"] = {"direction": direction, "strength": strength}
            effect = {"attribute": name, "change": factor * changes[name]}
            edits[f"{name}-{sign}-equal"] = {"direction": direction, "equal_effect": effect}
    return edits


class ByImage:
    """Values by method and image; of several rows the last counts."""

    def __init__(self) -> None:
        self._rows: dict[str, dict[str, dict[str, float | None]]] = {}

    @classmethod
    def of_measurements(cls, measurements: pa.Table) -> ByImage:
        """Measurements as columns named "measure/by", or "measure" where nobody looked.

        Args:
            measurements: with the columns `method`, `image_id`, `measure`, `by` and `value`.
        """
        found = cls()
        for row in measurements.select(["method", "image_id", "measure", "by", "value"]).to_pylist():
            name = row["measure"] if row["by"] is None else f"{row['measure']}/{row['by']}"
            found.put(row["method"], row["image_id"], {name: row["value"]})
        return found

    def put(self, method: str, image_id: str, values: Mapping[str, float | None]) -> None:
        """Add what is known of an image by a method."""
        self._rows.setdefault(method, {}).setdefault(image_id, {}).update(values)

    def images(self, method: str) -> set[str]:
        """Ids of the images of which anything is known."""
        return set(self._rows.get(method, {}))

    def column(self, method: str, name: str, ids: Sequence[str]) -> Values:
        """One value for each of N ids, [N]; NaN where there is none."""
        found = self._rows.get(method, {})
        values = [found.get(image_id, {}).get(name) for image_id in ids]
        return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def outcomes_of_edits(
    measured: ByImage,
    method: str,
    units: Mapping[str, float],
    ids: Sequence[str],
    *,
    judge: str,
    edited_attributes: Sequence[str] | None = None,
) -> dict[str, Values]:
    """What edits do to each image of a method.

    Args:
        measured: what evaluations have measured.
        method: an inversion or a refinement.
        units: by attribute, the change that a step makes on the generator's own codes, and an edit of equal effect on
            those of every method.
        ids: N images.
        judge: the network, in no loss of any method, that looks at identity and class.
        edited_attributes: the means are over edits of these; all of `units` by default.

    Returns:
        By name of `OUTCOMES_OF_EDITS`, [N]; NaN where one of the edits has no value.
        effect: change of the attribute by the step, in units of what it is on synthetic codes, mean over attributes
            and both signs.
        success: share of the fixed steps whose effect lies in `RIGHT_EFFECT` and that keep the class.
        identity, class_kept: at equal effect, mean over the same edits, against the original image.
        leakage: how far the other attributes move at equal effect, in the same units (the edited one moves by one).
    """
    effects, successes, leaks = [], [], []
    before = {name: measured.column(method, f"attribute/{name}", ids) for name in units}
    names = tuple(units) if edited_attributes is None else tuple(edited_attributes)
    for name in names:
        for sign, factor in SIGNS.items():
            step, equal = edited(method, name, sign, "step"), edited(method, name, sign, "equal")
            effect = factor * (measured.column(step, f"attribute/{name}", ids) - before[name]) / units[name]
            effects.append(effect)
            is_right = (effect > RIGHT_EFFECT[0]) & (effect < RIGHT_EFFECT[1])
            successes.append(is_right * measured.column(step, f"class_kept/{judge}", ids))
            leaks += [
                np.abs(measured.column(equal, f"attribute/{other}", ids) - before[other]) / other_unit
                for other, other_unit in units.items()
                if other != name
            ]
    return {
        "effect": np.mean(effects, axis=0),
        "success": np.mean(successes, axis=0),
        "identity": mean_at_equal_effect(measured, method, names, f"identity/{judge}", ids),
        "class_kept": mean_at_equal_effect(measured, method, names, f"class_kept/{judge}", ids),
        "leakage": np.mean(leaks, axis=0),
    }


def mean_at_equal_effect(
    measured: ByImage, method: str, attributes: Sequence[str], column: str, ids: Sequence[str]
) -> Values:
    """A measure of each image, mean over its edits of equal effect, [N]; NaN where one of them has no value."""
    names = [edited(method, name, sign, "equal") for name in attributes for sign in SIGNS]
    mean: Values = np.mean([measured.column(name, column, ids) for name in names], axis=0)
    return mean
