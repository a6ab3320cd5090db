"""The profile, the benchmarks beside published loops, and the script for a GPU."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from lsap_core.perceptual.features import FeatureDistance, FeatureNet, FeatureNetConfig
from lsap_core.perceptual.lpips import LpipsDistance

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def benchmarks_in_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def test_a_profile_counts_what_every_part_does_in_both_passes() -> None:
    from bench_profile import ProfileCell, Profiled
    from operators import OperatorTimer, Roofline

    batch_size, side, channels = 2, 16, 8
    profiled = Profiled(ProfileCell("tiny", side, batch_size, "w_plus", "random features"), CPU)
    timer = OperatorTimer(profiled.generator, CPU, Roofline(1e9, 1e9))
    profiled.take_apart(1, timer)
    tallies = timer.tallies
    sides = [f"generator, {one} px" for one in (4, 8, 16)]
    for part in (*sides, "perceptual distance", "SNCD", "noise regularization", "styles"):
        for passed in ("forward", "backward"):
            assert tallies[part, passed].operators > 0, (part, passed)
    assert tallies["optimizer", "forward"].moved_bytes > 0
    # At the last side: a transposed convolution from 8 to 16 pixels (9 products for each of its inputs), the filter
    # of 16 taps, a convolution, and ToRGB (which the einsum makes a product of matrices) with the RGB sum's filter.
    up = 9 * channels * channels * (side // 2) ** 2
    filters = 16 * channels * side**2 + 16 * 3 * (side // 2) ** 2
    same = (9 * channels + 3) * channels * side**2
    demodulation = 2 * channels * channels
    flops = 2 * batch_size * (up + filters + same + demodulation)
    assert tallies[sides[-1], "forward"].flops == flops
    # Weights are frozen: backward is one pass to the inputs, of the same size (ToRGB also to its weights, the styles).
    assert flops <= tallies[sides[-1], "backward"].flops < 1.1 * flops


def test_a_profile_has_the_time_of_a_step_and_of_its_parts(capsys: pytest.CaptureFixture[str]) -> None:
    from bench_profile import ProfileCell, profile, show
    from operators import Roofline

    cell = ProfileCell("tiny", 16, 1, "w_plus", "random features")
    result = {"sizes": {}, **profile(cell, CPU, Roofline(1e9, 1e9), repeats=1, steps=1)}
    show(result)
    shown = capsys.readouterr().out
    assert result["clock"] == "process_time" and result["step"]["median_seconds"] > 0
    for part in result["parts"]:
        assert part["part"] in shown and part["seconds"] >= 0


def test_lpips_with_random_weights_is_that_of_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    import lpips
    from random_perceptual import RandomLpips

    torch.manual_seed(0)
    ours = RandomLpips()
    trunk = SimpleNamespace(features=ours.net.layers())
    monkeypatch.setattr(lpips.pretrained_networks.tv, "vgg16", lambda **_: trunk)  # torchvision's warns
    package = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False).eval()
    package.net.load_state_dict(dict(zip(package.net.state_dict(), ours.net.state_dict().values(), strict=True)))
    for theirs, own in zip(package.lins, ours.lins, strict=True):
        theirs.load_state_dict(own.state_dict())
    one, other = 2 * torch.rand(2, 2, 3, 32, 32) - 1
    torch.testing.assert_close(LpipsDistance(ours)(one, other), package(one, other).flatten())


def test_values_in_a_row_are_as_far_apart_as_the_images() -> None:
    from published_optimizers import in_a_row
    from random_perceptual import RandomLpips

    torch.manual_seed(0)
    one, other = 2 * torch.rand(2, 1, 3, 32, 32) - 1
    for distance in (LpipsDistance(RandomLpips()), FeatureDistance(FeatureNet(FeatureNetConfig(32, 3)).eval())):
        apart = (in_a_row(distance, one) - in_a_row(distance, other)).square().sum()
        torch.testing.assert_close(apart[None], distance(one, other))


@pytest.mark.parametrize(
    ("changed", "message"),
    [({"lpips": 1.002}, "lpips differ by 2.0"), ({"codes": 1.02}, "codes differ"), ({"noise": float("nan")}, "noise")],
)
def test_sides_that_differ_are_not_timed(
    changed: dict[str, float], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bench_against_peer import PeerCell, compare_steps
    from published_optimizers import Run

    def run(**factors: float) -> Run:
        values = {name: torch.ones(2) * factors.get(name, 1.0) for name in ("lpips", "noise", "codes", "maps")}
        return Run([0.0], [*values["lpips"]], [*values["noise"]], values["codes"], [values["maps"]])

    class Both:
        ours = run()

        def published(self, steps: int, *, keeps_terms: bool = False) -> Run:
            return run()

        def ours_from_the_same(self, steps: int) -> Run:
            return self.ours

        def quality(self, run: Run) -> dict[str, float]:
            return {}

    monkeypatch.setattr("gc.collect", lambda: 0)  # of all that other tests left
    both, cell = Both(), PeerCell("ganinverter", "optimization", "tiny", 16, 1, "random features", 2)
    assert set(compare_steps(both, cell, 2, CPU)["differences"].values()) == {0.0}  # type: ignore[arg-type]
    both.ours = run(**changed)
    with pytest.raises(SystemExit, match=f"nothing was timed: {message}"):
        compare_steps(both, cell, 2, CPU)  # type: ignore[arg-type]


def test_without_a_checkout_there_is_no_peer(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = str(BENCHMARKS / "bench_against_peer.py")
    monkeypatch.setattr(sys, "argv", [script, "--device=cpu"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(script, run_name="__main__")
    assert ended.value.code == 2 and "no checkout is named" in capsys.readouterr().err


def gpu_script(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [str(BENCHMARKS / "run_gpu.sh"), *arguments]
    return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=60)


def test_the_script_for_a_gpu_goes_on_after_a_part_that_fails(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\ncase "$1" in *bench_synthesis.py) exit 3;; esac\n')
    python.chmod(0o755)
    (tmp_path / "peers" / "GANInverter").mkdir(parents=True)
    output = tmp_path / "new" / "lines.jsonl"
    run = gpu_script(str(output), "--peers", str(tmp_path / "peers"), "--commit", "abc", PYTHON=str(python))
    assert run.returncode == 1 and run.stdout.endswith("not done: synthesis (3)\n"), run.stdout + run.stderr
    calls = (tmp_path / "calls").read_text().splitlines()
    assert all(f"--device cuda --output {output} --commit abc" in call for call in calls)
    scripts = [Path(call.partition(".py")[0] + ".py").name for call in calls]  # its folder may have a space
    assert scripts.count("bench_against_peer.py") == 2 and {"bench_profile.py", "bench_steady.py"} < set(scripts)
    limits = [int(line.split(" at most ")[1].split()[0]) for line in run.stdout.splitlines() if " at most " in line]
    assert len(limits) == len(calls) and sum(limits) <= 600
    assert (tmp_path / "new" / "lines.jsonl.log").read_text() == run.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "OUTPUT is a file"),
        (["out", "--device", "tpu"], "--device is tpu"),
        (["out", "--fast"], "--fast is no option"),
        (["out", "--peers", "/absent"], "which is no folder"),
    ],
)
def test_the_script_for_a_gpu_refuses_what_it_does_not_know(arguments: list[str], message: str) -> None:
    run = gpu_script(*arguments, PYTHON="false")
    assert run.returncode == 2 and message in run.stderr


@pytest.mark.slow
def test_lines_of_what_is_measured_on_a_gpu_are_made_on_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output, script = tmp_path / "lines.jsonl", str(BENCHMARKS / "bench_steady.py")
    sizes = ["--tables=tiny", "--resolutions=16", "--batch-sizes", "1", "--repeats=1", "--steps=1"]
    monkeypatch.setattr(sys, "argv", [script, "--device=cpu", f"--output={output}", *sizes])
    runpy.run_path(script, run_name="__main__")
    (line,) = map(json.loads, output.read_text().splitlines())
    assert line["seconds_an_image"] == pytest.approx(1000 * line["step_seconds"])
    assert line["sizes"]["precision"] == "float32" and 0 < line["share_of_peak_flops"] < 1
