"""`lsap run reproduce`: the paper's tables and figures; `lsap domain weights`: the published files that they need."""

from __future__ import annotations

import argparse
import functools
import os
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from flows.commands.output import print_result, show
from flows.commands.runs import check_writable, run_flow, tell_start
from flows.running.ending import DONE, FAILED

if TYPE_CHECKING:  # help should not wait for torch
    from flows.parameters.reproduce import ReproduceRun
    from flows.parameters.reproduce_table3 import ReproduceTable3
    from tasks.settings import Settings

Command = Callable[[argparse.Namespace], int]

EXPLAINED = {
    "table1": "inversion, consistency and identity after edits, by method",
    "table2": "synthetic images inverted again",
    "table3": "LSAP_E over lambda; also pSp, e4e and LSAP_E where the file trains them",
    "table4": "encoders on another domain",
    "figure3": "refined methods beside their embeddings: original, inversion and edits",
    "figure4": "codes in W, S and S^N beside the generator's own",
    "figure5": "original, inversion and edits by every method",
    "all": "everything that the file has, on one page",
}


def add_reproduce_commands(flows: Any, finish_flow: Callable[..., None]) -> Any:
    """Add `reproduce` and what can be reproduced to the flows; returns its parser, for further ones."""
    tables = flows.add_parser("reproduce", help="tables and figures of the paper, on your own domain").add_subparsers(
        dest="table", metavar="WHAT", required=True
    )
    for name, explained in EXPLAINED.items():
        runs = ("reproduce", "reproduce table3") if name == "table3" else ("reproduce",)  # it has files of two kinds
        finish_flow(tables.add_parser(name, help=explained), reproduce_paper, *runs)
    return tables


def add_weights_command(verbs: Any, finish: Callable[[argparse.ArgumentParser, Command], None]) -> None:
    """Add `weights` to the verbs of `domain`."""
    weights = verbs.add_parser("weights", help="which published files a domain needs, and which are there")
    weights.add_argument("name", nargs="?", help="a built-in domain, or the path of one's own .yaml")
    weights.add_argument("--check", metavar="DIR", help="look there instead of in LSAP_BACKBONES or torch's cache")
    weights.add_argument(
        "--markdown", action="store_true", help="only who offers what the built-in domains need, as a table"
    )
    finish(weights, show_weights)


def reproduce_paper(parsed: argparse.Namespace) -> int:
    """`lsap run reproduce`; a file of the trainings of Table 3 alone goes to their own flow."""
    tell_start(parsed)
    from flows.parameters.reproduce import ReproduceRun, is_table3_alone
    from flows.parameters.reproduce_table3 import ReproduceTable3
    from tasks.settings import Settings

    settings = Settings.from_environment()
    if parsed.table == "table3" and is_table3_alone(parsed.config):
        trained = ReproduceTable3.read(parsed.config, parsed.set)
        if not parsed.dry_run:
            check_writable(trained)
        plan = check_trainings(trained, settings, dry=parsed.dry_run)
        if parsed.dry_run:
            return show(plan, parsed)
        from flows.reproduce_table3 import reproduce_table3

        return run_flow(reproduce_table3, trained, parsed)
    run = ReproduceRun.read(parsed.config, parsed.set)
    if not parsed.dry_run:
        check_writable(run)
    plan = check_reproduction(run, parsed.table, settings, dry=parsed.dry_run)
    if parsed.dry_run:
        return show(plan, parsed)
    from flows.reproduce import reproduce

    return run_flow(functools.partial(reproduce, asked=parsed.table), run, parsed)


def check_reproduction(run: ReproduceRun, asked: str, settings: Settings, *, dry: bool) -> dict[str, Any]:
    """Refuse before any work what cannot be run; with `dry`, also what would be done, timed on this machine."""
    from tasks.editing.chosen import check_edits
    from tasks.evaluation.chosen import check_evaluation
    from tasks.inversion.cost import dry_run
    from tasks.inversion.plan import check
    from tasks.refinement.chosen import check_refiners

    parts = run.chosen(asked)
    domain = run.resolved_domain(settings, parts)
    run.shown_edits()
    plan: dict[str, Any] = {"parts": list(parts), "page below": run.output}
    edited = run.edited(parts)
    if edited:  # what is quickly looked at comes first
        check_edits(run.edit_run(domain, edited).resolve(settings))
    if measured := run.measured(parts):
        check_evaluation(run.evaluation_run(domain, measured).resolve(settings))
    if methods := run.inverted(parts):
        inversion = run.inversion_run(domain, methods).resolve(settings)
        check(inversion)
        plan |= {"inversion": dry_run(inversion)} if dry else {}
    kept: dict[str, int] = {}
    for refinement in run.refinement_runs(domain, run.refinements(parts)):
        kept |= check_refiners(refinement.resolve(settings))
    plan |= {"bytes kept of an image, by refinement": kept} if kept else {}
    if edited:
        plan["edits"] = [f"{method}/{name}" for method in edited for name in run.edit_run(domain, edited).edits]
    if "table2" in parts:
        check_evaluation(run.synthetic_run(domain).resolve(settings))
    if "table3" in parts:
        trainings = check_trainings(run.table3_run(domain), settings, dry=dry)
        plan |= {"trainings of table 3": trainings} if dry else {}
    return plan


def check_trainings(run: ReproduceTable3, settings: Settings, *, dry: bool) -> dict[str, Any]:
    """The same for the trainings of Table 3."""
    from tasks.training.cost import dry_run_trainings
    from tasks.training.plan import check, check_apart

    trainings = run.resolve(settings)
    check_apart(run.source, run.evaluation_source)
    if dry:
        return dry_run_trainings(trainings)
    for training in trainings.values():
        check(training)
    return {}


def show_weights(parsed: argparse.Namespace) -> int:
    """`lsap domain weights`; fails when a file is another one than wanted, not when one is missing."""
    from domains.domain import builtin_domains, load_domain
    from flows.parameters.run_file import ParameterError
    from lsap_archive import scheme_of
    from tasks.settings import Settings
    from tasks.weights.of_domains import (
        find_domain,
        look_for_weights,
        offered_table,
        published_of,
        weights_document,
        weights_lines,
    )

    wanting = {name: domain for name in builtin_domains() if (domain := load_domain(name)).weights}
    if parsed.markdown:
        print(offered_table(wanting.values()))
        return DONE
    if parsed.name is None:
        raise ParameterError(f"no domain is named: wanted one of {', '.join(wanting)}, or the path of a .yaml file")
    settings = Settings.from_environment()
    if parsed.check is not None:
        if scheme_of(parsed.check) == "file" and not os.path.isdir(parsed.check.removeprefix("file://")):
            raise ParameterError(f"{parsed.check} is no folder; wanted one of files of weights")
        settings = replace(settings, backbones=parsed.check)
    domain = find_domain(parsed.name)
    published = published_of(domain, settings)
    found = look_for_weights(domain, published)
    others = [one.wanted.file for one in found if one.state == "another file"]
    lines = [f'domain "{domain.name}" needs no published file']
    if found:
        usable = sum(one.is_usable for one in found)
        told = f"; another file than the published one: {', '.join(others)}" if others else ""
        lines = [*weights_lines(found), f"{usable} of {len(found)} are in {published}{told}"]
    print_result({"folder": str(published), "weights": weights_document(found)}, parsed.json, lines)
    return FAILED if others else DONE
