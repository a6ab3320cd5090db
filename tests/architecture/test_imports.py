"""The walls between the packages, and what may stand in a file that git keeps."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]

IMPORT_ALL = """
import importlib, pkgutil, sys
package = importlib.import_module(sys.argv[1])
names = [module.name for module in pkgutil.walk_packages(package.__path__, package.__name__ + ".")]
for name in names:
    importlib.import_module(name)
print(1 + len(names), *sorted(set(sys.argv[2:]) & set(sys.modules)))
"""

# What a clone on another machine, or one installing from another index, could not follow.
TIED_TO_ONE_MACHINE = re.compile(
    rb"""(?<![\w.])/(?:home|Users)/[\w.-]+/    # somebody's home folder
       | (?<![\w.])/r[o]ot/
       | \b(?:\w+\.)*pypi\.org\b              # package indexes
       | \bpythonhosted\.org\b
       | \bdownload\.pytorch\.org/whl
       | \bindex[-_]url\b
    """,
    re.VERBOSE,
)


def test_every_folder_with_modules_is_a_package() -> None:
    """The contracts, and whoever walks through a package, pass over a folder that is none."""
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    folders = {file.parent for package in packages["root_packages"] for file in (ROOT / package).rglob("*.py")}
    assert {ROOT / package for package in packages["root_packages"]} < folders
    assert [folder.relative_to(ROOT).as_posix() for folder in folders if not (folder / "__init__.py").exists()] == []


def test_import_contracts_hold() -> None:
    lint = "from importlinter.cli import lint_imports; raise SystemExit(lint_imports(no_cache=True))"
    run = subprocess.run([sys.executable, "-c", lint], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.parametrize(
    ("library", "strangers"),
    [
        ("lsap_core", ["ray", "prefect", "zarr", "fsspec", "lpips", "torchvision"]),
        ("lsap_archive", ["ray", "prefect", "torch", "pandas", "xarray", "faiss", "lance"]),
    ],
)
def test_a_library_with_all_its_modules_imports_no_stranger(library: str, strangers: list[str]) -> None:
    command = [sys.executable, "-c", IMPORT_ALL, library, *strangers]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == [str(len(list((ROOT / library).rglob("*.py"))))]  # all were imported


def test_no_file_names_a_package_index_or_a_home_folder() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout, so nobody can say which files belong to it")
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    files = [ROOT / name for name in names if (ROOT / name).is_file()]
    assert ROOT / "pyproject.toml" in files

    found = [
        f"{file.relative_to(ROOT)}: {match.group().decode()}"
        for file in files
        for match in TIED_TO_ONE_MACHINE.finditer(file.read_bytes())
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "line",
    [
        "see /" + "home/ada/code/run.py",
        "cat /" + "root/.bashrc",
        "https://py" + "pi.org/simple",
        "files.python" + "hosted.org",
        "--extra-index" + "-url https://example.org",
    ],
)
def test_the_pattern_for_such_names_matches(line: str) -> None:
    assert TIED_TO_ONE_MACHINE.search(line.encode())


def test_constraints_pin_every_dependency_within_its_bounds_and_hold_nothing_else() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    other = [line for line in lines if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*==[a-z0-9.+!]+", line)]
    assert not other, f"not of the form name==version: {other}"

    pins = dict(line.split("==") for line in lines)
    assert len(pins) == len(lines), "a package is pinned twice"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = map(Requirement, project["dependencies"] + project["optional-dependencies"]["dev"])
    wanted = {canonicalize_name(requirement.name): requirement.specifier for requirement in declared}
    assert str(wanted.pop("lsap-archive")) == f"=={project['version']}"  # from this repository, see test_packaging.py
    unmet = {
        name: str(bounds) for name, bounds in wanted.items() if name not in pins or not bounds.contains(pins[name])
    }
    assert not unmet, f"constraints.txt pins nothing that these allow: {unmet}"
