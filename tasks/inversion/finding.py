"""The codes of a shard's images, batch by batch: found, measured, filled in, and kept for who has to go on."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lsap_archive import FAILED, RunWriter, noise_name
from lsap_core.generators.generator import Generator
from lsap_core.images import from_uint8, to_uint8
from lsap_core.inversion.inversion import Embedder, EmbedderState, Inversion
from lsap_core.presets import settings_of
from tasks.archived.image_seeds import image_seed
from tasks.archived.previews import ShardPreviews
from tasks.archived.rendering import has_noise_maps, noise_of
from tasks.archived.saved_states import Finished, KeptWork
from tasks.inversion.reading import Row


class ShardCodes:
    """What is found of the images of one shard.

    Attributes:
        rows: those that are decided so far, by image id.
        arrays: what the run keeps, by name, each [rows of the shard, ...].
        resumed_at: the step that the first batch was resumed at.
        previews: of the images that are done.
        num_known: images that an earlier attempt had finished.
    """

    def __init__(
        self, run: RunWriter, image_ids: list[str], kept: KeptWork, generator: Generator, previews: ShardPreviews
    ):
        """What earlier attempts have kept is taken up."""
        self.run, self.kept, self.previews = run, kept, previews
        self.rows: dict[str, Row] = {}
        self.arrays = _empty_arrays(run, len(image_ids), generator)
        self.resumed_at = 0
        self._places = {image_id: place for place, image_id in enumerate(image_ids)}
        for finished in kept.finished():
            places = [self._places[image_id] for image_id in finished.image_ids]
            for name, values in finished.arrays.items():
                self.arrays[name][places] = values
            self.rows |= {record["image_id"]: Row(record) for record in finished.records}
            previews.take_up(places, finished.previews)
        self.num_known = len(self.rows)

    def find(
        self, embedder: Embedder[Any], rows: list[Row], device: torch.device, tell: Callable[[float], None]
    ) -> tuple[Inversion, Tensor, list[float]]:
        """The inversion of a batch, its images on the device, and the seconds that each took.

        Args:
            embedder: of the run.
            rows: of good images.
            device: where the networks are.
            tell: called after every step with the share of the batch's work that is done.
        """
        started, num_steps = time.monotonic(), embedder.settings.num_steps
        image_ids = [row.image_id for row in rows]
        target, seeds = pixels_on(device, rows), self.seeds(rows)
        state = embedder.start(seeds, target=target)
        resumed_at = self.kept.restore(image_ids, state) if num_steps > 1 else 0  # of one step nothing is kept

        def after_step(state: EmbedderState) -> None:
            tell(state.step / num_steps)
            if state.step < num_steps:  # what is finished is kept as such
                self.kept.save_if_due(image_ids, state)

        embedder.advance(state, target, after_step=after_step)
        inversion = embedder.finish(state)
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # else the time would be that of asking
        self.resumed_at = self.resumed_at or resumed_at
        return inversion, target, [(time.monotonic() - started) / len(rows)] * len(rows)

    def seeds(self, rows: Sequence[Row]) -> list[int]:
        """Of the random state of each image."""
        return [image_seed(self.run.plan["config"]["seed"], row.image_id) for row in rows]

    def fill(
        self,
        rows: list[Row],
        inversion: Inversion,
        metrics: Mapping[str, list[float]],
        seconds: Sequence[float],
        *,
        others_go_on: bool = False,
    ) -> None:
        """Put the results of some images into the arrays and their rows, and keep them when it is time.

        Args:
            rows: of the images.
            inversion: of them.
            metrics: what was measured, by name, of each.
            seconds: that each took.
            others_go_on: whether they leave a batch under way, whose state is kept together with them.
        """
        config = self.run.plan["config"]
        places = [self._places[row.image_id] for row in rows]
        self.arrays["w_plus"][places] = inversion.w_plus.cpu().numpy()
        if has_noise_maps(config):
            for index, maps in enumerate(inversion.noise):
                self.arrays[noise_name(index)][places] = maps[:, 0].cpu().numpy()
        trace = inversion.trace.cpu().numpy()
        if "trace" in self.arrays:
            self.arrays["trace"][places] = trace
        if self.previews:
            self.previews.add(places, to_uint8(inversion.reconstruction), [row.pixels for row in rows])
        for index, row in enumerate(rows):
            row.image = None  # its pixels are not needed any more
            stopped_at = int(inversion.stopped_at[index])
            row.columns |= {"num_steps": int(inversion.num_steps[index]), "seconds": seconds[index]}
            if stopped_at >= 0:
                reason, message = settings_of(config).why_stopped(stopped_at)
                row.columns |= {"status": FAILED, "reason": reason, "message": message}
                continue
            row.columns |= {"noise": noise_of(config), **{name: values[index] for name, values in metrics.items()}}
            if inversion.trace_steps:
                # An image that is near enough ends with what it recorded then.
                recorded = int(np.searchsorted(inversion.trace_steps, row.columns["num_steps"], side="right"))
                row.columns["final_loss"] = float(trace[index, recorded - 1, inversion.trace_terms.index("loss")])
        self.kept.finish(lambda: self._finished(rows), waits=others_go_on)

    def _finished(self, rows: list[Row]) -> Finished:
        places = [self._places[row.image_id] for row in rows]
        arrays = {name: values[places] for name, values in self.arrays.items()}
        return Finished(
            [row.image_id for row in rows], [row.columns for row in rows], arrays, previews=self.previews.of(places)
        )


def pixels_on(device: torch.device, rows: Sequence[Row]) -> Tensor:
    """Good images as the method takes them, [N, C, R, R] in [-1, 1]."""
    return from_uint8(np.stack([row.pixels for row in rows])).to(device)


def _empty_arrays(run: RunWriter, count: int, generator: Generator) -> dict[str, np.ndarray]:
    left_out: set[str] = set()  # maps that runs of an encoder declared before version 4 and never kept
    if not has_noise_maps(run.plan["config"]):
        left_out = {noise_name(index) for index in range(len(generator.config.noise_sizes))}
    kept = [array for array in run.arrays.values() if array.name not in left_out]
    return {array.name: np.full((count, *array.item_shape), array.fill_value, array.dtype) for array in kept}
