"""How strong an edit has to be for a given effect: calibrated once for each method, and kept in the archive."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from domains.embedded import Attribute
from lsap_archive import RunReader
from lsap_core.errors import ConfigError, OutOfReachError
from lsap_core.images import quantize
from lsap_core.metrics.editability import equal_effect
from tasks.archived.rendering import Renderer, RunPart
from tasks.editing.builder import EditBuilder
from tasks.editing.spec import EditSpec
from tasks.measuring.attributes import load_attribute
from tasks.weights.published import Published

SYNTHETIC_IMAGES = 2000
"""Images whose spread is the unit of a change."""
BOUNDS = (-20.0, 20.0)
"""Strengths that are tried."""
TOLERANCE = 0.01
"""In standard deviations of the attribute over synthetic images."""
LEAST_SHARE = 0.5
"""Of the images, that have to be measurable before and after an edit."""


@dataclass(frozen=True)
class CalibrationOptions:
    """What decides a calibration besides edit, method and generator.

    Attributes:
        num_images: images of the method that are edited, at most.
        seed: of the synthetic images.
    """

    num_images: int = 64
    seed: int = 0


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


def calibration_digest(spec: EditSpec, method_digest: str, generator_digest: str, options: CalibrationOptions) -> str:
    """Under which name a calibration is kept."""
    return _digest(["strength", spec.digest, method_digest, generator_digest, asdict(options), _PROTOCOL])


def deviation_digest(attribute: str, generator_digest: str, seed: int) -> str:
    """Under which name the spread of an attribute over synthetic images is kept."""
    return _digest(["deviation", attribute, generator_digest, seed, SYNTHETIC_IMAGES])


class Calibrator:
    """Measures attributes of synthetic and of edited images; part of a worker, which hears of each batch."""

    def __init__(
        self,
        renderer: Renderer,
        builder: EditBuilder,
        *,
        archive: str,
        batch_size: int,
        published: Published,
        advance: Callable[[int], None] = lambda num_images: None,
    ):
        self.renderer = renderer
        self.device = renderer.generator.mapping.w_avg.device
        self.builder = builder
        self.archive = archive
        self.batch_size = batch_size
        self.published = published
        self.advance = advance

    def deviation(self, attribute_name: str, seed: int) -> dict[str, Any]:
        """Spread of an attribute over synthetic images (psi = 1, constant noise), JSON values.

        Raises:
            ConfigError: no such attribute, or it does not vary.
        """
        generator = self.renderer.generator
        attribute = self._attribute(attribute_name)
        z = torch.randn(SYNTHETIC_IMAGES, generator.config.z_dim, generator=torch.Generator().manual_seed(seed))
        values = []
        with torch.no_grad():
            for part in z.split(self.batch_size):
                images = generator.synthesize(generator.map(part.to(self.device)))
                values.append(attribute.measure(quantize(images)).double().cpu())
                self.advance(len(part))
        found = torch.cat(values)
        found = found[found.isfinite()]
        deviation = float(found.std()) if len(found) >= 2 else 0.0
        if not deviation > 0:
            raise ConfigError(
                f"attribute {attribute_name} does not vary over {SYNTHETIC_IMAGES} synthetic images "
                f"({len(found)} could be measured): no change of it can be asked for; choose another attribute"
            )
        return {
            "attribute": attribute_name,
            "deviation": deviation,
            "mean": float(found.mean()),
            "num_images": SYNTHETIC_IMAGES,
            "num_measured": len(found),
            "seed": seed,
        }

    def calibrate(self, work: CalibrationWork) -> dict[str, Any]:
        """The strength at which the attribute changes as wanted in the mean over images of a method, JSON values.

        Where no strength does, `strength` is None and `refused` says why: that is kept like a strength.

        Raises:
            ConfigError: the method has no image to measure.
        """
        wanted = work.spec.equal_effect
        assert wanted is not None
        attribute = self._attribute(wanted.attribute)
        parts = self._parts(work)
        num_images = sum(len(places) for _, places in parts)
        if not num_images:
            raise ConfigError(f"method {work.method} has no image to calibrate edit {work.spec.name} with")
        before = self._measured(attribute, parts, None)

        def response(strength: float) -> float:
            change = (self._measured(attribute, parts, (work.spec, strength)) - before) / work.deviation
            is_measured = change.isfinite()
            if is_measured.float().mean() < LEAST_SHARE:
                return math.nan
            return float(change[is_measured].mean())

        about = {
            "attribute": wanted.attribute,
            "change": wanted.change,
            "deviation": work.deviation,
            "num_images": num_images,
            **_PROTOCOL,
        }
        try:
            found = equal_effect(response, target=wanted.change, bounds=BOUNDS, tolerance=TOLERANCE)
        except OutOfReachError as error:
            refused = f"edit {work.spec.name} of {work.method}, {wanted.attribute}: {error}"
            return {**about, "strength": None, "refused": refused}
        tried = [[strength, changed if math.isfinite(changed) else None] for strength, changed in found.evaluations]
        return {
            **about,
            "strength": found.strength,
            "response": found.response,
            "evaluations": tried,
            "refused": None,
        }

    def _attribute(self, name: str) -> Attribute:
        return load_attribute(name, device=self.device, published=self.published)

    def _parts(self, work: CalibrationWork) -> list[tuple[RunPart, list[int]]]:
        """The first images of the method, as parts of its runs and places in them."""
        parts: list[tuple[RunPart, list[int]]] = []
        left = work.options.num_images
        for run_id in work.run_ids:
            reader = RunReader.open(self.archive, run_id)
            manifest = reader.manifest
            for start in range(0, manifest.num_rows, manifest.shard_rows):
                if not left:
                    return parts
                part = RunPart(reader, range(start, min(start + manifest.shard_rows, manifest.num_rows)))
                places = part.good[:left]
                left -= len(places)
                parts.append((part, places))
        return parts

    def _measured(
        self, attribute: Attribute, parts: Sequence[tuple[RunPart, list[int]]], edit: tuple[EditSpec, float] | None
    ) -> Tensor:
        values = []
        for part, good in parts:
            for start in range(0, len(good), self.batch_size):
                places = good[start : start + self.batch_size]
                codes = part.codes[places]
                if edit is not None:
                    codes = self.builder.build(*edit, method_digest=part.reader.manifest.method_digest)(codes)
                images = part.stored(self.renderer, places).render(codes)
                values.append(attribute.measure(quantize(images)).double().cpu())
                self.advance(len(places))
        return torch.cat(values)


_PROTOCOL = {"bounds": list(BOUNDS), "tolerance": TOLERANCE, "synthetic_images": SYNTHETIC_IMAGES}


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]
