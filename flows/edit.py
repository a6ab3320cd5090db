"""Edit the codes of an archive: plan, calibrate, edit shard by shard, publish."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

import yaml
from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.task_runners import ThreadPoolTaskRunner

from flows.parameters.edit import EditRun
from flows.running.artifacts import publish_artifacts
from flows.running.calibrations import calibrate_all
from flows.running.exclusive import writing
from flows.running.results import kept
from flows.running.retries import retried
from flows.running.shards import MAX_WAITING_SHARDS, work_through
from flows.running.workers import PoolWhenNeeded, pool_when_needed
from lsap_core.errors import OutOfReachError
from tasks.editing.plan import EditingStage
from tasks.editing.request import EditRequest
from tasks.reports.editing.write import EditingReportRequest, write_editing_report
from tasks.reports.kept import WrittenReport
from tasks.settings import Settings
from tasks.visible_text import markdown_table


@dataclass(frozen=True)
class EditReport:
    """What an editing run did, in numbers.

    Attributes:
        archive: URL of the archive.
        report: URL of the HTML report.
        strengths: of each edit of each method, such as "lsap_e/slant"; None where an edit has none.
        digests: of each of these edits with its strength: which version of an edit of that name this command made.
        refused: why an edit of equal effect has no strength, by edited method.
        edited: images edited by this command.
        by_status: images of this command by status.
        by_reason: images without an edited code, by reason.
        seconds: wall time of this command.
        notes: what whoever asked should know of refinements that cannot be edited, a sentence each.
    """

    archive: str
    report: str
    strengths: dict[str, float | None]
    digests: dict[str, str]
    refused: dict[str, str]
    edited: int
    by_status: dict[str, int]
    by_reason: dict[str, int]
    seconds: float
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    @property
    def table(self) -> str:
        """Strengths by method, Markdown."""
        shown = [(name, "-" if far is None else f"{far:.4g}") for name, far in self.strengths.items()]
        refused = [(name, "out of reach") for name in self.refused]
        return markdown_table([("edit", "strength"), *shown, *refused])

    @property
    def outcome(self) -> str:
        """What this command did, in a few words."""
        counts = ", ".join(f"{count} {status}" for status, count in sorted(self.by_status.items()))
        return f"this command: {counts or 'nothing was left to do'}, {self.seconds:.0f} s"

    def lines(self) -> list[str]:
        """For people."""
        lines = [*self.table.split("\n"), "", self.outcome]
        lines += [f"  without a code: {count} {reason}" for reason, count in sorted(self.by_reason.items())]
        lines += [f"  {name}: {why}" for name, why in self.refused.items()]
        lines += [f"  {note}" for note in self.notes]
        return [*lines, f"archive: {self.archive}", f"report:  {self.report}"]


@flow(name="edit", persist_result=False, task_runner=ThreadPoolTaskRunner(MAX_WAITING_SHARDS))  # type: ignore[arg-type]
def edit(run: EditRun) -> EditReport:
    """Edit every inversion of an archive by every edit, with strengths of equal effect where that is asked for.

    Args:
        run: the archive, and which edits of which methods.
    """
    started = time.monotonic()
    request = run.resolve(Settings.from_environment())
    with writing(run.archive, EditingStage.part, run.when_busy):
        stage = plan(request)
        with pool_when_needed(stage.build_worker, run.workers) as workers:
            calibrate_all(workers, stage.writer, stage.missing_calibrations(), size=stage.part_size)
            worked = work_through(stage, workers, retries=run.retries)
            written = report(run, request, stage, workers, time.monotonic() - started)
    worked.check_finished(stage.notes)
    result = EditReport(
        archive=run.archive,
        report=written.url,
        strengths=stage.strengths,
        digests=stage.digests,
        refused=stage.refused,
        edited=worked.num_ok,
        by_status=worked.by_status,
        by_reason=worked.by_reason,
        seconds=time.monotonic() - started,
        notes=tuple(stage.notes),
    )
    links = {"archive": result.archive, "report": result.report}
    publish_artifacts("edits", result.outcome, result.table, links=links, sheet=written.picture)
    if stage.refused and not stage.strengths:
        raise OutOfReachError("; ".join(stage.refused.values()))
    return kept(result)


@task(name="plan_edits", cache_policy=NO_CACHE)
def plan(request: EditRequest) -> EditingStage:
    """Check edits, methods and generator against the archive."""
    return EditingStage(request)


@retried("report_edits")
def report(
    run: EditRun, request: EditRequest, stage: EditingStage, workers: PoolWhenNeeded, seconds: float
) -> WrittenReport:
    """The HTML report of these edits."""
    asked = EditingReportRequest(
        request,
        edits=list(stage.strengths),
        refused=stage.refused,
        config_yaml=yaml.safe_dump(run.model_dump(mode="json"), sort_keys=False),
        images=run.report_images,
        seconds=seconds,
    )
    return write_editing_report(asked, lambda: workers.pool_or_here)
