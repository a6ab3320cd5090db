"""Progress while shards are worked on: a bar on the terminal, and one on the flow run's page."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from flows.running.artifacts import UPDATE_SECONDS, ProgressArtifact
from tasks.workers.pool import Pool

REFRESH_SECONDS = 1.0
LINE_SECONDS = 60.0
"""From one line to the next where no terminal shows the bar."""

logger = logging.getLogger("lsap")


@contextlib.contextmanager
def shown_progress(pool: Pool, total: int | Callable[[], int]) -> Iterator[Callable[[int], None]]:
    """A bar of images, with what workers are in the middle of; call the result with images finished.

    Args:
        pool: the workers.
        total: images in all; asked again and again where it is a function, because planning goes on meanwhile.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    finished = 0
    lock = threading.Lock()
    ended = threading.Event()
    artifact = ProgressArtifact("images x methods")

    def wanted() -> int:
        return total() if callable(total) else total

    with Progress(*columns, console=console, disable=not console.is_terminal, redirect_stdout=False) as progress:
        bar = progress.add_task("images x methods", total=wanted(), rate="")

        def show() -> None:
            with lock:
                done = finished
            of_all = wanted()
            under_way = pool.progress()
            seconds = progress.tasks[bar].elapsed or 0.0
            rate = f"{(done + under_way) / seconds:.1f}/s" if seconds else ""
            progress.update(bar, total=of_all, completed=min(int(done + under_way), of_all), rate=rate)
            artifact.show((done + under_way) / max(of_all, 1), f"{int(done + under_way)} of {of_all} {rate}".strip())

        def follow() -> None:
            next_line = time.monotonic() + LINE_SECONDS
            while not ended.wait(REFRESH_SECONDS if console.is_terminal else min(UPDATE_SECONDS, LINE_SECONDS)):
                show()
                if not console.is_terminal and time.monotonic() >= next_line:
                    next_line += LINE_SECONDS
                    logger.info("%s", in_one_line(progress.tasks[bar]))

        def advance(count: int) -> None:
            nonlocal finished
            with lock:
                finished += count

        watcher = threading.Thread(target=follow, daemon=True)
        watcher.start()
        try:
            yield advance
        finally:
            ended.set()
            watcher.join()
            progress.update(bar, total=wanted(), completed=finished)
            artifact.finish(finished / max(wanted(), 1), f"{finished} of {wanted()}")


def in_one_line(task: Task) -> str:
    """What a bar shows, in words."""
    parts = [f"{task.completed:.0f} of {task.total or 0:.0f} {task.description}", task.fields["rate"]]
    if task.elapsed:
        parts.append(f"{timedelta(seconds=round(task.elapsed))} so far")
    if task.completed and task.elapsed and task.total:
        left = task.elapsed / task.completed * (task.total - task.completed)
        parts.append(f"about {timedelta(seconds=round(left))} left")
    return ", ".join(part for part in parts if part)
