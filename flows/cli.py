"""The command `lsap`: turns words into one call. Results go to stdout, everything else to stderr."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

DONE, FAILED, ASKED_WRONGLY = 0, 1, 2

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
    return _with_exit_code(parsed.command, parsed)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="lsap", description="GAN inversion by latent space alignment, at scale.")
    groups = parser.add_subparsers(dest="group", required=True)

    run = groups.add_parser("run", help="run a flow").add_subparsers(dest="flow", required=True)
    invert = run.add_parser("invert", help="images in, aligned latents out")
    invert.add_argument("config", help="YAML file that describes the run")
    invert.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a field of the run")
    invert.add_argument("--dry-run", action="store_true", help="check everything and say what would be done")
    _finish(invert, run_invert)

    archive = groups.add_parser("archive", help="look at an archive").add_subparsers(dest="verb", required=True)
    describe = archive.add_parser("describe", help="what an archive holds")
    describe.add_argument("url")
    _finish(describe, describe_archive)
    verify = archive.add_parser("verify", help="check every object of an archive")
    verify.add_argument("url")
    _finish(verify, check_archive)

    generator = groups.add_parser("generator", help="look at weights").add_subparsers(dest="verb", required=True)
    sizes = generator.add_parser("describe", help="what a file of weights holds")
    sizes.add_argument("path")
    _finish(sizes, show_generator)
    convert = generator.add_parser("convert", help="between .pt, .pkl (reading) and .safetensors")
    convert.add_argument("path")
    convert.add_argument("output", help="its suffix decides the format: .safetensors or .pt")
    _finish(convert, rewrite_generator)

    domain = groups.add_parser("domain", help="look at a domain").add_subparsers(dest="verb", required=True)
    quality = domain.add_parser("quality", help="measure samples of the embedded generator on held-out images")
    quality.add_argument("name", choices=["digits"])
    quality.add_argument("--sheet", metavar="FILE.png", help="also write a sheet of samples")
    _finish(quality, measure_domain)
    return parser


def _finish(parser: argparse.ArgumentParser, command: Callable[[argparse.Namespace], int]) -> None:
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.set_defaults(command=command)


def run_invert(parsed: argparse.Namespace) -> int:
    """`lsap run invert`."""
    from flows.parameters import read_run
    from tasks.settings import Settings

    run = read_run(parsed.config, parsed.set)
    resolved = run.resolve(Settings.from_environment())
    from flows.invert import request_of

    request = request_of(resolved)
    if parsed.dry_run:
        from flows.dry_run import dry_run

        plan = dry_run(resolved)
        _print(plan, parsed.json, _sentences(plan))
        return DONE
    from flows.invert import invert
    from tasks.prepare import check

    check(request)
    with contextlib.redirect_stdout(sys.stderr):  # Ray prints what it hears of lost workers
        report = invert(run)
    _print(report.to_dict(), parsed.json, _invert_summary(report))
    return DONE


def describe_archive(parsed: argparse.Namespace) -> int:
    """`lsap archive describe`."""
    from lsap_archive import open_archive

    description = open_archive(parsed.url).describe()
    _print(description, parsed.json, _sentences(description))
    return DONE


def check_archive(parsed: argparse.Namespace) -> int:
    """`lsap archive verify`; fails when there is a problem."""
    from lsap_archive import verify_archive

    report = verify_archive(parsed.url)
    document = dataclasses.asdict(report)
    _print(document, parsed.json, _sentences(document))
    return FAILED if report.problems else DONE


def show_generator(parsed: argparse.Namespace) -> int:
    """`lsap generator describe`."""
    from tasks.weights import describe_generator

    description = describe_generator(parsed.path)
    _print(description, parsed.json, _sentences(description))
    return DONE


def rewrite_generator(parsed: argparse.Namespace) -> int:
    """`lsap generator convert`."""
    from tasks.weights import convert_generator, describe_generator

    convert_generator(parsed.path, parsed.output)
    description = describe_generator(parsed.output)
    _print(description, parsed.json, _sentences(description))
    return DONE


def measure_domain(parsed: argparse.Namespace) -> int:
    """`lsap domain quality`."""
    from domains.digits.report_quality import measure_quality, write_sample_sheet

    measured = measure_quality()
    if parsed.sheet:
        write_sample_sheet(parsed.sheet)
    _print(measured.to_dict(), parsed.json, measured.table())
    return DONE


def _with_exit_code(command: Callable[[argparse.Namespace], int], parsed: argparse.Namespace) -> int:
    from flows.exit_codes import is_wrong_request

    try:
        return command(parsed)
    except (KeyboardInterrupt, SystemExit):  # Ctrl-C, and what Ray and Prefect make of SIGTERM
        print("lsap: interrupted; the same command goes on where this one stopped", file=sys.stderr)
        return FAILED
    except Exception as error:
        if is_wrong_request(error):
            print(f"lsap: {error}", file=sys.stderr)
            return ASKED_WRONGLY
        logging.getLogger("lsap").debug("failed", exc_info=True)
        print(f"lsap: {type(error).__name__}: {error}", file=sys.stderr)
        return FAILED


def _print(document: dict[str, Any], as_json: bool, text: str) -> None:
    print(json.dumps(document, indent=2, default=str) if as_json else text)


def _invert_summary(report: Any) -> str:
    lines = [report.table, ""]
    counts = ", ".join(f"{count} {status}" for status, count in sorted(report.by_status.items()))
    lines.append(f"{report.num_images} images; this command: {counts or 'nothing was left to do'}")
    lines += [f"  failed: {count} {reason}" for reason, count in sorted(report.by_reason.items())]
    if report.embedded:
        lines.append(f"{report.images_per_second:.2f} image-method pairs per second, {report.seconds:.0f} s in all")
    lines += [f"archive: {report.archive}", f"report:  {report.report}"]
    return "\n".join(lines)


def _sentences(document: dict[str, Any], indent: str = "") -> str:
    lines: list[str] = []
    for name, value in document.items():
        if isinstance(value, dict):
            lines += [f"{indent}{name}:", _sentences(value, indent + "  ")]
        elif isinstance(value, list | tuple) and value and isinstance(value[0], dict):
            lines.append(f"{indent}{name}:")
            for item in value:
                lines += [_sentences(item, indent + "  "), ""]
        else:
            lines.append(f"{indent}{name}: {value}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
