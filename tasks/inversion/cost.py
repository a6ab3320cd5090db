"""What an inversion would do, without doing it: images, shards, bytes, device time."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lsap_archive import expected_bytes, item_bytes
from lsap_core.alignment.anchor import estimate_anchor
from lsap_core.errors import ConfigError
from lsap_core.inversion.inversion import Embedder, Parts
from lsap_core.presets import Method, encoder_settings
from tasks.archived.opening import geometry_of
from tasks.errors import memory_told
from tasks.inversion.methods import kept_arrays
from tasks.inversion.plan import InversionStage
from tasks.inversion.request import InversionRequest
from tasks.settings import Settings
from tasks.weights.devices import place, probe_device
from tasks.weights.encoders import load_encoder
from tasks.weights.networks import load_networks

PROBE_STEPS = 4
PROBE_ANCHOR_SAMPLES = 1024


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
    kept = {method.name: kept_arrays(method, geometry_of(stage.facts.config)) for method in methods}
    return {
        "source": source,
        "images in the source": stage.num_images,
        "unfinished runs to resume": unfinished,
        "images left by method": dict(+left) or "none",
        "shards left": num_shards,
        "noise that is kept": {method.name: method.noise for method in methods} or "none",
        "archive bytes, before compression": sum(
            left[name] * item_bytes(array) for name, arrays in kept.items() for array in arrays
        ),
        "archive bytes, as they are stored, about": sum(
            expected_bytes(arrays, left[name]) for name, arrays in kept.items()
        ),
        "device hours on this machine, one worker": round(
            sum(left[method.name] * seconds_per_image(request, method) for method in methods) / 3600, 4
        ),
    }


def seconds_per_image(request: InversionRequest, method: Method) -> float:
    """Measured on one batch of images for a few steps, on this machine's device.

    Raises:
        ConfigError: this machine has no room for a batch, and work is done here.
    """
    try:
        return _measured(request, method)
    except Exception as error:
        if not (told := memory_told(error)) or not Settings.from_environment().is_alone:
            raise
        raise ConfigError(f"batch_size: with batches of {request.batch_size} images {told}") from error


def _measured(request: InversionRequest, method: Method) -> float:
    device = probe_device(request.device)
    loaded = request.generator.load()
    parts = Parts(
        place(loaded.generator, device).freeze(),
        estimate_anchor(loaded.generator, num_samples=PROBE_ANCHOR_SAMPLES).to(device),
        load_networks(request.networks, device).perceptual,
    )
    if method.encoder is not None:
        encoder = load_encoder(request.encoders[method.encoder], generator_config=loaded.config).encoder
        parts = replace(
            parts,
            encoder=place(encoder, device).requires_grad_(False),
            num_passes=encoder_settings(method.settings, method.encoder).num_passes,
        )
    config, count = loaded.config, request.batch_size
    target = torch.zeros(count, config.image_channels, config.resolution, config.resolution, device=device)
    return seconds_of_batch(method.settings.embedder(parts), target) / count


def seconds_of_batch(embedder: Embedder[Any], target: Tensor) -> float:
    """All steps of a batch at the pace of the first ones, with what comes before and after them."""
    seeds, device = range(len(target)), target.device
    embedder.advance(embedder.start(seeds, target=target), target, until=1)  # pays for what is paid once
    asked = _now(device)
    state = embedder.start(seeds, target=target)
    started = _now(device)
    embedder.advance(state, target, until=PROBE_STEPS)
    advanced = _now(device)
    embedder.finish(state)
    finished = _now(device)
    pace: float = (advanced - started) / state.step
    return started - asked + pace * embedder.settings.num_steps + finished - advanced


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.monotonic()
