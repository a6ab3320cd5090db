"""What a run would do, without doing it: images, shards, bytes, device time."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

import torch

from flows.invert import request_of
from flows.parameters import ResolvedRun
from lsap_core.alignment.anchor import estimate_anchor
from lsap_core.inversion.by_optimization import OptimizationEmbedder
from lsap_core.presets import Method
from tasks.networks import load_networks, module_device, place
from tasks.planning import bytes_per_image, missing_shards
from tasks.prepare import prepare_dry
from tasks.weights import load_generator

PROBE_STEPS = 4
PROBE_ANCHOR_SAMPLES = 1024


def dry_run(resolved: ResolvedRun) -> dict[str, Any]:
    """Check everything, plan, and time a few steps on this machine; nothing is written."""
    plan = prepare_dry(request_of(resolved))
    unfinished = [shard for run in plan.unfinished for shard in missing_shards(run)]
    left: Counter[str] = Counter()
    for shard in unfinished:
        left[shard.method] += shard.num_images
    for run in plan.new:
        left[run.method] += run.num_rows
    seconds = {
        method.name: left[method.name] * seconds_per_image(resolved, method)
        for method in resolved.methods
        if left[method.name]
    }
    num_images = left.total()
    return {
        "source": plan.source,
        "images in the source": plan.num_images,
        "unfinished runs to resume": [run.run_id for run in plan.unfinished],
        "images left by method": dict(left) or "none",
        "shards left": len(unfinished) + sum(run.num_shards for run in plan.new),
        "archive bytes, before compression": num_images * bytes_per_image(plan.config),
        "device hours on this machine, one worker": round(sum(seconds.values()) / 3600, 4),
    }


def seconds_per_image(resolved: ResolvedRun, method: Method) -> float:
    """Measured on one batch of random images for a few steps on this machine's device."""
    device = module_device(resolved.run.workers.device)
    generator = place(load_generator(resolved.generator).generator, device).freeze()  # type: ignore[operator]
    anchor = estimate_anchor(generator, num_samples=PROBE_ANCHOR_SAMPLES).to(device)
    embedder = OptimizationEmbedder(
        generator, anchor, load_networks(resolved.networks, device).perceptual, method.settings
    )
    config, count = generator.config, resolved.batch_size
    target = torch.zeros(count, config.image_channels, config.resolution, config.resolution, device=device)
    state = embedder.start(range(count))
    embedder.advance(state, target, until=1)
    started = time.monotonic()
    embedder.advance(state, target, until=1 + PROBE_STEPS)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (time.monotonic() - started) / PROBE_STEPS * method.settings.num_steps / count
