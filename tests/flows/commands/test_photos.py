"""`lsap invert`: photos in, pictures out, without a server."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from domains import digits
from domains.digits.data import load_split
from flows.commands.cli import main
from lsap_core.generators.checkpoints import to_nvlabs
from tasks.weights.generators import load_generator

DIGITS = Path(digits.__file__).parent
DONE, FAILED, ASKED_WRONGLY = 0, 1, 2
FAST = ["--domain", "digits", "--method", "lsap_e"]


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LSAP_CACHE", str(tmp_path / "cache"))
    for name, index in (("seven.png", 7), ("two.png", 2)):
        Image.fromarray(load_split("test").images[index]).save(tmp_path / name)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    return tmp_path


def lsap(*arguments: Any, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = main([str(one) for one in arguments])
    told = capsys.readouterr()
    return code, told.out, told.err


def test_one_photo_leaves_its_pictures_in_the_folder(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = photos / "out"
    code, told, _ = lsap("invert", photos / "seven.png", *FAST, "--out", out, capsys=capsys)
    assert code == DONE
    assert told.splitlines()[0].startswith(f"{photos / 'seven.png'}: LSAP_E, mse 0.0")
    edits = {f"{name}{strength}.png" for name in ("slant", "stroke_width") for strength in ("-2", "-1", "+1", "+2")}
    others = {"reconstruction.png", "original.png", "strip.png", "codes.npz", "inversion.json"}
    assert {file.name for file in out.iterdir()} == edits | others
    original, found = (np.asarray(Image.open(out / f"{name}.png"), float) for name in ("original", "reconstruction"))
    assert np.abs(original - found).mean() < 10
    assert np.load(out / "codes.npz")["w"].shape == (1, 8, 64)


def test_a_bad_photo_is_told_and_the_others_are_inverted(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    places = [photos / name for name in ("seven.png", "broken.png", "two.png", "nowhere.png")]
    wanted = ["--out", photos / "out", "--json", "--direction", "slant", "--strength", 1]
    code, told, _ = lsap("invert", *places, *FAST, *wanted, capsys=capsys)
    assert code == FAILED
    by_name = {Path(one["photo"]).name: one for one in json.loads(told)["photos"]}
    assert list(by_name) == ["seven.png", "broken.png", "two.png", "nowhere.png"]
    assert [one.get("failed") for one in by_name.values()] == [None, "truncated", None, "not_there"]
    assert (photos / "out" / "two" / "slant+1.png").is_file()
    assert not (photos / "out" / "broken").exists()


def test_directions_of_another_generator_are_left_out_and_told(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known = load_generator(str(DIGITS / "generator.safetensors"))
    torch.save(to_nvlabs(known.config, known.generator.state_dict()), photos / "other.pt")
    words = ["invert", photos / "seven.png", "--domain", "digits", "--generator", photos / "other.pt"]
    chosen = [*words, "--method", "stylegan2_w", "--set", "num_steps=1", "--out", photos / "out"]
    code, told, _ = lsap(*chosen, capsys=capsys)
    assert code == DONE
    left_out = told.splitlines()[-2:]
    assert [line.partition(":")[0] for line in left_out] == [
        f"not edited along {one}" for one in ("slant", "stroke_width")
    ]
    assert all("it was found on generator" in line for line in left_out)
    assert not list((photos / "out").glob("slant*"))
    code, _, told = lsap(*chosen, "--direction", "slant", capsys=capsys)
    assert code != DONE and "it was found on generator" in told.splitlines()[-1]


def test_two_directions_of_one_file_are_two_pictures(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({name: torch.randn(1, 64) for name in ("smile", "age")}, photos / "many.pt")
    chosen = [f"{photos / 'many.pt'}#{name}" for name in ("smile", "age")]
    words = [photos / "seven.png", *FAST, "--out", photos / "out", "--strength", 1, "--direction", *chosen]
    code, _, told = lsap("invert", *words, capsys=capsys)
    assert code == DONE, told
    assert {file.name for file in (photos / "out").glob("many*")} == {"many_smile+1.png", "many_age+1.png"}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["nowhere.png", *FAST], "nothing is at nowhere.png"),
        (["seven.png", "--domain", "digits", "--method", "lsap_x"], 'method "lsap_x" is not known'),
        (["seven.png", *FAST, "--direction", "smile"], 'no direction "smile"; wanted slant, stroke_width'),
        (["seven.png", *FAST, "--set", "num_steps"], '"num_steps" is no change; wanted key=value'),
        (["seven.png", "--domain", "full_scale"], 'domain "full_scale" has no weights of its own'),
        (["seven.png", *FAST, "--encoder", "e4e"], "wanted NAME=FILE"),
        ([".", *FAST], "wanted one photo"),
    ],
)
def test_what_is_asked_wrongly_leaves_nothing(
    photos: Path, words: list[str], told: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(photos)
    code, out, err = lsap("invert", *words, capsys=capsys)
    assert (code, out) == (ASKED_WRONGLY, "")
    assert told in err.splitlines()[-1]
    assert not (photos / "inverted").exists()


def test_neither_prefect_nor_ray_is_loaded(photos: Path) -> None:
    words = ["invert", str(photos / "seven.png"), *FAST, "--out", str(photos / "out")]
    program = (
        f"import sys; from flows.commands.cli import main; code = main({words!r}); "
        "print(sorted({'prefect', 'ray'} & set(sys.modules))); sys.exit(code)"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.returncode == DONE, run.stderr
    assert run.stdout.splitlines()[-1] == "[]"
