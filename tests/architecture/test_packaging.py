"""Two distributions from one repository: `lsap`, and the reader of archives that it stands on."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
READER = ROOT / "packaging" / "lsap-archive"

IMPORTED = """
import importlib, json, pkgutil, sys
before = set(sys.modules)
package = importlib.import_module("lsap_archive")
for module in pkgutil.walk_packages(package.__path__, "lsap_archive."):
    importlib.import_module(module.name)
names = {name.split(".")[0] for name in set(sys.modules) - before}
print(json.dumps(sorted(names)))
"""


def project_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))
    return found


def bounds(lines: list[str]) -> dict[str, str]:
    requirements = map(Requirement, lines)
    return {one.name: str(one.specifier) for one in requirements}


def test_both_have_one_version_and_the_same_bounds() -> None:
    whole, reader = project_of(ROOT)["project"], project_of(READER)["project"]
    assert reader["version"] == whole["version"]
    assert reader["requires-python"] == whole["requires-python"]
    extras = [line for lines in reader["optional-dependencies"].values() for line in lines]
    optional = whole["optional-dependencies"]
    known = bounds([*whole["dependencies"], *optional["gcs"], *optional["azure"], *optional["dev"]])
    of_reader = bounds([*reader["dependencies"], *extras])
    assert of_reader == {name: known[name] for name in of_reader}


def test_no_package_is_in_both_and_none_in_neither() -> None:
    whole = project_of(ROOT)["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    reader = project_of(READER)["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    assert all((READER / source).is_dir() for source in reader)
    packages = project_of(ROOT)["tool"]["importlinter"]["root_packages"]
    assert sorted([*whole, *reader.values()]) == sorted(packages)


def test_the_reader_imports_nothing_that_its_distribution_does_not_ask_for() -> None:
    """What is asked for may bring others along; what neither is nor comes with one of these is a stranger."""
    run = subprocess.run([sys.executable, "-c", IMPORTED], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    imported = set(json.loads(run.stdout))
    assert {"lsap_archive", "zarr", "duckdb", "pyarrow"} <= imported
    heavy = {
        "torch",
        "torchvision",
        "ray",
        "prefect",
        "scipy",
        "skimage",
        "sklearn",
        "PIL",
        "matplotlib",
        "s3fs",
        "rich",
    }
    assert imported & heavy == set()
