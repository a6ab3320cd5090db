"""`lsap run`: a flow from its YAML file."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable
from typing import Any

from flows.commands.output import DONE, print_result, show


def run_invert(parsed: argparse.Namespace) -> int:
    """`lsap run invert`."""
    from flows.parameters.invert import read_run
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
    from flows.parameters.train_encoder import read_training
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
    from flows.parameters.edit import read_edits
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
    from flows.parameters.evaluate import read_evaluation
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


def reproduce_table3_alone(parsed: argparse.Namespace) -> int:
    """`lsap run reproduce table3` with a file of trainings alone."""
    from flows.parameters.reproduce_table3 import read_reproduction
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
    from flows.invert import request_of
    from flows.parameters.reproduce_editability import read_study
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


def run_flow(flow: Callable[[Any], Any], run: Any, parsed: argparse.Namespace) -> int:
    """Run a flow and print its report."""
    with contextlib.redirect_stdout(sys.stderr):  # Ray prints what it hears of lost workers
        report = flow(run)
    print_result(report.to_dict(), parsed.json, report.summary())
    return DONE
