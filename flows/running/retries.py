"""What is tried again, how often and when."""

from __future__ import annotations

from typing import Any

from lsap_archive import StoreUnavailableError
from tasks.errors import SourceError
from tasks.workers.pool import WorkerLostError

RETRIES = 3  # of what is cheap to repeat; a run says how often it tries a shard
RETRY_DELAYS_SECONDS: list[float] = [2, 10, 60]  # a lost worker is soon back, a store or network may take its time


def is_worth_another_try(_task: Any, _run: Any, state: Any) -> bool:
    """Retry what a machine or the network broke; never what the data broke."""
    error = state.result(raise_on_failure=False)
    if isinstance(error, SourceError):
        return error.is_transient
    return isinstance(error, WorkerLostError | StoreUnavailableError)
