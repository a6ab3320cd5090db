"""What a training would do, without doing it: images, steps, parameters, bytes, device time."""

from __future__ import annotations

import io
import time
from collections.abc import Mapping
from typing import IO, Any, cast

import torch

from tasks.training.plan import prepare_training
from tasks.training.spec import Steps, TrainingRequest
from tasks.weights.devices import probe_device

PROBE_STEPS = 2


def dry_run(request: TrainingRequest) -> dict[str, Any]:
    """Check everything, and time two steps on this machine; nothing is written."""
    spec = request.spec
    request.spec.check_memory(request.device)
    prepared = prepare_training(spec, dry=True)
    settings = spec.method.settings
    steps_left = max(settings.num_steps - prepared.step, 0)
    training, seconds = _probe(request)
    state = _CountedBytes()
    torch.save(training.state_dict(), cast(IO[bytes], state))
    return {
        "method": spec.method.title,
        "images to train on": prepared.num_images,
        "images held out": prepared.num_held_out,
        f"parameters of the {spec.what}": prepared.num_parameters,
        "steps already taken": prepared.step,
        "steps left": steps_left,
        "epochs left": round(steps_left * settings.batch_size / prepared.num_images, 2),
        "checkpoints left": -(-steps_left // spec.checkpoint_every),
        "bytes of a checkpoint": state.count,
        "hours on this machine, one worker": round(seconds * steps_left / 3600, 4),
        "notes": list(prepared.notes),
    }


def dry_run_trainings(trainings: Mapping[str, TrainingRequest]) -> dict[str, Any]:
    """Check every training of a comparison, and time two steps of each method on this machine; nothing is written."""
    left: dict[str, int] = {}
    seconds_of: dict[str, float] = {}
    seconds = 0.0
    for name, request in trainings.items():
        request.spec.check_memory(request.device)
        prepared = prepare_training(request.spec, dry=True)
        method = request.spec.method
        steps = max(method.settings.num_steps - prepared.step, 0)
        if not steps:
            continue
        left[name] = steps
        if method.name not in seconds_of:
            _, seconds_of[method.name] = _probe(request)
        seconds += steps * seconds_of[method.name]
    return {
        "encoders": len(trainings),
        "encoders already trained": len(trainings) - len(left),
        "steps left by encoder": left,
        "hours on this machine, one training at a time": round(seconds / 3600, 4),
    }


class _CountedBytes(io.RawIOBase):
    """A file that keeps nothing but its length; a state can be larger than what is left of memory."""

    count = 0

    def write(self, data: Any) -> int:
        self.count += len(data)
        return len(data)


def _probe(request: TrainingRequest) -> tuple[Steps, float]:
    """A training after a few steps on black images, and the seconds of one step."""
    opened = request.spec.probe(probe_device(request.device))
    training, view, batch_size = opened.training, opened.view, request.spec.method.settings.batch_size
    images = torch.zeros(batch_size, view.channels, *view.size)
    beside = opened.beside([""] * batch_size)
    training.advance(images, *beside, range(batch_size))  # the first step pays for what is paid once
    started = time.monotonic()
    for _ in range(PROBE_STEPS):
        training.advance(images, *beside, range(batch_size))
    return training, (time.monotonic() - started) / PROBE_STEPS
