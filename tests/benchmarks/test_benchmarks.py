"""Each benchmark at hardly any size: it runs on torch and numpy, and its lines say what was measured, and where."""

import json
import os
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"
NOT_NEEDED = ("ray", "prefect", "zarr", "lpips", "torchvision", "mlxtend", "safetensors", "yaml")
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
MEASURED = {"forms", "ratio", "per", "repeats", "clock", "difference_of", "max_abs_difference", "max_abs_value"}
OF_A_FORM = {
    "median_seconds",
    "min_seconds",
    "max_seconds",
    "peak_memory_bytes",
    "held_memory_bytes",
    "memory_measure",
}


IN_REACH = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(BENCHMARKS)])}  # the sources, installed or not
# Runs scripts one after the other, so that all of them, and the server that their processes are forked from, wait for
# torch once.
INTERPRETER = """
import contextlib, io, json, runpy, sys
for line in sys.stdin:
    sys.argv, shown = json.loads(line), io.StringIO()
    with contextlib.redirect_stdout(shown):
        runpy.run_path(sys.argv[0], run_name="__main__")
    print(json.dumps(shown.getvalue()), flush=True)
"""


@pytest.fixture(scope="module")
def shown_by(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., str]]:
    """What a script prints, run in a process that is not this one and that no other test has used."""
    errors = tmp_path_factory.mktemp("interpreter") / "errors"
    command = [sys.executable, "-c", INTERPRETER]
    streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with (
        errors.open("w") as stderr,
        subprocess.Popen(command, cwd=ROOT, env={**os.environ, **IN_REACH}, stderr=stderr, **streams) as process,
    ):

        def run(*arguments: str) -> str:
            print(json.dumps(arguments), file=process.stdin, flush=True)
            answer = process.stdout.readline()
            assert answer, errors.read_text()
            return json.loads(answer)

        yield run


@pytest.fixture
def measure(shown_by: Callable[..., str]) -> Callable[..., list[dict]]:
    """Runs a benchmark with its output in a file, and gives its lines, which are what every benchmark's are."""

    def of(
        script: str, output: Path, *arguments: str, forms: tuple[str, str] = ("activations", "weights")
    ) -> list[dict]:
        shown = shown_by(str(BENCHMARKS / script), "--device=cpu", "--repeats=2", f"--output={output}", *arguments)
        return checked(output, shown, forms)

    return of


def checked(output: Path, shown: str, forms: tuple[str, str]) -> list[dict]:
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    for line in lines:
        assert set(line) == {"benchmark", "sizes", *SURROUNDINGS, *MEASURED}
        assert list(line["forms"]) == list(forms)
        for form in line["forms"].values():
            assert set(form) == OF_A_FORM
            assert 0 < form["min_seconds"] <= form["median_seconds"] <= form["max_seconds"]
            assert form["peak_memory_bytes"] >= 0
        assert set(line["ratio"]) == {"of_medians", "paired_min", "paired_median", "paired_max"}
        assert line["max_abs_difference"] <= 1e-4 * line["max_abs_value"]
        assert line["device"] == "cpu" and line["threads"] == 1 and line["repeats"] == 2
        assert line["clock"] == "process_time"
    assert len(shown.splitlines()) == 2 + len(lines)
    return lines


@pytest.mark.slow
def test_synthesis_is_measured_forward_and_backward_and_more_images_need_more_memory(
    measure: Callable[..., list[dict]], tmp_path: Path
) -> None:
    lines = measure(
        "bench_synthesis.py",
        tmp_path / "new" / "s.jsonl",
        "--tables=tiny",
        "--resolutions=32",
        "--batch-sizes",
        "1",
        "64",
    )
    assert [(line["sizes"]["batch_size"], line["sizes"]["passes"]) for line in lines] == [
        (1, "forward"),
        (1, "forward+backward"),
        (64, "forward"),
        (64, "forward+backward"),
    ]
    one_map = 64 * 8 * 32 * 32 * 4  # images, channels, height, width, bytes
    for form in ("activations", "weights"):
        one, _, forward, backward = (line["forms"][form]["peak_memory_bytes"] for line in lines)
        assert one < one_map < forward < backward


@pytest.mark.slow
def test_embedding_is_measured_in_both_spaces(measure: Callable[..., list[dict]], tmp_path: Path) -> None:
    sizes = ("--tables=tiny", "--resolutions=16", "--batch-sizes=2", "--steps=2")
    lines = measure("bench_embedding.py", tmp_path / "e.jsonl", *sizes)
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


@pytest.mark.slow
def test_training_is_measured_in_images_per_second(measure: Callable[..., list[dict]], tmp_path: Path) -> None:
    sizes = ("--preset=tiny", "--methods=e4e", "--steps=2")
    (line,) = measure("bench_encoder_training.py", tmp_path / "t.jsonl", *sizes, forms=("ours", "plain"))
    assert line["sizes"]["method"] == "e4e" and line["per"] == "image"
    assert line["sizes"]["first_step"] == 28_000  # all of six rows, 20,000 + 4 * 2,000, and a multiple of 16


@pytest.mark.parametrize("method", ["psp", "e4e", "lsap_e"])
def test_both_loops_of_training_compute_the_same(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from bench_encoder_training import BENCHMARK, build, training_cell
    from measurement import first_results

    cell = training_cell("tiny", method, steps=1)
    ours, plain = first_results(
        BENCHMARK, cell, {form: build(cell, form, torch.device("cpu")) for form in BENCHMARK.forms}
    )
    torch.testing.assert_close(ours, plain, rtol=1e-5, atol=0)


def test_nothing_is_timed_where_the_two_forms_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from bench_encoder_training import BENCHMARK
    from measurement import first_results

    def returns(*terms: float) -> Callable[[], torch.Tensor]:
        return lambda: torch.tensor(terms)

    works = {"ours": returns(1.0, 2.0), "plain": returns(1.0, 2.001)}
    assert len(first_results(BENCHMARK, BENCHMARK.smallest, works)) == 2
    for wrong in (2.01, float("nan")):
        with pytest.raises(SystemExit, match=r"method='e4e'.* nothing was timed;.*ours \[1.0, 2.0\], plain \[1.0, "):
            first_results(BENCHMARK, BENCHMARK.smallest, {**works, "plain": returns(1.0, wrong)})


def test_digits_are_trained_with_the_settings_of_their_domain(monkeypatch: pytest.MonkeyPatch) -> None:
    from domains.domain import load_domain

    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from bench_encoder_training import METHODS, PRESETS, STANDING_STILL, method_settings

    digits = load_domain("digits").encoder_training
    still = {"learning_rate": STANDING_STILL, "discriminator_learning_rate": STANDING_STILL}
    assert PRESETS["digits"].backbone == digits.backbone
    for name in METHODS:
        wanted = digits.method(name, still).settings
        assert method_settings("digits", name, PRESETS["digits"].batch_size) == wanted


def test_benchmarks_of_the_method_import_torch_and_numpy_alone() -> None:
    scripts = (
        "bench_synthesis, bench_embedding, bench_encoder_training, bench_refiners_batched, bench_profile, "
        "bench_steady, bench_refiners_against_peer, bench_against_peer"
    )
    ask = f"import sys, {scripts}; print([name for name in {NOT_NEEDED} if name in sys.modules])"
    environment = {**os.environ, **IN_REACH}
    run = subprocess.run([sys.executable, "-c", ask], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.stdout.strip() == "[]", run.stdout + run.stderr


def test_sizes_that_do_not_exist_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    script = str(BENCHMARKS / "bench_synthesis.py")
    monkeypatch.setattr(sys, "argv", [script, "--tables=digits", "--resolutions=64"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(script, run_name="__main__")
    assert ended.value.code == 2
    assert "digits are 32 pixels" in capsys.readouterr().err


def test_the_digits_table_is_that_of_the_domain(monkeypatch: pytest.MonkeyPatch) -> None:
    from domains.digits.recipe import RECIPE

    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from random_generator import generator_config

    assert generator_config("digits", 32) == RECIPE.sizes
