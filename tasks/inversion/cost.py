"""What an inversion would do, without doing it: images, shards, bytes, device time."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from lsap_archive import expected_bytes, item_bytes
from lsap_core.errors import ConfigError
from lsap_core.generators.config import GeneratorConfig
from lsap_core.presets import Method
from tasks.archived.opening import geometry_of
from tasks.inversion.batches import footprint_of, is_certain, room_of_worker, too_little
from tasks.inversion.methods import kept_arrays
from tasks.inversion.plan import InversionStage
from tasks.inversion.request import InversionRequest
from tasks.pictures.previews import expected_preview_bytes
from tasks.settings import Settings


def dry_run(request: InversionRequest) -> dict[str, Any]:
    """Check everything, plan, and time a few steps on this machine; nothing is written, and one run is in memory."""
    unfinished: list[str] = []
    left: Counter[str] = Counter()
    num_shards = 0
    with InversionStage(request, start=False) as stage:
        for job in stage.jobs():
            unfinished += [] if job.is_new else [job.job_id]
            left[job.name] += job.num_images
            num_shards += len(job.shards)
        source = stage.describe()
    methods = [method for method in request.methods if left[method.name]]
    config = stage.facts.config
    preview = expected_preview_bytes(config.content_size, config.image_channels, request.previews)
    kept = {method.name: kept_arrays(method, geometry_of(config)) for method in methods}
    costs = {
        method.name: cost_of(request, method, config, at_most=min(request.shard_rows, left[method.name]))
        for method in methods
    }
    return {
        "source": source,
        "images in the source": stage.num_images,
        "unfinished runs to resume": unfinished,
        "images left by method": dict(+left),
        "shards left": num_shards,
        "noise that is kept": {method.name: method.noise for method in methods},
        "archive bytes, before compression": sum(
            left[name] * item_bytes(array) for name, arrays in kept.items() for array in arrays
        ),
        "archive bytes, as they are stored, about": sum(
            expected_bytes(arrays, left[name]) for name, arrays in kept.items()
        ),
        "archive bytes of previews, about": 2 * preview * left.total(),  # and originals
        "images of a batch": {name: cost.batch for name, cost in costs.items()},
        "bytes of a worker's memory": {name: cost.peak_bytes for name, cost in costs.items()},
        "bytes that a worker has room for on this machine": room_of_worker(request),
        "device hours on this machine, one worker": round(
            sum(left[name] * cost.image_seconds for name, cost in costs.items()) / 3600, 4
        ),
        **({"of files of weights": list(stage.facts.notes)} if stage.facts.notes else {}),
    }


@dataclass(frozen=True)
class Cost:
    """What a worker takes for a method.

    Attributes:
        batch: images at once.
        peak_bytes: of its memory, at most.
        image_seconds: of an image.
    """

    batch: int
    peak_bytes: int
    image_seconds: float


def cost_of(request: InversionRequest, method: Method, config: GeneratorConfig, *, at_most: int) -> Cost:
    """Measured on a batch of one image and of two for a few steps, on this machine's device.

    Where memory is no question the batch itself is tried, in this process; else the others are, in one of their own.

    Args:
        request: what is asked for.
        method: one of its methods.
        config: of its generator.
        at_most: images that there are for a batch: those of a shard, or that are left.

    Raises:
        ConfigError: a worker has no room for a batch, and work is done here.
    """
    room = room_of_worker(request)
    footprint = footprint_of(request, method, config, certain=is_certain(request, method, config, room))
    most = footprint.most(room)
    if Settings.from_environment().is_alone and (most == 0 or (most < request.batch_size and not request.fits_batch)):
        raise ConfigError(too_little(request, method, footprint, request.batch_size if most else 1, room))
    batch = min(request.batch_size, max(most, 1)) if request.fits_batch else request.batch_size
    batch = min(batch, at_most)
    return Cost(batch, footprint.of(batch), footprint.image_seconds)
