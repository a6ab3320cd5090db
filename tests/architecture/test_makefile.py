"""Which torch `make` installs, and what it says where it cannot."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = ("Makefile", "pyproject.toml", "constraints.txt", "packaging/lsap-archive/pyproject.toml")


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """As much of a clone as `make setup` looks at, with a `.venv` whose Python installs nothing."""
    for name in FILES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\necho "$*" >> words\ncase "$*" in "-m uv "*) exit "$REFUSED" ;; esac\n')
    python.chmod(0o755)
    return tmp_path


def make_setup(clone: Path, *words: str, is_refused: bool = False) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": "/usr/bin:/bin", "REFUSED": "2" if is_refused else "0"}
    command = ["make", "--no-print-directory", "setup", "PYTHON=true", *words]
    return subprocess.run(command, cwd=clone, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize(("words", "wanted"), [((), []), (("TORCH=cpu",), ["--torch-backend=cpu"])])
def test_the_torch_that_is_asked_for_is_installed(clone: Path, words: tuple[str, ...], wanted: list[str]) -> None:
    done = make_setup(clone, *words)
    assert done.returncode == 0, done.stderr
    (install,) = [line.split() for line in (clone / "words").read_text().splitlines() if line.startswith("-m uv ")]
    assert [word for word in install if "torch" in word] == wanted
    assert install[-4:] == ["-c", "constraints.txt", "-e", ".[dev]"]
    assert (clone / ".venv" / ".installed").exists()


@pytest.mark.parametrize("words", [(), ("TORCH=cpu",)])
def test_what_cannot_be_installed_is_tried_again_and_torchs_index_is_named(clone: Path, words: tuple[str, ...]) -> None:
    done = make_setup(clone, *words, is_refused=True)
    assert done.returncode != 0
    assert ("Without TORCH=cpu make needs the package index alone" in done.stderr) == bool(words)
    assert not (clone / ".venv" / ".installed").exists()
