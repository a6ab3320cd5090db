"""What the benchmark of the flow makes of the times of turns and shards, and that it stops what it says it stops."""

from __future__ import annotations

import importlib
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from tasks.inversion.worker import ShardOutcome

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("bench_flow")


def outcome(shard: int, worker: str, began: float, seconds: float) -> ShardOutcome:
    spent = {"reading": 0.25, "embedding": seconds - 1.0, "measuring": 0.5, "writing": 0.125}
    return ShardOutcome("run", shard, True, {"ok": 64}, {}, seconds, 0, spent, worker, began)


def test_time_in_which_the_flow_was_stopped_does_not_count(bench: Any) -> None:
    clock = bench.ActiveClock([bench.Turn(10.0, 15.0, 2.0), bench.Turn(20.0, 22.0, 2.0)])
    assert clock(10.0) - clock(5.0) == 5.0
    assert clock(15.0) - clock(10.0) == 0.0
    assert clock(13.0) - clock(9.0) == 1.0
    assert clock(30.0) - clock(5.0) == 18.0


def test_overheads_and_times_of_shards(bench: Any) -> None:
    options = Namespace(workers=1, batch_size=32)
    turns = [bench.Turn(0.0, 10.0, 9.0), bench.Turn(20.0, 28.0, 4.0), bench.Turn(33.0, 41.0, 4.0)]
    turns.append(bench.Turn(45.0, 53.0, 5.0))
    outcomes = [outcome(0, "a:1", 18.0, 20.0), outcome(1, "a:1", 38.5, 20.0)]  # 9 and 9 s, after a pause of 0
    outcomes.append(outcome(2, "a:1", 59.0, 10.0))  # no turn fell into it
    piece = bench.flow_times(12.0, 70.0, 1.5, outcomes, turns, options)
    assert piece["bare_seconds"] == pytest.approx(6 * 13 / 3)
    assert piece["start_seconds"] == 6.0
    assert piece["warm_up_seconds"] == 0.0
    assert piece["steady_seconds"] == 51.0 - 24.0
    assert piece["end_seconds"] == 1.0
    assert piece["shard_overheads"] == pytest.approx([100 * (9.5 / 9.0 - 1)])
    assert piece["shard_times"]["between"] == [0.0, 0.5]
    assert piece["shard_times"]["embedding"] == [19.0 - 13.0, 19.0 - 10.5, 9.0]
    assert piece["shard_times"]["rest"] == pytest.approx([0.125] * 3)


def test_what_commands_come_to(bench: Any) -> None:
    times = {"between": [0.5], "embedding": [9.0, 9.0], "reading": [0.25] * 2, "measuring": [0.5, 0.5]}
    times |= {"writing": [0.125] * 2, "rest": [0.125] * 2}
    command = {"bare_seconds": 100.0, "steady_seconds": 103.0, "start_seconds": 6.0, "warm_up_seconds": 0.5}
    command |= {"end_seconds": 2.5, "driver_processor_seconds": 1.0, "shard_overheads": [2.0, 4.0]}
    command |= {"shard_times": times}
    found = bench.result([command, command | {"steady_seconds": 105.0, "end_seconds": 4.5}], Namespace(workers=2))
    assert found["steady_overhead_percent"] == pytest.approx(4.0)
    assert found["standard_error_percent"] == pytest.approx((4 / 3) ** 0.5 / 2)
    assert found["of_which_measuring_percent"] == pytest.approx(100 * 0.5 * 4 / 2 / 200)
    assert found["fixed_seconds"] == 10.0
    assert found["overhead_percent"] == pytest.approx(4.0 + 100 * 20 / 200)
    assert found["overhead_percent_of_30_minutes"] == pytest.approx(4.0 + 100 * 10 / 1800)
    assert found["driver_processor_seconds_of_a_shard"] == 0.5
    assert "shard_times" not in found["commands"][0]


def test_the_first_shard_of_a_worker_is_compared_with_its_others(bench: Any) -> None:
    clock = bench.ActiveClock([])
    slow_at_first = [outcome(0, "a:1", 0.0, 14.0), outcome(1, "a:1", 14.0, 10.0), outcome(2, "a:1", 24.0, 10.0)]
    quick_at_first = [outcome(3, "a:2", 0.0, 9.0), outcome(4, "a:2", 9.0, 10.0)]
    alone = [outcome(5, "a:3", 0.0, 20.0)]
    assert bench.warm_up_seconds(slow_at_first, clock) == 4.0
    assert bench.warm_up_seconds([*slow_at_first, *quick_at_first, *alone], clock) == pytest.approx(4.0 / 3)


def wait_until(condition: Callable[[], bool]) -> None:
    """A signal is sent in no time and arrives when its process has its turn."""
    deadline = time.monotonic() + 30.0
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_process_is_stopped_with_what_it_has_started_and_goes_on(bench: Any) -> None:
    code = "import subprocess, sys; print(subprocess.Popen(['sleep', '60']).pid, flush=True); sys.stdin.read()"
    started = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert started.stdin is not None and started.stdout is not None
    child = psutil.Process(int(started.stdout.readline()))
    parent = psutil.Process(started.pid)
    try:
        with bench.stopped([parent]):
            wait_until(lambda: {parent.status(), child.status()} == {psutil.STATUS_STOPPED})
        wait_until(lambda: psutil.STATUS_STOPPED not in (parent.status(), child.status()))
    finally:
        child.kill()
        started.communicate(timeout=30)
