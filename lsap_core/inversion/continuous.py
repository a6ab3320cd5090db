"""Optimization of many images in a batch that stays full: a row whose image is done takes the next one."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from itertools import islice

import torch
from torch import Tensor

from lsap_core.errors import ConfigError
from lsap_core.inversion.by_optimization import TRACE_TERMS, OptimizationEmbedder
from lsap_core.inversion.inversion import Inversion
from lsap_core.inversion.optimization_state import OptimizationState

LPIPS = TRACE_TERMS.index("lpips")
EMPTY = -1
"""The place of no image."""


def embed_continuously(
    embedder: OptimizationEmbedder,
    images: Iterable[tuple[Tensor, int]],
    *,
    batch_size: int,
    stop_at_lpips: float | None = None,
) -> Iterator[tuple[int, Inversion]]:
    """Inversions of single images as they are found, each with the image's place in `images`.

    Every `record_every` steps the traces are looked at. An image is done after its last step, when its loss was no
    longer finite, or when the perceptual distance that it recorded last was at most `stop_at_lpips`; its row then takes
    the next image. What ends an image is its own trace at its own steps. The batch keeps its size, and rows for which
    no image is left rest: neighbours, and when a row was filled, change nothing, not even rounding, which depends on
    the size of a batch. Give many more images than the batch has rows.

    Args:
        embedder: of the images.
        images: image [C, R, R] in [-1, 1] and seed of each; read when a row is free.
        batch_size: rows, at least 1.
        stop_at_lpips: what is near enough, positive; None for all steps of every image.

    Yields:
        Place, counted from 0, and the inversion, [1, ...] each: its `num_steps` are the steps taken, and its trace is
        NaN after them.

    Raises:
        ConfigError: a value outside its range, or no perceptual distance is recorded.
        ShapeError: the images do not fit the generator.
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size is {batch_size}; wanted at least 1")
    if stop_at_lpips is not None and not 0 < stop_at_lpips < math.inf:
        raise ConfigError(f"stop_at_lpips is {stop_at_lpips}; wanted a positive number, or None for all steps")
    if stop_at_lpips is not None and embedder.settings.lpips_weight == 0:
        raise ConfigError(
            f"stop_at_lpips is {stop_at_lpips}, and lpips_weight is 0, so that no LPIPS is recorded: set lpips_weight, "
            "or stop_at_lpips to None"
        )
    waiting = enumerate(images)
    first = list(islice(waiting, batch_size))
    if not first:
        return
    places = [place for place, _ in first] + [EMPTY] * (batch_size - len(first))
    state, target = _started(embedder, [image for _, image in first], batch_size)
    state.steps[len(first) :] = embedder.settings.num_steps  # these rest
    while any(place != EMPTY for place in places):
        embedder.advance(state, target, at_most=embedder.settings.record_every)
        done = [row for row in _done(embedder, state, stop_at_lpips) if places[row] != EMPTY]
        if not done:
            continue
        found = embedder.finish(state)
        yield from ((places[row], _one(found, row, int(state.steps[row]))) for row in done)
        coming = list(islice(waiting, len(done)))
        filled, emptied = done[: len(coming)], done[len(coming) :]
        if coming:
            # As many as the batch has only where an encoder is asked: its rounding, too, depends on how many.
            size = batch_size if embedder.settings.needs_encoder else len(coming)
            started, images_of = _started(embedder, [image for _, image in coming], size)
            state.replace_rows(filled, started.rows(range(len(coming))))
            target[filled] = images_of[: len(coming)]
        for row, (place, _) in zip(filled, coming, strict=True):
            places[row] = place
        for row in emptied:
            places[row] = EMPTY
        state.steps[emptied] = embedder.settings.num_steps


def _started(
    embedder: OptimizationEmbedder, images: list[tuple[Tensor, int]], size: int
) -> tuple[OptimizationState, Tensor]:
    """State and images of a batch of some size; the last image fills it up."""
    full = images + images[-1:] * (size - len(images))
    target = torch.stack([image for image, _ in full]).to(embedder.generator.mapping.w_avg)
    return embedder.start([seed for _, seed in full], target=target), target


def _done(embedder: OptimizationEmbedder, state: OptimizationState, stop_at_lpips: float | None) -> list[int]:
    """The rows whose images need no further step."""
    is_done = (state.steps >= embedder.settings.num_steps) | ~state.is_active.cpu()
    if stop_at_lpips is not None:
        recorded = state.trace[..., LPIPS].cpu()  # [N, recorded steps]
        num_recorded = (torch.tensor(embedder.settings.trace_steps) < state.steps[:, None]).sum(dim=1)
        is_done |= recorded.gather(1, num_recorded[:, None] - 1)[:, 0] <= stop_at_lpips
    return is_done.nonzero()[:, 0].tolist()


def _one(found: Inversion, row: int, num_steps: int) -> Inversion:
    one = slice(row, row + 1)
    return Inversion(
        w_plus=found.w_plus[one].clone(),
        noise=tuple(maps[one].clone() for maps in found.noise),
        reconstruction=found.reconstruction[one].clone(),
        trace=found.trace[one].clone(),
        trace_steps=found.trace_steps,
        trace_terms=found.trace_terms,
        stopped_at=found.stopped_at[one].clone(),
        num_steps=num_steps,
    )
