"""Train: the loop of one worker, from the newest complete state of the run's folder to the last step.

The same function runs in this process, in each of several processes that share a `torch.distributed` group, and again
after any of them has died: it looks into the folder for where to go on.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from lsap_archive import StoreUnavailableError
from lsap_core.errors import TrainingDivergedError
from tasks.errors import SourceError
from tasks.pictures.sheets import draw_pairs
from tasks.training.data import Batch, ImageProblem, TooManyBadImagesError, TrainingStream, read_images
from tasks.training.spec import TrainingSpec
from tasks.training.store import BEST_KEY, TABLES, TrainingStore
from tasks.weights.devices import module_device

PROGRESS_SECONDS = 5.0
WAIT_SECONDS = (2.0, 10.0, 60.0)  # before the folder's storage is asked again

Result = TypeVar("Result")


@dataclass(frozen=True)
class TrainingOutcome:
    """What became of a worker's training; numbers only.

    Attributes:
        step: steps taken, in all.
        resumed_at: the step that this worker began at.
        best_step: where the validation loss was lowest, or None without validation.
        best_loss: the validation loss there.
    """

    step: int
    resumed_at: int
    best_step: int | None
    best_loss: float | None


def train_networks(
    spec: TrainingSpec,
    *,
    rank: int = 0,
    world_size: int = 1,
    device: torch.device | None = None,
    after_step: Callable[[int], None] | None = None,
) -> TrainingOutcome:
    """Train to the last step, from wherever the folder says.

    Args:
        spec: what to train.
        rank: which worker this is of those that share the batch.
        world_size: how many there are; with several, `torch.distributed` connects them.
        device: where; by default the first GPU, or the CPU.
        after_step: called with the number of steps taken.

    Raises:
        TrainingDivergedError: a loss or gradient is not finite.
        TooManyBadImagesError: more images cannot be used than the run allows.
        CheckpointError: the newest state is missing or damaged.
        StoreUnavailableError, SourceError: a storage does not answer.
    """
    loop = _Loop(spec, rank, world_size, device or module_device("auto"))
    resumed_at = loop.resume()
    for batch in loop.batches():
        loop.advance(batch)
        step = loop.training.step
        is_last = step == spec.method.settings.num_steps
        if step % spec.log_every == 0 or is_last:
            loop.log()
        if step % spec.validate_every == 0 or is_last:
            loop.validate()
        if step % spec.checkpoint_every == 0 or is_last:
            loop.commit()
        if after_step is not None:
            after_step(step)
    loop.finish()
    return TrainingOutcome(loop.training.step, resumed_at, loop.best.get("step"), loop.best.get("loss"))


def patiently(call: Callable[[], Result]) -> Result:
    """What a call to a storage returns; asked again a few times when it does not answer, for the others wait."""
    for seconds in WAIT_SECONDS:
        try:
            return call()
        except StoreUnavailableError as error:
            if not error.is_transient:
                raise
            time.sleep(seconds)
    return call()


@dataclass
class _Window:
    """Sums of the logged terms since the last row."""

    sums: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def add(self, terms: Mapping[str, float]) -> None:
        for name, value in terms.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
            self.counts[name] = self.counts.get(name, 0) + 1

    def means(self) -> dict[str, float]:
        return {name: total / self.counts[name] for name, total in self.sums.items()}

    @classmethod
    def mean(cls, windows: Sequence[_Window]) -> _Window:
        """The window of all workers, whose terms and counts are the same."""
        first = windows[0]
        sums = {name: sum(window.sums[name] for window in windows) / len(windows) for name in first.sums}
        return cls(sums, dict(first.counts))


class _Loop:
    """One worker's training with what surrounds it; worker 0 writes to the folder."""

    def __init__(self, spec: TrainingSpec, rank: int, world_size: int, device: torch.device):
        self.spec = spec
        self.rank, self.world_size, self.device = rank, world_size, device
        self.store = TrainingStore(spec.output)
        self.opened = spec.open(self.store, device)
        self.training, self.view = self.opened.training, self.opened.view
        self.settings = spec.method.settings
        self.images = self.store.listing("train")
        self.held_out = self.store.listing("validation")
        self.window = _Window()
        self.rows: dict[str, list[dict[str, Any]]] = {name: [] for name in TABLES}
        self.best: dict[str, Any] = {}
        self.bad_images: set[str] = set()
        self._problems: list[ImageProblem] = []
        self._first = 1  # step since the last commit
        self._clock, self._clock_step = time.monotonic(), 0
        self._told_at = 0.0

    def resume(self) -> int:
        """Take over the newest complete state; returns its step."""
        saved = self._from_all(self.store.latest() if self.rank == 0 else None)[0]
        if saved is not None:
            state = self.store.load(saved)
            self.training.load_state_dict(state["training"])
            self.window = _Window(state["window"]["sums"], state["window"]["counts"])
            self.best = state["best"]
            self.bad_images = set(state["bad_images"])
        step = self.training.step
        if self.rank == 0:
            self.store.forget_after(step)
        self._first = step + 1
        self._restart_clock()
        self._tell({})
        return step

    def batches(self) -> Iterator[Batch]:
        """This worker's part of every step that is left."""
        step, settings = self.training.step, self.settings
        stream = TrainingStream(
            self.spec.source, self.images, self.view, augmentation=self.spec.augmentation, seed=self.spec.seed
        )
        with contextlib.closing(
            stream.batches(
                first_step=step,
                batch_size=settings.batch_size,
                rank=self.rank,
                world_size=self.world_size,
                num_loaders=self.spec.loader_workers,
            )
        ) as batches:
            yield from itertools.islice(batches, max(settings.num_steps - step, 0))

    def advance(self, batch: Batch) -> None:
        """One step."""
        self._problems += batch.problems
        beside = self.opened.beside(batch.image_ids)
        self.window.add(self.training.advance(batch.images, *beside, batch.seeds))

    def log(self) -> None:
        """Close the window: one row of means over its steps and over all workers."""
        self._share()
        step, batch_size = self.training.step, self.settings.batch_size
        row = {
            "step": step,
            "time": time.time(),
            "epoch": step * batch_size / len(self.images),
            **self.opened.columns(step - 1),
            "images_per_second": (step - self._clock_step) * batch_size / (time.monotonic() - self._clock),
            **self.window.means(),
        }
        self.window = _Window()
        self.rows["metrics"].append(row)
        self._restart_clock()
        self._tell(row)

    def validate(self) -> None:
        """Measure the held-out images, each worker some of them; keep what is trained if it is the best so far."""
        measured: dict[int, dict[str, float]] = {}
        batch_size = self.settings.batch_size // self.world_size
        places = range(self.rank, len(self.held_out), self.world_size)
        for found, images in read_images(self.spec.held_out_source, self.held_out, self.view, places, batch_size):
            values = self.training.validate(images.to(self.device), *self._beside(found))
            terms = {name: each.tolist() for name, each in values.items()}
            measured |= {place: {name: terms[name][i] for name in terms} for i, place in enumerate(found)}
        measured = {place: terms for part in self._from_all(measured) for place, terms in part.items()}
        if not measured:
            raise SourceError(
                f"{self.spec.held_out_source}: none of the {len(self.held_out)} validation images can be used: "
                "name another validation_source, or mend them"
            )
        columns = [measured[place] for place in sorted(measured)]
        means = {name: math.fsum(terms[name] for terms in columns) / len(columns) for name in columns[0]}
        step = self.training.step
        if not math.isfinite(means["loss"]):
            raise TrainingDivergedError(
                f"step {step}: the loss of the validation images is {means['loss']}, though training went on: lower "
                "learning_rate, and go on from an earlier checkpoint"
            )
        self.rows["validation"].append({"step": step, "time": time.time(), "num_images": len(columns), **means})
        if self.rank == 0:
            self._keep_sheet(sorted(measured)[: self.spec.sheet_images])
        if not self.best or means["loss"] < self.best["loss"]:
            self.best = {"step": step, **means}
            self._keep_networks(BEST_KEY)
        self._restart_clock()

    def commit(self) -> None:
        """Everything up to here into the folder, for good."""
        self._share()
        step = self.training.step
        if self.rank == 0:
            summary = {"best": self.best, "num_bad_images": len(self.bad_images), "num_images": len(self.images)}
            commit = functools.partial(self.store.commit, step, self._state(), self.rows, first=self._first)
            patiently(lambda: commit(summary=summary, keep=self.spec.keep_checkpoints))
        self.rows = {name: [] for name in TABLES}
        self._first = step + 1
        self._restart_clock()

    def finish(self) -> None:
        """Keep what the last step gave."""
        self._keep_networks(self.spec.last_key)
        self._told_at = 0.0
        self._tell({})

    def _state(self) -> dict[str, Any]:
        """All that the next step depends on; what is random there follows from the seed and the step."""
        return {
            "training": self.training.state_dict(),
            "sampler": {"seed": self.spec.seed, "position": self.training.step * self.settings.batch_size},
            "window": {"sums": self.window.sums, "counts": self.window.counts},
            "best": self.best,
            "bad_images": sorted(self.bad_images),
        }

    def _share(self) -> None:
        """Bring the windows and bad images of all workers together.

        Raises:
            TooManyBadImagesError: there are more than the run allows.
        """
        shared = self._from_all((self.window, self._problems))
        self.window = _Window.mean([window for window, _ in shared])
        self._problems = []
        for problem in itertools.chain.from_iterable(problems for _, problems in shared):
            step = problem.position // self.settings.batch_size + 1
            self.rows["problems"].append({"step": step, "time": time.time(), **vars(problem)})
            self.bad_images.add(problem.image_id)
            if len(self.bad_images) > self.spec.max_failed_share * len(self.images):
                raise TooManyBadImagesError(
                    f"{len(self.bad_images)} of the {len(self.images)} images of {self.spec.source} cannot be used, "
                    f"above the limit of {self.spec.max_failed_share:.0%}; the last one is {problem.image_id}: "
                    f"{problem.message}. Mend the images or raise max_failed_share"
                )

    def _keep_sheet(self, places: Sequence[int]) -> None:
        parts = []
        for found, images in read_images(self.spec.held_out_source, self.held_out, self.view, places, len(places) or 1):
            parts.append(self.opened.pairs(images.to(self.device), *self._beside(found)))
        for above, below in parts:
            self.store.put_sheet(self.training.step, draw_pairs(above.cpu(), below.cpu()))

    def _beside(self, places: Sequence[int]) -> tuple[Any, ...]:
        """What the training takes of held-out images beside their pixels."""
        return self.opened.beside([self.held_out["image_id"][place].as_py() for place in places])

    def _keep_networks(self, key: str) -> None:
        if self.rank == 0:
            data = self.opened.file()
            patiently(lambda: self.store.put_networks(key, data))

    def _tell(self, row: Mapping[str, Any]) -> None:
        """Say where the run is, now and then."""
        if self.rank == 0 and time.monotonic() - self._told_at > PROGRESS_SECONDS:
            numbers = {name: value for name, value in row.items() if math.isfinite(value)}
            position = {"step": self.training.step, "num_steps": self.settings.num_steps, "time": time.time()}
            with contextlib.suppress(StoreUnavailableError):  # nothing depends on it
                self.store.put_progress({**numbers, **position})
            self._told_at = time.monotonic()

    def _restart_clock(self) -> None:
        self._clock, self._clock_step = time.monotonic(), self.training.step

    def _from_all(self, value: Any) -> list[Any]:
        """The value of every worker, in their order."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values
