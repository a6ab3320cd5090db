"""A worker that is stopped where it is (SIGSTOP): it goes on in time, or another one gets its shard."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections.abc import Callable

import pytest

from tests.flows.faults.fault_proxy import StoreRequest
from tests.flows.faults.kill_points import Trap
from tests.flows.faults.work import Work

pytestmark = [pytest.mark.ray, pytest.mark.object_store, pytest.mark.slow]

HowMany = Callable[[int, int], int]
SOON_GIVEN_UP = {"workers.patience_seconds": 5}


class Freezer:
    """Stops whoever asks, and lets it go on when it is told to."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._frozen: list[tuple[int, float]] = []

    def freeze(self, request: StoreRequest) -> None:
        """SIGSTOP of who asks."""
        worker = self._work.bench.proxy.process_of(request)
        os.kill(worker, signal.SIGSTOP)
        self._frozen.append((worker, time.monotonic()))

    def thaw(self, after_seconds: float = 0.0, by: signal.Signals = signal.SIGCONT) -> None:
        """SIGCONT, or an end, of those that have been stopped for so long."""
        for worker, since in list(self._frozen):
            if time.monotonic() - since >= after_seconds:
                self._frozen.remove((worker, since))
                with contextlib.suppress(ProcessLookupError):
                    os.kill(worker, by)


@pytest.mark.all_faults
def test_workers_are_stopped_and_go_on(inversion: Work, chosen: random.Random, record: Callable[..., None]) -> None:
    """Within the time that they are given: they have only been slow."""
    url, pause = inversion.archive("slept"), chosen.uniform(1, 3)
    freezer = Freezer(inversion)
    trap = Trap(inversion.draw_in_shards(4, chosen), url, freezer.freeze, is_deadly=False)

    def meanwhile() -> None:
        freezer.thaw(pause)
        time.sleep(0.05)

    finished, again = inversion.finished_under(trap, url, meanwhile)
    freezer.thaw()
    assert finished.code == 0, finished.err
    record([inversion.outcome("SIGSTOP of a worker, SIGCONT after seconds", len(trap.sprung), url, again)])


def test_workers_are_stopped_for_good(
    inversion: Work, chosen: random.Random, how_many: HowMany, record: Callable[..., None]
) -> None:
    """Nobody waits for them longer than the time that they are given."""
    outcomes = []
    for number in range(how_many(1, 3)):
        url = inversion.archive(f"frozen-{number}")
        freezer = Freezer(inversion)
        trap = Trap(inversion.draw_in_shards(1, chosen), url, freezer.freeze, is_deadly=False)
        finished, again = inversion.finished_under(trap, url, **SOON_GIVEN_UP)
        freezer.thaw(by=signal.SIGKILL)
        assert trap.sprung and finished.code == 0, finished.err
        outcomes.append(inversion.outcome("SIGSTOP of a worker for good", 1, url, again))
    record(outcomes)
