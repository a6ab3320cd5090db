"""Images of a shard that end where they are near enough: each leaves its row of the batch to the next one."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable

import torch
from torch import Tensor

from lsap_core.inversion.by_optimization import OptimizationEmbedder
from lsap_core.inversion.continuous import RefilledBatch
from lsap_core.inversion.inversion import Inversion
from lsap_core.inversion.optimization_state import OptimizationState
from tasks.inversion.finding import ShardCodes, pixels_on
from tasks.inversion.reading import Row


class RefilledRows:
    """The images under way of a shard, each at its own step.

    Whoever goes on with a shard that was interrupted meets the same images under way: those before them are done, and
    what is kept of these and of the others is kept together.
    """

    def __init__(
        self,
        embedder: OptimizationEmbedder,
        codes: ShardCodes,
        *,
        batch_size: int,
        device: torch.device,
        tell: Callable[[float], None],
    ):
        """Nothing is under way yet.

        Args:
            embedder: of the run.
            codes: of the shard.
            batch_size: images under way at most.
            device: where the networks are.
            tell: called after every step with the images' worth of work that is done on the images under way.
        """
        self._codes, self._device, self._tell = codes, device, tell
        self._num_steps = embedder.settings.num_steps
        self._batch: RefilledBatch[Row] = RefilledBatch(embedder, batch_size)
        self._is_first, self._asked = True, time.monotonic()
        self._seconds: defaultdict[str, float] = defaultdict(float)

    @property
    def under_way(self) -> list[Row]:
        """Rows of the images that are not done, in the order of the shard."""
        return self._batch.under_way

    @property
    def num_free(self) -> int:
        """Images that `put` takes."""
        return self._batch.num_free

    def put(self, rows: list[Row]) -> None:
        """Take the next good images of the shard; fewer than are free only where none is left."""
        pixels = pixels_on(self._device, rows) if rows else ()
        images = list(zip(rows, pixels, self._codes.seeds(rows), strict=True))
        self._batch.put(images, self._restore if self._is_first else None)
        self._is_first = False

    def find(self) -> tuple[list[Row], Inversion, Tensor, list[float]]:
        """The next images that are done: rows, inversion, the images on the device, and the seconds that each took."""
        self._asked = time.monotonic()
        rows, inversion = self._batch.advance(self._after_step)
        target = pixels_on(self._device, rows)
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)  # else the time would be that of asking
        self._share_time([*rows, *self.under_way])
        return rows, inversion, target, [self._seconds.pop(row.image_id) for row in rows]

    def _restore(self, rows: list[Row], state: OptimizationState) -> None:
        resumed_at = self._codes.kept.restore([row.image_id for row in rows], state)
        self._codes.resumed_at = self._codes.resumed_at or resumed_at

    def _after_step(self) -> None:
        rows, steps = self.under_way, self._batch.steps
        self._share_time(rows)
        self._tell(sum(steps) / self._num_steps)
        if self._codes.kept.is_due and max(steps) < self._num_steps:  # who is done is kept as such, after this step
            self._codes.kept.save_instead([row.image_id for row in rows], self._batch.state())

    def _share_time(self, rows: list[Row]) -> None:
        """Book the time since the last step in equal parts on the images that were under way."""
        now = time.monotonic()
        for row in rows:
            self._seconds[row.image_id] += (now - self._asked) / len(rows)
        self._asked = now
