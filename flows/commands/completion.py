"""`lsap completion`: what a shell needs to finish the words of a command, made of the parser itself."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from typing import Any

from flows.running.ending import DONE

SHELLS = ("bash", "zsh", "fish")
INSTALLED = """\
bash   lsap completion bash > ~/.local/share/bash-completion/completions/lsap
zsh    lsap completion zsh > ~/.zfunc/_lsap        (a folder of $fpath)
fish   lsap completion fish > ~/.config/fish/completions/lsap.fish
"""
PLACES = ("FILE", "FILE.npy", "DIR", "FOLDER", "PHOTO", "SOURCE", "NAME_OR_FILE")
NAMED_PLACES = ("config", "path", "output", "url", "archive", "source")


def add_completion_command(groups: Any, command_parser: Callable[[], argparse.ArgumentParser]) -> None:
    """Add `completion` to the command line."""
    completion = groups.add_parser(
        "completion",
        help="a script that has a shell complete these words",
        epilog=INSTALLED,
    )
    completion.add_argument("shell", choices=SHELLS)
    completion.set_defaults(command=lambda parsed: print_completion(command_parser(), parsed.shell))


def print_completion(parser: argparse.ArgumentParser, shell: str) -> int:
    """`lsap completion`.

    Raises:
        ConfigError: the package that makes such scripts is not installed.
    """
    from lsap_core.errors import ConfigError

    try:
        import shtab
    except ModuleNotFoundError:
        raise ConfigError("the package shtab is not installed: pip install 'lsap[completion]'") from None
    for action in _actions(parser):
        if action.dest in NAMED_PLACES or action.metavar in PLACES:
            action.complete = shtab.FILE  # type: ignore[attr-defined]  # where shtab looks for it
    print(shtab.complete(parser, shell))
    return DONE


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Every word of a parser and of those below it."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                yield from _actions(inner)
        else:
            yield action
