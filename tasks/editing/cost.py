"""What an editing run would do, without doing it; and what calibrations would cost."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

import torch

from lsap_core.images import quantize
from tasks.editing.chosen import MissingCalibrations
from tasks.editing.plan import EditingStage
from tasks.editing.request import EditRequest
from tasks.measuring.attributes import load_attribute
from tasks.pictures.previews import expected_preview_bytes
from tasks.weights.devices import place, probe_device
from tasks.weights.generators import LoadedGenerator
from tasks.weights.published import Published

TRIES = 11
"""Strengths that a search takes, about: one and up to six steps outward, then some within."""
PROBE_IMAGES = 2


def dry_run(request: EditRequest) -> dict[str, Any]:
    """Check everything and say what would be done; nothing is written."""
    stage = EditingStage(request, start=False)
    missing = stage.missing_calibrations()
    left: Counter[str] = Counter()
    num_shards = 0
    for job in stage.jobs():
        left[job.name] += job.num_images
        num_shards += len(job.shards)
    config = stage.generator.config
    preview = expected_preview_bytes(config.content_size, config.image_channels, request.previews)
    return {
        "archive": request.archive,
        "edits": [edit.name for edit in stage.edits],
        "strengths": stage.strengths,
        "out of reach": stage.refused,
        "strengths to calibrate": [f"{work.method}/{work.spec.name}" for work in missing.strengths],
        **calibration_cost(missing, stage.generator, device=request.device, published=request.published),
        "images left by edit, beside those to calibrate": dict(+left),
        "shards left": num_shards,
        "archive bytes of previews, about": left.total() * preview,
    }


def calibration_cost(
    missing: MissingCalibrations, loaded: LoadedGenerator, *, device: str, published: Published
) -> dict[str, Any]:
    """Images that have to be made and measured, and hours of one worker on this machine; nothing where none is missing.

    Args:
        missing: what has to be found.
        loaded: the generator.
        device: of the workers.
        published: where published networks lie.

    Raises:
        ConfigError: no such attribute.
        MissingWeightsError: a network of an attribute is not on this machine.
    """
    images: Counter[str] = Counter()
    for spread in missing.spreads:
        images[spread.attribute] += spread.options.num_synthetic
    for work in missing.strengths:
        assert work.spec.equal_effect is not None
        images[work.spec.equal_effect.attribute] += work.options.num_images * (1 + TRIES)
    if not images:
        return {}
    seconds = sum(
        count * _seconds_per_image(name, loaded, device=device, published=published) for name, count in images.items()
    )
    return {
        "images to calibrate with, about": images.total(),
        "device hours of calibrations on this machine, one worker": round(seconds / 3600, 4),
    }


@torch.no_grad()
def _seconds_per_image(name: str, loaded: LoadedGenerator, *, device: str, published: Published) -> float:
    """Of making an image and measuring it."""
    on = probe_device(device)
    attribute = load_attribute(name, device=on, published=published)
    generator = place(loaded.generator, on).freeze()
    z = torch.randn(PROBE_IMAGES, loaded.config.z_dim, generator=torch.Generator().manual_seed(0))
    started = 0.0
    for one in z[:, None].to(on):  # the first pays for what is paid once
        started = time.monotonic()
        attribute.measure(quantize(generator.synthesize(generator.map(one)))).tolist()
    return time.monotonic() - started
