"""Refine the inversions of an archive: plan, refine shard by shard, publish, compare."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

import yaml
from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.task_runners import ThreadPoolTaskRunner

from flows.parameters.refine import RefineRun
from flows.running.artifacts import publish_artifacts
from flows.running.exclusive import writing
from flows.running.results import kept
from flows.running.retries import retried
from flows.running.shards import MAX_WAITING_SHARDS, work_through
from flows.running.workers import PoolWhenNeeded, pool_when_needed
from tasks.refinement.plan import RefinementStage
from tasks.refinement.request import RefinementRequest
from tasks.reports.refinement.write import RefinementReportRequest, write_report
from tasks.settings import Settings


@dataclass(frozen=True)
class RefinementReport:
    """What a refinement did, in numbers.

    Attributes:
        archive: URL of the archive.
        report: URL of the HTML report.
        refinements: names of what was asked for, such as "lsap_e/pti".
        digests: of each of them: which version of a refinement of that name this command made.
        refined: images refined by this command.
        by_status: images of this command by status.
        by_reason: images that could not be refined, by reason.
        bytes_per_image: what is kept of an image, by refinement.
        seconds: wall time of this command.
        notes: what whoever asked should know of the networks of refiners, a sentence each.
        table: refinements beside their inversions, Markdown.
    """

    archive: str
    report: str
    refinements: tuple[str, ...]
    digests: dict[str, str]
    refined: int
    by_status: dict[str, int]
    by_reason: dict[str, int]
    bytes_per_image: dict[str, int]
    seconds: float
    notes: tuple[str, ...]
    table: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    @property
    def outcome(self) -> str:
        """What this command did, in a few words."""
        counts = ", ".join(f"{count} {status}" for status, count in sorted(self.by_status.items()))
        return f"this command: {counts or 'nothing was left to do'}, {self.seconds:.0f} s"

    def lines(self) -> list[str]:
        """For people."""
        lines = [*self.table.split("\n"), "", self.outcome]
        lines += [f"  not refined: {count} {reason}" for reason, count in sorted(self.by_reason.items())]
        lines += [f"  {name}: {size:,} bytes of an image" for name, size in self.bytes_per_image.items()]
        lines += [f"  {note}" for note in self.notes]
        return [*lines, f"archive: {self.archive}", f"report:  {self.report}"]


@flow(name="refine", persist_result=False, task_runner=ThreadPoolTaskRunner(MAX_WAITING_SHARDS))  # type: ignore[arg-type]
def refine(run: RefineRun) -> RefinementReport:
    """Refine every inversion of an archive by every refiner (LSAP, section 3.1), and compare with the inversions.

    Args:
        run: the archive, its images, and which refiners of which inversions.
    """
    started = time.monotonic()
    request = run.resolve(Settings.from_environment())
    with writing(run.archive, RefinementStage.part, run.when_busy):
        stage = plan(request)
        with pool_when_needed(stage.build_worker, run.workers) as workers:
            worked = work_through(stage, workers, retries=run.retries)
            url, table = report(run, request, stage, workers, time.monotonic() - started)
    worked.check_finished(stage.notes)
    result = RefinementReport(
        archive=run.archive,
        report=url,
        refinements=tuple(one.name for one in stage.refinements),
        digests=stage.digests,
        refined=worked.num_ok,
        by_status=worked.by_status,
        by_reason=worked.by_reason,
        bytes_per_image={one.name: one.bytes_per_image for one in stage.refinements},
        seconds=time.monotonic() - started,
        notes=stage.notes,
        table=table,
    )
    links = {"archive": result.archive, "report": result.report}
    publish_artifacts("refinement", result.outcome, result.table, links=links)
    return kept(result)


@task(name="plan_refinements", cache_policy=NO_CACHE)
def plan(request: RefinementRequest) -> RefinementStage:
    """Check refiners, inversions and generator against the archive."""
    return RefinementStage(request)


@retried("report_refinements")
def report(
    run: RefineRun, request: RefinementRequest, stage: RefinementStage, workers: PoolWhenNeeded, seconds: float
) -> tuple[str, str]:
    """Refinements beside their inversions: the URL of the page, and its table as Markdown."""
    asked = RefinementReportRequest(
        request,
        bytes_per_image={one.name: one.bytes_per_image for one in stage.refinements},
        config_yaml=yaml.safe_dump(run.model_dump(mode="json"), sort_keys=False),
        num_images=run.report_images,
        seconds=seconds,
    )
    return write_report(asked, workers.pool_or_here)
