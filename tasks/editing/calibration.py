"""How strong an edit has to be for a given effect: found once for each method, and kept in the archive.

What is measured for it is shared out in parts, each by any worker. Parts depend on the images and the batch alone, so
the result is the same bits whatever the number of workers, and whether or not it was found in one go.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lsap_archive import RunReader
from lsap_core.errors import ConfigError, OutOfReachError
from lsap_core.metrics.editability import equal_effect
from tasks.archived.rendering import RunPart
from tasks.editing.spec import EditSpec

SYNTHETIC_IMAGES = 2000
"""Images whose spread is the unit of a change."""
BOUNDS = (-20.0, 20.0)
"""Strengths that are tried."""
TOLERANCE = 0.01
"""In standard deviations of the attribute over synthetic images."""
LEAST_SHARE = 0.5
"""Of the images, that have to be measurable before and after an edit."""
PIXELS_OF_PART = 2**25
"""32 images of 1024 px, some minutes of a CPU: what a killed command has to do again, of each worker."""


@dataclass(frozen=True)
class CalibrationOptions:
    """What decides a calibration besides edit, method and generator.

    Attributes:
        num_images: images of the method that are edited, at most.
        seed: of the synthetic images.
        num_synthetic: synthetic images.
    """

    num_images: int = 64
    seed: int = 0
    num_synthetic: int = SYNTHETIC_IMAGES


@dataclass(frozen=True)
class SpreadWork:
    """An attribute whose spread over synthetic images is to be measured.

    Attributes:
        digest: under which it is kept.
        attribute: its name.
        options: how many images, and their seed.
    """

    digest: str
    attribute: str
    options: CalibrationOptions


@dataclass(frozen=True)
class CalibrationWork:
    """One edit of one method that is to be calibrated.

    Attributes:
        digest: under which the calibration is kept.
        method: name of the method.
        run_ids: its runs.
        spec: the edit.
        options: how many images.
        deviation: standard deviation of the attribute over synthetic images.
    """

    digest: str
    method: str
    run_ids: tuple[str, ...]
    spec: EditSpec
    options: CalibrationOptions
    deviation: float = math.nan


@dataclass(frozen=True)
class SyntheticPart:
    """Some of the synthetic images, of which an attribute is to be measured.

    Attributes:
        attribute: its name.
        options: how many images there are in all, and their seed.
        start, stop: which.
    """

    attribute: str
    options: CalibrationOptions
    start: int
    stop: int

    @property
    def num_images(self) -> int:
        """How many."""
        return self.stop - self.start

    @property
    def name(self) -> str:
        """Different from that of other parts of the same work."""
        return f"{self.start:07d}-{self.stop:07d}"


@dataclass(frozen=True)
class EditedPart:
    """Some images of a method, edited or not, of which an attribute is to be measured.

    Attributes:
        attribute: its name.
        run_id, first, last: rows of a run, first to before last.
        places: which of these rows, counted from 0.
        spec: the edit.
        strength: of the edit; None for the images as they are.
    """

    attribute: str
    run_id: str
    first: int
    last: int
    places: tuple[int, ...]
    spec: EditSpec
    strength: float | None

    @property
    def num_images(self) -> int:
        """How many."""
        return len(self.places)

    @property
    def name(self) -> str:
        """Different from that of other parts of the same work."""
        return _digest([self.run_id, self.first, self.last, self.places, self.strength])


Part = SyntheticPart | EditedPart
Values = list[float | None]
"""An attribute of each image of a part; None where it cannot be measured."""
Measure = Callable[[Sequence[Part]], list[Values]]
"""Measures parts, in any order and any number at a time."""


def calibration_digest(spec: EditSpec, method_digest: str, generator_digest: str, options: CalibrationOptions) -> str:
    """Under which name a calibration is kept."""
    about = {"num_images": options.num_images, "seed": options.seed}
    return _digest(["strength", spec.digest, method_digest, generator_digest, about, _protocol(options)])


def deviation_digest(attribute: str, generator_digest: str, options: CalibrationOptions) -> str:
    """Under which name the spread of an attribute over synthetic images is kept."""
    return _digest(["deviation", attribute, generator_digest, options.seed, options.num_synthetic])


def part_size(size: tuple[int, int], batch_size: int) -> int:
    """Images of a height and width in a part: whole batches, of so many pixels together."""
    batches = PIXELS_OF_PART // (math.prod(size) * batch_size)
    return max(1, batches) * batch_size


def synthetic_parts(work: SpreadWork, size: int) -> list[SyntheticPart]:
    """The synthetic images, so many at a time."""
    count = work.options.num_synthetic
    return [
        SyntheticPart(work.attribute, work.options, start, min(start + size, count)) for start in range(0, count, size)
    ]


def find_spread(work: SpreadWork, measure: Measure, size: int) -> dict[str, Any]:
    """Spread of an attribute over synthetic images (psi = 1, constant noise), JSON values.

    Args:
        work: which attribute.
        measure: measures parts.
        size: images of a part.

    Raises:
        ConfigError: it does not vary.
    """
    count = work.options.num_synthetic
    found = _together(measure(synthetic_parts(work, size)))
    found = found[found.isfinite()]
    deviation = float(found.std()) if len(found) >= 2 else 0.0
    if not deviation > 0:
        raise ConfigError(
            f"attribute {work.attribute} does not vary over {count} synthetic images "
            f"({len(found)} could be measured): no change of it can be asked for; choose another attribute"
        )
    return {
        "attribute": work.attribute,
        "deviation": deviation,
        "mean": float(found.mean()),
        "num_images": count,
        "num_measured": len(found),
        "seed": work.options.seed,
    }


def find_strength(work: CalibrationWork, archive: str, measure: Measure, size: int) -> dict[str, Any]:
    """The strength at which the attribute changes as wanted in the mean over images of a method, JSON values.

    Where no strength does, `strength` is None and `refused` says why: that is kept like a strength.

    Args:
        work: which edit of which method.
        archive: its URL.
        measure: measures parts.
        size: images of a part.

    Raises:
        ConfigError: the method has no image to measure.
    """
    wanted = work.spec.equal_effect
    assert wanted is not None
    parts = _first_images(work, archive, size)
    num_images = sum(len(places) for *_, places in parts)
    if not num_images:
        raise ConfigError(f"method {work.method} has no image to calibrate edit {work.spec.name} with")

    def measured(strength: float | None) -> Tensor:
        return _together(measure([EditedPart(wanted.attribute, *part, work.spec, strength) for part in parts]))

    before = measured(None)

    def response(strength: float) -> float:
        change = (measured(strength) - before) / work.deviation
        is_measured = change.isfinite()
        if is_measured.float().mean() < LEAST_SHARE:
            return math.nan
        return float(change[is_measured].mean())

    about = {
        "attribute": wanted.attribute,
        "change": wanted.change,
        "deviation": work.deviation,
        "num_images": num_images,
        **_protocol(work.options),
    }
    try:
        found = equal_effect(response, target=wanted.change, bounds=BOUNDS, tolerance=TOLERANCE)
    except OutOfReachError as error:
        refused = f"edit {work.spec.name} of {work.method}, {wanted.attribute}: {error}"
        return {**about, "strength": None, "refused": refused}
    tried = [[strength, changed if math.isfinite(changed) else None] for strength, changed in found.evaluations]
    return {**about, "strength": found.strength, "response": found.response, "evaluations": tried, "refused": None}


def _first_images(work: CalibrationWork, archive: str, size: int) -> list[tuple[str, int, int, tuple[int, ...]]]:
    """The first images of the method: run, first row, row behind the last, and places among them."""
    parts: list[tuple[str, int, int, tuple[int, ...]]] = []
    left = work.options.num_images
    for run_id in work.run_ids:
        reader = RunReader.open(archive, run_id)
        num_rows, shard_rows = reader.manifest.num_rows, reader.manifest.shard_rows
        for first in range(0, num_rows, shard_rows):
            if not left:
                return parts
            last = min(first + shard_rows, num_rows)
            good = RunPart(reader, range(first, last)).good[:left]
            left -= len(good)
            parts += [(run_id, first, last, tuple(good[at : at + size])) for at in range(0, len(good), size)]
    return parts


def _together(values: Sequence[Values]) -> Tensor:
    numbers = [math.nan if value is None else value for part in values for value in part]
    return torch.tensor(numbers, dtype=torch.float64)


def _protocol(options: CalibrationOptions) -> dict[str, Any]:
    return {"bounds": list(BOUNDS), "tolerance": TOLERANCE, "synthetic_images": options.num_synthetic}


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]
