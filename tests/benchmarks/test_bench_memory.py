"""What the benchmark of memory makes of its samples, and that no two of its images are the same."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("bench_memory")


def test_growth_is_that_of_own_memory_after_the_warm_up(bench: Any) -> None:
    steep = [bench.Sample(images, 10**6 * images, 0) for images in range(0, 1000, 50)]
    level = [bench.Sample(images, 500_000_000 + 2_000 * images, 10**9) for images in range(1000, 4000, 50)]
    grown = bench.growth(steep + level, 4000)
    assert grown["mb_for_1000_images"] == pytest.approx(2.0)
    assert grown["standard_error"] == pytest.approx(0.0, abs=1e-6)
    assert grown["mean_mb"] == pytest.approx(505.0, abs=0.1)
    assert (grown["largest_mb"], grown["largest_resident_mb"]) == (950.0, 1000.0)
    with pytest.raises(SystemExit, match="take more images"):
        bench.growth(level[:5], 4000)


def test_images_are_all_different_and_the_same_for_a_seed(bench: Any) -> None:
    images = bench.varied_digits(4100, seed=1)  # of 4,000 digits
    assert len({image.tobytes() for image in images}) == 4100
    assert (bench.varied_digits(20, seed=1) == images[:20]).all()
    assert images.shape[1:] == (32, 32)


def test_the_figure_has_a_panel_for_each_command(bench: Any, tmp_path: Path) -> None:
    stages = [{"stage": name, "samples": {"command": [[0, 1.0, 2.0], [100, 1.5, 2.5]]}} for name in ("invert", "edit")]
    bench.draw({"images": 100, "stages": stages}, tmp_path / "memory.png")
    with Image.open(tmp_path / "memory.png") as drawn:
        assert drawn.width > 2 * drawn.height
