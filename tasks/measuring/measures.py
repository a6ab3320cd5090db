"""What is measured of inversions and edits: a table of measures, each one value for an image, or why there is none.

A new one is its file in `lsap_core/metrics` and a line of TABLE: evaluations measure it, the archive keeps it by
its name, and `tasks/measuring/of_inversions.py` may make it a column of an inversion's rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from lsap_core.alignment.anchor import Anchor
from lsap_core.alignment.sncd import SncdLoss
from lsap_core.generators.generator import Generator, StyleShift
from lsap_core.images import comparison_size, from_uint8
from lsap_core.inversion.by_encoder import EncoderEmbedder
from lsap_core.metrics.disalignment import Disalignment, disalignment_of
from lsap_core.metrics.editability import InvertibleEdit, editing_consistency
from lsap_core.metrics.reconstruction import mse, psnr
from lsap_core.metrics.structural_similarity import has_five_scales, ms_ssim
from lsap_core.objectives.terms import mean_code_distance
from lsap_core.spaces.styles import StyleSet
from tasks.measuring.attributes import attribute_in
from tasks.measuring.looks import Looks, Memory
from tasks.measuring.networks import IdentityMeasure, Judge
from tasks.pictures.saved import read_back, saved_pixels

View = Literal["compared", "whole"]

TOO_SMALL = "too_small"
NO_FACE = "no_face"
NO_ORIGINAL = "no_original"
NOT_MEASURABLE = "not_measurable"

Instruments = Mapping[str, Mapping[str, Any]]
"""What measures with, by role and name: "lpips" (distances), "identity" (`IdentityMeasure`), "judge" (`Judge`),
"attribute" (`Attribute`), "real" (`RealNeighbours`, by the name of their judge), "edit" (those of the editing
consistency)."""


@dataclass(frozen=True)
class Batch:
    """Images that are measured together, and what is known of them; None for what is not.

    Attributes:
        generator: of the images; its affine layers give the styles.
        w_plus: codes [N, K, w_dim] of the images.
        images: [N, C, R, R] as the generator gave them, unclamped.
        original: the photos that they were made from, [N, C, R, R] in [-1, 1].
        memory: what was seen of these photos before, as they are compared and whole, by name of the view.
        anchor: the reference of SNCD.
        style_shift: what an edit in S has added to the styles of the codes.
        embedder: the encoder that the codes are by.
        true_codes: W codes [N, w_dim] (or W+) of the synthetic images that were encoded.
        style_set: which style vectors S is made of, where codes are compared with true ones.
    """

    generator: Generator
    w_plus: Tensor
    images: Tensor | None = None
    original: Tensor | None = None
    anchor: Anchor | None = None
    style_shift: StyleShift = field(default_factory=dict)
    embedder: EncoderEmbedder | None = None
    true_codes: Tensor | None = None
    style_set: StyleSet = "authors"
    memory: Mapping[View, Memory] = field(default_factory=dict)

    @cached_property
    def seen(self) -> Tensor:
        """The images as files that were saved and read back, at most 256 pixels wide (LSAP, section 4.1)."""
        assert self.images is not None
        return read_back(self.images, content_box=self.generator.config.content_box)

    @cached_property
    def wanted(self) -> Tensor:
        """The originals likewise."""
        assert self.original is not None
        return read_back(self.original, content_box=self.generator.config.content_box)

    @cached_property
    def saved(self) -> Tensor:
        """The images as their files hold them, in full size."""
        assert self.images is not None
        return from_uint8(saved_pixels(self.images)).to(self.images.device)

    @cached_property
    def compared(self) -> Looks:
        """The images as they are compared, and what is seen in them."""
        return Looks(self.seen)

    @cached_property
    def whole(self) -> Looks:
        """The images in full size, and what is seen in them; small ones are compared so."""
        return self.compared if self._is_compared_whole else Looks(self.saved)

    @cached_property
    def original_compared(self) -> Looks:
        """The originals as they are compared, and what is seen in them."""
        return Looks(self.wanted, self.memory.get("whole" if self._is_compared_whole else "compared"))

    @cached_property
    def original_whole(self) -> Looks:
        """The originals in full size, and what is seen in them."""
        assert self.original is not None
        return self.original_compared if self._is_compared_whole else Looks(self.original, self.memory.get("whole"))

    @property
    def _is_compared_whole(self) -> bool:
        config = self.generator.config
        return config.content_box is None and comparison_size(*config.content_size) == config.content_size

    @cached_property
    def disalignment(self) -> Disalignment:
        """How far the codes lie from the true ones."""
        assert self.true_codes is not None
        return disalignment_of(self.w_plus, self.true_codes, self.generator, style_set=self.style_set)


@dataclass(frozen=True)
class Measure:
    """One entry of the table.

    Attributes:
        name: column `measure` of the archive's measurements.
        better: which way is better, or None where neither is.
        how: a batch, and an instrument where one is needed, to one value for each image, [N]; NaN where there is none.
        needs: what the batch has to hold besides codes.
        by: role of the instruments, each of which measures for itself; their names are column `by`. None without.
        unit: of the values, for people; "" where they have none, or that of an attribute.
        problem: code of why an image has no value.
    """

    name: str
    better: Literal["lower", "higher"] | None
    how: Callable[..., Tensor]
    needs: tuple[str, ...] = ("images",)
    by: str | None = None
    unit: str = ""
    problem: str = NOT_MEASURABLE

    def values(self, batch: Batch, instrument: Any = None) -> Tensor:
        """One value for each image, [N]; NaN where there is none."""
        return self.how(batch) if self.by is None else self.how(batch, instrument)


def _compare(batch: Batch, network: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    return network(batch.seen, batch.wanted)


def _identity(batch: Batch, network: IdentityMeasure | Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    if isinstance(network, IdentityMeasure):
        return network.similarity(batch.compared, batch.original_compared)
    return _compare(batch, network)  # a run's own network, for a column of its rows


def _sncd(batch: Batch) -> Tensor:
    assert batch.anchor is not None
    styles = batch.generator.styles(batch.w_plus, batch.style_shift)
    return SncdLoss(batch.generator, batch.anchor).of_styles(styles)


def _ms_ssim(batch: Batch) -> Tensor:
    if not has_five_scales(batch.seen):
        return batch.seen.new_full((len(batch.seen),), math.nan)
    return ms_ssim(batch.seen, batch.wanted)


def _class_kept(batch: Batch, judge: Judge) -> Tensor:
    """1 where the judge sees the same class as in the original, else 0."""
    seen, wanted = (judge.classes_in(looks) for looks in (batch.compared, batch.original_compared))
    return (seen.argmax(dim=1) == wanted.argmax(dim=1)).double()


def _class_confidence(batch: Batch, judge: Judge) -> Tensor:
    """Probability that the judge gives to the class that it sees."""
    return judge.classes_in(batch.compared).amax(dim=1)


def _consistency(batch: Batch, edit: InvertibleEdit) -> Tensor:
    """With the generator's constant noise."""
    assert batch.embedder is not None
    return editing_consistency(
        batch.w_plus,
        encode=batch.embedder.codes_of_view,
        generate=batch.generator.synthesize,
        edit=edit,
        content_box=batch.generator.config.content_box,
    )


def _disalignment(name: str, how: Callable[[Disalignment], Tensor], unit: str) -> Measure:
    return Measure(f"disalignment_{name}", "lower", lambda batch: how(batch.disalignment), ("true_codes",), unit=unit)


COMPARING = ("images", "original")
TABLE = (
    Measure("mse", "lower", lambda batch: mse(batch.seen, batch.wanted), COMPARING),
    Measure("psnr", "higher", lambda batch: psnr(batch.seen, batch.wanted), COMPARING, unit="dB"),
    Measure("ms_ssim", "higher", _ms_ssim, COMPARING, problem=TOO_SMALL),
    Measure("lpips", "lower", _compare, COMPARING, by="lpips"),
    Measure("identity", "higher", _identity, COMPARING, by="identity", problem=NO_FACE),
    Measure("class_kept", "higher", _class_kept, COMPARING, by="judge"),
    Measure("sncd", "lower", _sncd, ("anchor",)),
    Measure(
        "w_distance",
        None,
        lambda batch: mean_code_distance(batch.w_plus, batch.anchor.w_avg, batch.anchor.code_deviation),
        ("anchor",),
        unit="codes",
    ),
    Measure("attribute", None, lambda batch, attribute: attribute_in(batch.whole, attribute), by="attribute"),
    Measure(
        "attribute_of_original",
        None,
        lambda batch, attribute: attribute_in(batch.original_whole, attribute),
        COMPARING,
        by="attribute",
    ),
    Measure("class_confidence", None, _class_confidence, by="judge"),
    Measure("distance_to_real", "lower", lambda batch, real: real.distances(batch.seen), by="real"),
    Measure("lec", "lower", _consistency, ("embedder",), by="edit"),
    _disalignment("s_n", lambda found: found.s_n, "cosine"),
    _disalignment("w", lambda found: found.w.per_layer, "squared distance"),
    _disalignment("w_per_entry", lambda found: found.w.per_entry, "mean square per entry"),
    _disalignment("w_frobenius", lambda found: found.w.frobenius, "Frobenius norm"),
    _disalignment("s", lambda found: found.s.per_layer, "squared distance"),
    _disalignment("s_per_entry", lambda found: found.s.per_entry, "mean square per entry"),
    _disalignment("s_frobenius", lambda found: found.s.frobenius, "Frobenius norm"),
)
MEASURES = {measure.name: measure for measure in TABLE}


class MeasureKey(NamedTuple):
    """Columns `measure` and `by` of the archive's measurements, such as ("lpips", "lpips-alex") or ("mse", None)."""

    measure: str
    by: str | None = None


@dataclass(frozen=True)
class Measured:
    """One measure of a batch.

    Attributes:
        values: one for each image; None where there is none. The PSNR of equal images is inf.
        problems: for each image the code of why there is no value; None where there is one.
    """

    values: list[float | None]
    problems: list[str | None]

    @classmethod
    def of(cls, values: Tensor, problem: str) -> Measured:
        """Values [N], NaN where there is none, and why that is so."""
        numbers = values.detach().double().tolist()
        is_missing = [math.isnan(number) for number in numbers]
        return cls(
            [None if missing else number for number, missing in zip(numbers, is_missing, strict=True)],
            [problem if missing else None for missing in is_missing],
        )

    @classmethod
    def none(cls, count: int, problem: str) -> Measured:
        """No value for any image, for the same reason."""
        return cls([None] * count, [problem] * count)


Measurements = dict[MeasureKey, Measured]


@torch.no_grad()
def measure_all(batch: Batch, instruments: Instruments) -> Measurements:
    """Every measure of the table for which the batch holds what it needs, by every instrument of its role.

    What compares images that have no original has problem "no_original".
    """
    found: Measurements = {}
    for measure in MEASURES.values():
        missing = {name for name in measure.needs if getattr(batch, name) is None}
        if missing - {"original"}:
            continue
        instruments_of = {None: None} if measure.by is None else instruments.get(measure.by, {})
        for name, instrument in instruments_of.items():
            found[MeasureKey(measure.name, name)] = (
                Measured.none(len(batch.w_plus), NO_ORIGINAL)
                if missing
                else Measured.of(measure.values(batch, instrument), measure.problem)
            )
    return found
