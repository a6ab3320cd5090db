"""A batch of one image and of two, tried for a step or some: what memory they take, and what time.

It is done in a process of its own, so that what runs out of memory is that process and not whoever asks.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import Any

import torch

from lsap_core.alignment.anchor import Anchor, estimate_anchor
from lsap_core.errors import ConfigError
from lsap_core.generators.generator import Generator
from lsap_core.inversion.inversion import Embedder, Parts
from lsap_core.presets import Method, encoder_settings
from tasks.errors import memory_told
from tasks.inversion.request import InversionRequest
from tasks.machine_memory import in_words
from tasks.measuring.of_inversions import measure
from tasks.weights.devices import free_memory, memory_held, place, probe_device
from tasks.weights.encoders import load_encoder
from tasks.weights.networks import Networks, load_networks

PROBE_STEPS = 4
PROBE_ANCHOR_SAMPLES = 1024
LONGEST_SECONDS = 10.0  # after which no further step is taken only to know the time
LOOK_SECONDS = 0.002
PROBED = (1, 2)


@dataclass(frozen=True)
class Probed:
    """What a process took that embedded one batch.

    Attributes:
        batch: its images.
        held_bytes: before it, with all networks there.
        peak_bytes: at most.
        seconds: what all steps of a batch take, and what comes before and after them.
    """

    batch: int
    held_bytes: int
    peak_bytes: int
    seconds: float


@dataclass(frozen=True)
class _Refused:
    """Why a batch could not be tried, and whether memory was not enough."""

    why: str
    for_memory: bool


class ProbeRanOutError(ConfigError):
    """Not even the batch that was tried has room."""


def probe(request: InversionRequest, method: Method, batches: Sequence[int] = PROBED) -> list[Probed]:
    """Try batches in a process of its own, the smallest first; those that memory ran out with are not in what comes.

    Raises:
        ProbeRanOutError: memory ran out with the first.
        ConfigError: as the work itself would be refused.
    """
    context = multiprocessing.get_context("spawn")
    telling, told = context.Pipe(duplex=False)
    process = context.Process(target=_try, args=(request, method, tuple(batches), told), name="lsap-probe", daemon=True)
    with _deaf_to_the_terminal():
        process.start()
    told.close()  # the other end is the process's alone: what comes ends with it
    found: list[Probed] = []
    refused: _Refused | None = None
    with telling, contextlib.suppress(EOFError):
        while True:
            one = telling.recv()
            if isinstance(one, Probed):
                found.append(one)
            else:
                refused = one
    process.join()
    if refused is not None and not refused.for_memory:
        raise ConfigError(f"a batch of {method.name} could not be tried: {refused.why}")
    if refused is None and process.exitcode and process.exitcode != -signal.SIGKILL:
        raise ConfigError(f"a batch of {method.name} could not be tried: its process ended with {process.exitcode}")
    if not found:
        ended = "the system ended the process that tried it, as it does where memory runs out"
        why = ended if refused is None else refused.why
        free = in_words(free_memory(probe_device(request.device)))
        raise ProbeRanOutError(
            f"batch_size: not even batches of {batches[0]} of {method.name} have room ({why}); {free} of memory are "
            "free now: end what else takes memory, make workers.count smaller, or take a machine with more of it"
        )
    return found


@contextlib.contextmanager
def _deaf_to_the_terminal() -> Iterator[None]:
    """What is started meanwhile hears no Ctrl-C: who started it ends it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def probe_here(
    request: InversionRequest, method: Method, batches: Sequence[int], done: Callable[[Probed], None]
) -> None:
    """Try batches in this process; each is told when it is done."""
    device = probe_device(request.device)
    loaded = request.generator.load()
    generator = place(loaded.generator, device).freeze()
    anchor = estimate_anchor(generator, num_samples=PROBE_ANCHOR_SAMPLES).to(device)
    networks = load_networks(request.networks, device)
    parts = Parts(generator, anchor, networks.perceptual)
    if method.encoder is not None:
        encoder = load_encoder(
            request.encoders[method.encoder],
            generator_config=loaded.config,
            name=method.encoder,
            heads=request.heads.get(method.encoder),
        ).encoder
        parts = replace(
            parts,
            encoder=place(encoder, device).requires_grad_(False),
            num_passes=encoder_settings(method.settings, method.encoder).num_passes,
        )
    embedder = method.settings.embedder(parts)
    for batch in batches:
        held = memory_held(device)
        with _peak(device) as peak:
            seconds = _embed(embedder, batch, generator, anchor, networks)
        done(Probed(batch, held, peak[0], seconds))


def _embed(embedder: Embedder[Any], count: int, generator: Generator, anchor: Anchor, networks: Networks) -> float:
    """Seconds of a whole batch, at the pace of its first steps; one step before that pays for what is paid once."""
    config, device = generator.config, generator.mapping.w_avg.device
    target = torch.zeros(count, *config.image_shape, device=device)
    embedder.advance(embedder.start(range(count), target=target), target, until=1)
    asked = _now(device)
    state = embedder.start(range(count), target=target)
    started = _now(device)
    while state.step < min(PROBE_STEPS, embedder.settings.num_steps):
        embedder.advance(state, target, until=state.step + 1)
        if _now(device) - started > LONGEST_SECONDS:
            break
    advanced = _now(device)
    found = embedder.finish(state)
    measure(found.reconstruction, target, found.w_plus, generator=generator, anchor=anchor, networks=networks)
    pace: float = (advanced - started) / state.step
    return started - asked + pace * embedder.settings.num_steps + _now(device) - advanced


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.monotonic()


@contextlib.contextmanager
def _peak(device: torch.device) -> Iterator[list[int]]:
    """The largest memory of a block, in the list at its end: of a GPU what its allocator has, else what is resident."""
    peak = [memory_held(device)]
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        yield peak
        peak[0] = int(torch.cuda.max_memory_reserved(device))
        return
    is_over = threading.Event()

    def look() -> None:
        while not is_over.wait(LOOK_SECONDS):
            peak[0] = max(peak[0], memory_held(device))

    watcher = threading.Thread(target=look, name="lsap-memory", daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        is_over.set()
        watcher.join()


def _end_with(parent: int) -> None:
    """Nobody waits for what is tried here once the process that asked is gone."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def _try(request: InversionRequest, method: Method, batches: tuple[int, ...], told: Connection) -> None:
    """What the process does: it tells each batch that it has tried, or why it could not."""
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    try:
        probe_here(request, method, batches, told.send)
    except Exception as error:  # of any kind: whoever asked tells it
        for_memory = memory_told(error)
        told.send(_Refused(for_memory or f"{error}", for_memory is not None))
