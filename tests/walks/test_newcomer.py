"""The newcomer's walk: what README says of one photo, line by line, from a wheel in an environment of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from domains.digits.data import load_split

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def chapter() -> str:
    """What README says under "One photo"."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    match = re.search(r"^## One photo\n(.*?)^## ", text, re.DOTALL | re.MULTILINE)
    assert match is not None
    return match[1]


@pytest.fixture(scope="module")
def bin_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Programs of an environment that has the two wheels, and the packages that it needs from this one."""
    folder = tmp_path_factory.mktemp("walk")
    uv = [sys.executable, "-m", "uv"]
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    for project in (ROOT, ROOT / "packaging" / "lsap-archive"):
        subprocess.run(build, check=True, capture_output=True, cwd=project)
    wheels = [str(wheel) for wheel in folder.glob("lsap*.whl")]
    venv.create(folder / "env", symlinks=True)
    python = folder / "env" / "bin" / "python"
    subprocess.run([*uv, "pip", "install", "--no-deps", "--python", str(python), *wheels], check=True)
    own = subprocess.run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], capture_output=True)
    # A path in a .pth is not searched for further ones: the sources that are installed here are not seen.
    (Path(own.stdout.decode().strip()) / "needed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python.parent


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    """A folder with a photo of one's own: a seven in ink on paper, somewhere on the sheet."""
    ink = Image.fromarray(load_split("test").images[7]).resize((110, 110), Image.Resampling.BICUBIC)
    paper = Image.new("L", (320, 240), 225)
    paper.paste(60, (130, 40), ink)
    paper.save(tmp_path / "photo.png")
    return tmp_path


def blocks(chapter: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", chapter, re.DOTALL | re.MULTILINE)


def walk(words: list[str], desk: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"LSAP_CACHE": str(desk / "cache"), "OMP_NUM_THREADS": "1"}
    run = subprocess.run(words, cwd=desk, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_the_commands_of_one_photo(chapter: str, bin_folder: Path, desk: Path) -> None:
    (block,) = blocks(chapter, "sh")
    setup, *commands = [line.partition("#")[0].strip() for line in block.splitlines()]
    assert setup == "make setup" and len(commands) == 1, "two commands from a clone to a picture"
    for command in commands:
        program, *words = command.split()
        assert program == ".venv/bin/lsap"
        told = walk([str(bin_folder / "lsap"), *words], desk)
        assert "LSAP_O-W+" in told and "made alike" in told and "warning" not in told
    with Image.open(desk / "mine" / "strip.png") as strip:
        assert strip.width > 500
    original, found = (
        np.asarray(Image.open(desk / "mine" / f"{n}.png"), float) for n in ("original", "reconstruction")
    )
    assert np.abs(original - found).mean() < 8


def test_five_lines_of_python(chapter: str, bin_folder: Path, desk: Path) -> None:
    (block,) = blocks(chapter, "python")
    lines = [line for line in block.splitlines() if line]
    assert len(lines) == 5
    program = "; ".join(lines) + "; print(lsap.__file__)"
    value, shape, place = walk([str(bin_folder / "python"), "-c", program], desk).replace(" (", "\n(").splitlines()
    assert 0.05 < float(value) < 0.15 and shape == "(8, 64)"
    assert place.startswith(str(bin_folder.parent)), "the wheel's, not this checkout's"
    assert (desk / "leaning.png").is_file()
