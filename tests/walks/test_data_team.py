"""What a data team does: installs the reader alone, and follows what its README and the project's say of archives.

Environments are new: one has the distribution `lsap-archive` with what it asks for, nothing else, the other its extras
as well. They come from the cache that the installation of the project has filled, or from the package index.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tarfile
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
FORMAT = ROOT / "docs" / "archive_format.md"
READER = ROOT / "packaging" / "lsap-archive"
VERSION_3 = ROOT / "tests" / "lsap_archive" / "version_3.tar.xz"
HEAVY = {"torch", "ray", "prefect", "scipy", "tasks", "flows", "lsap", "lsap_core", "domains"}
EXTRA = {"xarray", "lance", "faiss", "starlette", "jinja2", "uvicorn"}
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


def installed(folder: Path, *, extras: str = "", others: tuple[str, ...] = ()) -> Path:
    """The folder of programs of a new environment with the reader's wheel."""
    must(uv("build", "--wheel", str(READER), "--out-dir", str(folder)))
    (wheel,) = folder.glob("lsap_archive-*.whl")
    must(uv("venv", "--python", sys.executable, str(folder / "venv")))
    python = folder / "venv" / "bin" / "python"
    wanted = [f"{wheel}{extras}", *others]
    must(uv("pip", "install", "--python", str(python), "-c", str(ROOT / "constraints.txt"), *wanted))
    return python.parent


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of an environment with what the reader cannot do without."""
    return installed(tmp_path_factory.mktemp("data_team"))


@pytest.fixture(scope="module")
def equipped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of one with all that the reader may stand on, and what the docs read archives with."""
    return installed(tmp_path_factory.mktemp("equipped"), extras="[index,lance,xarray,explore]", others=("polars",))


@pytest.fixture(scope="module")
def place(programs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `archives/digits`, which `archive_of_photos.py` writes where there is the reader alone."""
    folder = tmp_path_factory.mktemp("place")
    Image.fromarray(np.full((8, 8, 3), 99, np.uint8)).save(folder / "picture.webp", lossless=True)
    script = Path(__file__).parent / "archive_of_photos.py"
    walk(programs / "python", str(script), str(folder), str(folder / "picture.webp"), folder=folder)
    return folder


@pytest.fixture
def here(place: Path, tmp_path: Path) -> Path:
    """A folder to write to from which the archive and the photos are seen as from `place`."""
    (tmp_path / "archives").symlink_to(place / "archives")
    (tmp_path / "anna.jpg").symlink_to(place / "photos" / "anna.jpg")
    return tmp_path


def run(program: Path, *words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """A program that knows nothing of this repository."""
    return subprocess.run([program, *words], cwd=folder, env=bare(), capture_output=True, text=True)


def walk(program: Path, *words: str, folder: Path) -> str:
    """What a program prints that has to do what is asked."""
    done = run(program, *words, folder=folder)
    assert done.returncode == 0, f"{words}: {done.stderr}"
    return done.stdout


def bare() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}


def blocks(page: Path, language: str) -> list[str]:
    """What stands in blocks of a language, about the archive of `place`."""
    text = page.read_text(encoding="utf-8").replace("s3://bucket/archives/photos", "archives/digits")
    found: list[str] = re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)
    return found


def commands(shell: str) -> list[list[str]]:
    return [shlex.split(line, comments=True) for line in shell.splitlines() if line.strip()]


def test_the_environment_is_light(programs: Path, tmp_path: Path) -> None:
    (packages,) = (programs.parent / "lib").glob("python*/site-packages")
    names = {path.name for path in packages.iterdir()}
    assert "lsap_archive" in names
    assert names & (HEAVY | EXTRA) == set()
    where = walk(programs / "python", "-c", "import lsap_archive; print(lsap_archive.__file__)", folder=tmp_path)
    assert Path(where.strip()).is_relative_to(packages)


def test_every_line_of_its_readme_works(programs: Path, here: Path) -> None:
    (shell,) = blocks(READER / "README.md", "sh")
    said: dict[str, list[str]] = {}
    for program, verb, *words in commands(shell):
        done = run(programs / program, verb, *words, folder=here)
        if verb == "index":  # wants more than is here, and says what
            assert (done.returncode, done.stdout) == (2, "") and "pip install 'lsap-archive[index]'" in done.stderr
            continue
        assert done.returncode == 0, f"{verb} {words}: {done.stderr}"
        said.setdefault(verb, []).append(done.stdout)
    assert list(said) == ["describe", "verify", "sql", "nearest", "export", "columns"]
    assert "2 runs, 24 rows" in said["describe"][0] and said["verify"][0].endswith("no problems\n")
    assert re.search(r"^lsap_o_w_plus +0\.0\d+$", said["sql"][0], re.MULTILINE) and "0.01" in said["sql"][1]
    assert said["nearest"][0].splitlines()[1].split()[:2] == ["anna.jpg", "0"]
    check = "import pyarrow.parquet as p; print(p.read_table('rows.parquet').num_rows)"
    assert walk(programs / "python", "-c", check, folder=here) == "24\n"
    assert (here / "photos" / "README.md").is_file()
    refused = run(programs / "lsap-archive", "explore", "archives/digits", folder=here)
    assert (refused.returncode, refused.stdout) == (2, "") and "pip install 'lsap-archive[explore]'" in refused.stderr


@pytest.mark.parametrize("readme", [ROOT / "README.md", READER / "README.md"], ids=["of lsap", "of lsap-archive"])
def test_what_readmes_say_of_archives_in_python_works(readme: Path, equipped: Path, here: Path) -> None:
    (python,) = [block for block in blocks(readme, "python") if "open_archive(" in block]
    last = "\nprint(archive.codes(['anna.jpg'], 'lsap_e').shape)"
    assert walk(equipped / "python", "-c", python + last, folder=here) == "(1, 3, 4)\n"


@pytest.mark.parametrize(
    ("beginning", "last", "told"),
    [
        ("from lsap_archive import open_archive\n\narchive", "noise[0].shape", "(1, 4, 4)"),
        ("import polars", "(rows.collect().height, sorted(latest['image_id'].unique())[0])", "(24, 'anna.jpg')"),
        ("import xarray", "dict(run.w_plus.sizes)", "{'image': 12, 'layer': 3, 'channel': 4}"),
    ],
)
def test_what_the_format_says_in_python_works(beginning: str, last: str, told: str, equipped: Path, here: Path) -> None:
    (python,) = [block for block in blocks(FORMAT, "python") if block.startswith(beginning)]
    assert walk(equipped / "python", "-c", f"{python}\nprint({last})", folder=here) == f"{told}\n"


def test_duckdb_alone_reads_what_the_reader_does(programs: Path, here: Path) -> None:
    (sql,) = blocks(FORMAT, "sql")
    ask = "import duckdb, sys; print(sorted(duckdb.connect().execute(sys.argv[1]).fetchall()))"
    same = "select method, avg(sncd) from latest where status = 'ok' group by method"
    of_reader = f"""import lsap_archive
answer = lsap_archive.open_archive("archives/digits").sql({same!r})
print(sorted(tuple(row.values()) for row in answer.to_pylist()))"""
    alone = walk(programs / "python", "-c", ask, sql, folder=here)
    assert alone == walk(programs / "python", "-c", of_reader, folder=here) and "lsap_o_w_plus" in alone


def test_exports_of_the_format_work(equipped: Path, here: Path) -> None:
    (shell,) = [block for block in blocks(FORMAT, "sh") if "export URL" in block]
    for program, *words in commands(shell.replace("URL", "archives/digits")):
        walk(equipped / program, *words, folder=here)


def test_an_index_is_made_and_asked(equipped: Path, here: Path) -> None:
    told = walk(equipped / "lsap-archive", "index", "archives/digits", "lsap_e", folder=here)
    words = ("nearest", "archives/digits", "lsap_e", "--image", "anna.jpg", "-k", "3")
    exact = walk(equipped / "lsap-archive", *words, folder=here)
    assert (
        "12 codes of lsap_e" in told and walk(equipped / "lsap-archive", *words, "--approximate", folder=here) == exact
    )


def test_the_page_is_shown_until_ctrl_c(equipped: Path, here: Path) -> None:
    command = [equipped / "lsap-archive", "explore", "archives/digits", "--port", "0"]
    with subprocess.Popen(
        command, cwd=here, env=bare(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            address = process.stdout.readline().strip()
            page = urllib.request.urlopen(address, timeout=30).read().decode()
            selection = json.load(urllib.request.urlopen(f"{address}api/selection?method=lsap_e&limit=5", timeout=30))
            asked = f"{address}api/neighbours?image=anna.jpg&method=lsap_e&space=s_n&metric=cosine"
            nearest = json.load(urllib.request.urlopen(asked, timeout=30))["rows"]
            picture = urllib.request.urlopen(f"{address}picture?image=anna.jpg&method=lsap_e", timeout=30).read()
            process.send_signal(signal.SIGINT)
            _, told = process.communicate(timeout=30)
        finally:
            process.kill()
    assert "archives/digits" in page and (selection["total"], len(selection["rows"])) == (12, 5)
    assert len(nearest) == 11 and picture.startswith(b"RIFF")
    assert (process.returncode, told) == (0, "lsap-archive: the page is closed\n")


def test_an_archive_of_an_older_version_is_read(programs: Path, tmp_path: Path) -> None:
    with tarfile.open(VERSION_3) as tar:
        tar.extractall(tmp_path, filter="data")
    reader = programs / "lsap-archive"
    assert "6 runs, 30 rows" in walk(reader, "describe", "archive", folder=tmp_path)
    query = "select method, avg(sncd) from latest where status = 'ok' group by method"
    assert re.search(
        r"^lsap_o_w_plus +0\.0824521$", walk(reader, "sql", "archive", query, folder=tmp_path), re.MULTILINE
    )
    nearest = walk(reader, "nearest", "archive", "lsap_e", "--image", "0-zero.png", folder=tmp_path)
    assert nearest.splitlines()[1].split()[:2] == ["0-zero.png", "0"]
