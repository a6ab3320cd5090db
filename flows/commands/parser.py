"""The words that `lsap` understands, and which call each of them is."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from domains.embedded import embedded_folders
from flows.commands import archives, completion, domains, fields, formats, weights
from flows.commands.directions import add_direction_commands
from flows.commands.explored import add_explore_command
from flows.commands.generators import add_generator_arguments
from flows.commands.images import add_image_commands
from flows.commands.nearest import add_nearest_command
from flows.commands.photos import add_invert_command
from flows.commands.reproductions import add_reproduce_commands, add_weights_command
from flows.commands.runs import FLOWS, STUDIES, command_of
from flows.running.ending import DONE
from lsap_core.errors import did_you_mean


class WrongWordsError(ValueError):
    """The command line is none that `lsap` understands."""


class AlignedHelp(argparse.RawDescriptionHelpFormatter):
    """Help whose column leaves room for the indented names of commands, which argparse forgets to count."""

    def add_argument(self, action: argparse.Action) -> None:
        """Make room for an action and what is below it."""
        super().add_argument(action)
        if isinstance(action, argparse._SubParsersAction):
            self._action_max_length += self._indent_increment


class Parser(argparse.ArgumentParser):
    """A parser whose errors are told as all others are: in one visible line, which is the last one.

    Attributes:
        runs: whose run files it reads, by the names of `flows.commands.fields`; help then ends with their fields.
    """

    runs: tuple[str, ...] = ()

    def __init__(self, **about: Any) -> None:
        """As argparse does, but for the form of help."""
        super().__init__(formatter_class=AlignedHelp, **about)

    def format_help(self) -> str:
        """What argparse says, and the fields of a run file."""
        lines = [line for name in self.runs for line in ("", *fields.help_lines(name))]
        return super().format_help() + "".join(f"{line}\n" for line in lines)

    def error(self, message: str) -> NoReturn:
        """Show how the command is used, and refuse.

        Raises:
            WrongWordsError: always.
        """
        self.print_usage(sys.stderr)
        raise WrongWordsError(f"{message}{'' if message.endswith('?') else ':'} see {self.prog} --help")

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """As argparse does; an option that there is not is refused by the parser of its own verb, with the nearest.

        Raises:
            WrongWordsError: a word means nothing.
        """
        parsed, unknown = super().parse_known_args(args, namespace)
        options = [word for word in unknown if word.startswith("-")]
        if options:
            name = options[0].partition("=")[0]
            near = did_you_mean(name, self._option_string_actions).strip()
            self.error(f"there is no option {name}{'; ' if near else ''}{near}")
        if unknown:
            self.error(f"{unknown[0]} is one word too many")
        return parsed, unknown

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """A word that is none of several is refused with the nearest."""
        if action.choices is not None and value not in action.choices:
            names = [str(choice) for choice in action.choices]
            near = did_you_mean(str(value), names)
            raise argparse.ArgumentError(action, f"there is no {value!r}; {near}wanted one of {', '.join(names)}")


class Version(argparse.Action):
    """Shows which version is installed; looked up only when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        """Print it and end.

        Raises:
            SystemExit: always.
        """
        from importlib.metadata import version

        print(f"lsap {version('lsap')}")
        parser.exit()


def command_parser() -> argparse.ArgumentParser:
    """The parser of a whole command line; what it gives has the call in `command`."""
    about = "GAN inversion by latent space alignment, at scale."
    first = "a first try: lsap invert photo.png --domain digits --adapt"
    parser = Parser(prog="lsap", description=about, epilog=first)
    parser.add_argument("--version", action=Version, nargs=0, help="show which version this is")
    parser.set_defaults(command=lambda _: _show_help(parser), json=False, debug=False)
    groups = parser.add_subparsers(dest="group", metavar="COMMAND", title="commands")

    add_invert_command(groups, _finish)
    run = groups.add_parser("run", help="run a flow").add_subparsers(dest="flow", metavar="FLOW", required=True)
    for name, parts in FLOWS.items():
        _finish_flow(run.add_parser(name, help=parts.explained), command_of(parts), name)
    tables = add_reproduce_commands(run, _finish_flow)
    for name, parts in STUDIES.items():
        _finish_flow(tables.add_parser(name, help=parts.explained), command_of(parts), f"reproduce {name}")

    archive = groups.add_parser("archive", help="look at an archive").add_subparsers(
        dest="verb", metavar="COMMAND", required=True
    )
    describe = archive.add_parser("describe", help="what an archive holds")
    describe.add_argument("url")
    _finish(describe, archives.describe_archive)
    verify = archive.add_parser("verify", help="check every object of an archive")
    verify.add_argument("url")
    _finish(verify, archives.check_archive)
    repair = archive.add_parser("repair", help="restore damaged objects, or retire them so that a run makes them again")
    repair.add_argument("url")
    repair.add_argument("--dry-run", action="store_true", help="say what would be done and write nothing")
    repair.add_argument(
        "--give-up",
        action="append",
        default=[],
        metavar="RUN",
        help="only give up this run or evaluation, which is under way: what is done of it is lost, and planned anew",
    )
    _finish(repair, archives.mend_archive)
    add_explore_command(archive, _finish)
    archives.add_import_command(archive, _finish)
    add_nearest_command(archive, _finish)
    about_images = "write reconstructions, or edited images, as files: those that are kept, and by a generator all"
    images = archive.add_parser("images", help=about_images)
    images.add_argument("url")
    images.add_argument("method", help='such as "lsap_e", "lsap_e/pti" or, of an edit, "lsap_e/slant"')
    images.add_argument("--out", required=True, metavar="DIR", help="folder for the images")
    add_generator_arguments(images)
    _finish(images, archives.export_pictures)

    generator = groups.add_parser("generator", help="look at weights").add_subparsers(
        dest="verb", metavar="COMMAND", required=True
    )
    sizes = generator.add_parser("describe", help="what a file of weights holds")
    sizes.add_argument("path")
    sizes.add_argument("--label", type=int, metavar="N", help="class of a conditional generator, from 0")
    _finish(sizes, weights.show_generator)
    convert = generator.add_parser("convert", help="between .pt, .pkl (reading) and .safetensors")
    convert.add_argument("path")
    convert.add_argument("output", help="its suffix decides the format: .safetensors or .pt")
    convert.add_argument("--label", type=int, metavar="N", help="class of a conditional generator, from 0")
    convert.add_argument("--conv-clamp", type=float, metavar="C", help="for bare weights, which cannot say it")
    convert.add_argument("--mapping-lr-multiplier", type=float, metavar="M", help="for bare weights likewise")
    _finish(convert, weights.rewrite_generator)

    encoder = groups.add_parser("encoder", help="look at encoders").add_subparsers(
        dest="verb", metavar="COMMAND", required=True
    )
    trained = encoder.add_parser("describe", help="what a file of an encoder holds")
    trained.add_argument("path")
    trained.add_argument(
        "--heads",
        choices=["direct", "offsets", "single"],
        help="how it makes rows of W+, if its file does not say",
    )
    _finish(trained, weights.show_encoder)

    add_direction_commands(groups, _finish)

    domain = groups.add_parser("domain", help="look at a domain").add_subparsers(
        dest="verb", metavar="COMMAND", required=True
    )
    quality = domain.add_parser("quality", help="measure samples of the embedded generator on held-out images")
    quality.add_argument("name", choices=list(embedded_folders()))
    quality.add_argument("--sheet", metavar="FILE.png", help="also write a sheet of samples")
    _finish(quality, domains.measure_domain)
    add_weights_command(domain, _finish)
    add_image_commands(groups, _finish)

    read = groups.add_parser("formats", help="which files are read: pictures, containers, weights, directions")
    read.add_argument("--markdown", action="store_true", help="as a page of the documentation")
    _finish(read, formats.show_formats)
    fields.add_fields_command(groups, _finish)
    completion.add_completion_command(groups, command_parser)
    return parser


def _show_help(parser: argparse.ArgumentParser) -> int:
    parser.print_help()
    return DONE


def _finish_flow(parser: Parser, command: Callable[[argparse.Namespace], int], *runs: str) -> None:
    parser.runs = runs
    parser.add_argument("config", help='YAML file that describes the run; "-" reads it from standard input')
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a field of the run")
    parser.add_argument("--dry-run", action="store_true", help="check everything and say what would be done")
    _finish(parser, command)


def _finish(parser: argparse.ArgumentParser, command: Callable[[argparse.Namespace], int]) -> None:
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--debug", action="store_true", help="where it fails, show in which lines of the program")
    parser.set_defaults(command=command)
