"""The planner and the naive way find the same images, and the benchmark's line says so."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    module = importlib.import_module("bench_planning")
    monkeypatch.setitem(sys.modules, "bench_planning", module)
    return module


def test_what_is_new_and_what_has_changed_is_planned_both_ways(bench: ModuleType, tmp_path: Path) -> None:
    folder = str(tmp_path / "archive")
    assert bench.plan_first(folder, 2_500) == 2_500
    bench.publish_all(folder)
    assert bench.plan_again(folder, 2_500) == bench.plan_naively(folder, 2_500) == 3 + 3
    assert bench.plan_again(folder, 2_500) == 6  # it has written nothing
