"""What each verb of `lsap` does. Each imports what it needs when it is called: help should not wait for torch."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import sys
from collections.abc import Callable
from typing import Any

from tasks.visible_text import HARD_SPACE, visible

DONE, FAILED, ASKED_WRONGLY = 0, 1, 2


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
        return show(plan, parsed)
    from flows.invert import invert
    from tasks.inversion.plan import check

    check(request)
    return run_flow(invert, run, parsed)


def run_train_encoder(parsed: argparse.Namespace) -> int:
    """`lsap run train_encoder`."""
    from flows.training_parameters import read_training
    from tasks.settings import Settings

    run = read_training(parsed.config, parsed.set)
    resolved = run.resolve(Settings.from_environment())
    if parsed.dry_run:
        from flows.training_dry_run import dry_run_training

        plan = dry_run_training(resolved)
        return show(plan, parsed)
    from tasks.training.plan import prepare_training

    prepare_training(resolved.spec, dry=True)
    from flows.train_encoder import train_encoder

    return run_flow(train_encoder, run, parsed)


def run_edit(parsed: argparse.Namespace) -> int:
    """`lsap run edit`."""
    from flows.edit_parameters import read_edits
    from tasks.settings import Settings

    run = read_edits(parsed.config, parsed.set)
    resolved = run.resolve(Settings.from_environment())
    from flows.edit import dry_run_edits, edit, edit_request

    if parsed.dry_run:
        plan = dry_run_edits(resolved)
        return show(plan, parsed)
    from tasks.editing.plan import choose_edits

    choose_edits(edit_request(resolved))
    return run_flow(edit, run, parsed)


def run_evaluate(parsed: argparse.Namespace) -> int:
    """`lsap run evaluate`."""
    from flows.evaluate_parameters import read_evaluation
    from tasks.settings import Settings

    run = read_evaluation(parsed.config, parsed.set)
    resolved = run.resolve(Settings.from_environment())
    from flows.evaluate import dry_run_evaluations, evaluate, evaluation_request

    if parsed.dry_run:
        plan = dry_run_evaluations(resolved)
        return show(plan, parsed)
    from tasks.evaluation.plan import choose_runs

    choose_runs(evaluation_request(resolved))
    return run_flow(evaluate, run, parsed)


def reproduce(parsed: argparse.Namespace) -> int:
    """`lsap run reproduce`."""
    from flows.reproduce_parameters import read_reproduction
    from tasks.settings import Settings

    run = read_reproduction(parsed.config, parsed.set)
    trainings = run.resolve(Settings.from_environment())
    from tasks.training.plan import check_apart, prepare_training

    check_apart(run.source, run.evaluation_source)
    if parsed.dry_run:
        from flows.training_dry_run import dry_run_trainings

        plan = dry_run_trainings(trainings)
        return show(plan, parsed)
    for training in trainings.values():
        prepare_training(training.spec, dry=True)
    from flows.reproduce_table3 import reproduce_table3

    return run_flow(reproduce_table3, run, parsed)


def run_editability(parsed: argparse.Namespace) -> int:
    """`lsap run reproduce editability`."""
    from flows.editability_parameters import read_study
    from flows.invert import request_of
    from tasks.inversion.plan import check
    from tasks.settings import Settings

    run = read_study(parsed.config, parsed.set)
    resolved = run.resolve(Settings.from_environment())
    if parsed.dry_run:
        from flows.dry_run import dry_run

        plan = dry_run(resolved.inversion)
        return show(plan, parsed)
    check(request_of(resolved.inversion))
    from flows.reproduce_editability import reproduce_editability

    return run_flow(reproduce_editability, run, parsed)


def describe_archive(parsed: argparse.Namespace) -> int:
    """`lsap archive describe`."""
    from lsap_archive import open_archive

    description = open_archive(parsed.url).describe()
    return show(description, parsed)


def check_archive(parsed: argparse.Namespace) -> int:
    """`lsap archive verify`; fails when there is a problem."""
    from lsap_archive import verify_archive

    report = verify_archive(parsed.url)
    document = dataclasses.asdict(report)
    print_result(document, parsed.json, _sentences(document))
    return FAILED if report.problems else DONE


def mend_archive(parsed: argparse.Namespace) -> int:
    """`lsap archive repair`; fails when something is left that it cannot mend."""
    from lsap_archive import repair_archive

    report = repair_archive(parsed.url, dry_run=parsed.dry_run)
    print_result(report.to_dict(), parsed.json, report.summary())
    return FAILED if report.left else DONE


def export_edited(parsed: argparse.Namespace) -> int:
    """`lsap archive images`."""
    from pathlib import Path

    from tasks.editing.export_images import export_images

    written, problems = export_images(parsed.url, parsed.method, Path(parsed.out))
    return show({"folder": parsed.out, "written": written, "without an image": problems or "none"}, parsed)


def show_generator(parsed: argparse.Namespace) -> int:
    """`lsap generator describe`."""
    from tasks.weights.generators import describe_generator

    description = describe_generator(parsed.path)
    return show(description, parsed)


def rewrite_generator(parsed: argparse.Namespace) -> int:
    """`lsap generator convert`."""
    from tasks.weights.generators import convert_generator, describe_generator

    convert_generator(parsed.path, parsed.output)
    description = describe_generator(parsed.output)
    return show(description, parsed)


def show_encoder(parsed: argparse.Namespace) -> int:
    """`lsap encoder describe`."""
    from tasks.weights.encoders import describe_encoder

    description = describe_encoder(parsed.path)
    return show(description, parsed)


def measure_domain(parsed: argparse.Namespace) -> int:
    """`lsap domain quality`."""
    from domains.digits.report_quality import measure_quality, write_sample_sheet

    measured = measure_quality()
    if parsed.sheet:
        write_sample_sheet(parsed.sheet)
    print_result(measured.to_dict(), parsed.json, measured.table())
    return DONE


def run_flow(flow: Callable[[Any], Any], run: Any, parsed: argparse.Namespace) -> int:
    """Run a flow and print its report."""
    with contextlib.redirect_stdout(sys.stderr):  # Ray prints what it hears of lost workers
        report = flow(run)
    print_result(report.to_dict(), parsed.json, report.summary())
    return DONE


def show(document: dict[str, Any], parsed: argparse.Namespace) -> int:
    """Print a document as it is asked for."""
    print_result(document, parsed.json, _sentences(document))
    return DONE


def print_result(document: dict[str, Any], as_json: bool, text: str) -> None:
    """Print a document for machines, or its text for people."""
    print(json.dumps(document, indent=2, default=str) if as_json else visible(text, kept=f"\n\t{HARD_SPACE}"))


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
