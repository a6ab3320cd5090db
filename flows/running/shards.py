"""Work through a stage, job by job and without a pause between jobs; each is published once all its shards are there.

A shard is tried again here: `work_on`.
"""

from __future__ import annotations

import contextlib
import time
import uuid
from collections import defaultdict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from flows.running.outcome import Worked
from flows.running.progress import shown_progress
from flows.running.retries import RETRY_DELAYS_SECONDS, is_worth_another_try, retried
from flows.running.window import Window
from flows.running.workers import PoolWhenNeeded
from lsap_archive import ArchiveError
from tasks.errors import TaskError
from tasks.stage import Job, Shard, ShardOutcome, Stage
from tasks.workers.pool import NoWorkerLeftError, Pool, WorkerLostError

MAX_WAITING_SHARDS = 64  # tasks that wait for a worker at the same time
MAX_DEATHS_IN_A_ROW = 3  # of workers for want of memory, with the smallest batches and without a shard done meanwhile


def work_through(stage: Stage, workers: PoolWhenNeeded, *, retries: int) -> Worked:
    """Work on and publish all that is left to do.

    While the shards of a job are worked on the next job is planned. A shard that fails does not stop the others. Where
    the source, the archive or the last worker fails, nothing new is begun, and what was begun is finished.

    Args:
        stage: what is left to do.
        workers: are started when there is a shard for them.
        retries: of a shard.

    Raises:
        SourceError, ArchiveError: the plan could not be made to its end.
    """
    started = time.monotonic()
    window = Window(MAX_WAITING_SHARDS)
    with contextlib.ExitStack() as shown:
        work = _JobsUnderWay(stage, workers, window, shown, retries)
        try:
            for job in window.one_ahead(stage.jobs()):
                work.begin(job)
                if work.is_hopeless:
                    break
        except (TaskError, ArchiveError):
            window.wait()
            raise
        window.wait()
    return Worked(work.outcomes, work.problems, time.monotonic() - started)


@dataclass
class Halvings:
    """How often batches are halved in the rest of a command, because memory ran out; and what if that did not help.

    Attributes:
        count: so often.
        batch_size: what is halved.
        deaths: of workers for want of memory with the smallest batches, since a shard was done.
    """

    batch_size: int
    count: int = 0
    deaths: int = 0

    def halve(self, shard: Shard) -> bool:
        """A worker's process was ended with a shard; whether smaller batches are left. Two at once count once."""
        self.count = max(self.count, shard.halvings + 1)
        return self.batch_size >> shard.halvings > 1

    def is_in_vain(self) -> bool:
        """A worker's process was ended with the smallest batch; whether to leave it at that."""
        self.deaths += 1
        return self.deaths >= MAX_DEATHS_IN_A_ROW


@dataclass
class _Begun:
    """A job under way, and how many of its shards have not ended."""

    job_id: str
    left: int
    has_failed: bool = False


class _JobsUnderWay:
    """The shards that were handed out, and how many each job still waits for."""

    def __init__(
        self, stage: Stage, workers: PoolWhenNeeded, window: Window, shown: contextlib.ExitStack, retries: int
    ) -> None:
        self.outcomes: list[ShardOutcome] = []
        self.problems: list[str] = []
        self.is_hopeless = False
        self._stage = stage
        self._workers = workers
        self._window = window
        self._shown = shown
        self._task = work_on.with_options(name=stage.verb, retries=retries)
        self._command = uuid.uuid4().hex[:12]
        self._halvings = Halvings(stage.batch_size)
        self._begun: defaultdict[str, deque[_Begun]] = defaultdict(deque)  # by name, the oldest first
        self._num_images = 0
        self._advance: Callable[[int], None] | None = None

    def begin(self, job: Job) -> None:
        """Hand out the shards of a job; waits while too many are under way."""
        get_run_logger().info("run %s: %d shards to %s", job.job_id, len(job.shards), self._stage.verb)
        if job.note:
            get_run_logger().warning("%s", job.note)
        begun = _Begun(job.job_id, len(job.shards))
        self._begun[job.name].append(begun)
        if not job.shards:
            self._publish_ended(job.name)
            return
        self._num_images += job.num_images
        if self._advance is None:
            shown = shown_progress(self._workers.pool, lambda: self._num_images)
            self._advance = self._shown.enter_context(shown)
        for shard in job.shards:
            self._hand_out(replace(shard, command=self._command), begun, self._advance)

    def _hand_out(self, shard: Shard, begun: _Begun, advance: Callable[[int], None]) -> None:
        def keep(future: Any) -> None:
            result = future.result(raise_on_failure=False)
            begun.left -= 1
            if isinstance(result, ShardOutcome):
                self.outcomes.append(result)
            else:
                begun.has_failed = True
                self.problems.append(f"shard {shard.index} of {shard.job_id}: {result}")
                self.is_hopeless |= isinstance(result, NoWorkerLeftError)
            self._publish_ended(shard.name)

        submit = self._task.submit
        self._window.submit(lambda: submit(self._workers.pool, self._stage.verb, shard, advance, self._halvings), keep)

    def _publish_ended(self, name: str) -> None:
        """Publish the oldest job of a name once its shards have ended, and then the next one.

        One after the other, because of several rows for an image the one that was published last counts.
        """
        waiting = self._begun[name]
        while waiting and not waiting[0].left and waiting[0].has_failed:
            waiting.popleft()
        if not waiting or waiting[0].left:
            return
        oldest = waiting[0]
        oldest.left = -1  # under way

        def keep(future: Any) -> None:
            result = future.result(raise_on_failure=False)
            if isinstance(result, Exception):
                self.problems.append(f"run {oldest.job_id} could not be published: {result}")
            waiting.popleft()
            self._publish_ended(name)

        self._window.add(publish.submit(self._stage, oldest.job_id), keep)


@task(
    name="work_on",
    task_run_name="{verb}-{shard.name}-{shard.index:05d}",
    cache_policy=NO_CACHE,
    retry_delay_seconds=RETRY_DELAYS_SECONDS,
    retry_condition_fn=is_worth_another_try,
)
def work_on(pool: Pool, verb: str, shard: Shard, advance: Callable[[int], None], halvings: Halvings) -> ShardOutcome:
    """Hand one shard to a worker and wait; only numbers come back. Where memory ran out, it is tried in less of it."""
    about = f"shard {shard.index} of {shard.job_id}"
    while True:
        asked = replace(shard, halvings=halvings.count)
        try:
            outcome: ShardOutcome = pool.call("__call__", asked, about=about)
        except WorkerLostError as error:
            if not error.is_for_memory:
                raise
            if not halvings.halve(asked):
                if halvings.is_in_vain():  # every other shard would end likewise, one after the other
                    why = f"workers were ended {halvings.deaths} times in a row because memory ran out; {error}"
                    pool.give_up(why)
                    raise NoWorkerLeftError(why) from error
                raise
            get_run_logger().warning("%s: once more, and from now on, with batches half as large (%s)", about, error)
            continue
        break
    halvings.deaths = 0
    advance(shard.num_images)
    counts = _counted(outcome.by_status) + (f" (altered: {told})" if (told := _counted(outcome.by_alteration)) else "")
    get_run_logger().info("%s shard %d: %s in %.1f s", shard.name, shard.index, counts, outcome.seconds)
    return outcome


def _counted(by_word: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {word}" for word, count in sorted(by_word.items()))


@retried("publish")
def publish(stage: Stage, job_id: str) -> None:
    """Check every object of a finished job and make it visible to readers."""
    stage.publish(job_id)
