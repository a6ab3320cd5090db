"""The one engine: jobs are planned while others are worked on, and published in order; a failure sinks nothing else."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from prefect import flow
from prefect.settings import PREFECT_API_URL, PREFECT_LOGGING_TO_API_ENABLED, temporary_settings
from prefect.task_runners import ThreadPoolTaskRunner

from flows.running.outcome import UnfinishedError, Worked
from flows.running.shards import MAX_DEATHS_IN_A_ROW, work_through
from tasks.errors import SourceError
from tasks.stage import Job, Shard, ShardOutcome, Worker
from tasks.workers.pool import NoWorkerLeftError, WorkerLostError


def job(name: str, number: int, seconds: Sequence[float]) -> Job:
    """A job whose shards take so long; a negative number fails."""
    job_id = f"{name}-{number}"
    shards = (Shard(job_id, name, index, 1, {"seconds": str(one)}) for index, one in enumerate(seconds))
    return Job(job_id, name, tuple(shards))


class Sleeper:
    """Works on a shard by waiting."""

    def __call__(self, shard: Shard) -> ShardOutcome:
        seconds = float(shard.places["seconds"] or 0)
        if seconds < 0:
            raise ValueError("the data broke it")
        time.sleep(seconds)
        return ShardOutcome(shard.job_id, shard.index, True, {"ok": shard.num_images})

    def progress(self) -> float:
        return 0.0


class ListedJobs:
    """A stage of given jobs, which notes when each was asked for and what was published, in order."""

    part = "edits"
    verb = "wait"
    batch_size = 8

    def __init__(self, jobs: Sequence[Job], error: Exception | None = None) -> None:
        self.build_worker: Callable[[], Worker] = Sleeper
        self.published: list[str] = []
        self.asked_after: list[int] = []
        self._jobs = jobs
        self._error = error

    def jobs(self) -> Iterator[Job]:
        for one in self._jobs:
            self.asked_after.append(len(self.published))
            yield one
        if self._error is not None:
            raise self._error

    def publish(self, job_id: str) -> None:
        self.published.append(job_id)


class InThreads:
    """Workers in the threads of their callers: as many as are asked for at once."""

    num_workers = 8

    def __init__(self) -> None:
        self._worker = Sleeper()

    @property
    def pool(self) -> InThreads:
        return self

    def call(self, method: str, *arguments: Any, about: str = "") -> Any:
        return getattr(self._worker, method)(*arguments)

    def progress(self) -> float:
        return 0.0

    def give_up(self, why: str) -> None:
        raise AssertionError(why)


class Crowded(InThreads):
    """Workers that only have room for batches of so many images, of eight."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.tried: list[tuple[int, int]] = []  # shard and batch
        self._room = room
        self._given_up: str | None = None

    def give_up(self, why: str) -> None:
        self._given_up = why

    def call(self, method: str, *arguments: Any, about: str = "") -> Any:
        if self._given_up is not None:
            raise NoWorkerLeftError(self._given_up)
        (shard,) = arguments
        self.tried.append((shard.index, 8 >> shard.halvings))
        if 8 >> shard.halvings > self._room:
            raise WorkerLostError("the system killed it", is_for_memory=True)
        return super().call(method, *arguments, about=about)


@pytest.fixture
def work(prefect_server: Any) -> Callable[..., Worked]:
    """Works through a stage as a flow of its own."""

    def run(stage: ListedJobs, workers: InThreads | None = None) -> Worked:
        @flow(name="work", persist_result=False, task_runner=ThreadPoolTaskRunner(8))
        def working() -> Worked:
            return work_through(stage, workers or InThreads(), retries=0)  # type: ignore[arg-type]

        with temporary_settings({PREFECT_API_URL: prefect_server.url, PREFECT_LOGGING_TO_API_ENABLED: False}):
            return working()

    return run


def test_jobs_of_a_name_are_published_in_order_whichever_ends_first(work: Callable[[ListedJobs], Worked]) -> None:
    """Of several rows for an image the last published counts, so the older run must not come later."""
    stage = ListedJobs([job("a", 1, [0.6, 0.0]), job("a", 2, [0.0]), job("b", 1, [0.0]), job("a", 3, [])])
    worked = work(stage)
    assert worked.problems == [] and worked.by_status == {"ok": 4}
    assert [one for one in stage.published if one.startswith("a")] == ["a-1", "a-2", "a-3"]
    assert stage.published[0] == "b-1"  # nothing keeps another name waiting
    worked.check_finished()


def test_where_memory_runs_out_batches_are_halved_for_the_rest_of_the_command(work: Callable[..., Worked]) -> None:
    stage, workers = ListedJobs([job("a", 1, [0.0]), job("a", 2, [0.0])]), Crowded(2)
    worked = work(stage, workers)
    assert worked.problems == [] and worked.by_status == {"ok": 2}
    assert workers.tried[:3] == [(0, 8), (0, 4), (0, 2)] and {batch for _, batch in workers.tried[3:]} <= {8, 4, 2}
    worked = work(ListedJobs([job("b", 1, [0.0])]), workers := Crowded(0))
    assert [batch for _, batch in workers.tried] == [8, 4, 2, 1]  # then Prefect's retries would be tried
    assert worked.problems == ["shard 0 of b-1: the system killed it"]


def test_where_smaller_batches_do_not_help_the_work_is_given_up_after_a_few_deaths(work: Callable[..., Worked]) -> None:
    worked = work(ListedJobs([job("a", 1, [0.0] * 40)]), workers := Crowded(-1))
    assert len(workers.tried) <= 3 + MAX_DEATHS_IN_A_ROW + 8, "those under way at once may die too"
    assert len(worked.problems) == 40 and all("the system killed it" in one for one in worked.problems)
    assert "workers were ended 3 times in a row because memory ran out" in worked.problems[-1]


def test_a_job_that_failed_is_not_published_and_keeps_nobody_waiting(work: Callable[[ListedJobs], Worked]) -> None:
    stage = ListedJobs([job("a", 1, [0.2, -1.0]), job("a", 2, [0.0])])
    worked = work(stage)
    assert stage.published == ["a-2"] and worked.by_status == {"ok": 2}
    assert worked.problems == ["shard 1 of a-1: the data broke it"]
    with pytest.raises(
        UnfinishedError, match=r"1 of 3 shards could not be finished \(shard 1 of a-1: the data broke it"
    ):
        worked.check_finished()


def test_what_was_begun_is_finished_when_the_plan_breaks_off(work: Callable[[ListedJobs], Worked]) -> None:
    stage = ListedJobs([job("a", 1, [0.2])], SourceError("the listing broke off"))
    with pytest.raises(SourceError, match="broke off"):
        work(stage)
    assert stage.published == ["a-1"]


def test_no_more_is_planned_than_the_next_job(work: Callable[[ListedJobs], Worked], monkeypatch: Any) -> None:
    """While no more shards fit under way, the plans of later jobs are not made, so that memory does not hold them."""
    monkeypatch.setattr("flows.running.shards.MAX_WAITING_SHARDS", 1)
    stage = ListedJobs([job(f"name {number}", 1, [0.05]) for number in range(6)])
    assert work(stage).by_status == {"ok": 6}
    assert all(asked - done <= 2 for asked, done in enumerate(stage.asked_after))
