"""Invert a set of images: plan, anchor, embed shard by shard, publish, report."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterator
from typing import Any

import yaml
from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.task_runners import ThreadPoolTaskRunner

from flows.parameters import InvertRun, ResolvedRun
from flows.progress import shown_progress
from flows.run_report import Embedded, RunReport, check_failures, check_finished
from lsap_archive import RunWriter, StoreUnavailableError
from tasks.embed import EmbedSpec, EmbedWorker, ShardOutcome, ShardWork
from tasks.errors import SourceError
from tasks.planning import PlannedShard
from tasks.pool import LocalPool, Pool, RayPool, WorkerLostError
from tasks.prepare import Prepared, Request, prepare
from tasks.settings import Settings
from tasks.summarize import Report, ReportRequest, write_report

RETRIES = 3  # of what is cheap to repeat; a run says how often it tries a shard
RETRY_DELAYS_SECONDS = [2, 10, 60]  # a lost worker is soon back, a store or network may take its time
MAX_WAITING_SHARDS = 64  # tasks that wait for a worker at the same time


@flow(name="invert", task_runner=ThreadPoolTaskRunner(max_workers=MAX_WAITING_SHARDS))  # type: ignore[arg-type]
def invert(run: InvertRun) -> RunReport:
    """Embed every image of a source with every method, and compare the methods."""
    started = time.monotonic()
    resolved = run.resolve(Settings.from_environment())
    prepared = plan(resolved)
    get_run_logger().info(
        "%s; %d shards in %d runs to embed", prepared.source, len(prepared.shards), len(prepared.runs)
    )
    with opened_pool(resolved, prepared) as pool:
        embedded = embed_all(resolved, prepared, pool)
        for run_id in prepared.runs:
            publish(run.archive, run_id)
        written = report(resolved, prepared, pool, embedded)
    create_markdown_artifact(key="inversion", markdown=f"{written.table}\n\nReport: {written.url}")
    result = RunReport(
        archive=run.archive,
        report=written.url,
        num_images=prepared.num_images,
        embedded=embedded.num_ok,
        by_status=embedded.by_status,
        by_reason=embedded.by_reason,
        seconds=time.monotonic() - started,
        images_per_second=embedded.num_ok / embedded.seconds if embedded.num_ok else 0.0,
        table=written.table,
    )
    check_finished(embedded)
    check_failures(result, run.max_failed_share)
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
        encoders=resolved.encoders,
        content_box=resolved.domain.content_box,
    )


@contextlib.contextmanager
def opened_pool(resolved: ResolvedRun, prepared: Prepared) -> Iterator[Pool]:
    """Long-lived Ray actors, each with its own networks; this process alone when only the report is left to do."""
    run, workers = resolved.run, resolved.run.workers
    spec = EmbedSpec(
        archive=run.archive,
        generator=resolved.generator,
        networks=resolved.networks,
        anchor=prepared.anchor,
        source=run.source,
        fit=run.fit,
        batch_size=resolved.batch_size,
        device=workers.device,
        encoders=resolved.encoders,
        content_box=resolved.domain.content_box,
    )
    build_worker = functools.partial(EmbedWorker, spec)
    pool: Pool
    if prepared.shards:
        pool = RayPool(
            build_worker,
            num_workers=workers.count,
            address=Settings.from_environment().ray_address,
            gpus_per_worker=0.0 if workers.device == "cpu" else workers.gpus_each,
            num_threads=workers.threads,
        )
    else:
        pool = LocalPool(build_worker)
    try:
        yield pool
    finally:
        pool.close()


def embed_all(resolved: ResolvedRun, prepared: Prepared, pool: Pool) -> Embedded:
    """One task for every shard that is left; a shard that fails does not stop the others."""
    started = time.monotonic()
    shard_task = embed.with_options(retries=resolved.run.retries)
    outcomes: list[ShardOutcome] = []
    problems: list[str] = []
    with shown_progress(pool, sum(shard.num_images for shard in prepared.shards)) as advance:
        futures = [shard_task.submit(pool, shard, advance) for shard in prepared.shards]
        for future, shard in zip(futures, prepared.shards, strict=True):
            result = future.result(raise_on_failure=False)
            if isinstance(result, ShardOutcome):
                outcomes.append(result)
            else:
                problems.append(f"shard {shard.shard} of {shard.run_id}: {result}")
    return Embedded(outcomes, problems, time.monotonic() - started)


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
    retry_delay_seconds=RETRY_DELAYS_SECONDS,
    retry_condition_fn=is_worth_another_try,
)
def embed(pool: Pool, shard: PlannedShard, advance: Callable[[int], None]) -> ShardOutcome:
    """Hand one shard to a worker and wait; only numbers come back."""
    outcome: ShardOutcome = pool.call("embed", ShardWork(shard.run_id, shard.shard, shard.duplicates, shard.moved))
    advance(shard.num_images)
    get_run_logger().info("%s shard %d: %s in %.1f s", shard.method, shard.shard, outcome.by_status, outcome.seconds)
    return outcome


@task(
    name="publish",
    cache_policy=NO_CACHE,
    retries=RETRIES,
    retry_delay_seconds=RETRY_DELAYS_SECONDS,
    retry_condition_fn=is_worth_another_try,
)
def publish(archive: str, run_id: str) -> bool:
    """Check every object of a finished run and make it visible to readers; an unfinished one stays invisible."""
    run = RunWriter.open(archive, run_id)
    if run.missing_shards():
        return False
    run.promote_committed()
    run.publish({})
    return True


@task(
    name="report",
    cache_policy=NO_CACHE,
    retries=RETRIES,
    retry_delay_seconds=RETRY_DELAYS_SECONDS,
    retry_condition_fn=is_worth_another_try,
)
def report(resolved: ResolvedRun, prepared: Prepared, pool: Pool, embedded: Embedded) -> Report:
    """The HTML report of everything that the archive shows of these methods."""
    run = resolved.run
    request = ReportRequest(
        title=f"Inversion of {run.source}",
        archive=run.archive,
        generator=resolved.generator,
        domain=resolved.domain.name,
        methods=prepared.methods,
        networks=resolved.networks,
        anchor=prepared.anchor,
        config_yaml=yaml.safe_dump(run.model_dump(mode="json"), sort_keys=False),
        num_images=run.report_images,
        measured={
            "seconds": embedded.seconds,
            "embedded": embedded.num_ok,
            "num_workers": run.workers.count,
            "device": run.workers.device,
        },
        encoders=prepared.encoders,
        content_box=resolved.domain.content_box,
    )
    return write_report(request, pool)
