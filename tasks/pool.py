"""Where workers run: in this process, or as long-lived Ray actors.

A worker is a plain class: networks in `__init__`, one piece of work in `__call__`. A pool builds it from a factory
and lends it to one caller at a time. Only this module and `training_cluster` import ray.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import shlex
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import ray
from ray.exceptions import GetTimeoutError, RayActorError

from tasks.errors import TaskError

logger = logging.getLogger(__name__)

READY_TIMEOUT_SECONDS = 300.0
POLL_SECONDS = 2.0
# glibc gives every large tensor back to the system and maps it again a moment later; 9 to 14 % of a CPU step.
KEEP_HEAP = {"MALLOC_MMAP_THRESHOLD_": str(32 * 2**20), "MALLOC_TRIM_THRESHOLD_": str(2**30)}
OBJECT_STORE_BYTES = 80 * 2**20  # workers write to storage themselves; only numbers travel

WorkerFactory = Callable[[], Any]


class WorkerLostError(TaskError, RuntimeError):
    """The process of a worker died during a piece of work; the work can be tried again."""


class NoWorkerLeftError(TaskError, RuntimeError):
    """Every worker of a pool is gone for good."""


class Pool(Protocol):
    """Lends workers to callers in any thread."""

    num_workers: int

    def call(self, method: str, *arguments: Any) -> Any:
        """The result of a worker's method; waits for a free worker.

        Raises:
            WorkerLostError: the worker died; try again.
            NoWorkerLeftError: no worker is left, or none could be built.
        """
        ...

    def progress(self) -> float:
        """Work under way, in pieces: the sum of what busy workers have done of their present piece."""
        ...

    def close(self) -> None:
        """Give everything back."""
        ...


class LocalPool:
    """One worker in this process; for tests and for single images."""

    num_workers = 1

    def __init__(self, factory: WorkerFactory):
        self._worker = factory()
        self._lock = threading.Lock()

    def call(self, method: str, *arguments: Any) -> Any:
        """The result of the worker's method."""
        with self._lock:
            return getattr(self._worker, method)(*arguments)

    def progress(self) -> float:
        """What the worker has done of its present piece; 0 when it has none."""
        return float(self._worker.progress()) if self._lock.locked() else 0.0

    def close(self) -> None:
        """Nothing to give back."""


class _Host:
    """What runs inside an actor: the worker, built once for each life of the process."""

    def __init__(self, factory: WorkerFactory, num_threads: int):
        import torch

        torch.set_num_threads(num_threads)
        self._worker = factory()

    def ready(self) -> bool:
        return True

    def progress(self) -> float:
        return float(self._worker.progress())

    def call(self, method: str, arguments: tuple[Any, ...]) -> Any:
        return getattr(self._worker, method)(*arguments)


class RayPool:
    """Long-lived Ray actors, each lent to one caller at a time.

    Ray restarts an actor that died; the caller sees `WorkerLostError` and owns the retry, so that it is visible. An
    actor that does not answer stays out of the queue until it does; one that never answers again is dropped.
    """

    def __init__(
        self,
        factory: WorkerFactory,
        *,
        num_workers: int,
        address: str = "local",
        gpus_per_worker: float | None = 0.0,
        num_threads: int = 1,
    ):
        """Start the actors; they load their networks while the caller goes on.

        Args:
            factory: builds a worker; it and what it closes over must travel.
            num_workers: how many actors.
            address: Ray cluster to join, or "local" to start a small one in this process.
            gpus_per_worker: GPUs, or the share of one, for each; None shares out what the cluster has.
            num_threads: CPU threads for each.
        """
        environment = {"OMP_NUM_THREADS": str(num_threads), **KEEP_HEAP}
        self._owns_cluster = join_cluster(address, num_workers, environment, wants_gpus=gpus_per_worker != 0)
        if gpus_per_worker is None:
            gpus_per_worker = share_of_gpus(num_workers)
        actor_class = ray.remote(_Host)
        self._actors = [
            actor_class.options(
                num_cpus=0 if gpus_per_worker else 1,
                num_gpus=gpus_per_worker,
                max_restarts=-1,
                max_task_retries=0,
                max_concurrency=2,  # progress() is answered while call() runs
                runtime_env={} if self._owns_cluster or " " in sys.executable else {"env_vars": environment},
            ).remote(factory, num_threads)
            for _ in range(num_workers)
        ]
        self.num_workers = num_workers
        self._free: queue.Queue[Any] = queue.Queue()
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._failure: str | None = None
        self._num_usable = num_workers
        self._busy: set[Any] = set()
        for actor in self._actors:
            self._readmit_later(actor)

    def call(self, method: str, *arguments: Any) -> Any:
        """The result of a worker's method; waits for a free worker."""
        with self._lease() as actor:
            try:
                return ray.get(actor.call.remote(method, arguments))
            except RayActorError as error:
                raise WorkerLostError(f"the process of a worker died during {method}: {_one_line(error)}") from error
            except ray.exceptions.RayTaskError as error:
                raise error.cause from error  # as it was raised; what Ray makes of it has a traceback for a message

    def progress(self) -> float:
        """What busy workers have done of their present pieces; a worker that does not answer counts 0."""
        with self._lock:
            busy = list(self._busy)
        answers = [actor.progress.remote() for actor in busy]
        done, _ = ray.wait(answers, num_returns=len(answers), timeout=1.0) if answers else ([], [])
        total = 0.0
        for answer in done:
            with contextlib.suppress(RayActorError):  # its caller is told by call()
                total += ray.get(answer)
        return total

    def close(self) -> None:
        """End the actors, and the cluster if this pool started it."""
        self._closed.set()
        for actor in self._actors:
            ray.kill(actor)
        if self._owns_cluster:
            ray.shutdown()

    @contextlib.contextmanager
    def _lease(self) -> Iterator[Any]:
        actor = self._take()
        with self._lock:
            self._busy.add(actor)
        lost = False
        try:
            yield actor
        except WorkerLostError:
            lost = True
            raise
        finally:
            with self._lock:
                self._busy.discard(actor)
            if lost:
                self._readmit_later(actor)
            else:
                self._free.put(actor)

    def _take(self) -> Any:
        while True:
            if self._closed.is_set():  # such as by Ctrl-C, while others still wait in their threads
                raise NoWorkerLeftError("the pool was closed")
            with self._lock:
                if self._num_usable == 0:
                    raise NoWorkerLeftError(f"no worker is left of {self.num_workers}: {self._failure}")
            with contextlib.suppress(queue.Empty):
                return self._free.get(timeout=1.0)

    def _readmit_later(self, actor: Any) -> None:
        threading.Thread(target=self._readmit, args=(actor,), daemon=True).start()

    def _readmit(self, actor: Any) -> None:
        """Put an actor into the queue once it answers; drop it when it does not within the limit."""
        deadline = time.monotonic() + READY_TIMEOUT_SECONDS
        problem = f"it did not answer within {READY_TIMEOUT_SECONDS:.0f} s"
        while time.monotonic() < deadline and not self._closed.is_set():
            try:
                ray.get(actor.ready.remote(), timeout=POLL_SECONDS)
            except GetTimeoutError:
                continue
            except ray.exceptions.ActorUnavailableError as error:
                problem = _one_line(error)
                time.sleep(POLL_SECONDS)
                continue
            except ray.exceptions.RayError as error:  # the actor is dead, or all of Ray is
                problem = _one_line(error)
                break
            self._free.put(actor)
            return
        if self._closed.is_set():
            return
        logger.error("a worker is given up: %s", problem)
        with self._lock:
            self._failure = problem
            self._num_usable -= 1


def join_cluster(address: str, num_workers: int, environment: dict[str, str], *, wants_gpus: bool) -> bool:
    """Connect to a cluster, or start a small one in this process; returns whether it was started here.

    Workers of a cluster started here inherit this process's environment. What Ray starts with a runtime environment
    goes through a shell, which takes the path of an interpreter apart where it has a space unless it is quoted; the
    machines of a joined cluster are taken to have it at the same place then.
    """
    if ray.is_initialized():
        return False
    runtime_env = {"py_executable": shlex.quote(sys.executable)} if " " in sys.executable else None
    if address != "local":
        ray.init(address=address, logging_level=logging.WARNING, log_to_driver=False, runtime_env=runtime_env)
        return False
    os.environ.update(environment)
    ray.init(
        address="local",
        num_cpus=max(num_workers, 1),
        num_gpus=None if wants_gpus else 0,
        object_store_memory=OBJECT_STORE_BYTES,
        include_dashboard=False,
        logging_level=logging.ERROR,
        log_to_driver=False,
        runtime_env=runtime_env,
    )
    return True


@contextlib.contextmanager
def opened_cluster(address: str, num_workers: int, *, threads: int, device: str) -> Iterator[None]:
    """A cluster for several pools and trainings, one after the other or at the same time; left as it was found."""
    environment = {"OMP_NUM_THREADS": str(threads), **KEEP_HEAP}
    owns_cluster = join_cluster(address, num_workers, environment, wants_gpus=device != "cpu")
    try:
        yield
    finally:
        if owns_cluster:
            ray.shutdown()


def share_of_gpus(num_workers: int) -> float:
    """GPUs for each of some workers when what the joined cluster has is shared out; at most a whole one."""
    return float(min(1.0, ray.cluster_resources().get("GPU", 0.0) / num_workers))


def _one_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
