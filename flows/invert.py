"""Invert a set of images: plan, anchor, embed shard by shard, publish, report."""

from __future__ import annotations

import contextlib
import time
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import yaml
from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.task_runners import ThreadPoolTaskRunner

from flows.parameters.invert import InvertRun
from flows.running.artifacts import publish_artifacts
from flows.running.exclusive import writing
from flows.running.outcome import Worked
from flows.running.results import kept
from flows.running.retries import retried
from flows.running.shards import MAX_WAITING_SHARDS, work_through
from flows.running.workers import PoolWhenNeeded, pool_when_needed
from tasks.archived.jobs import stored_bytes
from tasks.inversion.failed_copies import with_failed_copies
from tasks.inversion.plan import InversionFacts, InversionStage
from tasks.inversion.request import InversionRequest
from tasks.pictures.decoding import ALTERATIONS
from tasks.reports.inversion.worked import WorkedImages
from tasks.reports.inversion.write import Report, ReportRequest, kept_report, write_report
from tasks.settings import Settings


class TooManyFailuresError(RuntimeError):
    """The share of images that could not be inverted is above the run's limit."""


@dataclass(frozen=True)
class RunReport:
    """What a run did, in numbers.

    Attributes:
        archive: URL of the archive.
        report: URL of the HTML report.
        num_images: images in the source.
        embedded: image-method pairs embedded by this command.
        by_status: image-method pairs of this command by status.
        worked: images of this command, each counted once: num_all, num_ok (inverted by a method), num_failed (a method
            failed at it).
        by_reason: failed ones by reason.
        by_alteration: the others by what was done to their pixels beyond decoding and shrinking.
        seconds: wall time of this command.
        images_per_second: images that were inverted, by all methods together, per second of embedding.
        table: the comparison table, Markdown.
        stored_bytes: of the runs that this command has finished, as they lie in the archive.
        notes: what whoever asked should know of files of weights, and of runs that were begun before or by others, a
            sentence each.
    """

    archive: str
    report: str
    num_images: int
    embedded: int
    by_status: dict[str, int]
    by_reason: dict[str, int]
    seconds: float
    images_per_second: float
    table: str
    stored_bytes: int = 0
    notes: tuple[str, ...] = ()
    by_alteration: dict[str, int] = field(default_factory=dict)
    worked: WorkedImages = field(default_factory=WorkedImages)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    @property
    def outcome(self) -> str:
        """What this command did, in a few words."""
        counts = ", ".join(f"{count} {status}" for status, count in sorted(self.by_status.items()))
        return f"{self.num_images} images; this command: {counts or 'nothing was left to do'}"

    def lines(self) -> list[str]:
        """For people."""
        lines = [*self.table.split("\n"), "", self.outcome]
        lines += [f"  failed: {count} {reason}" for reason, count in sorted(self.by_reason.items())]
        for word, count in sorted(self.by_alteration.items()):
            meaning = ALTERATIONS.get(word, word)
            lines.append(f"  altered: {count} {word}" + (f" ({meaning})" if meaning != word else ""))
        lines += [f"  {note}" for note in self.notes]
        if self.worked.num_ok:
            codes = f"{self.embedded:,} codes of {self.worked.num_ok:,} images"
            lines.append(f"{codes}: {self.images_per_second:.2f} images per second, {self.seconds:.0f} s in all")
            lines.append(f"{self.stored_bytes:,} bytes are stored, {self.stored_bytes // self.embedded:,} of each code")
        return [*lines, f"archive: {self.archive}", f"report:  {self.report}"]


@flow(name="invert", persist_result=False, task_runner=ThreadPoolTaskRunner(MAX_WAITING_SHARDS))  # type: ignore[arg-type]
def invert(run: InvertRun) -> RunReport:
    """Embed every image of a source with every method, and compare the methods.

    Args:
        run: what to invert, by which methods, and where to.
    """
    started = time.monotonic()
    request = run.resolve(Settings.from_environment())
    with contextlib.ExitStack() as opened:
        opened.enter_context(writing(run.archive, InversionStage.part, run.when_busy))
        stage = opened.enter_context(plan(request))
        workers = opened.enter_context(pool_when_needed(stage.build_worker, run.workers))
        worked = work_through(stage, workers, retries=run.retries)
        worked = replace(worked, outcomes=with_failed_copies(run.archive, worked.outcomes))
        get_run_logger().info("%s", stage.describe())
        written = report(run, request, stage.facts, workers, worked)
    result = RunReport(
        archive=run.archive,
        report=written.url,
        num_images=stage.num_images,
        embedded=worked.num_ok,
        by_status=worked.by_status,
        by_reason=worked.by_reason,
        seconds=time.monotonic() - started,
        images_per_second=written.worked.num_ok / worked.seconds if worked.num_ok else 0.0,
        table=written.table,
        stored_bytes=stored_bytes(run.archive, sorted({outcome.job_id for outcome in worked.outcomes})),
        notes=(*stage.facts.notes, *stage.notes),
        by_alteration=worked.by_alteration,
        worked=written.worked,
    )
    publish_artifacts(
        "inversion",
        result.outcome,
        result.table,
        links={"archive": result.archive, "report": result.report},
        sheet=written.sheet,
    )
    worked.check_finished(stage.notes)
    check_failures(result, run.max_failed_share)
    return kept(result)


@task(name="plan", cache_policy=NO_CACHE)
def plan(request: InversionRequest) -> InversionStage:
    """Check everything, estimate the anchor once, look up what the archive has; runs are planned while others work."""
    return InversionStage(request)


@retried("report")
def report(
    run: InvertRun, request: InversionRequest, facts: InversionFacts, workers: PoolWhenNeeded, worked: Worked
) -> Report:
    """The HTML report of everything that the archive shows of these methods."""
    asked = ReportRequest(
        request,
        facts,
        title=f"Inversion of {run.source}",
        config_yaml=yaml.safe_dump(run.model_dump(mode="json"), sort_keys=False),
        num_images=run.report_images,
        measured={
            "seconds": worked.seconds,
            "shards": sorted({(outcome.job_id, outcome.index) for outcome in worked.outcomes}),
            "num_workers": run.workers.count,
            "device": run.workers.device,
        },
    )
    if not worked.outcomes and (earlier := kept_report(asked)):
        return earlier
    return write_report(asked, workers.pool_or_here)


def check_failures(result: RunReport, limit: float) -> None:
    """Not more images failed than the run allows; one that one of several methods failed at has failed.

    Raises:
        TooManyFailuresError: more did.
    """
    failed, total = result.worked.num_failed, result.worked.num_all
    if total and failed / total > limit:
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(result.by_reason.items()))
        raise TooManyFailuresError(
            f"{failed} of {total} images failed ({reasons}), above the limit of {limit:.0%}; everything else is in "
            f"{result.archive}, see {result.report}: mend the images or raise max_failed_share"
        )
