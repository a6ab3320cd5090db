"""The one place that turns what a run asks of its workers, and where we are, into a pool."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Any

from flows.parameters.shared import WorkerParameters
from tasks.settings import Settings
from tasks.workers.cluster import LOCAL
from tasks.workers.pool import LocalPool, Pool, RayPool

logger = logging.getLogger("lsap")


def open_pool(factory: Callable[[], Any], workers: WorkerParameters) -> Pool:
    """Long-lived Ray actors, on the cluster that the settings name or on one of this process's own.

    On a cluster there are as many as there is work for and room; on this machine all of them from the start.

    Args:
        factory: builds a worker; it and what it closes over must travel.
        workers: how many, on what, and how long one may make no step.
    """
    address = Settings.from_environment().ray_address
    place = "starting Ray" if address == LOCAL else f"joining the Ray cluster at {address}"
    logger.info("%s; %d workers load their networks", place, workers.count)
    fewest = workers.count if address == LOCAL else 1
    return RayPool(
        factory,
        num_workers=workers.count,
        min_workers=fewest if workers.min_count is None else workers.min_count,
        address=address,
        gpus_per_worker=0.0 if workers.device == "cpu" else workers.gpus_each,
        num_threads=workers.threads,
        patience_seconds=workers.patience_seconds,
    )


class PoolWhenNeeded:
    """Workers that are started by the first piece of work; none where there is nothing to do."""

    def __init__(self, factory: Callable[[], Any], workers: WorkerParameters):
        self._factory = factory
        self._workers = workers
        self._pool: Pool | None = None

    @property
    def pool(self) -> Pool:
        """The started workers."""
        if self._pool is None:
            self._pool = open_pool(self._factory, self._workers)
        return self._pool

    @property
    def pool_or_here(self) -> Pool:
        """The workers if they were started, and otherwise one in this process: for little that is left to do."""
        if self._pool is None:
            self._pool = LocalPool(self._factory)
        return self._pool

    def close(self) -> None:
        """Give everything back."""
        if self._pool is not None:
            self._pool.close()


@contextlib.contextmanager
def pool_when_needed(factory: Callable[[], Any], workers: WorkerParameters) -> Iterator[PoolWhenNeeded]:
    """Workers for the time of a flow."""
    pool = PoolWhenNeeded(factory, workers)
    try:
        yield pool
    finally:
        pool.close()
