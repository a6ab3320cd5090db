"""SIGTERM in the middle of a request to the store: one sentence, exit code 1, and the same command goes on.

`test_interrupted.py` has moments of the clock, and looks for what is left of a command.
"""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tests.flows.faults.kill_points import Trap
from tests.flows.faults.work import FLOW, INTERRUPTED, PATIENCE_SECONDS, Work

pytestmark = [pytest.mark.ray, pytest.mark.object_store, pytest.mark.slow]

MOMENTS = {"invert": 6, "refine": 3, "edit": 3, "evaluate": 3}


@pytest.mark.all_faults
@pytest.mark.parametrize("work", ["invert", "refine", "edit", "evaluate"], indirect=True)
def test_a_command_is_asked_to_end(work: Work, chosen: random.Random, record: Callable[..., None]) -> None:
    """The same command again and again, each time interrupted at the next point, until it finishes."""
    left = work.draw(MOMENTS[work.verb], chosen)
    outcomes, interrupted = [], []
    while left:
        url = work.archive(f"sigterm-{len(outcomes)}")
        reached, ended, again = work.stopped_again_and_again(url, left, signal.SIGTERM)
        assert reached, f"{left} were not reached"
        interrupted += ended
        left = [point for point in left if point not in reached]
        outcomes.append(work.outcome(f"SIGTERM of the command, {work.verb}", len(reached), url, again))
    record(outcomes)
    for one in interrupted:
        check_interrupted(one)


@pytest.mark.all_faults
def test_a_command_with_a_ray_of_its_own_is_asked_to_end(
    inversion: Work, chosen: random.Random, record: Callable[..., None]
) -> None:
    """In the middle of its work, where Ray's processes are its own, and every second time wherever it is."""
    commands, outcomes, interrupted = inversion.bench.commands, [], []
    alone = Work(inversion.bench.with_variables(LSAP_RAY_ADDRESS="local"), inversion.undisturbed)
    for number in range(4):
        url = inversion.archive(f"sigterm-alone-{number}")
        (point,) = inversion.draw_in_shards(1, chosen)
        command = alone.start(url)
        if number % 2:
            time.sleep(chosen.uniform(0, 8))
            commands.signal(command, signal.SIGTERM)
        else:  # its workers have its own access key
            trap = Trap(
                [replace(point, client=FLOW)],
                url,
                lambda _, command=command: commands.signal(command, signal.SIGTERM),
                is_deadly=False,
            )
            with inversion.bench.proxy.watched(trap):
                command.process.join(PATIENCE_SECONDS)
            assert trap.sprung
        interrupted.append(commands.ended(command))
        before = inversion.bench.finished_shards(url)
        inversion.finish(url)
        again = before.recomputed(inversion.bench.store(url), inversion.bench.proxy.log)
        outcomes.append(inversion.outcome("SIGTERM of a command with a Ray of its own", 1, url, again))
    record(outcomes)
    for one in interrupted:
        check_interrupted(one)


def check_interrupted(ended: Any) -> None:
    """It says so, last and once, and nothing else is among the results."""
    assert (ended.code, ended.out) == (1, ""), ended.err
    lines = ended.err.splitlines()
    assert lines[-1] == INTERRUPTED and lines.count(INTERRUPTED) == 1, ended.err
