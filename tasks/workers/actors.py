"""A worker in a process of its own: what runs there, and what is known of it here."""

from __future__ import annotations

import math
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import ray
from ray.exceptions import RayError, RayTaskError

from tasks.errors import memory_errors
from tasks.machine_memory import held_by, num_killed_for_memory

WorkerFactory = Callable[[], Any]

LONGEST_LOOK_SECONDS = 10.0  # what counts as silence between two looks: this process may have been stopped itself


class Place(NamedTuple):
    """Where a worker is."""

    node: str
    process: int

    def __str__(self) -> str:
        return f"{self.node} (process {self.process})"


class Host:
    """What runs inside an actor: the worker, built once."""

    def __init__(self, factory: WorkerFactory, num_threads: int):
        self._factory = factory
        self._num_threads = num_threads
        self._worker: Any = None
        self._lock = threading.Lock()

    def where(self) -> Place:
        """The node and the process; answers at once."""
        return Place(str(ray.util.get_node_ip_address()), os.getpid())

    def ready(self) -> bool:
        """True once the worker is built; raises what its factory raises."""
        with memory_errors():
            return self._built() is not None

    def progress(self) -> float:
        return 0.0 if self._worker is None else float(self._worker.progress())

    def call(self, method: str, arguments: tuple[Any, ...]) -> Any:
        with memory_errors():
            return getattr(self._built(), method)(*arguments)

    def _built(self) -> Any:
        with self._lock:
            if self._worker is None:
                self._worker = self._factory()
                if "torch" in sys.modules:  # a worker that does without is spared seconds of its import
                    sys.modules["torch"].set_num_threads(self._num_threads)
        return self._worker


class Pulse:
    """How far a worker is with its present piece of work, and for how long that has not changed.

    A process that is stopped answers nothing, so one question is under way at a time.
    """

    def __init__(self, actor: Any):
        self.pieces = 0.0
        self.silent_seconds = 0.0
        self._actor = actor
        self._question: Any = None
        self._looked_at = time.monotonic()
        self._lock = threading.Lock()

    def question(self) -> Any:
        """What is asked at present: how far it is."""
        with self._lock:
            if self._question is None:
                self._question = self._actor.progress.remote()
            return self._question

    def look(self) -> None:
        """Take the answer, if there is one; any other one than before ends the silence."""
        with self._lock:
            now = time.monotonic()
            self.silent_seconds += min(now - self._looked_at, LONGEST_LOOK_SECONDS)
            self._looked_at = now
            if self._question is None or not ray.wait([self._question], timeout=0)[0]:
                return
            question, self._question = self._question, None
            try:
                pieces = ray.get(question)
            except RayTaskError:
                raise
            except RayError:  # its process is gone: the caller of the work is told
                return
            if pieces != self.pieces:
                self.pieces, self.silent_seconds = pieces, 0.0


class Seat:
    """A place for a worker: the actor that has it, and what the pool knows of that.

    An actor whose process is gone, or does not answer, is followed by another one.

    Attributes:
        actor: it.
        place: where it is; None while it waits for room.
        is_built: whether its worker can be lent.
        is_lost: whether another actor has to take the place.
        pulse: of the piece of work that it was lent for.
        held_bytes: what its process had of memory when it was last looked at; 0 where that was not seen.
        answer: to what it was asked last.
        deadline: until when it has to be answered.
    """

    def __init__(self, start: Callable[[], Any]):
        self._start = start
        self._num_deaths = 0
        self._was_built = False
        self._ask_at = 0.0
        self._seat_another()

    def _seat_another(self) -> None:
        self.actor = self._start()
        self.place: Place | None = None
        self.is_built = self.is_lost = self._was_built = False
        self.pulse = Pulse(self.actor)
        self.held_bytes = 0
        self._num_killed_before = num_killed_for_memory()
        self.answer: Any = None
        self.deadline = math.inf

    @property
    def is_silent(self) -> bool:
        """Whether its worker was built, and is asked whether it is still there."""
        return self._was_built and not self.is_built

    def ask(self, now: float) -> None:
        """Ask where it is, or whether it is ready, unless that is asked already."""
        if self.answer is None and now >= self._ask_at:
            self.answer = self.actor.where.remote() if self.place is None else self.actor.ready.remote()

    def ask_again(self, seconds: float) -> None:
        """Ask the same after a while."""
        self.answer, self._ask_at = None, time.monotonic() + seconds

    def settle_on(self, place: Place, deadline: float) -> None:
        """It has a process; its worker has to be built until then."""
        self.place, self.answer, self.deadline = place, None, deadline

    def be_built(self) -> None:
        """Its worker can be lent."""
        self.is_built = self._was_built = True
        self.answer, self.deadline, self._num_deaths = None, math.inf, 0

    def begin(self) -> None:
        """It is lent for a piece of work."""
        self.pulse = Pulse(self.actor)
        self._num_killed_before = num_killed_for_memory()

    def look_at_memory(self) -> None:
        """Note what its process has of memory, where that can be seen from here."""
        if self._is_here and self.place is not None:
            self.held_bytes = held_by(self.place.process) or self.held_bytes

    @property
    def is_killed_for_memory(self) -> bool:
        """Whether the system has killed for want of memory since it was begun, where that can be seen from here."""
        return self._is_here and num_killed_for_memory() > self._num_killed_before

    @property
    def _is_here(self) -> bool:
        """Whether its process is one of this machine."""
        return self.place is not None and self.place.node == ray.util.get_node_ip_address()

    def doubt(self, deadline: float) -> None:
        """It did not answer at once: ask again, and wait until then."""
        self.is_built, self.answer, self.deadline = False, None, deadline

    def lose(self) -> None:
        """Its process is gone, or of no use."""
        self.is_built, self.is_lost = False, True

    def replace(self, seconds: float = 0.0) -> None:
        """End what is left of the actor, and start another one, which is asked after a while where it is."""
        ray.kill(self.actor)  # Ray ends a stopped process too, some seconds later
        self._seat_another()
        self.ask_again(seconds)

    def die(self) -> int:
        """How often its process has died before it was ready, this time included."""
        self._num_deaths += 1
        return self._num_deaths
