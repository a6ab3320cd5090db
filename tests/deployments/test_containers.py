"""The Dockerfile and compose.yaml: pinned, complete, and asking programs only for what they can do."""

from __future__ import annotations

import fnmatch
import io
import json
import re
import shlex
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from compose_spec import PyCompose
from dockerfile_parse import DockerfileParser

ROOT = Path(__file__).parent.parent.parent
PASSWORDS = {"STORE_PASSWORD": "one", "DATABASE_PASSWORD": "two", "RAY_TOKEN": "three", "PREFECT_PASSWORD": "four"}
FOREIGN = ("store", "database")  # whose images are not ours


@pytest.fixture(scope="module")
def dockerfile(deployments: Path) -> DockerfileParser:
    return DockerfileParser(fileobj=io.BytesIO((deployments / "Dockerfile").read_bytes()))


def instructions(dockerfile: DockerfileParser, name: str) -> list[str]:
    return [entry["value"] for entry in dockerfile.structure if entry["instruction"] == name]


def test_every_image_is_of_one_version(dockerfile: DockerfileParser, compose: dict[str, Any]) -> None:
    bases = {value.split()[0] for value in instructions(dockerfile, "FROM")}
    foreign = {compose["services"][name]["image"] for name in FOREIGN}
    assert len(bases) == 1  # what was built with one Python runs with it
    for image in bases | foreign:
        assert re.search(r":\D*\d+[.\d-]*\d", image), image


def test_only_the_project_is_copied_and_all_of_it(dockerfile: DockerfileParser, deployments: Path) -> None:
    sources = [
        source.rstrip("/")
        for value in instructions(dockerfile, "COPY")
        if not value.startswith("--from=")
        for source in value.split()[:-1]
    ]
    assert [source for source in sources if not (ROOT / source).exists()] == []
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    described = {"pyproject.toml", "constraints.txt", "README.md", "LICENSE", "deployments/prefect.yaml"}
    assert set(sources) == {*packages, "lsap_archive", "packaging", *described}
    ignored = (deployments / "Dockerfile.dockerignore").read_text().splitlines()
    rules = [line for line in ignored if line and not line.startswith("#")]
    assert rules[0] == "*"
    assert {rule[1:] for rule in rules if rule.startswith("!")} == set(sources)
    assert any(fnmatch.fnmatch("flows/__pycache__", rule) for rule in rules if rule != "*")


def test_what_is_installed_is_what_was_tested(dockerfile: DockerfileParser) -> None:
    installs = [part for run in instructions(dockerfile, "RUN") for part in re.split(r"&&|;|\|\|", run)]
    installs = [part for part in installs if re.search(r"\bpip install\b", part)]
    assert len(installs) == 3
    assert [part for part in installs if "-c constraints.txt" not in part] == []
    makefile = (ROOT / "Makefile").read_text()
    assert f"uv=={re.search(r'UV_VERSION := (.+)', makefile).group(1)}" in installs[0]  # type: ignore[union-attr]


def test_the_image_is_the_command_of_an_ordinary_user(
    dockerfile: DockerfileParser, check_command: Callable[[Sequence[str]], None], known_variables: set[str]
) -> None:
    assert instructions(dockerfile, "USER") == ["1000:1000"]
    last = [entry["instruction"] for entry in dockerfile.structure][-3:]
    assert last == ["USER", "ENTRYPOINT", "CMD"]
    (entrypoint,) = (json.loads(value) for value in instructions(dockerfile, "ENTRYPOINT"))
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert set(entrypoint) == set(scripts)
    names = {word.split("=")[0] for value in instructions(dockerfile, "ENV") for word in shlex.split(value)}
    others = {"PATH", "NVIDIA_DRIVER_CAPABILITIES", "OMP_NUM_THREADS", "DO_NOT_TRACK"}
    assert names - known_variables == others


# --- compose ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def compose(deployments: Path) -> dict[str, Any]:
    """The file with its variables filled in, as compose does."""

    def value(match: re.Match[str]) -> str:
        name, kind, rest = match.groups()
        assert kind != ":?" or (name in PASSWORDS and "deployments/.env" in rest)
        return PASSWORDS.get(name, rest)

    text = re.sub(r"\$\{(\w+)(:[-?])([^}]*)\}", value, (deployments / "compose.yaml").read_text())
    assert "${" not in text
    document: dict[str, Any] = yaml.safe_load(text)
    return document


def test_compose_is_what_the_specification_allows(compose: dict[str, Any]) -> None:
    PyCompose.from_json(json.dumps(compose)).validate()
    broken = json.loads(json.dumps(compose))
    broken["services"]["store"]["imagee"] = "no such field"
    with pytest.raises(ValueError, match="imagee"):
        PyCompose.from_json(json.dumps(broken))


def test_every_service_can_be_asked_for_its_health_and_is_open_to_this_machine_alone(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        assert "healthcheck" in service or service["restart"] == "no", name
        for port in service.get("ports", ()):
            assert port.startswith("127.0.0.1:"), f"{name} opens {port} to everybody"
        for other, condition in service.get("depends_on", {}).items():
            ends = compose["services"][other]["restart"] == "no"
            assert condition["condition"] == ("service_completed_successfully" if ends else "service_healthy")


def test_services_start_what_there_is_with_variables_that_somebody_reads(
    compose: dict[str, Any], check_command: Callable[[Sequence[str]], None], known_variables: set[str]
) -> None:
    for name, service in compose["services"].items():
        if name in FOREIGN:
            continue
        assert service["image"] == "lsap:cpu"
        check_command(service["entrypoint"])
        if "healthcheck" in service:
            check_command(service["healthcheck"]["test"][1:])
        asked = set(service.get("environment", ()))
        assert asked <= known_variables
        assert ("PREFECT_API_URL" in asked) == ("PREFECT_API_AUTH_STRING" in asked)
        assert (
            ("RAY_AUTH_MODE" in asked)
            == ("RAY_AUTH_TOKEN" in asked)
            == ("ray start" in str(service["entrypoint"]).replace("', '", " "))
        )
        for address in re.findall(r"(?:://|@|address=)([a-z-]+):\d", json.dumps(service)):
            assert address in (*compose["services"], "localhost"), f"{name} looks for {address}"


def test_passwords_are_not_in_the_file(deployments: Path) -> None:
    text = (deployments / "compose.yaml").read_text()
    for line in text.splitlines():
        if re.match(r"\s+\w*(SECRET|PASSWORD|TOKEN)\w*:", line):
            assert re.search(r": \$\{\w+:\?", line), line
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    assert "/deployments/.env" in ignored
