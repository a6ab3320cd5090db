"""What is tried again, how often and when: said once, for every task."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from prefect import Task, task
from prefect.cache_policies import NO_CACHE

from lsap_archive import StoreUnavailableError
from tasks.errors import SourceError
from tasks.workers.pool import WorkerLostError

RETRIES = 3  # of what is cheap to repeat; a run says how often it tries a shard
RETRY_DELAYS_SECONDS: list[float] = [2, 10, 60]  # a lost worker is soon back, a store or network may take its time

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def is_worth_another_try(_task: Any, _run: Any, state: Any) -> bool:
    """Retry what a machine or the network broke; never what the data broke."""
    error = state.result(raise_on_failure=False)
    if isinstance(error, SourceError | StoreUnavailableError):
        return error.is_transient
    return isinstance(error, WorkerLostError)


def retried(
    name: str, task_run_name: str | None = None
) -> Callable[[Callable[Arguments, Result]], Task[Arguments, Result]]:
    """A task of this name that is tried again where that helps.

    Args:
        name: of the task.
        task_run_name: of its runs, with the task's arguments in braces; given by Prefect by default.
    """
    return task(
        name=name,
        task_run_name=task_run_name,
        cache_policy=NO_CACHE,
        retries=RETRIES,
        retry_delay_seconds=RETRY_DELAYS_SECONDS,
        retry_condition_fn=is_worth_another_try,
    )
