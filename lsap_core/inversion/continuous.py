"""Optimization of many images in a batch that stays full: a row whose image is done takes the next one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import torch
from torch import Tensor

from lsap_core.errors import ConfigError
from lsap_core.inversion.by_optimization import OptimizationEmbedder
from lsap_core.inversion.inversion import Inversion
from lsap_core.inversion.optimization_state import OptimizationState

Item = TypeVar("Item")


class RefilledBatch(Generic[Item]):
    """Images under way, as many as a batch has rows, each at its own step.

    An image leaves after its last step, or where it is near enough (`stop_at_lpips`), and its row takes the next one.
    What an image gets depends on nothing but itself and, by rounding, on the number of rows. That follows from how many
    images are under way: all rows, or where half of them or fewer are left at the end of the images, a half, a quarter,
    and so on. So whoever stops here and goes on elsewhere with a state that was kept ends with the same bits.

    Attributes:
        batch_size: rows at most.
    """

    def __init__(self, embedder: OptimizationEmbedder, batch_size: int):
        """Nothing is under way yet.

        Raises:
            ConfigError: a batch of no images.
        """
        if batch_size < 1:
            raise ConfigError(f"batch_size is {batch_size}; wanted at least 1")
        self.batch_size = batch_size
        self._embedder = embedder
        self._items: list[Item | None] = []  # of each row, in the order in which they came; None rests
        self._state: OptimizationState | None = None
        self._target: Tensor | None = None

    @property
    def under_way(self) -> list[Item]:
        """What is not done, in the order in which it came."""
        return [item for item in self._items if item is not None]

    @property
    def num_free(self) -> int:
        """Images that `put` takes."""
        return self.batch_size - len(self.under_way)

    @property
    def steps(self) -> list[int]:
        """Steps that each image under way has taken."""
        return [] if self._state is None else self._state.steps[self._taken].tolist()

    def state(self) -> OptimizationState:
        """A copy of the images under way, one row each in their order, to be kept; `put` takes it back."""
        assert self._state is not None
        return self._state.rows(self._taken)

    def put(
        self,
        images: Sequence[tuple[Item, Tensor, int]],
        restore: Callable[[list[Item], OptimizationState], object] | None = None,
    ) -> None:
        """Take images into the free rows; fewer than there are rows only where no more will come.

        Args:
            images: what each is to whoever asks, the image [C, R, R] in [-1, 1], and its seed.
            restore: called with them and with their state before the first step, to load into it what was kept of
                the images under way; in the order of `under_way`.
        """
        before, coming = self._taken, [item for item, _, _ in images]
        items: list[Item | None] = [*self.under_way, *coming]
        if not items:
            self._items, self._state, self._target = [], None, None
            return
        size = self.batch_size
        while len(items) <= size // 2:
            size //= 2
        state, target = self._state, self._target
        if images:
            new, new_target = self._started([image for _, image, _ in images], [seed for _, _, seed in images])
            if restore is not None:
                restore(coming, new)
            if not before:
                state, target, before = new, new_target, list(range(len(images)))
        assert state is not None and target is not None
        rows = before + before[-1:] * (size - len(before))
        state, target = state.rows(rows), target[rows]
        if len(before) < len(items):
            added = slice(len(before), len(items))
            state.replace_rows(range(size)[added], new)
            target[added] = new_target
        state.steps[len(items) :] = self._embedder.settings.num_steps  # these rest
        self._items, self._state, self._target = items + [None] * (size - len(items)), state, target

    def advance(self, after_step: Callable[[], None] | None = None) -> tuple[list[Item], Inversion]:
        """Take steps until some images are done, and let them go.

        Args:
            after_step: called after every step, to show progress or to keep the state.

        Returns:
            What they are, and their inversion, [n, ...]: its `num_steps` are those that each took, and its trace is NaN
            after them.
        """
        assert self._state is not None and self._target is not None
        self._embedder.advance(
            self._state,
            self._target,
            until_one_rests=True,
            after_step=None if after_step is None else lambda _: after_step(),
        )
        is_done = (self._state.steps >= self._embedder.settings.num_steps).tolist()
        done = [row for row in self._taken if is_done[row]]
        items = [item for row, item in enumerate(self._items) if item is not None and is_done[row]]
        found = self._embedder.finish(self._state.rows(done))
        self._items = [None if rests else item for item, rests in zip(self._items, is_done, strict=True)]
        return items, found

    @property
    def _taken(self) -> list[int]:
        """The rows of the images under way."""
        return [row for row, item in enumerate(self._items) if item is not None]

    def _started(self, images: list[Tensor], seeds: list[int]) -> tuple[OptimizationState, Tensor]:
        """State and images before the first step."""
        count = len(images)
        # As many as the batch may have where an encoder is asked: its rounding, too, depends on how many.
        size = self.batch_size if self._embedder.settings.needs_encoder else count
        target = torch.stack(images + images[-1:] * (size - count)).to(self._embedder.generator.mapping.w_avg)
        state = self._embedder.start(seeds + seeds[-1:] * (size - count), target=target)
        return state.rows(range(count)), target[:count]
