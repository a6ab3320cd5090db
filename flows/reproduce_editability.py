"""Does SNCD predict editability? Codes of very different alignment, all edited alike, looked at by a judge."""

from __future__ import annotations

from typing import Any

from prefect import flow

from flows.edit import edit
from flows.evaluate import evaluate
from flows.invert import invert
from flows.parameters.reproduce_editability import ReproduceEditability, ResolvedStudy
from flows.running.exclusive import writing
from flows.running.results import kept
from flows.running.retries import retried
from flows.running.studies import StudyReport, measure_steps, units_of
from tasks.inversion import cost
from tasks.inversion import plan as inversion
from tasks.reports.editability.edited_alike import edits_alike
from tasks.reports.editability.study import MIDPOINT
from tasks.reports.editability.write import partners_by_label, write_study
from tasks.settings import Settings
from tasks.workers.cluster import opened_cluster


@flow(name="reproduce_editability", persist_result=False)
def reproduce_editability(run: ReproduceEditability) -> StudyReport:
    """Invert, edit at a fixed step and at equal effect, look at midpoints, and correlate."""
    settings = Settings.from_environment()
    resolved = run.resolve(settings)
    alike, archive, workers = resolved.alike, run.archive_url(), run.workers
    cluster = opened_cluster(settings.ray_address, workers.count, threads=workers.threads, device=workers.device)
    with writing(run.output, "reproduction"), cluster:
        invert(run.inversion())
        steps = measure_steps(alike, settings)
        partners = partners_by_label(archive, run.methods, run.label)
        edits = edits_alike(alike.directions, alike.changes, steps)
        edits[MIDPOINT] = {"interpolate_to": partners, "weight": 0.5}
        edit(run.editing(run.methods, edits))
        evaluate(run.evaluation(alike))
        table, urls = tabulate(resolved, units_of(alike, steps), partners)
    report = StudyReport(run.output, archive, urls, len(resolved.methods), table)
    report.publish("editability")
    return kept(report)


def check(study: ResolvedStudy) -> None:
    """Everything that can be refused before any work."""
    inversion.check(study.alike.inversion)


def dry_run(study: ResolvedStudy) -> dict[str, Any]:
    """What its inversion would do; the edits and measurements are small beside it."""
    return cost.dry_run(study.alike.inversion)


@retried("tabulate")
def tabulate(resolved: ResolvedStudy, units: dict[str, float], partners: dict[str, str]) -> tuple[str, tuple[str, ...]]:
    """Means, correlations and the controls, as Markdown, a picture and Parquet."""
    return write_study(resolved.alike.inversion, resolved.methods, units, partners)
