"""Is editability inherited? Embeddings and their refinements, all edited alike, looked at by a judge."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prefect import flow

from flows.edit import edit
from flows.evaluate import evaluate
from flows.invert import invert
from flows.parameters.reproduce_inheritance import ReproduceInheritance, ResolvedInheritance
from flows.refine import refine
from flows.running.exclusive import writing
from flows.running.results import kept
from flows.running.retries import retried
from flows.running.studies import StudyReport, measure_steps, units_of
from tasks.inversion import cost
from tasks.inversion import plan as inversion
from tasks.refinement.chosen import check_refiners
from tasks.reports.editability.edited_alike import edits_alike
from tasks.reports.inheritance.write import write_inheritance
from tasks.settings import Settings
from tasks.workers.cluster import opened_cluster


@flow(name="reproduce_inheritance", persist_result=False)
def reproduce_inheritance(run: ReproduceInheritance) -> StudyReport:
    """Invert, refine, edit at a fixed step and at equal effect, and compare each refinement with its embedding."""
    settings = Settings.from_environment()
    resolved = run.resolve(settings)
    alike, workers = resolved.alike, run.workers
    names = tuple(method.name for method in resolved.methods)
    cluster = opened_cluster(settings.ray_address, workers.count, threads=workers.threads, device=workers.device)
    with writing(run.output, "reproduction"), cluster:
        invert(run.inversion())
        notes = refine(run.refinement()).notes
        steps = measure_steps(alike, settings)
        edits = edit(run.editing(names, edits_alike(alike.directions, alike.changes, steps)))
        measured = evaluate(run.evaluation(alike, (*names, *edits.strengths), edits.digests)).evaluations
        notes += tuple(f"{name} is left out: {why}" for name, why in edits.refused.items())
        table, urls = tabulate(resolved, units_of(alike, steps), measured, notes)
    report = StudyReport(run.output, run.archive_url(), urls, len(names), table)
    report.publish("inheritance")
    return kept(report)


def check(study: ResolvedInheritance) -> None:
    """Everything that can be refused before any work."""
    inversion.check(study.alike.inversion)
    check_refiners(study.refinement)


def dry_run(study: ResolvedInheritance) -> dict[str, Any]:
    """What its inversion would do, and which refinements follow; these are checked as far as that needs no archive."""
    check_refiners(study.refinement)
    refinements = [method.name for method in study.methods if method.is_refined]
    return {"inversion": cost.dry_run(study.alike.inversion), "refinements": refinements}


@retried("tabulate")
def tabulate(
    resolved: ResolvedInheritance,
    units: dict[str, float],
    evaluations: Mapping[str, tuple[str, ...]],
    notes: tuple[str, ...],
) -> tuple[str, tuple[str, ...]]:
    """Refinements beside their embeddings, as Markdown, a picture and Parquet."""
    judge = resolved.alike.judge
    return write_inheritance(resolved.refinement, resolved.methods, units, evaluations, judge=judge, notes=notes)
