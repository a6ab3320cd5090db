"""What a run would do, without doing it: images, shards, bytes, device time."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from flows.invert import request_of
from flows.parameters.invert import ResolvedRun
from lsap_core.alignment.anchor import estimate_anchor
from lsap_core.encoders.encoder import Encoder
from lsap_core.generators.generator import Generator
from lsap_core.inversion.by_encoder import EncoderEmbedder
from lsap_core.inversion.by_optimization import OptimizationEmbedder, OptimizationSettings
from lsap_core.presets import Method, encoder_settings
from tasks.inversion.methods import bytes_per_image
from tasks.inversion.plan import prepare_dry
from tasks.weights.devices import module_device, place
from tasks.weights.encoders import load_encoder
from tasks.weights.generators import load_generator
from tasks.weights.networks import load_networks

PROBE_STEPS = 4
PROBE_ANCHOR_SAMPLES = 1024


def dry_run(resolved: ResolvedRun) -> dict[str, Any]:
    """Check everything, plan, and time a few steps on this machine; nothing is written."""
    plan = prepare_dry(request_of(resolved))
    left = plan.images_left
    seconds = {
        method.name: left[method.name] * seconds_per_image(resolved, method)
        for method in resolved.methods
        if method.name in left
    }
    num_bytes = sum(
        left[method.name] * bytes_per_image(plan.config, has_noise=isinstance(method.settings, OptimizationSettings))
        for method in resolved.methods
        if method.name in left
    )
    return {
        "source": plan.source,
        "images in the source": plan.num_images,
        "unfinished runs to resume": list(plan.unfinished),
        "images left by method": dict(left) or "none",
        "shards left": plan.shards_left,
        "archive bytes, before compression": num_bytes,
        "device hours on this machine, one worker": round(sum(seconds.values()) / 3600, 4),
    }


def seconds_per_image(resolved: ResolvedRun, method: Method) -> float:
    """Measured on one batch of images for a few steps, and one pass of the encoder, on this machine's device."""
    device = module_device(resolved.run.workers.device)
    loaded = load_generator(resolved.generator, content_box=resolved.domain.content_box)
    generator: Generator = place(loaded.generator, device).freeze()  # type: ignore[operator]
    config, count = generator.config, resolved.batch_size
    target = torch.zeros(count, config.image_channels, config.resolution, config.resolution, device=device)
    seconds = 0.0
    if method.encoder is not None:
        seconds += _encoder_seconds(resolved, method, generator, target)
    if isinstance(method.settings, OptimizationSettings):
        seconds += _optimization_seconds(resolved, method.settings, generator, target)
    return seconds / count


def _encoder_seconds(resolved: ResolvedRun, method: Method, generator: Generator, target: Tensor) -> float:
    assert method.encoder is not None
    loaded = load_encoder(resolved.encoders[method.encoder], generator_config=generator.config)
    encoder: Encoder = place(loaded.encoder, target.device).requires_grad_(False)  # type: ignore[assignment]
    embedder = EncoderEmbedder(generator, encoder, encoder_settings(method.settings, method.encoder))
    seeds = range(len(target))
    embedder(target, seeds)  # the first pass pays for what is paid once
    return _timed(lambda: embedder(target, seeds), target.device)


def _optimization_seconds(
    resolved: ResolvedRun, settings: OptimizationSettings, generator: Generator, target: Tensor
) -> float:
    anchor = estimate_anchor(generator, num_samples=PROBE_ANCHOR_SAMPLES).to(target.device)
    perceptual = load_networks(resolved.networks, target.device).perceptual
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
