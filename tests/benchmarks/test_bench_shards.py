"""Both kinds of shards hold the same images, and planning and reading find all of them."""

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
    module = importlib.import_module("bench_shards")
    monkeypatch.setitem(sys.modules, "bench_shards", module)
    return module


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_all_images_are_planned_once_and_read(bench: ModuleType, tmp_path: Path, kind: str) -> None:
    images = list(bench.images_of(0, 30))
    make = {"tar": bench.tar_of, "parquet": bench.parquet_of}[kind]
    (tmp_path / f"x.{kind}").write_bytes(make(images))
    archive = str(tmp_path / "archive")
    source = f"{tmp_path}/x.{kind}"
    assert bench.plan(bench.open_archive(archive), source, start=True) == 30
    bench.publish_all(archive)
    assert bench.plan(bench.open_archive(archive), source, start=False) == 0
    assert bench.read(bench.open_archive(archive), source) == 30
