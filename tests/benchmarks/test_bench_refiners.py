"""Benchmarks of refiners: both sides do the same, and checkouts of published code are imported and forgotten again."""

import runpy
import sys
from pathlib import Path

import pytest
import torch

from lsap_core.generators.resample import fir_kernel, smooth_upsampled, upsample_rgb

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def benchmarks_in_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.mark.parametrize("refiner", ["pti", "sam"])
def test_a_batch_takes_the_steps_that_its_images_take_one_by_one(refiner: str) -> None:
    from bench_refiners_batched import BENCHMARK, BatchCell
    from measurement import first_results

    cell = BatchCell(refiner, "tiny", 32, batch_size=3, steps=3)
    works = {form: BENCHMARK.build(cell, form, torch.device("cpu")) for form in BENCHMARK.forms}
    batched, alone = first_results(BENCHMARK, cell, works)
    torch.testing.assert_close(batched, alone, rtol=1e-5, atol=0)
    assert batched.shape == (3, 3) and bool((batched[:, 0] != batched[:, 2]).all())


def test_operators_that_stand_in_for_kernels_compute_what_ours_do() -> None:
    from published_code import upfirdn2d

    kernel, images = fir_kernel(), torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(upfirdn2d(images, kernel * 4, up=2, pad=(2, 1)), upsample_rgb(images, kernel))
    torch.testing.assert_close(upfirdn2d(images, kernel * 4, pad=(1, 1)), smooth_upsampled(images, kernel))


def test_two_checkouts_with_packages_of_one_name_do_not_meet(tmp_path: Path) -> None:
    from published_code import importing

    for name in ("one", "two"):
        (tmp_path / name / "models").mkdir(parents=True)
        (tmp_path / name / "models" / "net.py").write_text(f"import wandb\nfrom math import pi\nNAME = '{name}'\n")
    stand_in = type(sys)("wandb")
    names = []
    for name in ("one", "two"):
        with importing(tmp_path / name, {"wandb": stand_in}):
            from models import net  # type: ignore[import-not-found]

            names.append(net.NAME)
    assert names == ["one", "two"]
    assert not {"models", "models.net", "wandb"} & set(sys.modules) and "math" in sys.modules
    with pytest.raises(SystemExit, match="is no folder; wanted a checkout"), importing(tmp_path / "three", {}):
        pass


def test_without_a_checkout_there_is_nothing_to_compare_with(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = str(BENCHMARKS / "bench_refiners_against_peer.py")
    for arguments, message in ([], "no checkout is named"), (["--pti=/x"], "need --stylegan2-ada"):
        monkeypatch.setattr(sys, "argv", [script, *arguments])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(script, run_name="__main__")
        assert ended.value.code == 2 and message in capsys.readouterr().err
