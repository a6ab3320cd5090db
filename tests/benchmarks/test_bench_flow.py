"""What the benchmark of the flow makes of the times of pieces and shards."""

from __future__ import annotations

import importlib
from argparse import Namespace
from pathlib import Path

import pytest

from tasks.embed import ShardOutcome

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def outcome(shard: int, worker: str, began: float, seconds: float) -> ShardOutcome:
    spent = {"reading": 0.25, "embedding": seconds - 1.0, "measuring": 0.5}
    return ShardOutcome("run", shard, True, {"ok": 2}, {}, seconds, 0, spent, worker, began)


def test_overheads_and_times_of_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    bench = importlib.import_module("bench_flow")
    outcomes = [
        outcome(0, "a:1", 100.0, 10.0),
        outcome(1, "a:1", 110.5, 10.0),
        outcome(2, "a:2", 100.0, 20.0),
    ]
    piece = {
        "seconds": 30.0,
        "start_seconds": 6.0,
        "warm_up_seconds": 0.5,
        "steady_seconds": 21.0,
        "end_seconds": 3.0,
        "driver_processor_seconds": 1.5,
        "outcomes": outcomes,
    }
    later = piece | {"start_seconds": 2.0}  # Prefect's server runs already
    disturbed = later | {"steady_seconds": 30.0}
    found = bench.result([20.0, 20.0, 20.0], [piece, later, disturbed], 6, Namespace(workers=2, minutes=3.0))
    assert found["steady_overhead_percent"] == pytest.approx(5.0)
    assert found["steady_overhead_percent_by_piece"] == pytest.approx([5.0, 5.0, 50.0])
    assert found["steady_overhead_percent_of_sums"] == pytest.approx(20.0)
    assert found["of_which_measuring_percent"] == pytest.approx(100 * 9 * 0.5 / 2 / 60)
    assert found["fixed_seconds"] == 9.5
    assert found["overhead_percent"] == pytest.approx(5.0 + 100 * 9.5 / 180)
    assert found["overhead_percent_of_30_minutes"] == pytest.approx(5.0 + 100 * 9.5 / 1800)
    assert found["seconds_of_a_shard"]["between"]["mean"] == pytest.approx(0.5)  # a:2 had one shard only
    assert found["seconds_of_a_shard"]["rest"]["mean"] == pytest.approx(0.25)
    assert found["driver_processor_seconds_of_a_shard"] == pytest.approx(0.5)


def test_the_first_shard_of_a_worker_is_compared_with_its_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    bench = importlib.import_module("bench_flow")
    slow_at_first = [outcome(0, "a:1", 0.0, 14.0), outcome(1, "a:1", 14.0, 10.0), outcome(2, "a:1", 24.0, 10.0)]
    quick_at_first = [outcome(3, "a:2", 0.0, 9.0), outcome(4, "a:2", 9.0, 10.0)]
    alone = [outcome(5, "a:3", 0.0, 20.0)]
    assert bench.warm_up_seconds(slow_at_first) == 4.0
    assert bench.warm_up_seconds([*slow_at_first, *quick_at_first, *alone]) == pytest.approx(4.0 / 3)
