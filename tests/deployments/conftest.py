"""What the manifests start is asked of the programs themselves: each command is parsed, none is run."""

from __future__ import annotations

import inspect
import re
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="session")
def deployments() -> Path:
    """The folder of the manifests."""
    return ROOT / "deployments"


@pytest.fixture(scope="session")
def known_variables() -> set[str]:
    """Variables that somebody reads: this project, Prefect, Ray, or the storage's client."""
    from prefect.settings import Settings
    from prefect.settings.legacy import _get_settings_fields

    from tasks.settings import Settings as OurSettings

    ours = set(re.findall(r"\bLSAP_[A-Z_]+\b", inspect.getsource(OurSettings.from_environment)))
    assert {"LSAP_BACKBONES", "LSAP_RESULTS", "LSAP_RAY_ADDRESS"} <= ours
    deployed = set(re.findall(r"\{\{ \$(LSAP_[A-Z_]+) \}\}", (ROOT / "deployments" / "prefect.yaml").read_text()))
    ray = {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_USAGE_STATS_ENABLED"}
    storage = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION"}
    return ours | deployed | ray | storage | set(_get_settings_fields(Settings))


@pytest.fixture(scope="session")
def check_command() -> Callable[[Sequence[str]], None]:
    """Refuses a command that the program would refuse; a shell's script is taken line by line."""

    def check(words: Sequence[str]) -> None:
        program, *arguments = words
        if program == "sh":
            assert arguments[0] == "-ec", "a script goes on after a line that failed"
            for line in arguments[1].strip().splitlines():
                check([word for word in shlex.split(line) if word != "exec"])
        elif program == "lsap":
            from flows.commands.parser import command_parser

            command_parser().parse_args(arguments)
        elif program == "ray":
            from ray.scripts.scripts import cli

            cli.commands[arguments[0]].make_context(arguments[0], list(arguments[1:]))
        elif program == "prefect":
            from prefect.cli._app import _app

            _app.parse_args(list(arguments), print_error=False, exit_on_error=False)
        elif program == "python":
            assert arguments[0] == "-c" and len(arguments) == 2
            compile(arguments[1], "manifest", "exec")
        else:
            raise AssertionError(f"nobody knows the program {program}")

    return check
