"""The command `lsap`: turns words into one call. Results go to stdout, everything else to stderr."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence

from domains.embedded import embedded_folders
from flows.commands import archives, domains, weights
from flows.commands.directions import add_direction_commands
from flows.commands.images import add_image_commands
from flows.commands.output import ASKED_WRONGLY, FAILED
from flows.commands.reproductions import add_reproduce_commands, add_weights_command
from flows.commands.runs import FLOWS, STUDY, command_of
from tasks.visible_text import HARD_SPACE, visible

# Small machines and closed networks: what the libraries would otherwise do on their own.
ENVIRONMENT = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    "RAY_USAGE_STATS_ENABLED": "0",
    "OMP_NUM_THREADS": "1",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns 0 when it is done, 1 when it failed, 2 when it was asked wrongly."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    parsed = _parser().parse_args(arguments)
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    with _sigterm_as_interruption():
        return _with_exit_code(parsed.command, parsed)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="lsap", description="GAN inversion by latent space alignment, at scale.")
    groups = parser.add_subparsers(dest="group", required=True)

    run = groups.add_parser("run", help="run a flow").add_subparsers(dest="flow", required=True)
    for name, parts in FLOWS.items():
        _finish_flow(run.add_parser(name, help=parts.explained), command_of(parts))
    tables = add_reproduce_commands(run, _finish_flow)
    _finish_flow(tables.add_parser("editability", help=STUDY.explained), command_of(STUDY))

    archive = groups.add_parser("archive", help="look at an archive").add_subparsers(dest="verb", required=True)
    describe = archive.add_parser("describe", help="what an archive holds")
    describe.add_argument("url")
    _finish(describe, archives.describe_archive)
    verify = archive.add_parser("verify", help="check every object of an archive")
    verify.add_argument("url")
    _finish(verify, archives.check_archive)
    repair = archive.add_parser("repair", help="restore damaged objects, or retire them so that a run makes them again")
    repair.add_argument("url")
    repair.add_argument("--dry-run", action="store_true", help="say what would be done and write nothing")
    _finish(repair, archives.mend_archive)
    images = archive.add_parser("images", help="write the kept images of an edit as files")
    images.add_argument("url")
    images.add_argument("method", help='of the edit, such as "lsap_e/slant"')
    images.add_argument("--out", required=True, metavar="DIR", help="folder for the images")
    _finish(images, archives.export_edited)

    generator = groups.add_parser("generator", help="look at weights").add_subparsers(dest="verb", required=True)
    sizes = generator.add_parser("describe", help="what a file of weights holds")
    sizes.add_argument("path")
    _finish(sizes, weights.show_generator)
    convert = generator.add_parser("convert", help="between .pt, .pkl (reading) and .safetensors")
    convert.add_argument("path")
    convert.add_argument("output", help="its suffix decides the format: .safetensors or .pt")
    _finish(convert, weights.rewrite_generator)

    encoder = groups.add_parser("encoder", help="look at encoders").add_subparsers(dest="verb", required=True)
    trained = encoder.add_parser("describe", help="what a file of an encoder holds")
    trained.add_argument("path")
    _finish(trained, weights.show_encoder)

    add_direction_commands(groups, _finish)

    domain = groups.add_parser("domain", help="look at a domain").add_subparsers(dest="verb", required=True)
    quality = domain.add_parser("quality", help="measure samples of the embedded generator on held-out images")
    quality.add_argument("name", choices=list(embedded_folders()))
    quality.add_argument("--sheet", metavar="FILE.png", help="also write a sheet of samples")
    _finish(quality, domains.measure_domain)
    add_weights_command(domain, _finish)
    add_image_commands(groups, _finish)
    return parser


def _finish_flow(parser: argparse.ArgumentParser, command: Callable[[argparse.Namespace], int]) -> None:
    parser.add_argument("config", help="YAML file that describes the run")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a field of the run")
    parser.add_argument("--dry-run", action="store_true", help="check everything and say what would be done")
    _finish(parser, command)


def _finish(parser: argparse.ArgumentParser, command: Callable[[argparse.Namespace], int]) -> None:
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.set_defaults(command=command)


@contextlib.contextmanager
def _sigterm_as_interruption() -> Iterator[None]:
    """SIGTERM unwinds the command, so that what it has started ends with it: Prefect's temporary server, Ray.

    Ray and Prefect do the same, but only once they are at work.
    """
    is_ours = threading.current_thread() is threading.main_thread()
    if is_ours:
        before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(FAILED))
    try:
        yield
    finally:
        if is_ours:
            signal.signal(signal.SIGTERM, before)


def _with_exit_code(command: Callable[[argparse.Namespace], int], parsed: argparse.Namespace) -> int:
    try:
        return command(parsed)
    except (KeyboardInterrupt, SystemExit):  # Ctrl-C, and what is made of SIGTERM
        _say("interrupted; the same command goes on where this one stopped")
        return FAILED
    except Exception as error:
        from flows.commands.exit_codes import is_server_gone, is_wrong_request, told

        if is_wrong_request(error):
            _say(str(error))
            return ASKED_WRONGLY
        logging.getLogger("lsap").debug("failed", exc_info=True)
        _say(told(error))
        if is_server_gone(error):  # at the end of the process Prefect would try for seconds to tell it each event
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(FAILED)
        return FAILED


def _say(text: str) -> None:
    """A message to whoever sits there; names in it are anybody's and must not command the terminal."""
    from lsap_archive import Secrets

    print("lsap: " + visible(Secrets().hide(text), kept=f"\n\t{HARD_SPACE}"), file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
