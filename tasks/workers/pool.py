"""Where workers run: in this process, or as long-lived Ray actors.

A worker is a plain class: networks in `__init__`, one piece of work in a method. A pool builds it from a factory
and lends it to one caller at a time.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import threading
import time
from collections import defaultdict, deque
from collections.abc import Iterator
from typing import Any, Protocol

import ray
from ray.exceptions import (
    ActorUnavailableError,
    GetTimeoutError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    RayTaskError,
)

from tasks.errors import TaskError, memory_errors
from tasks.machine_memory import num_killed_for_memory
from tasks.workers.actors import Host, Seat, WorkerFactory
from tasks.workers.cluster import (
    LOCAL,
    described_cluster,
    has_node_for,
    join_cluster,
    num_waiting_for_room,
    runtime_environment,
    share_of_gpus,
    worker_environment,
)
from tasks.workers.deaths import WAY_OUT, cause_of_death, free_here, is_for_memory, last_line, shares

logger = logging.getLogger(__name__)

PATIENCE_SECONDS = 1800.0  # with a worker that makes no step, by default
PATIENCE_FACTOR = 3.0  # times the slowest piece of work so far, where that is more
TELL_SILENCE_SECONDS = 120.0  # after which a worker that makes no step is told of, and again after twice as long
READY_TIMEOUT_SECONDS = 300.0  # to load the networks, once there is a process
ROOM_TIMEOUT_SECONDS = 900.0  # until a cluster has room for the first worker: machines may have to be started
IDLE_SECONDS = 120.0  # after which workers that nobody needs are ended; the longest wait before a retry is 60 s
TELL_SECONDS = 30.0  # after which workers that wait for room are told of
POLL_SECONDS = 2.0
TEND_SECONDS = 0.5
MAX_DEATHS = 3  # of a worker's process while it gets ready, or of any for want of memory before one gets that far


class WorkerLostError(TaskError, RuntimeError):
    """The process of a worker died during a piece of work, or made no step any more; the work can be tried again.

    Attributes:
        is_for_memory: whether memory ran out, as far as that is known.
    """

    def __init__(self, message: str, *, is_for_memory: bool = False) -> None:
        super().__init__(message)
        self.is_for_memory = is_for_memory


class NoWorkerLeftError(TaskError, RuntimeError):
    """Every worker of a pool is gone for good."""


class Pool(Protocol):
    """Lends workers to callers in any thread."""

    @property
    def num_workers(self) -> int:
        """How many there are."""
        ...

    def call(self, method: str, *arguments: Any, about: str = "") -> Any:
        """The result of a worker's method; waits for a free worker.

        Args:
            method: its name.
            arguments: its arguments; they travel.
            about: what the work is, for people; the method's name by default.

        Raises:
            WorkerLostError: the worker died, or made no step for too long and was ended; try again.
            NoWorkerLeftError: no worker is left, or none could be built.
        """
        ...

    def progress(self) -> float:
        """Work under way, in pieces: the sum of what busy workers have done of their present piece."""
        ...

    def give_up(self, why: str) -> None:
        """Begin nothing any more: who waits for a worker, or asks for one, is told why by `NoWorkerLeftError`."""
        ...

    def close(self) -> None:
        """Give everything back."""
        ...


class LocalPool:
    """One worker in this process; for tests and for single images.

    One that hangs takes its caller along: a thread cannot be ended from outside, and this process is the command's.
    """

    num_workers = 1

    def __init__(self, factory: WorkerFactory):
        self._worker = factory()
        self._lock = threading.Lock()
        self._given_up: str | None = None

    def call(self, method: str, *arguments: Any, about: str = "") -> Any:
        """The result of the worker's method."""
        with self._lock, memory_errors():
            if self._given_up is not None:
                raise NoWorkerLeftError(self._given_up)
            return getattr(self._worker, method)(*arguments)

    def progress(self) -> float:
        """What the worker has done of its present piece; 0 when it has none."""
        return float(self._worker.progress()) if self._lock.locked() else 0.0

    def give_up(self, why: str) -> None:
        """Begin nothing any more."""
        self._given_up = why

    def close(self) -> None:
        """Nothing to give back."""


class RayPool:
    """Long-lived Ray actors, each lent to one caller at a time; as many as there is work for, and room.

    The pool grows with the callers that wait and shrinks when workers have been idle for a while, between its bounds.
    A worker for which the cluster has no room waits for it, in sight of the cluster's autoscaler; so a node that comes
    gets its workers while others are at work. An actor that died is followed by another one, elsewhere when its node is
    gone; the caller sees `WorkerLostError` and owns the retry, so that it is visible. A worker is lent again once it
    answers.

    A worker at work is asked how far it is. Where that does not change, such as for a process that was stopped, a
    network disk that is gone or a device that does not answer, it is told of, and after a while ended like one that
    died. What it might still commit is harmless, as anything that is done twice.
    """

    def __init__(
        self,
        factory: WorkerFactory,
        *,
        num_workers: int,
        min_workers: int | None = None,
        address: str = LOCAL,
        gpus_per_worker: float | None = 0.0,
        num_threads: int = 1,
        patience_seconds: float = PATIENCE_SECONDS,
    ):
        """Start the first actors; they load their networks while the caller goes on.

        Args:
            factory: builds a worker; it and what it closes over must travel.
            num_workers: how many actors at most.
            min_workers: how many stay when there is nothing to do; all of them by default.
            address: Ray cluster to join, or "local" to start a small one in this process.
            gpus_per_worker: GPUs, or the share of one, for each; None shares out what the cluster has.
            num_threads: CPU threads for each.
            patience_seconds: how long a worker may make no step; three times the slowest piece of work so far, where
                that is more.

        Raises:
            ClusterUnavailableError: the cluster cannot be joined.
            NoWorkerLeftError: this machine has no room for a worker, and cannot grow.
        """
        environment = worker_environment(num_threads)
        self._connection = join_cluster(address, num_workers, environment, wants_gpus=gpus_per_worker != 0)
        gpus = share_of_gpus(num_workers) if gpus_per_worker is None else gpus_per_worker
        self._wants = (0.0 if gpus else 1.0, gpus)  # GPU machines have few CPUs for each GPU
        self._actor_class = ray.remote(Host).options(
            num_cpus=self._wants[0],
            num_gpus=self._wants[1],
            max_restarts=0,  # of an actor that it starts again Ray does not tell why it died
            max_task_retries=0,
            max_concurrency=2,  # progress() is answered while call() runs
            runtime_env=runtime_environment(environment, address),
        )
        self._arguments = (factory, num_threads)
        self._patience = patience_seconds
        self._slowest: defaultdict[str, float] = defaultdict(float)  # seconds, by method
        self._max = num_workers
        self._min = num_workers if min_workers is None else min_workers
        self._seats: set[Seat] = set()
        self._free: deque[Seat] = deque()
        self._busy: set[Seat] = set()
        self._num_callers = 0
        self._num_given_up = 0
        self._broken: str | None = None
        self._changed = threading.Condition()
        self._closed = threading.Event()
        self._surplus_since = self._crowded_since = self._homeless_since = math.inf
        self._num_killed_before = num_killed_for_memory()  # when a worker had a place last
        self._has_told = False
        self._tender: threading.Thread | None = None
        self._is_local = address == LOCAL
        if self._is_local and not has_node_for(*self._wants):
            problem = self._no_room("no worker can be placed")
            self.close()
            raise NoWorkerLeftError(problem)
        self._fit_to_demand()
        self._tender = threading.Thread(target=self._tend, name="lsap-pool", daemon=True)
        self._tender.start()

    @property
    def num_workers(self) -> int:
        """Workers that are at work or free at present."""
        with self._changed:
            return len(self._free) + len(self._busy)

    def call(self, method: str, *arguments: Any, about: str = "") -> Any:
        """The result of a worker's method; waits for a free worker."""
        what = about or method
        with self._lease() as seat:
            began = time.monotonic()
            try:
                result = self._wait(seat, seat.actor.call.remote(method, arguments), what, method)
            except RayTaskError as error:
                raise error.cause from error  # as it was raised; what Ray makes of it has a traceback for a message
            except RayError as error:
                has_killed = seat.is_killed_for_memory
                why = self._cause_of_death(seat, error)
                ran_out = is_for_memory(error, has_killed_for_memory=has_killed)
                told = f"the process of a worker died during {what}: {why}"
                raise WorkerLostError(told, is_for_memory=ran_out) from error
        with self._changed:
            self._slowest[method] = max(self._slowest[method], time.monotonic() - began)
        return result

    def progress(self) -> float:
        """What busy workers have done of their present pieces, as far as they have told."""
        with self._changed:
            pulses = [seat.pulse for seat in self._busy]
        questions = [pulse.question() for pulse in pulses]
        if questions:
            ray.wait(questions, num_returns=len(questions), timeout=1.0)
        for pulse in pulses:
            pulse.look()
        return sum(pulse.pieces for pulse in pulses)

    def give_up(self, why: str) -> None:
        """Begin nothing any more."""
        self._break(why)

    def close(self) -> None:
        """End the actors; leave the cluster, or end it, if this pool joined or started it."""
        with self._changed:
            self._closed.set()
            self._changed.notify_all()
            for seat in self._seats:
                ray.kill(seat.actor)
        if self._tender is not None:
            self._tender.join()
        self._connection.close()

    # --- callers ---------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _lease(self) -> Iterator[Seat]:
        with self._changed:
            self._num_callers += 1
        try:
            seat = self._take()
            try:
                yield seat
            except WorkerLostError:
                seat.lose()
                raise
            finally:
                with self._changed:
                    self._busy.discard(seat)
                    if seat.is_built:
                        self._free.append(seat)
                    self._changed.notify_all()
        finally:
            with self._changed:
                self._num_callers -= 1

    def _take(self) -> Seat:
        while True:
            seat = self._first_free()
            if self._answers(seat):
                return seat
            with self._changed:
                self._busy.discard(seat)

    def _first_free(self) -> Seat:
        with self._changed:
            while True:
                if self._closed.is_set():  # such as by Ctrl-C, while others still wait in their threads
                    raise NoWorkerLeftError("the pool was closed")
                if self._broken is not None:
                    raise NoWorkerLeftError(self._broken)
                if self._free:
                    break
                self._changed.wait()
            seat = self._free.popleft()
            seat.begin()
            self._busy.add(seat)
            return seat

    def _answers(self, seat: Seat) -> bool:
        """Whether a free worker is still there; its node may have died since it was last used."""
        try:
            ray.get(seat.actor.where.remote(), timeout=POLL_SECONDS)
        except GetTimeoutError:
            seat.doubt(time.monotonic() + READY_TIMEOUT_SECONDS)
            return False
        except RayError:
            seat.lose()
            return False
        return True

    def _wait(self, seat: Seat, answer: Any, what: str, method: str) -> Any:
        """The answer, as long as the worker makes steps.

        Ray tells when its process or its node dies, and nobody but the pool when it closes.
        """
        pulse, tell_after = seat.pulse, min(TELL_SILENCE_SECONDS, self._patience / 2)
        while not ray.wait([answer], timeout=POLL_SECONDS)[0]:
            if self._closed.is_set():
                raise NoWorkerLeftError("the pool was closed")
            pulse.question()
            pulse.look()
            seat.look_at_memory()
            patience = max(self._patience, PATIENCE_FACTOR * self._slowest[method])
            silence = f"{what} has made no step for {in_words(pulse.silent_seconds)} on {seat.place}"
            if pulse.silent_seconds > patience:
                logger.error("%s: its worker is ended", silence)
                raise WorkerLostError(
                    f"{silence}: its worker was ended; where steps may take so long, raise workers.patience_seconds, "
                    f"which is {self._patience:g}"
                )
            if pulse.silent_seconds > tell_after:
                logger.warning("%s: its worker is ended after %s of that", silence, in_words(patience))
                tell_after *= 2
        return ray.get(answer, timeout=READY_TIMEOUT_SECONDS)

    # --- the thread that looks after the actors -----------------------------------------------------

    def _tend(self) -> None:
        while not self._closed.is_set():
            try:
                self._settle_all()
                self._fit_to_demand()
                self._look_for_room()
            except Exception as error:  # callers must not wait for a thread that is gone
                if not self._closed.is_set():
                    logger.exception("the pool has lost its cluster")
                    self._break(f"the cluster is lost: {last_line(error)}")
                return

    def _settle_all(self) -> None:
        """Ask actors that are not in use where they are and whether they are ready, and wait a moment for answers."""
        now = time.monotonic()
        with self._changed:
            waiting = [seat for seat in self._seats if not seat.is_built]
        for seat in waiting:
            if seat.is_lost:
                self._replace(seat)
            seat.ask(now)
        asked = {seat.answer: seat for seat in waiting if seat.answer is not None}
        if not asked:
            self._closed.wait(TEND_SECONDS)
            return
        done, _ = ray.wait(list(asked), num_returns=1, timeout=TEND_SECONDS)
        for answer in done:
            self._settle(asked[answer])
        for seat in waiting:
            if time.monotonic() > seat.deadline:
                problem = f"it did not answer within {READY_TIMEOUT_SECONDS:.0f} s"
                if seat.is_silent:
                    logger.error("a worker on %s is ended: %s", seat.place, problem)
                    self._replace(seat)
                else:
                    self._give_up(seat, problem)

    def _settle(self, seat: Seat) -> None:
        try:
            answer = ray.get(seat.answer, timeout=TEND_SECONDS)
        except ActorUnavailableError:  # the connection is broken; Ray will tell whether it is dead
            seat.ask_again(POLL_SECONDS)
        except (RayActorError, OutOfMemoryError) as error:
            if (deaths := seat.die()) >= MAX_DEATHS:
                problem = f"its process died {deaths} times while it got ready: {self._cause_of_death(seat, error)}"
                self._give_up(seat, problem)
            else:
                self._replace(seat, POLL_SECONDS)
        except RayTaskError as error:
            if _is_transient(error.cause):
                logger.warning("a worker is not ready yet: %s", last_line(error.cause))
                seat.ask_again(POLL_SECONDS)
            else:
                self._give_up(seat, last_line(error.cause))
        except RayError as error:  # it cannot be started, or all of Ray is gone
            self._give_up(seat, last_line(error))
        else:
            if seat.place is None:
                seat.settle_on(answer, time.monotonic() + READY_TIMEOUT_SECONDS)
                return
            logger.info("a worker is ready on %s", seat.place)
            with self._changed:
                seat.be_built()
                self._free.append(seat)
                self._changed.notify_all()

    def _cause_of_death(self, seat: Seat, error: RayError) -> str:
        return cause_of_death(
            error,
            has_killed_for_memory=seat.is_killed_for_memory,
            held_bytes=seat.held_bytes,
            num_workers=self._max if self._is_local else 1,
        )

    def _replace(self, seat: Seat, seconds: float = 0.0) -> None:
        """Have another actor take the place."""
        with self._changed:
            if seat in self._seats and not self._closed.is_set():
                seat.replace(seconds)

    def _give_up(self, seat: Seat, problem: str) -> None:
        with self._changed:
            if self._closed.is_set() or seat not in self._seats:
                return
            self._seats.discard(seat)
            self._num_given_up += 1
            num_left = len(self._seats)
        logger.error("a worker is given up: %s", problem)
        ray.kill(seat.actor)
        if not num_left:
            self._break(f"no worker is left of {self._num_given_up}: {problem}")

    def _break(self, why: str) -> None:
        with self._changed:
            self._broken = why
            self._changed.notify_all()

    def _fit_to_demand(self) -> None:
        """Start actors for callers that wait; end some when there have been too many for a while."""
        with self._changed:
            if self._closed.is_set() or self._broken is not None:
                return
            wanted = min(max(self._num_callers, self._min), self._max - self._num_given_up)
            for _ in range(wanted - len(self._seats)):
                self._seats.add(Seat(functools.partial(self._actor_class.remote, *self._arguments)))
            self._surplus_since = _since(len(self._seats) > wanted, self._surplus_since)
            if time.monotonic() - self._surplus_since < IDLE_SECONDS:
                return
            leaving = [seat for seat in self._seats if not seat.is_built] + list(self._free)
            for seat in leaving[: len(self._seats) - wanted]:
                self._seats.discard(seat)
                with contextlib.suppress(ValueError):  # it was never ready
                    self._free.remove(seat)
                ray.kill(seat.actor)

    def _look_for_room(self) -> None:
        """Say that workers wait for room, and not just for their processes to start; and end it when none gets any."""
        with self._changed:
            num_seats, num_callers = len(self._seats), self._num_callers
            num_placed = sum(1 for seat in self._seats if seat.place is not None)
        num_killed = num_killed_for_memory()
        if num_placed or not num_seats:
            self._num_killed_before = num_killed
        elif self._is_local and num_killed - self._num_killed_before >= MAX_DEATHS:
            self._break(self._no_memory(num_killed))  # Ray starts processes again and again, without a word
        self._crowded_since = _since(num_placed < num_seats, self._crowded_since)
        is_crowded = time.monotonic() - self._crowded_since > TELL_SECONDS
        if is_crowded and not self._has_told:
            if self._is_local and not has_node_for(*self._wants):
                has_killed = num_killed > self._num_killed_before
                died = "Ray's own processes on this machine do not answer any more: run the same command again"
                self._break(self._no_memory(num_killed) if has_killed else died)
            elif num_waiting := min(num_waiting_for_room(*self._wants), num_seats - num_placed):
                logger.warning(self._no_room(f"{num_waiting} of {num_seats} workers wait for room"))
                self._has_told = True
        self._has_told = self._has_told and is_crowded
        self._homeless_since = _since(num_callers > 0 and num_seats > 0 and num_placed == 0, self._homeless_since)
        if time.monotonic() - self._homeless_since > ROOM_TIMEOUT_SECONDS:
            self._break(self._no_room(f"no worker could be placed within {ROOM_TIMEOUT_SECONDS:.0f} s"))

    def _no_memory(self, num_killed: int) -> str:
        """That the system kills processes for want of memory before any worker has one."""
        return (
            f"memory ran out: the system has killed {num_killed - self._num_killed_before} processes of this machine "
            f"before a worker was there ({shares(0, self._max)}; {free_here()} now): {WAY_OUT}"
        )

    def _no_room(self, what: str) -> str:
        wanted = f"{self._wants[1]:g} GPU" if self._wants[1] else f"{self._wants[0]:g} CPU"
        if self._is_local:
            return (
                f"{what}: Ray has {described_cluster()} here, {free_here()}, and each worker wants "
                f"{wanted}: end what else takes memory or devices here, or change workers.count, workers.gpus_each or "
                "workers.device"
            )
        return (
            f"{what}: the cluster has {described_cluster()}, and each worker wants {wanted}: start nodes that have it, "
            "or change workers.gpus_each or workers.device"
        )


def in_words(seconds: float) -> str:
    """A duration for people.

    Example:
        >>> in_words(90), in_words(1800)
        ('90 s', '30 min')
    """
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def _since(condition: bool, since: float) -> float:
    """Since when a condition holds, as the clock of this process has it; infinity while it does not."""
    return min(since, time.monotonic()) if condition else math.inf


def _is_transient(error: BaseException) -> bool:
    """Whether the network or the store kept a worker from being built, so that trying again may help."""
    return getattr(error, "is_transient", False)
