"""Reproduce the paper's comparison of encoders: the encoder rows of Table 1, and Table 3's sweep over lambda."""

from __future__ import annotations

from collections import deque
from dataclasses import asdict, dataclass
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture, as_completed

from flows.invert import invert
from flows.parameters.reproduce_table3 import ReproduceTable3
from flows.running.artifacts import publish_artifacts
from flows.running.exclusive import writing
from flows.running.outcome import unfinished
from flows.running.results import kept
from flows.running.retries import retried
from tasks.reports.paper.seeds import write_table3
from tasks.settings import Settings
from tasks.training.cluster import train_on_cluster
from tasks.training.plan import prepare_training
from tasks.training.spec import TrainingRequest
from tasks.workers.cluster import opened_cluster


@dataclass(frozen=True)
class Table3Report:
    """What a reproduction came to.

    Attributes:
        output: URL of its folder.
        archive: URL of the archive with a row for each image and encoder.
        tables: URLs of the written tables and figures.
        num_encoders: encoders compared.
        table: both tables and the claims, Markdown.
    """

    output: str
    archive: str
    tables: tuple[str, ...]
    num_encoders: int
    table: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    def lines(self) -> list[str]:
        """For people."""
        return [*self.table.split("\n"), f"{self.num_encoders} encoders; archive: {self.archive}", *self.tables]


@flow(name="reproduce_table3", persist_result=False)
def reproduce_table3(run: ReproduceTable3) -> Table3Report:
    """Train every encoder that is not there yet, invert the held-out images with each, and compare."""
    settings = Settings.from_environment()
    trainings = run.resolve(settings)
    num_workers = max(run.parallel, run.workers.count)
    workers = run.workers
    cluster = opened_cluster(settings.ray_address, num_workers, threads=workers.threads, device=workers.device)
    with writing(run.output, "reproduction"), cluster:
        train_all(run, trainings)
        inversion = run.inversion()
        invert(inversion)
        table, urls = tabulate(run)
    links = {"archive": inversion.archive, "tables and figures": run.output}
    picture = next((url for url in urls if url.endswith(".png")), None)
    publish_artifacts("table3", f"{len(trainings)} encoders", table, links=links, sheet=picture)
    return kept(Table3Report(run.output, inversion.archive, urls, len(trainings), table))


def train_all(run: ReproduceTable3, trainings: dict[str, TrainingRequest]) -> None:
    """Train the encoders, so many at a time as the run says; one that fails does not stop the others.

    Raises:
        UnfinishedError: some failed.
    """
    waiting = deque(trainings.items())
    running: list[PrefectFuture[int]] = []
    problems: list[str] = []
    while waiting or running:
        while waiting and len(running) < run.parallel:
            name, request = waiting.popleft()
            running.append(train.submit(name, request))
        ended = next(iter(as_completed(running)))
        running.remove(ended)
        step = ended.result(raise_on_failure=False)
        if not isinstance(step, int):
            problems.append(str(step))
    if problems:
        raise unfinished(problems, len(trainings), "trainings")


@task(name="train", task_run_name="train-{name}", cache_policy=NO_CACHE)
def train(name: str, request: TrainingRequest) -> int:
    """Train one encoder, from wherever its folder says; returns the step it had before."""
    prepared = prepare_training(request.spec)
    if prepared.is_finished:
        get_run_logger().info("%s is finished", name)
    else:
        outcome = train_on_cluster(request.spec, request.workers)
        get_run_logger().info("%s: step %d, lowest validation loss %.4f", name, outcome.step, outcome.best_loss or 0.0)
    return prepared.step


@retried("tabulate")
def tabulate(run: ReproduceTable3) -> tuple[str, tuple[str, ...]]:
    """Means, spreads and claims from the archive's rows, as Markdown, a figure and Parquet."""
    published, sweep = run.variants()
    request = run.inversion().resolve(Settings.from_environment())
    return write_table3(request, published, run.seeds, sweep, run.sweep_seeds or run.seeds)
