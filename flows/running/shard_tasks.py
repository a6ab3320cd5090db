"""Work handed to a pool as Prefect tasks: all of it is waited for, and a piece that fails does not stop the others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture

from flows.running.outcome import UnfinishedError
from flows.running.progress import shown_progress
from flows.running.retries import RETRIES, RETRY_DELAYS_SECONDS, is_worth_another_try
from flows.running.workers import PoolWhenNeeded
from lsap_archive import ArchiveWriter
from tasks.editing.calibration import CalibrationWork
from tasks.editing.plan import MissingCalibrations, with_deviation
from tasks.editing.worker import ShardResult
from tasks.workers.pool import Pool

Result = TypeVar("Result")


class PlannedWork(Protocol):
    """A shard that still needs work: which, and of how many images."""

    @property
    def name(self) -> str: ...

    @property
    def work(self) -> Any: ...

    @property
    def num_images(self) -> int: ...


def work_on_all(
    workers: PoolWhenNeeded, method: str, shards: Sequence[PlannedWork], retries: int
) -> tuple[list[ShardResult], dict[str, str]]:
    """A task for every shard that is left, done by a method of the worker; one that fails does not stop the others."""
    if not shards:
        return [], {}
    shard_task = work_on.with_options(retries=retries)
    with shown_progress(workers.pool, sum(shard.num_images for shard in shards)) as advance:
        futures = [shard_task.submit(workers.pool, method, shard, advance) for shard in shards]
        return wait_for_all(futures, [f"{shard.name}, shard {shard.work.shard}" for shard in shards], ShardResult)


@task(
    name="work_on",
    task_run_name="{method}-{shard.name}-{shard.work.shard:05d}",
    cache_policy=NO_CACHE,
    retry_delay_seconds=RETRY_DELAYS_SECONDS,
    retry_condition_fn=is_worth_another_try,
)
def work_on(pool: Pool, method: str, shard: PlannedWork, advance: Callable[[int], None]) -> ShardResult:
    """Hand one shard to a worker and wait; only numbers come back."""
    result: ShardResult = pool.call(method, shard.work)
    advance(shard.num_images)
    get_run_logger().info("%s shard %d: %s in %.1f s", shard.name, result.shard, result.by_status, result.seconds)
    return result


def wait_for_all(
    futures: Sequence[PrefectFuture[Any]], names: Sequence[str], kind: type[Result]
) -> tuple[list[Result], dict[str, str]]:
    """What tasks have returned, and why those that failed on their last try did, by name."""
    results: list[Result] = []
    problems: dict[str, str] = {}
    for future, name in zip(futures, names, strict=True):
        result = future.result(raise_on_failure=False)
        if isinstance(result, kind):
            results.append(result)
        else:
            problems[name] = str(result)
    return results, problems


def check_all(problems: Mapping[str, str], number: int, what: str) -> None:
    """Every piece of work was done.

    Raises:
        UnfinishedError: some were not.
    """
    if problems:
        name, problem = next(iter(problems.items()))
        raise UnfinishedError(
            f"{len(problems)} of {number} {what} could not be finished ({name}: {problem}); the others are kept: run "
            "the same command again once the cause is mended"
        )


def total(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Counts added up by name."""
    added: Counter[str] = Counter()
    for count in counts:
        added.update(count)
    return dict(added)


def calibrate_all(workers: PoolWhenNeeded, archive: ArchiveWriter, missing: MissingCalibrations) -> None:
    """Find and keep every strength that is missing, or why there is none.

    Raises:
        UnfinishedError: a worker or the store failed.
        ConfigError: an attribute does not vary.
    """
    for name, (attribute, seed) in missing.deviations.items():
        archive.keep_calibration(name, measure_deviation(workers.pool, attribute, seed))
    futures = []
    for work in missing.strengths:
        futures.append(calibrate.submit(workers.pool, archive, with_deviation(work, archive)))
    _, problems = wait_for_all(futures, [f"{work.method}/{work.spec.name}" for work in missing.strengths], dict)
    check_all(problems, len(futures), "calibrations")


@task(
    name="measure_deviation",
    task_run_name="deviation-{attribute}",
    cache_policy=NO_CACHE,
    retries=RETRIES,
    retry_delay_seconds=RETRY_DELAYS_SECONDS,
    retry_condition_fn=is_worth_another_try,
)
def measure_deviation(pool: Pool, attribute: str, seed: int) -> dict[str, Any]:
    """The spread of an attribute over synthetic images: the unit of a change."""
    found: dict[str, Any] = pool.call("deviation", attribute, seed)
    return found


@task(
    name="calibrate",
    task_run_name="calibrate-{work.method}-{work.spec.name}",
    cache_policy=NO_CACHE,
    retries=RETRIES,
    retry_delay_seconds=RETRY_DELAYS_SECONDS,
    retry_condition_fn=is_worth_another_try,
)
def calibrate(pool: Pool, archive: ArchiveWriter, work: CalibrationWork) -> dict[str, Any]:
    """The strength at which an edit has the wanted effect, kept in the archive."""
    return archive.keep_calibration(work.digest, pool.call("calibrate", work))
