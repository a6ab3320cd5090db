"""What an inversion would do, without doing it: images, shards, bytes, device time."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lsap_core.alignment.anchor import estimate_anchor
from lsap_core.encoders.encoder import Encoder
from lsap_core.generators.generator import Generator
from lsap_core.inversion.by_encoder import EncoderEmbedder
from lsap_core.inversion.by_optimization import OptimizationEmbedder, OptimizationSettings
from lsap_core.presets import Method, encoder_settings
from tasks.inversion.methods import bytes_per_image
from tasks.inversion.plan import InversionStage
from tasks.inversion.request import InversionRequest
from tasks.weights.devices import module_device, place
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
    config = stage.facts.config
    return {
        "source": source,
        "images in the source": stage.num_images,
        "unfinished runs to resume": unfinished,
        "images left by method": dict(+left) or "none",
        "shards left": num_shards,
        "archive bytes, before compression": sum(
            left[method.name] * bytes_per_image(config, has_noise=isinstance(method.settings, OptimizationSettings))
            for method in methods
        ),
        "device hours on this machine, one worker": round(
            sum(left[method.name] * seconds_per_image(request, method) for method in methods) / 3600, 4
        ),
    }


def seconds_per_image(request: InversionRequest, method: Method) -> float:
    """Measured on one batch of images for a few steps, and one pass of the encoder, on this machine's device."""
    device = module_device(request.device)
    generator: Generator = place(request.generator.load().generator, device).freeze()  # type: ignore[operator]
    config, count = generator.config, request.batch_size
    target = torch.zeros(count, config.image_channels, config.resolution, config.resolution, device=device)
    seconds = 0.0
    if method.encoder is not None:
        seconds += _encoder_seconds(request, method, generator, target)
    if isinstance(method.settings, OptimizationSettings):
        seconds += _optimization_seconds(request, method.settings, generator, target)
    return seconds / count


def _encoder_seconds(request: InversionRequest, method: Method, generator: Generator, target: Tensor) -> float:
    assert method.encoder is not None
    loaded = load_encoder(request.encoders[method.encoder], generator_config=generator.config)
    encoder: Encoder = place(loaded.encoder, target.device).requires_grad_(False)  # type: ignore[assignment]
    embedder = EncoderEmbedder(generator, encoder, encoder_settings(method.settings, method.encoder))
    seeds = range(len(target))
    embedder(target, seeds)  # the first pass pays for what is paid once
    return _timed(lambda: embedder(target, seeds), target.device)


def _optimization_seconds(
    request: InversionRequest, settings: OptimizationSettings, generator: Generator, target: Tensor
) -> float:
    anchor = estimate_anchor(generator, num_samples=PROBE_ANCHOR_SAMPLES).to(target.device)
    perceptual = load_networks(request.networks, target.device).perceptual
    probed = replace(settings, start="mean", num_steps=max(settings.num_steps, 1 + PROBE_STEPS))
    embedder = OptimizationEmbedder(generator, anchor, perceptual, probed)
    state = embedder.start(range(len(target)))
    embedder.advance(state, target, until=1)
    seconds = _timed(lambda: embedder.advance(state, target, until=1 + PROBE_STEPS), target.device)
    return seconds / PROBE_STEPS * settings.num_steps


def _timed(work: Callable[[], object], device: torch.device) -> float:
    started = time.monotonic()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.monotonic() - started
