"""Invert a set of images: plan, anchor, embed shard by shard, publish, report."""

from __future__ import annotations

import functools
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import yaml
from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.task_runners import ThreadPoolTaskRunner

from flows.parameters import InvertRun, ResolvedRun
from flows.progress import shown_progress
from lsap_archive import RunWriter, StoreUnavailableError
from tasks.embed import EmbedSpec, EmbedWorker, ShardOutcome, ShardWork
from tasks.errors import SourceError
from tasks.planning import PlannedShard
from tasks.pool import LocalPool, Pool, RayPool, WorkerLostError
from tasks.prepare import Prepared, Request, prepare
from tasks.settings import Settings
from tasks.summarize import Report, ReportRequest, write_report

RETRY_DELAY_SECONDS = 2
MAX_WAITING_SHARDS = 64  # tasks that wait for a worker at the same time


class TooManyFailuresError(RuntimeError):
    """The share of images that could not be inverted is above the run's limit."""


class UnfinishedError(RuntimeError):
    """Some shards could not be embedded; the same command goes on where this one stopped."""


@dataclass(frozen=True)
class RunReport:
    """What a run did, in numbers.

    Attributes:
        archive: URL of the archive.
        report: URL of the HTML report.
        num_images: images in the source.
        embedded: image-method pairs embedded by this command.
        by_status: image-method pairs of this command by status.
        by_reason: failed ones by reason.
        seconds: wall time of this command.
        images_per_second: image-method pairs embedded per second of embedding.
        table: the comparison table, Markdown.
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

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


@flow(name="invert", task_runner=ThreadPoolTaskRunner(max_workers=MAX_WAITING_SHARDS))  # type: ignore[arg-type]
def invert(run: InvertRun) -> RunReport:
    """Embed every image of a source with every method, and compare the methods."""
    started = time.monotonic()
    settings = Settings.from_environment()
    resolved = run.resolve(settings)
    prepared = plan(resolved)
    get_run_logger().info(
        "%s; %d shards to embed in %d runs", prepared.source, len(prepared.shards), len(prepared.runs)
    )
    pool = open_pool(resolved, prepared, settings)
    try:
        embedding_started = time.monotonic()
        outcomes, problems = embed_all(resolved, prepared, pool)
        seconds = time.monotonic() - embedding_started
        for run_id in prepared.runs:
            publish(run.archive, run_id)
        by_status = _count(outcome.by_status for outcome in outcomes)
        by_reason = _count(outcome.by_reason for outcome in outcomes)
        embedded = by_status.get("ok", 0)
        written = report(resolved, prepared.anchor, pool, {"seconds": seconds, "embedded": embedded})
    finally:
        pool.close()
    result = RunReport(
        archive=run.archive,
        report=written.url,
        num_images=prepared.num_images,
        embedded=embedded,
        by_status=by_status,
        by_reason=by_reason,
        seconds=time.monotonic() - started,
        images_per_second=embedded / seconds if seconds and embedded else 0.0,
        table=written.table,
    )
    create_markdown_artifact(key="inversion", markdown=f"{written.table}\n\nReport: {written.url}")
    _check_finished(problems, prepared)
    _check_failures(result, run.max_failed_share)
    return result


@task(name="plan", cache_policy=NO_CACHE)
def plan(resolved: ResolvedRun) -> Prepared:
    """List and digest the images, subtract what the archive has, estimate the anchor once."""
    return prepare(request_of(resolved))


def request_of(resolved: ResolvedRun) -> Request:
    """The run as the tasks take it."""
    run = resolved.run
    return Request(
        source=run.source,
        archive=run.archive,
        generator=resolved.generator,
        methods=resolved.methods,
        networks=resolved.networks,
        anchor=run.anchor_options(),
        fit=run.fit,
        seed=run.seed,
        shard_rows=resolved.shard_rows,
    )


def open_pool(resolved: ResolvedRun, prepared: Prepared, settings: Settings) -> Pool:
    """Long-lived Ray actors, each with its own networks; this process alone when only the report is left to do."""
    run = resolved.run
    spec = EmbedSpec(
        archive=run.archive,
        generator=resolved.generator,
        networks=resolved.networks,
        anchor=prepared.anchor,
        source=run.source,
        fit=run.fit,
        batch_size=resolved.batch_size,
        device=run.workers.device,
    )
    build_worker = functools.partial(EmbedWorker, spec)
    if not prepared.shards:
        return LocalPool(build_worker)
    return RayPool(
        build_worker,
        num_workers=run.workers.count,
        address=settings.ray_address,
        gpus_per_worker=0.0 if run.workers.device == "cpu" else run.workers.gpus_each,
        num_threads=run.workers.threads,
    )


def embed_all(resolved: ResolvedRun, prepared: Prepared, pool: Pool) -> tuple[list[ShardOutcome], list[str]]:
    """One task for every shard that is left; returns the outcomes, and a sentence for every shard that failed."""
    total = sum(shard.num_images for shard in prepared.shards)
    shard_task = embed.with_options(retries=resolved.run.retries)
    outcomes: list[ShardOutcome] = []
    problems: list[str] = []
    with shown_progress(pool, total) as advance:
        futures = [shard_task.submit(pool, shard, advance) for shard in prepared.shards]
        for future, shard in zip(futures, prepared.shards, strict=True):
            result = future.result(raise_on_failure=False)
            if isinstance(result, ShardOutcome):
                outcomes.append(result)
            else:
                problems.append(f"shard {shard.shard} of {shard.run_id}: {result}")
    return outcomes, problems


def is_worth_another_try(_task: Any, _run: Any, state: Any) -> bool:
    """Retry what a machine or the network broke; never what the data broke."""
    error = state.result(raise_on_failure=False)
    if isinstance(error, SourceError):
        return error.is_transient
    return isinstance(error, WorkerLostError | StoreUnavailableError)


@task(
    name="embed",
    task_run_name="embed-{shard.method}-{shard.shard:05d}",
    cache_policy=NO_CACHE,
    retry_delay_seconds=RETRY_DELAY_SECONDS,
    retry_condition_fn=is_worth_another_try,
)
def embed(pool: Pool, shard: PlannedShard, advance: Callable[[int], None]) -> ShardOutcome:
    """Hand one shard to a worker and wait; only numbers come back."""
    outcome: ShardOutcome = pool.call("embed", ShardWork(shard.run_id, shard.shard, shard.duplicates, shard.moved))
    advance(shard.num_images)
    get_run_logger().info("%s shard %d: %s in %.1f s", shard.method, shard.shard, outcome.by_status, outcome.seconds)
    return outcome


@task(name="publish", cache_policy=NO_CACHE)
def publish(archive: str, run_id: str) -> bool:
    """Check every object of a finished run and make it visible to readers; an unfinished one stays invisible."""
    run = RunWriter.open(archive, run_id)
    if run.missing_shards():
        return False
    run.promote_committed()
    run.publish({})
    return True


@task(name="report", cache_policy=NO_CACHE)
def report(resolved: ResolvedRun, anchor: str, pool: Pool, measured: dict[str, Any]) -> Report:
    """The HTML report of everything that the archive shows of these methods."""
    run = resolved.run
    request = ReportRequest(
        title=f"Inversion of {run.source}",
        archive=run.archive,
        generator=resolved.generator,
        domain=resolved.domain.name,
        methods=resolved.methods,
        networks=resolved.networks,
        anchor=anchor,
        config_yaml=yaml.safe_dump(run.model_dump(mode="json"), sort_keys=False),
        num_images=run.report_images,
        measured={**measured, "num_workers": run.workers.count, "device": run.workers.device},
    )
    return write_report(request, pool)


def _count(counts: Any) -> dict[str, int]:
    total: Counter[str] = Counter()
    for count in counts:
        total.update(count)
    return dict(total)


def _check_finished(problems: list[str], prepared: Prepared) -> None:
    if problems:
        raise UnfinishedError(
            f"{len(problems)} of {len(prepared.shards)} shards could not be embedded ({problems[0]}); "
            "the others are kept: run the same command again once the cause is mended"
        )


def _check_failures(result: RunReport, limit: float) -> None:
    failed = result.by_status.get("failed", 0)
    total = sum(result.by_status.values())
    if total and failed / total > limit:
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(result.by_reason.items()))
        raise TooManyFailuresError(
            f"{failed} of {total} images failed ({reasons}), above the limit of {limit:.0%}; everything else is in "
            f"{result.archive}, see {result.report}: mend the images or raise max_failed_share"
        )
