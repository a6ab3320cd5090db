"""What a data team does: installs the reader alone, and follows what its README and the project's say of archives.

The environment is new and has the distribution `lsap-archive` with what it asks for, nothing else. It comes from the
cache that the installation of the project has filled, or from the package index.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
READER = ROOT / "packaging" / "lsap-archive"
VERSION_3 = ROOT / "tests" / "lsap_archive" / "version_3.tar.xz"
HEAVY = {"torch", "ray", "prefect", "scipy", "tasks", "flows", "lsap", "lsap_core", "domains"}
UNREACHABLE = re.compile(r"Failed to fetch|Could not connect|dns error|error sending request|client error \(Connect\)")

pytestmark = pytest.mark.slow


def uv(*words: str) -> subprocess.CompletedProcess[str]:
    """Of what is on this machine if that is enough, else from the index."""
    command = [sys.executable, "-m", "uv", *words]
    here = subprocess.run([*command, "--offline"], capture_output=True, text=True)
    return here if here.returncode == 0 else subprocess.run(command, capture_output=True, text=True)


def must(done: subprocess.CompletedProcess[str]) -> None:
    if done.returncode and UNREACHABLE.search(done.stderr):
        pytest.skip("neither the cache has what the reader asks for, nor can the package index be reached")
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of programs of an environment with the reader's wheel."""
    folder = tmp_path_factory.mktemp("data_team")
    must(uv("build", "--wheel", str(READER), "--out-dir", str(folder)))
    (wheel,) = folder.glob("lsap_archive-*.whl")
    must(uv("venv", "--python", sys.executable, str(folder / "venv")))
    python = folder / "venv" / "bin" / "python"
    must(uv("pip", "install", "--python", str(python), "-c", str(ROOT / "constraints.txt"), str(wheel)))
    return python.parent


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("archive")
    with tarfile.open(VERSION_3) as tar:
        tar.extractall(folder, filter="data")
    return folder / "archive"


def walk(program: Path, *words: str, folder: Path) -> str:
    """What a program prints; it knows nothing of this repository."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run([program, *words], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_environment_is_light(programs: Path, tmp_path: Path) -> None:
    (packages,) = (programs.parent / "lib").glob("python*/site-packages")
    names = {path.name for path in packages.iterdir()}
    assert "lsap_archive" in names
    assert names & HEAVY == set()
    where = walk(programs / "python", "-c", "import lsap_archive; print(lsap_archive.__file__)", folder=tmp_path)
    assert Path(where.strip()).is_relative_to(packages)


def test_every_line_of_its_readme_works(programs: Path, archive: Path, tmp_path: Path) -> None:
    text = (READER / "README.md").read_text(encoding="utf-8")
    (shell,) = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    shell = shell.replace("s3://bucket/archives/photos", str(archive)).replace("anna.jpg", "0-zero.png")
    said = {words[1]: walk(programs / words[0], *words[1:], folder=tmp_path) for words in commands(shell)}
    assert list(said) == ["describe", "verify", "sql", "nearest", "export"]
    assert "6 runs, 30 rows" in said["describe"] and "lsap_e/slant" in said["describe"]
    assert said["verify"].endswith("no problems\n")
    assert re.search(r"^lsap_o_w_plus +0\.0824521$", said["sql"], re.MULTILINE)
    assert said["nearest"].splitlines()[1].split()[:2] == ["0-zero.png", "0"]
    check = "import pyarrow.parquet as p; print(p.read_table('rows.parquet').num_rows)"
    assert walk(programs / "python", "-c", check, folder=tmp_path) == "30\n"


@pytest.mark.parametrize("readme", [ROOT / "README.md", READER / "README.md"], ids=["of lsap", "of lsap-archive"])
def test_what_readmes_say_of_archives_in_python_works(
    readme: Path, programs: Path, archive: Path, tmp_path: Path
) -> None:
    blocks = re.findall(r"```python\n(.*?)```", readme.read_text(encoding="utf-8"), re.DOTALL)
    (python,) = [block for block in blocks if "open_archive(" in block]
    python = re.sub(r'open_archive\(".*?"\)', f"open_archive({str(archive)!r})", python)
    python = re.sub(r'\.codes\(\["[^"]*"\]', '.codes(["0-zero.png"]', python)
    last = "\nprint(archive.codes(['0-zero.png'], 'lsap_e').shape)"
    assert walk(programs / "python", "-c", python + last, folder=tmp_path) == "(1, 8, 64)\n"


def commands(shell: str) -> list[list[str]]:
    return [shlex.split(line, comments=True) for line in shell.splitlines() if line.strip()]
