"""A worker in a process of its own: what runs there, and what is known of it here."""

from __future__ import annotations

import math
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import ray

WorkerFactory = Callable[[], Any]


class Host:
    """What runs inside an actor: the worker, built once for each life of the process."""

    def __init__(self, factory: WorkerFactory, num_threads: int):
        self._factory = factory
        self._num_threads = num_threads
        self._worker: Any = None
        self._lock = threading.Lock()

    def where(self) -> str:
        """The node that the process runs on; answers at once."""
        return str(ray.util.get_node_ip_address())

    def ready(self) -> bool:
        """True once the worker is built; raises what its factory raises."""
        return self._built() is not None

    def progress(self) -> float:
        return 0.0 if self._worker is None else float(self._worker.progress())

    def call(self, method: str, arguments: tuple[Any, ...]) -> Any:
        return getattr(self._built(), method)(*arguments)

    def _built(self) -> Any:
        """The worker; Ray may have started the process again since it was asked whether it is ready."""
        with self._lock:
            if self._worker is None:
                self._worker = self._factory()
                if "torch" in sys.modules:  # a worker that does without is spared seconds of its import
                    sys.modules["torch"].set_num_threads(self._num_threads)
        return self._worker


class Seat:
    """An actor, and what the pool knows of it: whether it has a place, and whether its worker is built."""

    def __init__(self, actor: Any):
        self.actor = actor
        self.node: str | None = None
        self.is_built = False
        self.answer: Any = None
        self.deadline = math.inf
        self._ask_at = 0.0
        self._num_deaths = 0

    def ask(self, now: float) -> None:
        """Ask where it is, or whether it is ready, unless that is asked already."""
        if self.answer is None and now >= self._ask_at:
            self.answer = self.actor.where.remote() if self.node is None else self.actor.ready.remote()

    def ask_again(self, seconds: float) -> None:
        """Ask the same after a while."""
        self.answer, self._ask_at = None, time.monotonic() + seconds

    def settle_on(self, node: str, deadline: float) -> None:
        """It has a process; its worker has to be built until then."""
        self.node, self.answer, self.deadline = node, None, deadline

    def be_built(self) -> None:
        """Its worker can be lent."""
        self.is_built, self.answer, self.deadline, self._num_deaths = True, None, math.inf, 0

    def leave(self, seconds: float = 0.0) -> None:
        """Its process is gone; ask after a while where the next one is."""
        self.node, self.is_built, self.deadline = None, False, math.inf
        self.ask_again(seconds)

    def die(self) -> int:
        """How often its process has died before it was ready, this time included."""
        self._num_deaths += 1
        return self._num_deaths
