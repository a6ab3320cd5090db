"""ruff on everything, mypy --strict on the two libraries (the settings are in pyproject.toml)."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("tool", [["ruff", "check", "--output-format=concise"], ["mypy"]], ids=["ruff", "mypy"])
def test_a_checker_has_nothing_to_say(tool: list[str]) -> None:
    run = subprocess.run([sys.executable, "-m", *tool], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
