"""kill -9 of the command, of its workers, of their machines and of the Prefect server, at moments that a seed draws."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import random
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.flows.faults.fault_proxy import StoreRequest
from tests.flows.faults.kill_points import KillPoint, Trap, draw
from tests.flows.faults.outcome import FaultOutcome, read_again
from tests.flows.ray_nodes import RayNode

pytestmark = [pytest.mark.ray, pytest.mark.object_store, pytest.mark.slow]

WORKER = "WORKERPROCESS"
PATIENCE_SECONDS = 400.0
COMMAND_KILLS, WORKER_KILLS, NODE_KILLS, SERVER_KILLS = 10, 10, 5, 5


def test_the_command_is_killed(
    bench: Any, undisturbed: Any, fault_seed: int, record: Callable[[FaultOutcome], None]
) -> None:
    """The same command again and again, each time killed at the next point, until it finishes."""
    left = draw(undisturbed.requests, undisturbed.archive, COMMAND_KILLS, fault_seed)
    outcomes = []
    while left:
        url = f"s3://lsap/faults/command-{len(outcomes)}"
        reached, again = killed_again_and_again(bench, url, left, undisturbed)
        assert reached, f"{left} were not reached"
        left = [point for point in left if point not in reached]
        outcomes.append(bench.outcome("kill -9 of the command", len(reached), url, undisturbed, again))
    record(FaultOutcome.total(outcomes))


def killed_again_and_again(
    bench: Any, url: str, points: list[KillPoint], undisturbed: Any
) -> tuple[list[KillPoint], int]:
    """Kill a command at each of the points that it comes to, and let the last one finish; what was computed twice."""
    start = len(bench.proxy.log)
    reached: list[KillPoint] = []
    finished_before = []
    for point in points:
        command = bench.invert(url)
        trap = Trap([point], url, lambda _, process=command.pid: os.kill(process, signal.SIGKILL))
        with bench.proxy.watched(trap):
            command.process.join(PATIENCE_SECONDS)
        if not trap.sprung:  # what it should have died of was done before
            assert command.process.exitcode == 0, command.text("err")
            break
        assert command.process.exitcode == -signal.SIGKILL
        reached.append(point)
        finished_before.append(bench.finished_shards(url))
    else:
        finished = bench.invert(url).wait()
        assert finished.code == 0, finished.err
        told = json.loads(finished.out)
        assert told["embedded"] <= len(undisturbed.values.rows) - finished_before[-1].num_images
    assert bench.store(url).exists("reports/invert.html")
    again = sum(one.recomputed(bench.store(url), bench.proxy.log) for one in finished_before)
    return reached, again + read_again(bench.proxy.log[start:], WORKER, url, undisturbed.members)


def test_workers_are_killed(
    bench: Any, undisturbed: Any, fault_seed: int, record: Callable[[FaultOutcome], None]
) -> None:
    """Every shard's worker dies once, in the middle of it, while one command works."""
    url = "s3://lsap/faults/workers"
    points = one_for_each_shard(undisturbed, WORKER_KILLS, fault_seed)
    trap = Trap(points, url, lambda request: os.kill(bench.proxy.process_of(request), signal.SIGKILL))
    again = finished_under(trap, bench, url, undisturbed)
    record(bench.outcome("kill -9 of a worker", len(trap.sprung), url, undisturbed, again))


def test_machines_are_killed(
    bench: Any, nodes: Any, undisturbed: Any, fault_seed: int, record: Callable[[FaultOutcome], None]
) -> None:
    """The machine of a shard's worker stops, and another one comes in its place."""
    url = "s3://lsap/faults/machines"
    points = one_for_each_shard(undisturbed, NODE_KILLS, fault_seed + 1)
    stopped: queue.Queue[RayNode] = queue.Queue()

    def kill(request: StoreRequest) -> None:
        node = nodes.of(bench.proxy.process_of(request))
        node.kill()
        stopped.put(node)

    trap = Trap(points, url, kill)
    again = finished_under(trap, bench, url, undisturbed, lambda: nodes.replace(stopped.get(timeout=0.1)))
    record(bench.outcome("kill -9 of a machine of the cluster", len(trap.sprung), url, undisturbed, again))


def test_the_prefect_server_is_killed(
    bench: Any, mortal_server: Any, undisturbed: Any, fault_seed: int, record: Callable[[FaultOutcome], None]
) -> None:
    """In the middle of a run, several times, each time back a little later with what its database kept."""
    url = "s3://lsap/faults/server"
    chosen = random.Random(fault_seed + 2)
    points = one_for_each_shard(undisturbed, SERVER_KILLS, fault_seed + 2)
    stopped: queue.Queue[float] = queue.Queue()

    def kill(_: StoreRequest) -> None:
        mortal_server.kill()
        stopped.put(chosen.uniform(0, 2))

    def restart() -> None:
        time.sleep(stopped.get(timeout=0.1))
        mortal_server.start()

    trap = Trap(points, url, kill, is_deadly=False)
    again = finished_under(trap, bench.against(mortal_server), url, undisturbed, restart)
    record(bench.outcome("kill -9 of the Prefect server", len(trap.sprung), url, undisturbed, again))


def test_a_prefect_server_that_stays_away_costs_one_more_command(
    bench: Any, mortal_server: Any, undisturbed: Any, fault_seed: int, record: Callable[[FaultOutcome], None]
) -> None:
    """The shards are embedded all the same; what cannot be done without the server is one clear sentence."""
    url, start = "s3://lsap/faults/no-server", len(bench.proxy.log)
    trap = Trap(
        one_for_each_shard(undisturbed, 1, fault_seed + 3), url, lambda _: mortal_server.kill(), is_deadly=False
    )
    command = bench.against(mortal_server, PREFECT_CLIENT_MAX_RETRIES="1").invert(url)
    with bench.proxy.watched(trap):
        ended = command.wait(PATIENCE_SECONDS)
    assert trap.sprung and ended.code == 1
    (sentence,) = [line for line in ended.err.splitlines() if "lsap: " in line]
    assert f"the Prefect server at {mortal_server.url} does not answer" in sentence
    assert "same command" in sentence
    mortal_server.start()
    before = bench.finished_shards(url)
    finished = bench.against(mortal_server).invert(url).wait(PATIENCE_SECONDS)
    assert finished.code == 0, finished.err
    again = before.recomputed(bench.store(url), bench.proxy.log)
    again += read_again(bench.proxy.log[start:], WORKER, url, undisturbed.members)
    record(bench.outcome("Prefect server killed and not restarted", len(trap.sprung), url, undisturbed, again))


def one_for_each_shard(undisturbed: Any, count: int, seed: int) -> list[KillPoint]:
    """A request of the worker of each of some shards: reading, staging, committing or promoting it."""
    chosen = random.Random(seed)
    points = []
    for marker, images in chosen.sample(sorted(undisturbed.members.items()), count):
        run, shard = marker.split("/")[1], int(marker[-10:-5])
        staged = f"archive/runs/{run}/_staging/{shard:05d}/attempt"
        requests = [
            ("GET", chosen.choice(sorted(images))),
            ("PUT", f"{staged}/w_plus/c/{shard}/0/0"),
            ("PUT", f"{staged}/rows/shard-{shard:05d}.parquet"),
            ("PUT", f"archive/{marker}"),
            ("COPY", f"archive/runs/{run}/rows/shard-{shard:05d}.parquet"),
        ]
        points.append(KillPoint(WORKER, *chosen.choice(requests), chosen.choice(("before", "after"))))
    return points


def finished_under(
    trap: Trap, bench: Any, url: str, undisturbed: Any, meanwhile: Callable[[], None] = lambda: time.sleep(0.1)
) -> int:
    """A command during which a trap kills others; what was computed twice. `meanwhile` may raise queue.Empty."""
    start = len(bench.proxy.log)
    command = bench.invert(url, **{"workers.count": 2})
    deadline = time.monotonic() + PATIENCE_SECONDS
    with bench.proxy.watched(trap):
        while not command.has_ended:
            assert time.monotonic() < deadline, command.text("err")
            with contextlib.suppress(queue.Empty):
                meanwhile()
    finished = command.wait()
    assert finished.code == 0, finished.err
    assert not trap.left, f"{trap.left} were not reached"
    return read_again(bench.proxy.log[start:], WORKER, url, undisturbed.members)
