"""`lsap fields`: what run files may say; the same is shown by `lsap run FLOW --help`.

`docs/fields.md` is what `lsap fields --markdown` prints.
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import textwrap
from collections.abc import Callable, Iterator
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

from flows.commands.output import print_result
from flows.commands.runs import FLOWS, STUDIES
from flows.running.ending import DONE

if TYPE_CHECKING:  # help should not wait for torch unless it needs it
    from flows.parameters.fields import RunField

REPRODUCTION = "flows.parameters.reproduce:ReproduceRun"
RUNS = {
    **{name: parts.run for name, parts in FLOWS.items()},
    "reproduce": REPRODUCTION,
    "reproduce table3": "flows.parameters.reproduce_table3:ReproduceTable3",
    **{f"reproduce {name}": parts.run for name, parts in STUDIES.items()},
}
"""What a run file of each flow is read by, "module:object"."""
HEADING = """\
# Fields of run files

Made by `lsap fields --markdown` of the models that read them. `lsap run FLOW --help` shows those of a flow, and
`--set workers.count=4` changes one for a command. Where a field takes a list, one value needs none. A field without a
default is required where that is said, and else stands for nothing unless it is given."""


def add_fields_command(groups: Any, finish: Callable[[argparse.ArgumentParser, Any], None]) -> None:
    """Add `fields` to the command line."""
    fields = groups.add_parser("fields", help="what run files may say: every field of every flow")
    fields.add_argument("flow", nargs="*", help="of one flow alone, such as: invert, or: reproduce table3")
    fields.add_argument("--markdown", action="store_true", help="as a page of the documentation")
    finish(fields, show_fields)


def help_lines(name: str) -> Iterator[str]:
    """The fields of a run file, for people at a terminal of any width."""
    width = max(shutil.get_terminal_size().columns - 2, 40)
    yield f"fields of a run file ({name}):"
    for field in _fields(name):
        default = "required" if field.default is None else f"default {field.default}" if field.default else ""
        about = f"{field.type}; {default}" if default else field.type
        yield ""
        yield from textwrap.wrap(f"{field.name}  ({about})", width, initial_indent="  ", subsequent_indent="    ")
        for told in (field.description, field.example):
            yield from textwrap.wrap(told, width, initial_indent=" " * 6, subsequent_indent=" " * 8)


def as_markdown() -> str:
    """The page of the documentation."""
    lines = [HEADING]
    for name in RUNS:
        lines += [
            "",
            f"## {name}",
            "",
            "| field | takes | default | what it is | example |",
            "| --- | --- | --- | --- | --- |",
        ]
        for field in _fields(name):
            default = "required" if field.default is None else f"`{field.default}`" if field.default else ""
            cells = (f"`{field.name}`", field.type, default, field.description, f"`{field.example}`")
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def show_fields(parsed: argparse.Namespace) -> int:
    """The command.

    Raises:
        ConfigError: there is no such flow.
    """
    from lsap_core.errors import ConfigError, did_you_mean

    if parsed.markdown:
        print(as_markdown())
        return DONE
    asked = " ".join(parsed.flow)
    if asked and asked not in RUNS:
        known = ", ".join(RUNS)
        raise ConfigError(f'there is no flow "{asked}"; {did_you_mean(asked, RUNS)}wanted one of {known}')
    names = [asked] if asked else list(RUNS)
    document = {name: [dataclasses.asdict(field) for field in _fields(name)] for name in names}
    lines = [line for name in names for line in (*help_lines(name), "")]
    print_result(document, parsed.json, lines[:-1])
    return DONE


def _fields(name: str) -> list[RunField]:
    from flows.parameters.fields import fields_of

    return list(fields_of(resolve_name(RUNS[name])))
