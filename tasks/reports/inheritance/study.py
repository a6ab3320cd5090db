"""Is editability inherited? Refinements beside the embeddings that they start from, image by image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from tasks.reports.editability.correlations import Values, rank_correlation
from tasks.reports.editability.edited_alike import (
    OUTCOMES_OF_EDITS,
    ByImage,
    Quantity,
    mean_at_equal_effect,
    outcomes_of_edits,
)
from tasks.reports.paper.traced_numbers import quoted
from tasks.reports.statistics import Number

ALL = "all"
"""Edits of every attribute together."""
VALUES_FILE = "inheritance.parquet"
LEAST_EMBEDDINGS = 4
"""That are ranked."""

INVERSIONS = (
    Quantity("mse", "MSE of the inversion", False),
    Quantity("lpips", "LPIPS of the inversion", False),
    Quantity("inversion_identity", "identity of the inversion", True),
)
OUTCOMES = (*OUTCOMES_OF_EDITS, Quantity("distance", "distance to real images at equal effect", False))


@dataclass(frozen=True)
class ComparedMethod:
    """An embedding, or a refinement of one.

    Attributes:
        embedding: name of the inversion.
        embedding_title: for people.
        refiner: its name, or None for the embedding alone.
        refiner_title: for people.
    """

    embedding: str
    embedding_title: str
    refiner: str | None = None
    refiner_title: str = ""

    @property
    def name(self) -> str:
        """As in the archive."""
        return f"{self.embedding}/{self.refiner}" if self.is_refined else self.embedding

    @property
    def title(self) -> str:
        """For people."""
        return f"{self.embedding_title}, {self.refiner_title}" if self.is_refined else self.embedding_title

    @property
    def is_refined(self) -> bool:
        """Whether a refiner came after the embedding."""
        return self.refiner is not None


@dataclass(frozen=True)
class Comparison:
    """A quantity of a method.

    Attributes:
        method: embedding or refinement.
        quantity: what is compared.
        edits: name of the attribute that is edited, or `ALL`.
        mean: over images.
        change: of a refinement, the mean over the same images of its value minus that of the embedding alone.
    """

    method: ComparedMethod
    quantity: Quantity
    edits: str
    mean: Number
    change: Number | None = None

    @property
    def verdict(self) -> int:
        """1 where the change's 95 % interval lies above zero, -1 below, 0 where it holds zero or there is none."""
        low, high = (np.nan, np.nan) if self.change is None else self.change.interval
        return int(low > 0) - int(high < 0)


@dataclass(frozen=True)
class InheritanceTable:
    """Every quantity of every image by every method.

    Attributes:
        methods: M.
        image_ids: N, those that every method has.
        values: by name of the attribute that is edited, or `ALL`, and of the quantity: [M, N]; NaN where there is none.
        evaluations: ids of those that have measured a method and its edits, by method.
    """

    methods: tuple[ComparedMethod, ...]
    image_ids: tuple[str, ...]
    values: Mapping[str, Mapping[str, Values]]
    evaluations: Mapping[str, tuple[str, ...]]

    @property
    def embeddings(self) -> tuple[ComparedMethod, ...]:
        """Those that stand alone."""
        return tuple(method for method in self.methods if not method.is_refined)

    @property
    def refiners(self) -> dict[str, str]:
        """Titles by name."""
        return {method.refiner: method.refiner_title for method in self.methods if method.refiner is not None}

    def of(self, method: ComparedMethod, quantity: Quantity, edits: str = ALL) -> Values:
        """The values of a method's images, [N]."""
        values: Values = self.values[edits][quantity.name][self.methods.index(method)]
        return values

    def quantities(self, edits: str) -> tuple[Quantity, ...]:
        """What there is of edits of an attribute, or of all edits, with which the inversions go."""
        return tuple(one for one in (*INVERSIONS, *OUTCOMES) if one.name in self.values[edits])

    def compare(self, method: ComparedMethod, quantity: Quantity, edits: str = ALL) -> Comparison:
        """A quantity of a method, and of a refinement what became of the embedding's, with the queries that say so."""
        own, evaluations = self.of(method, quantity, edits), self.evaluations[method.name]
        mean = replace(Number.of(own), source=_mean_query(method, quantity, edits), evaluations=evaluations)
        if not method.is_refined:
            return Comparison(method, quantity, edits, mean)
        alone = ComparedMethod(method.embedding, method.embedding_title)
        change = replace(
            Number.of(own - self.of(alone, quantity, edits)),
            source=_change_query(method, quantity, edits),
            evaluations=tuple(dict.fromkeys((*evaluations, *self.evaluations[alone.name]))),
        )
        return Comparison(method, quantity, edits, mean, change)

    def rank_kept(self, refiner: str, quantity: Quantity) -> float:
        """Rank correlation over embeddings of their means alone and refined; NaN for too few to rank."""
        refined = [method for method in self.methods if method.refiner == refiner]
        sides = [[self.compare(one, quantity).mean.mean for one in group] for group in (self.embeddings, refined)]
        alone, after = map(np.array, sides)
        is_there = np.isfinite(alone) & np.isfinite(after)
        return rank_correlation(alone, after) if is_there.sum() >= LEAST_EMBEDDINGS else float("nan")

    def to_arrow(self) -> pa.Table:
        """One row for each method, edited attribute and image; what inversions are stands with all edits."""
        parts = []
        for edits, quantities in self.values.items():
            for index, method in enumerate(self.methods):
                columns: dict[str, object] = {
                    "method": [method.name] * len(self.image_ids),
                    "embedding": [method.embedding] * len(self.image_ids),
                    "refiner": pa.array([method.refiner] * len(self.image_ids), pa.string()),
                    "edits": [edits] * len(self.image_ids),
                    "image_id": list(self.image_ids),
                    **{name: pa.array(values[index], from_pandas=True) for name, values in quantities.items()},
                }
                parts.append(pa.table(columns))
        return pa.concat_tables(parts, promote_options="default")


def gather(
    measurements: pa.Table,
    methods: Sequence[ComparedMethod],
    units: Mapping[str, float],
    evaluations: Mapping[str, tuple[str, ...]],
    *,
    judge: str,
) -> InheritanceTable:
    """The study's table from what evaluations have measured.

    Args:
        measurements: of every method and its edits, in the columns of an archive's measurements.
        methods: embeddings and refinements.
        units: by attribute, the change that a step makes on the generator's own codes, and an edit of equal effect on
            those of every method.
        evaluations: ids by method and edit.
        judge: the network, in no loss of any method, that looks at identity, class and naturalness.
    """
    measured = ByImage.of_measurements(measurements)
    ids = sorted(set.intersection(*(measured.images(method.name) for method in methods)))
    values: dict[str, dict[str, Values]] = {}
    for edits, attributes in {ALL: tuple(units), **{name: (name,) for name in units}}.items():
        found = [_outcomes(measured, method.name, units, ids, judge=judge, attributes=attributes) for method in methods]
        if edits == ALL:
            found = [
                {**_of_inversions(measured, method.name, ids, judge), **one}
                for method, one in zip(methods, found, strict=True)
            ]
        values[edits] = {name: np.stack([one[name] for one in found]) for name in found[0]}
    by_method = {
        method.name: tuple(
            dict.fromkeys(one for name, ids in evaluations.items() if _is_of(name, method) for one in ids)
        )
        for method in methods
    }
    return InheritanceTable(tuple(methods), tuple(ids), values, by_method)


def _of_inversions(measured: ByImage, method: str, ids: Sequence[str], judge: str) -> dict[str, Values]:
    names = ("mse", f"lpips/{judge}", f"identity/{judge}")
    return {one.name: measured.column(method, name, ids) for one, name in zip(INVERSIONS, names, strict=True)}


def _outcomes(
    measured: ByImage,
    method: str,
    units: Mapping[str, float],
    ids: Sequence[str],
    *,
    judge: str,
    attributes: Sequence[str],
) -> dict[str, Values]:
    outcomes = outcomes_of_edits(measured, method, units, ids, judge=judge, edited_attributes=attributes)
    real = f"distance_to_real/{judge}"
    return {**outcomes, "distance": mean_at_equal_effect(measured, method, attributes, real, ids)}


def _is_of(name: str, method: ComparedMethod) -> bool:
    """Whether a name is that of the method or of an edit of it, and not of a refinement or of an edit of one."""
    return name == method.name or name.rpartition("/")[0] == method.name


def _mean_query(method: ComparedMethod, quantity: Quantity, edits: str) -> str:
    where = f"where method = {quoted(method.name)} and edits = {quoted(edits)}"
    return f'select avg("{quantity.name}") from {quoted(VALUES_FILE)} {where}'


def _change_query(method: ComparedMethod, quantity: Quantity, edits: str) -> str:
    difference = f'avg(one."{quantity.name}" - other."{quantity.name}")'
    tables = f"{quoted(VALUES_FILE)} one join {quoted(VALUES_FILE)} other using (edits, image_id)"
    where = f"one.method = {quoted(method.name)} and other.method = {quoted(method.embedding)}"
    return f"select {difference} from {tables} where {where} and edits = {quoted(edits)}"
