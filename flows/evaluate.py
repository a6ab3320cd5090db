"""Measure what is in an archive: plan, measure shard by shard, publish, tabulate."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

import yaml
from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.task_runners import ThreadPoolTaskRunner

from flows.parameters.evaluate import EvaluateRun
from flows.running.artifacts import publish_artifacts
from flows.running.calibrations import calibrate_all
from flows.running.exclusive import writing
from flows.running.results import kept
from flows.running.retries import retried
from flows.running.shards import MAX_WAITING_SHARDS, work_through
from flows.running.workers import PoolWhenNeeded, pool_when_needed
from lsap_archive import open_archive
from tasks.evaluation.plan import EvaluationStage
from tasks.evaluation.request import EvaluationRequest
from tasks.evaluation.table import evaluation_table, set_numbers, unknown_set_numbers
from tasks.evaluation.worker import MEASURED
from tasks.reports.evaluation.write import EvaluationReportRequest, write_evaluation_report
from tasks.reports.kept import WrittenReport
from tasks.settings import Settings


@dataclass(frozen=True)
class EvaluationReport:
    """What an evaluation came to, in numbers.

    Attributes:
        archive: URL of the archive.
        report: URL of the HTML report.
        evaluations: ids of the evaluations that count, by method or edit; their measurements are in the archive.
        measured: images measured by this command.
        by_reason: images of this command whose original could not be used, by reason.
        frechet: Fréchet distance by method or edit, as `FrechetState.summary` gives it: one, of all images of the
            method that readers see, in a list.
        refused: why an edit of the editing consistency has no strength, by edited method.
        seconds: wall time of this command.
        table: means by method, Markdown.
        notes: what whoever asked should know, a sentence each: of evaluations that were begun before, and of Fréchet
            distances that are not known.
    """

    archive: str
    report: str
    evaluations: dict[str, tuple[str, ...]]
    measured: int
    by_reason: dict[str, int]
    frechet: dict[str, list[dict[str, Any]]]
    refused: dict[str, str]
    seconds: float
    table: str
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    @property
    def outcome(self) -> str:
        """What this command did, in a few words."""
        return f"this command: {self.measured or 'no'} images measured, {self.seconds:.0f} s"

    def lines(self) -> list[str]:
        """For people."""
        lines = [*self.table.split("\n"), "", self.outcome]
        lines += [f"  original not used: {count} {reason}" for reason, count in sorted(self.by_reason.items())]
        lines += [f"  {name}: {why}" for name, why in self.refused.items()]
        lines += [f"  {note}" for note in self.notes]
        return [*lines, f"archive: {self.archive}", f"report:  {self.report}"]


@flow(name="evaluate", persist_result=False, task_runner=ThreadPoolTaskRunner(MAX_WAITING_SHARDS))  # type: ignore[arg-type]
def evaluate(run: EvaluateRun) -> EvaluationReport:
    """Measure every inversion and edit of an archive, or encoders on synthetic images; one row for each value.

    Args:
        run: the archive, and what to measure in it.
    """
    started = time.monotonic()
    request = run.resolve(Settings.from_environment())
    with writing(run.archive, EvaluationStage.part, run.when_busy):
        stage = plan(request)
        with pool_when_needed(stage.build_worker, run.workers) as workers:
            if stage.writer is not None:
                calibrate_all(workers, stage.writer, stage.missing_calibrations(), size=stage.part_size)
            worked = work_through(stage, workers, retries=run.retries)
            worked.check_finished(stage.notes)
            add_up_sets(stage)
            table, frechet, unknown = tabulate(run.archive, stage.evaluations)
            notes = (*stage.notes, *unknown)
            written = report(run, request, stage, workers, notes, time.monotonic() - started)
    result = EvaluationReport(
        archive=run.archive,
        report=written.url,
        evaluations=stage.evaluations,
        measured=worked.by_status.get(MEASURED, 0),
        by_reason=worked.by_reason,
        frechet=frechet,
        refused=stage.refused,
        seconds=time.monotonic() - started,
        table=table,
        notes=notes,
    )
    links = {"archive": result.archive, "report": result.report}
    publish_artifacts("evaluation", result.outcome, result.table, links=links, sheet=written.picture)
    return kept(result)


@task(name="plan_evaluations", cache_policy=NO_CACHE)
def plan(request: EvaluationRequest) -> EvaluationStage:
    """Check methods, networks, sources and encoders against the archive."""
    return EvaluationStage(request)


@retried("add_up_sets")
def add_up_sets(stage: EvaluationStage) -> None:
    """Number again the sets of images that have changed: by images added, retired, or made again."""
    for name in stage.add_up_sets():
        get_run_logger().info("%s: sums of all its images were added up", name)


@retried("tabulate_evaluations")
def tabulate(
    url: str, evaluations: dict[str, tuple[str, ...]]
) -> tuple[str, dict[str, list[dict[str, Any]]], list[str]]:
    """Means by method as Markdown, the distances of whole sets, and of which sets none is known."""
    archive = open_archive(url)
    distances = set_numbers(archive, evaluations)
    found = {name: [dict(one)] for name, one in distances.items()}
    return evaluation_table(archive, evaluations), found, unknown_set_numbers(archive, evaluations)


@retried("report_evaluations")
def report(
    run: EvaluateRun,
    request: EvaluationRequest,
    stage: EvaluationStage,
    workers: PoolWhenNeeded,
    notes: tuple[str, ...],
    seconds: float,
) -> WrittenReport:
    """The HTML report of these evaluations."""
    asked = EvaluationReportRequest(
        request,
        evaluations=stage.evaluations,
        refused=stage.refused,
        notes=notes,
        config_yaml=yaml.safe_dump(run.model_dump(mode="json"), sort_keys=False),
        images=run.report_images,
        seconds=seconds,
    )
    return write_evaluation_report(asked, lambda: workers.pool_or_here)
