"""Progress while shards are worked on: a bar on the terminal, and one on the flow run's page."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from flows.running.artifacts import UPDATE_SECONDS, ProgressArtifact
from tasks.workers.pool import Pool

REFRESH_SECONDS = 1.0


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
            while not ended.wait(REFRESH_SECONDS if console.is_terminal else UPDATE_SECONDS):
                show()

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
