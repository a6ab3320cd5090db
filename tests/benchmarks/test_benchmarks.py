"""Each benchmark at hardly any size: it runs on torch and numpy, and its lines say what was measured, and where."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"
NOT_NEEDED = ("ray", "prefect", "zarr", "lpips", "torchvision", "mlxtend")
SURROUNDINGS = {
    "commit",
    "dirty",
    "date",
    "python",
    "torch",
    "device",
    "device_name",
    "cpu_model",
    "cpu_count",
    "cudnn_tf32",
    "threads",
    "load_average",
}
MEASURED = {"forms", "ratio", "per", "repeats", "difference_of", "max_abs_difference", "max_abs_value"}
OF_A_FORM = {
    "median_seconds",
    "min_seconds",
    "max_seconds",
    "peak_memory_bytes",
    "held_memory_bytes",
    "memory_measure",
}


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python with the sources in reach, installed or not."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(BENCHMARKS)])}
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240
    )


def measure(script: str, output: Path, *arguments: str) -> list[dict]:
    run = python(
        str(BENCHMARKS / script), "--device=cpu", "--tables=tiny", "--repeats=2", f"--output={output}", *arguments
    )
    assert run.returncode == 0, run.stdout + run.stderr
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    for line in lines:
        assert set(line) == {"benchmark", "sizes", *SURROUNDINGS, *MEASURED}
        assert list(line["forms"]) == ["activations", "weights"]
        for form in line["forms"].values():
            assert set(form) == OF_A_FORM
            assert 0 < form["min_seconds"] <= form["median_seconds"] <= form["max_seconds"]
            assert form["peak_memory_bytes"] >= 0
        assert set(line["ratio"]) == {"of_medians", "paired_min", "paired_median", "paired_max"}
        assert line["max_abs_difference"] <= 1e-4 * line["max_abs_value"]
        assert line["device"] == "cpu" and line["threads"] == 1 and line["repeats"] == 2
    assert len(run.stdout.splitlines()) == 2 + len(lines)
    return lines


@pytest.mark.slow
def test_synthesis_is_measured_forward_and_backward_and_more_images_need_more_memory(tmp_path: Path) -> None:
    lines = measure("bench_synthesis.py", tmp_path / "new" / "s.jsonl", "--resolutions=64", "--batch-sizes", "1", "64")
    assert [(line["sizes"]["batch_size"], line["sizes"]["passes"]) for line in lines] == [
        (1, "forward"),
        (1, "forward+backward"),
        (64, "forward"),
        (64, "forward+backward"),
    ]
    one_map = 64 * 8 * 64 * 64 * 4  # images, channels, height, width, bytes
    for form in ("activations", "weights"):
        one, _, forward, backward = (line["forms"][form]["peak_memory_bytes"] for line in lines)
        assert one < one_map < forward < backward


@pytest.mark.slow
def test_embedding_is_measured_in_both_spaces(tmp_path: Path) -> None:
    lines = measure("bench_embedding.py", tmp_path / "e.jsonl", "--resolutions=16", "--batch-sizes=2", "--steps=2")
    assert [line["sizes"] for line in lines] == [
        {
            "table": "tiny",
            "resolution": 16,
            "batch_size": 2,
            "space": space,
            "perceptual": "random features",
            "steps": 2,
        }
        for space in ("w", "w_plus")
    ]
    assert {line["per"] for line in lines} == {"image-step"}


@pytest.mark.parametrize("script", ["bench_synthesis", "bench_embedding"])
def test_a_benchmark_imports_torch_and_numpy_alone(script: str) -> None:
    run = python("-c", f"import sys, {script}; print([name for name in {NOT_NEEDED} if name in sys.modules])")
    assert run.stdout.strip() == "[]", run.stdout + run.stderr


def test_sizes_that_do_not_exist_are_refused() -> None:
    run = python(str(BENCHMARKS / "bench_synthesis.py"), "--tables=digits", "--resolutions=64")
    assert run.returncode == 2
    assert "digits are 32 pixels" in run.stderr


def test_the_digits_table_is_that_of_the_domain(monkeypatch: pytest.MonkeyPatch) -> None:
    from domains.digits.train_generator import CONFIG

    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from random_generator import generator_config

    assert generator_config("digits", 32) == CONFIG
