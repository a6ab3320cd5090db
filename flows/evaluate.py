"""Measure what is in an archive: plan, measure shard by shard, publish, tabulate."""

from __future__ import annotations

import functools
import time
from dataclasses import asdict, dataclass
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.task_runners import ThreadPoolTaskRunner

from flows.parameters.evaluate import EvaluateRun, ResolvedEvaluation
from flows.running.artifacts import publish_artifacts
from flows.running.embedding import MAX_WAITING_SHARDS
from flows.running.exclusive import writing
from flows.running.results import kept
from flows.running.retries import RETRIES, RETRY_DELAYS_SECONDS, is_worth_another_try
from flows.running.shard_tasks import calibrate_all, check_all, total, work_on_all
from flows.running.workers import PoolWhenNeeded, pool_when_needed
from lsap_archive import EvaluationWriter, open_archive
from tasks.archived.opening import open_writer
from tasks.editing.calibration import CalibrationOptions
from tasks.editing.plan import missing_calibrations
from tasks.evaluation.plan import (
    ChosenRuns,
    EvaluationRequest,
    PreparedEvaluations,
    Synthetic,
    choose_runs,
    plan_evaluations,
)
from tasks.evaluation.table import evaluation_table
from tasks.evaluation.worker import EvaluationWorker, EvaluationWorkerSpec
from tasks.measuring.frechet import FrechetState
from tasks.settings import Settings


@dataclass(frozen=True)
class EvaluationReport:
    """What an evaluation came to, in numbers.

    Attributes:
        archive: URL of the archive.
        evaluations: ids of the evaluations that count, by method or edit; their measurements are in the archive.
        measured: images measured by this command.
        by_reason: images of this command whose original could not be used, by reason.
        frechet: Fréchet distance of each evaluation by method or edit, as `FrechetState.summary` gives it.
        refused: why an edit of the editing consistency has no strength, by edited method.
        seconds: wall time of this command.
        table: means by method, Markdown.
    """

    archive: str
    evaluations: dict[str, tuple[str, ...]]
    measured: int
    by_reason: dict[str, int]
    frechet: dict[str, list[dict[str, Any]]]
    refused: dict[str, str]
    seconds: float
    table: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    @property
    def outcome(self) -> str:
        """What this command did, in a few words."""
        return f"this command: {self.measured or 'no'} images measured, {self.seconds:.0f} s"

    def summary(self) -> str:
        """For people."""
        lines = [self.table, "", self.outcome]
        lines += [f"  original not used: {count} {reason}" for reason, count in sorted(self.by_reason.items())]
        lines += [f"  {name}: {why}" for name, why in self.refused.items()]
        return "\n".join([*lines, f"archive: {self.archive}"])


@flow(name="evaluate", persist_result=False, task_runner=ThreadPoolTaskRunner(MAX_WAITING_SHARDS))  # type: ignore[arg-type]
def evaluate(run: EvaluateRun) -> EvaluationReport:
    """Measure every inversion and edit of an archive, or encoders on synthetic images; one row for each value.

    Args:
        run: the archive, and what to measure in it.
    """
    started = time.monotonic()
    resolved = run.resolve(Settings.from_environment())
    request = evaluation_request(resolved)
    build_worker = functools.partial(EvaluationWorker, worker_spec(resolved))
    with writing(run.archive, "evaluations", run.when_busy), pool_when_needed(build_worker, run.workers) as workers:
        chosen = plan(request)
        calibrate_missing(workers, request, chosen)
        prepared = plan_evaluations(request, chosen)
        get_run_logger().info("%d shards in %d evaluations", len(prepared.shards), len(prepared.unpublished))
        results, problems = work_on_all(workers, "evaluate", prepared.shards, run.retries)
        for evaluation_id in prepared.unpublished:
            publish(run.archive, evaluation_id)
    check_all(problems, len(prepared.shards), "shards")
    table, frechet = tabulate(run.archive, prepared)
    report = EvaluationReport(
        archive=run.archive,
        evaluations=prepared.evaluations,
        measured=sum(result.by_status["measured"] for result in results),
        by_reason=total(result.by_reason for result in results),
        frechet=frechet,
        refused=prepared.refused,
        seconds=time.monotonic() - started,
        table=table,
    )
    publish_artifacts("evaluation", report.outcome, report.table, links={"archive": report.archive})
    return kept(report)


@task(name="plan_evaluations", cache_policy=NO_CACHE)
def plan(request: EvaluationRequest) -> ChosenRuns:
    """Check methods, networks, sources and encoders against the archive."""
    return choose_runs(request)


def evaluation_request(resolved: ResolvedEvaluation) -> EvaluationRequest:
    """The run as the tasks take it."""
    run = resolved.run
    synthetic = None
    if run.synthetic is not None:
        synthetic = Synthetic(
            **run.synthetic.model_dump(),
            style_set=run.style_set,
            encoders=resolved.synthetic_encoders,
            shard_rows=resolved.domain.shard_rows,
        )
    return EvaluationRequest(
        archive=run.archive,
        generator=resolved.generator,
        methods=run.methods,
        versions=run.versions,
        networks=resolved.networks,
        calibration=CalibrationOptions(run.calibration_images, run.calibration_seed),
        source=run.source,
        fit=run.fit,
        attributes=resolved.attributes,
        lec=resolved.lec,
        frechet=run.frechet,
        reference=run.reference,
        encoders=resolved.domain.encoders,
        content_box=resolved.domain.content_box,
        synthetic=synthetic,
    )


def worker_spec(resolved: ResolvedEvaluation) -> EvaluationWorkerSpec:
    """What a worker is built from."""
    run = resolved.run
    return EvaluationWorkerSpec(
        archive=run.archive,
        generator=resolved.generator,
        networks=resolved.networks,
        batch_size=resolved.batch_size,
        source=run.source,
        fit=run.fit,
        attributes=() if run.synthetic else resolved.attributes,
        lec=resolved.lec,
        frechet=run.frechet,
        reference=run.reference,
        encoders=resolved.domain.encoders,
        device=run.workers.device,
        content_box=resolved.domain.content_box,
    )


def calibrate_missing(workers: PoolWhenNeeded, request: EvaluationRequest, chosen: ChosenRuns) -> None:
    """Find the strengths that the archive does not keep yet."""
    if chosen.all_lec:
        writer = open_writer(request.archive, chosen.generator)
        calibrate_all(workers, writer, missing_calibrations(writer, chosen.all_lec, request.calibration))


@task(
    name="publish_evaluation",
    cache_policy=NO_CACHE,
    retries=RETRIES,
    retry_delay_seconds=RETRY_DELAYS_SECONDS,
    retry_condition_fn=is_worth_another_try,
)
def publish(archive: str, evaluation_id: str) -> bool:
    """Add up what belongs to the whole set, and make a finished evaluation visible to readers."""
    evaluation = EvaluationWriter.open(archive, evaluation_id)
    if evaluation.missing_shards():
        return False
    states = [FrechetState.from_bytes(data) for data in evaluation.states()]
    summary = {"fid": functools.reduce(FrechetState.merge, states).summary()} if states else {}
    evaluation.publish(summary)
    return True


@task(
    name="tabulate_evaluations",
    cache_policy=NO_CACHE,
    retries=RETRIES,
    retry_delay_seconds=RETRY_DELAYS_SECONDS,
    retry_condition_fn=is_worth_another_try,
)
def tabulate(url: str, prepared: PreparedEvaluations) -> tuple[str, dict[str, list[dict[str, Any]]]]:
    """Means by method as Markdown, and the distances of whole sets."""
    archive = open_archive(url)
    known = {info.evaluation_id: info for info in archive.evaluations}
    frechet: dict[str, list[dict[str, Any]]] = {}
    for name, ids in prepared.evaluations.items():
        for evaluation_id in ids:
            if "fid" in known[evaluation_id].summary:
                frechet.setdefault(name, []).append(known[evaluation_id].summary["fid"])
    return evaluation_table(archive, prepared.evaluations), frechet


def dry_run_evaluations(resolved: ResolvedEvaluation) -> dict[str, Any]:
    """Check everything and say what would be done; nothing is written."""
    request = evaluation_request(resolved)
    chosen = choose_runs(request)
    strengths = []
    if chosen.all_lec:
        writer = open_writer(request.archive, chosen.generator)
        missing = missing_calibrations(writer, chosen.all_lec, request.calibration)
        strengths = [f"{work.method}/{work.spec.name}" for work in missing.strengths]
    prepared = plan_evaluations(request, chosen, start=False)
    return {
        "archive": request.archive,
        "methods": list(prepared.evaluations),
        "lpips": list(request.networks.lpips),
        "identity": list(request.networks.identity),
        "attributes": list(request.attributes),
        "strengths to calibrate": strengths or "none",
        "evaluations left": len(prepared.unpublished),
        "shards left": len(prepared.shards),
        "images left": sum(shard.num_images for shard in prepared.shards),
    }
