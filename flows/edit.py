"""Edit the codes of an archive: plan, calibrate, edit shard by shard, publish."""

from __future__ import annotations

import functools
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.task_runners import ThreadPoolTaskRunner

from flows.parameters.edit import EditRun, ResolvedEdits
from flows.running.artifacts import publish_artifacts
from flows.running.embedding import MAX_WAITING_SHARDS, publish
from flows.running.exclusive import writing
from flows.running.results import kept
from flows.running.shard_tasks import calibrate_all, check_all, total, work_on_all
from flows.running.workers import PoolWhenNeeded, pool_when_needed
from lsap_core.errors import OutOfReachError
from tasks.archived.opening import open_writer
from tasks.editing.calibration import CalibrationOptions
from tasks.editing.plan import (
    EditedMethod,
    EditRequest,
    PreparedEdits,
    choose_edits,
    missing_calibrations,
    plan_edit_runs,
)
from tasks.editing.worker import EditWorker, EditWorkerSpec
from tasks.settings import Settings
from tasks.visible_text import in_markdown
from tasks.weights.generators import LoadedGenerator


@dataclass(frozen=True)
class EditReport:
    """What an editing run did, in numbers.

    Attributes:
        archive: URL of the archive.
        strengths: of each edit of each method, such as "lsap_e/slant"; None where an edit has none.
        digests: of each of these edits with its strength: which version of an edit of that name this command made.
        refused: why an edit of equal effect has no strength, by edited method.
        edited: images edited by this command.
        by_status: images of this command by status.
        by_reason: images without an edited code, by reason.
        seconds: wall time of this command.
    """

    archive: str
    strengths: dict[str, float | None]
    digests: dict[str, str]
    refused: dict[str, str]
    edited: int
    by_status: dict[str, int]
    by_reason: dict[str, int]
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    @property
    def table(self) -> str:
        """Strengths by method, Markdown."""
        shown = [(name, "-" if far is None else f"{far:.4g}") for name, far in self.strengths.items()]
        lines = ["| edit | strength |", "|---|---|", *(f"| {in_markdown(name)} | {far} |" for name, far in shown)]
        return "\n".join([*lines, *(f"| {in_markdown(name)} | out of reach |" for name in self.refused)])

    @property
    def outcome(self) -> str:
        """What this command did, in a few words."""
        counts = ", ".join(f"{count} {status}" for status, count in sorted(self.by_status.items()))
        return f"this command: {counts or 'nothing was left to do'}, {self.seconds:.0f} s"

    def summary(self) -> str:
        """For people."""
        lines = [self.table, "", self.outcome]
        lines += [f"  without a code: {count} {reason}" for reason, count in sorted(self.by_reason.items())]
        lines += [f"  {name}: {why}" for name, why in self.refused.items()]
        return "\n".join([*lines, f"archive: {self.archive}"])


@flow(name="edit", persist_result=False, task_runner=ThreadPoolTaskRunner(MAX_WAITING_SHARDS))  # type: ignore[arg-type]
def edit(run: EditRun) -> EditReport:
    """Edit every inversion of an archive by every edit, with strengths of equal effect where that is asked for.

    Args:
        run: the archive, and which edits of which methods.
    """
    started = time.monotonic()
    resolved = run.resolve(Settings.from_environment())
    request = edit_request(resolved)
    build_worker = functools.partial(EditWorker, worker_spec(resolved))
    with writing(run.archive, "edits", run.when_busy), pool_when_needed(build_worker, run.workers) as workers:
        loaded, chosen = plan(request)
        calibrate_missing(workers, request, loaded, chosen)
        prepared = plan_edit_runs(request, loaded, chosen)
        get_run_logger().info("%d shards in %d runs to edit", len(prepared.shards), len(prepared.runs))
        results, problems = work_on_all(workers, "edit", prepared.shards, run.retries)
        for run_id in prepared.runs:
            publish(run.archive, run_id)
    check_all(problems, len(prepared.shards), "shards")
    report = EditReport(
        archive=run.archive,
        strengths=prepared.strengths,
        digests=prepared.digests,
        refused=prepared.refused,
        edited=sum(result.by_status.get("ok", 0) for result in results),
        by_status=total(result.by_status for result in results),
        by_reason=total(result.by_reason for result in results),
        seconds=time.monotonic() - started,
    )
    publish_artifacts("edits", report.outcome, report.table, links={"archive": report.archive})
    if prepared.refused and not prepared.strengths:
        raise OutOfReachError("; ".join(prepared.refused.values()))
    return kept(report)


@task(name="plan_edits", cache_policy=NO_CACHE)
def plan(request: EditRequest) -> tuple[LoadedGenerator, list[EditedMethod]]:
    """Check edits, methods and generator against the archive."""
    return choose_edits(request)


def edit_request(resolved: ResolvedEdits) -> EditRequest:
    """The run as the tasks take it."""
    run = resolved.run
    return EditRequest(
        archive=run.archive,
        generator=resolved.generator,
        methods=run.methods,
        edits=resolved.edits,
        keep_images=run.keep_images,
        calibration=CalibrationOptions(run.calibration_images, run.calibration_seed),
        content_box=resolved.domain.content_box,
    )


def worker_spec(resolved: ResolvedEdits) -> EditWorkerSpec:
    """What a worker is built from."""
    run = resolved.run
    return EditWorkerSpec(
        archive=run.archive,
        generator=resolved.generator,
        edits=resolved.edits,
        batch_size=resolved.batch_size,
        device=run.workers.device,
        content_box=resolved.domain.content_box,
        backbones=resolved.settings.backbones,
    )


def calibrate_missing(
    workers: PoolWhenNeeded, request: EditRequest, loaded: LoadedGenerator, chosen: Sequence[EditedMethod]
) -> None:
    """Find the strengths that the archive does not keep yet."""
    writer = open_writer(request.archive, loaded)
    calibrate_all(workers, writer, missing_calibrations(writer, chosen, request.calibration))


def dry_run_edits(resolved: ResolvedEdits) -> dict[str, Any]:
    """Check everything and say what would be done; nothing is written."""
    request = edit_request(resolved)
    loaded, chosen = choose_edits(request)
    missing = missing_calibrations(open_writer(request.archive, loaded), chosen, request.calibration)
    prepared: PreparedEdits = plan_edit_runs(request, loaded, chosen, start=False)
    left: Counter[str] = Counter()
    for shard in prepared.shards:
        left[shard.name] += shard.num_images
    return {
        "archive": request.archive,
        "edits": [edit.name for edit in chosen],
        "strengths": dict(prepared.strengths) or "none",
        "out of reach": prepared.refused or "none",
        "strengths to calibrate": [f"{work.method}/{work.spec.name}" for work in missing.strengths] or "none",
        "images left by edit, beside those to calibrate": dict(left) or "none",
        "shards left": len(prepared.shards),
    }
