"""kill -9 of commands, of their workers, of their machines and of the Prefect server, at moments that a seed draws."""

from __future__ import annotations

import contextlib
import os
import queue
import random
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.flows.faults.kill_points import Trap
from tests.flows.faults.work import Work
from tests.flows.ray_nodes import RayNode

pytestmark = [pytest.mark.ray, pytest.mark.object_store, pytest.mark.slow]

HowMany = Callable[[int, int], int]
ONLY_IN_ALL = [pytest.param(verb, marks=pytest.mark.all_faults) for verb in ("invert", "refine", "evaluate")]
COMMAND_KILLS = {"invert": 10, "refine": 4, "edit": 6, "evaluate": 6}
WORKER_KILLS = {"invert": 10, "refine": 6, "edit": 6, "evaluate": 6}
WORKER_KILLS_OF_A_DAY = 1


@pytest.mark.all_faults
@pytest.mark.parametrize("work", ["invert", "refine", "edit", "evaluate"], indirect=True)
def test_the_command_is_killed(work: Work, chosen: random.Random, record: Callable[..., None]) -> None:
    """The same command again and again, each time killed at the next point, until it finishes."""
    left = work.draw(COMMAND_KILLS[work.verb], chosen)
    outcomes = []
    while left:
        url = work.archive(f"command-{len(outcomes)}")
        reached, _, again = work.stopped_again_and_again(url, left, signal.SIGKILL)
        assert reached, f"{left} were not reached"
        if work.verb == "invert":
            assert work.bench.store(url).exists("reports/invert.html")
        left = [point for point in left if point not in reached]
        outcomes.append(work.outcome(f"kill -9 of the command, {work.verb}", len(reached), url, again))
    record(outcomes)


@pytest.mark.parametrize("work", ["edit", *ONLY_IN_ALL], indirect=True)
def test_workers_are_killed(work: Work, chosen: random.Random, how_many: HowMany, record: Callable[..., None]) -> None:
    """In the middle of a shard, and of another one, while one command works."""
    url = work.archive("workers")
    points = work.draw_in_shards(how_many(WORKER_KILLS_OF_A_DAY, WORKER_KILLS[work.verb]), chosen)
    trap = Trap(points, url, lambda request: os.kill(work.bench.proxy.process_of(request), signal.SIGKILL))
    again = finished_under(trap, work, url)
    record([work.outcome(f"kill -9 of a worker, {work.verb}", len(trap.sprung), url, again)])


@pytest.mark.all_faults
def test_machines_are_killed(
    inversion: Work, nodes: Any, chosen: random.Random, how_many: HowMany, record: Callable[..., None]
) -> None:
    """The machine of a shard's worker stops, and another one comes in its place."""
    url = inversion.archive("machines")
    stopped: queue.Queue[RayNode] = queue.Queue()

    def kill(request: Any) -> None:
        node = nodes.of(inversion.bench.proxy.process_of(request))
        node.kill()
        stopped.put(node)

    trap = Trap(inversion.draw_in_shards(how_many(1, 5), chosen), url, kill)
    again = finished_under(trap, inversion, url, lambda: nodes.replace(stopped.get(timeout=0.1)))
    record([inversion.outcome("kill -9 of a machine of the cluster", len(trap.sprung), url, again)])


@pytest.mark.all_faults
def test_the_prefect_server_is_killed(
    inversion: Work, mortal_server: Any, chosen: random.Random, how_many: HowMany, record: Callable[..., None]
) -> None:
    """In the middle of a run, several times, each time back a little later with what its database kept."""
    url = inversion.archive("server")
    stopped: queue.Queue[float] = queue.Queue()

    def kill(_: Any) -> None:
        mortal_server.kill()
        stopped.put(chosen.uniform(0, 2))

    def restart() -> None:
        time.sleep(stopped.get(timeout=0.1))
        mortal_server.start()

    points = inversion.draw_in_shards(how_many(1, 5), chosen)
    trap = Trap(points, url, kill, is_deadly=False)
    reporting_there = Work(inversion.bench.against(mortal_server), inversion.undisturbed)
    again = finished_under(trap, reporting_there, url, restart)
    record([inversion.outcome("kill -9 of the Prefect server", len(trap.sprung), url, again)])


@pytest.mark.all_faults
def test_a_prefect_server_that_stays_away_costs_one_more_command(
    inversion: Work, mortal_server: Any, chosen: random.Random, record: Callable[..., None]
) -> None:
    """The shards are embedded all the same; what cannot be done without the server is one clear sentence."""
    bench, url = inversion.bench, inversion.archive("no-server")
    start = len(bench.proxy.log)
    trap = Trap(inversion.draw_in_shards(1, chosen), url, lambda _: mortal_server.kill(), is_deadly=False)
    with bench.proxy.watched(trap):
        ended = bench.commands.ended(bench.against(mortal_server, PREFECT_CLIENT_MAX_RETRIES="1").invert(url))
    assert trap.sprung and ended.code == 1
    (sentence,) = [line for line in ended.err.splitlines() if line.startswith("lsap: ")]
    assert f"the Prefect server at {mortal_server.url} does not answer" in sentence
    assert "same command" in sentence
    mortal_server.start()
    before = bench.finished_shards(url)
    Work(bench.against(mortal_server), inversion.undisturbed).finish(url)
    again = before.recomputed(bench.store(url), bench.proxy.log) + inversion.read_again(start, url)
    record([inversion.outcome("Prefect server killed and not restarted", len(trap.sprung), url, again)])


def finished_under(trap: Trap, work: Work, url: str, meanwhile: Callable[[], None] = lambda: time.sleep(0.1)) -> int:
    """A command during which a trap kills others; what was computed twice. `meanwhile` may raise queue.Empty."""

    def without_complaint() -> None:
        with contextlib.suppress(queue.Empty):
            meanwhile()

    finished, again = work.finished_under(trap, url, without_complaint)
    assert finished.code == 0, finished.err
    assert not trap.left, f"{trap.left} were not reached"
    return again
