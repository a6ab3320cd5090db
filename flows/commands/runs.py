"""`lsap run`: a flow from its YAML file, refused before anything is started when it cannot be run."""

from __future__ import annotations

import argparse
import contextlib
import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import Any

from flows.commands.markdown_tables import rows_of
from flows.commands.output import print_result, show
from flows.running.ending import DONE


@dataclass(frozen=True)
class FlowParts:
    """A flow and what stands before it, each by its name, "module:object": help should not wait for torch.

    Attributes:
        explained: what it is for.
        run: what it may be asked for; `resolve` gives the request that check and dry run take.
        check: refuses what cannot be run.
        dry_run: what would be done.
        flow: does it.
    """

    explained: str
    run: str
    check: str
    dry_run: str
    flow: str


FLOWS = {
    "invert": FlowParts(
        "images in, aligned latents out",
        "flows.parameters.invert:InvertRun",
        "tasks.inversion.plan:check",
        "tasks.inversion.cost:dry_run",
        "flows.invert:invert",
    ),
    "train_encoder": FlowParts(
        "images in, an encoder for their generator out",
        "flows.parameters.train_encoder:TrainEncoderRun",
        "tasks.training.plan:check",
        "tasks.training.cost:dry_run",
        "flows.train_encoder:train_encoder",
    ),
    "train_refiner": FlowParts(
        "images in, networks that refine their inversions out",
        "flows.parameters.train_refiner:TrainRefinerRun",
        "tasks.training.plan:check",
        "tasks.training.cost:dry_run",
        "flows.train_refiner:train_refiner",
    ),
    "refine": FlowParts(
        "inversions of an archive and their images in, refined ones out",
        "flows.parameters.refine:RefineRun",
        "tasks.refinement.chosen:choose_refinements",
        "tasks.refinement.cost:dry_run",
        "flows.refine:refine",
    ),
    "edit": FlowParts(
        "inversions of an archive in, edits of them out",
        "flows.parameters.edit:EditRun",
        "tasks.editing.chosen:choose_edits",
        "tasks.editing.cost:dry_run",
        "flows.edit:edit",
    ),
    "evaluate": FlowParts(
        "inversions and edits of an archive in, measurements out",
        "flows.parameters.evaluate:EvaluateRun",
        "tasks.evaluation.chosen:choose_runs",
        "tasks.evaluation.cost:dry_run",
        "flows.evaluate:evaluate",
    ),
}
STUDIES = {
    "editability": FlowParts(
        "does SNCD predict how well codes can be edited? (not in the paper)",
        "flows.parameters.reproduce_editability:ReproduceEditability",
        "flows.reproduce_editability:check",
        "flows.reproduce_editability:dry_run",
        "flows.reproduce_editability:reproduce_editability",
    ),
    "inheritance": FlowParts(
        "do refined inversions edit as well as their codes alone? (not in the paper)",
        "flows.parameters.reproduce_inheritance:ReproduceInheritance",
        "flows.reproduce_inheritance:check",
        "flows.reproduce_inheritance:dry_run",
        "flows.reproduce_inheritance:reproduce_inheritance",
    ),
}
"""Below `reproduce`, beside the paper's tables and figures."""


def command_of(parts: FlowParts) -> Callable[[argparse.Namespace], int]:
    """The command that runs a flow."""

    def command(parsed: argparse.Namespace) -> int:
        tell_start(parsed)
        from tasks.settings import Settings

        run = resolve_name(parts.run).read(parsed.config, parsed.set)
        request = run.resolve(Settings.from_environment())
        if parsed.dry_run:
            return show(resolve_name(parts.dry_run)(request), parsed)
        check_writable(run)
        resolve_name(parts.check)(request)
        return run_flow(resolve_name(parts.flow), run, parsed)

    return command


def tell_start(parsed: argparse.Namespace) -> None:
    """Say what the first seconds are for: libraries are loaded and everything is checked before anything starts."""
    if not parsed.dry_run:
        config = "what standard input says" if parsed.config == "-" else parsed.config
        logging.getLogger("lsap").info("checking %s, its source and its networks", config)


def check_writable(run: Any) -> None:
    """Refuse a run whose results cannot be kept, before anything is started.

    Raises:
        StoreRefusedError: this process may not write where the run would.
    """
    from lsap_archive import Store

    for place in {getattr(run, name) for name in run.written if hasattr(run, name)}:
        Store.from_url(place).check_writable()


def run_flow(do: Callable[[Any], Any], run: Any, parsed: argparse.Namespace) -> int:
    """Run a flow and print its report."""
    from flows.running.own_server import start_own_server
    from flows.running.results import check_place
    from flows.running.server import check_home
    from tasks.settings import Settings
    from tasks.workers.own_ray import check_scratch_folder

    check_place()
    check_home()
    if Settings.from_environment().is_alone:
        check_scratch_folder()
    with contextlib.redirect_stdout(sys.stderr):  # Ray prints what it hears of lost workers
        start_own_server()
        report = do(run)
    document = report.to_dict()
    if parsed.json and "table" in document:
        document["rows"] = rows_of(document["table"])
    print_result(document, parsed.json, report.lines())
    return DONE
