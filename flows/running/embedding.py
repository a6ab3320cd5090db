"""Embed run by run, without a pause between runs, and publish each as soon as all its shards are there."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections import Counter
from collections.abc import Callable
from typing import Any

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from flows.running.outcome import Embedded
from flows.running.progress import shown_progress
from flows.running.retries import RETRIES, RETRY_DELAYS_SECONDS, is_worth_another_try
from flows.running.window import Window
from flows.running.workers import PoolWhenNeeded
from lsap_archive import ArchiveError, RunWriter
from lsap_archive.writing.planned import NUM_UNSETTLED, num_unsettled
from tasks.errors import TaskError
from tasks.inversion.methods import PlannedShard
from tasks.inversion.plan import OpenPlan, PlannedRun
from tasks.inversion.worker import ShardOutcome, ShardWork
from tasks.workers.pool import NoWorkerLeftError, Pool

MAX_WAITING_SHARDS = 64  # tasks that wait for a worker at the same time


def embed_all(archive: str, prepared: OpenPlan, workers: PoolWhenNeeded, *, retries: int) -> Embedded:
    """Embed and publish all that is left to do.

    While the shards of a run are worked the next run is planned. A shard that fails does not stop the others. Where the
    source, the archive or the last worker fails, nothing new is begun, and what was begun is finished.

    Args:
        archive: its URL.
        prepared: the plan.
        workers: are started when there is a shard for them.
        retries: of a shard.

    Raises:
        SourceError, ArchiveError: the plan could not be made to its end.
    """
    started = time.monotonic()
    window = Window(MAX_WAITING_SHARDS)
    with contextlib.ExitStack() as shown:
        work = _RunsUnderWay(archive, workers, window, shown, retries)
        try:
            for planned in window.one_ahead(prepared.runs()):
                work.begin(planned)
                if work.is_hopeless:
                    break
        except (TaskError, ArchiveError):
            window.wait()
            raise
        window.wait()
    return Embedded(work.outcomes, work.problems, time.monotonic() - started)


class _RunsUnderWay:
    """The shards that were handed out, and how many each run still waits for."""

    def __init__(
        self, archive: str, workers: PoolWhenNeeded, window: Window, shown: contextlib.ExitStack, retries: int
    ) -> None:
        self.outcomes: list[ShardOutcome] = []
        self.problems: list[str] = []
        self.is_hopeless = False
        self._archive = archive
        self._workers = workers
        self._window = window
        self._shown = shown
        self._task = embed.with_options(retries=retries)
        self._command = uuid.uuid4().hex[:12]
        self._missing: Counter[str] = Counter()
        self._num_images = 0
        self._advance: Callable[[int], None] | None = None

    def begin(self, planned: PlannedRun) -> None:
        """Hand out the shards of a run; waits while too many are under way."""
        get_run_logger().info("run %s: %d shards to embed", planned.run_id, len(planned.shards))
        self._missing[planned.run_id] = len(planned.shards)
        if not planned.shards:
            self._publish(planned.run_id)
            return
        self._num_images += sum(shard.num_images for shard in planned.shards)
        if self._advance is None:
            shown = shown_progress(self._workers.pool, lambda: self._num_images)
            self._advance = self._shown.enter_context(shown)
        for shard in planned.shards:
            self._hand_out(shard, self._advance)

    def _hand_out(self, shard: PlannedShard, advance: Callable[[int], None]) -> None:
        def keep(future: Any) -> None:
            result = future.result(raise_on_failure=False)
            if isinstance(result, ShardOutcome):
                self.outcomes.append(result)
                self._missing[shard.run_id] -= 1
                if not self._missing[shard.run_id]:
                    self._publish(shard.run_id)
            else:
                self.problems.append(f"shard {shard.shard} of {shard.run_id}: {result}")
                self.is_hopeless |= isinstance(result, NoWorkerLeftError)

        self._window.submit(lambda: self._task.submit(self._workers.pool, shard, self._command, advance), keep)

    def _publish(self, run_id: str) -> None:
        def keep(future: Any) -> None:
            result = future.result(raise_on_failure=False)
            if isinstance(result, Exception):
                self.problems.append(f"run {run_id} could not be published: {result}")

        self._window.add(publish.submit(self._archive, run_id), keep)


@task(
    name="embed",
    task_run_name="embed-{shard.method}-{shard.shard:05d}",
    cache_policy=NO_CACHE,
    retry_delay_seconds=RETRY_DELAYS_SECONDS,
    retry_condition_fn=is_worth_another_try,
)
def embed(pool: Pool, shard: PlannedShard, command: str, advance: Callable[[int], None]) -> ShardOutcome:
    """Hand one shard to a worker and wait; only numbers come back."""
    work = ShardWork(shard.run_id, shard.shard, shard.duplicates, shard.moved, command)
    outcome: ShardOutcome = pool.call("embed", work)
    advance(shard.num_images)
    get_run_logger().info("%s shard %d: %s in %.1f s", shard.method, shard.shard, outcome.by_status, outcome.seconds)
    return outcome


@task(
    name="publish",
    cache_policy=NO_CACHE,
    retries=RETRIES,
    retry_delay_seconds=RETRY_DELAYS_SECONDS,
    retry_condition_fn=is_worth_another_try,
)
def publish(archive: str, run_id: str) -> bool:
    """Check every object of a finished run and make it visible to readers; an unfinished one stays invisible."""
    run = RunWriter.open(archive, run_id)
    if run.missing_shards():
        return False
    run.promote_committed()
    run.publish({NUM_UNSETTLED: num_unsettled(run)})
    return True
