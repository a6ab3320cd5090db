"""Progress on the terminal while shards are worked on."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from tasks.pool import Pool

REFRESH_SECONDS = 1.0


@contextlib.contextmanager
def shown_progress(pool: Pool, total: int) -> Iterator[Callable[[int], None]]:
    """A bar of images on stderr, with what workers are in the middle of; call the result with images finished."""
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
    with Progress(*columns, console=console, disable=not console.is_terminal, redirect_stdout=False) as progress:
        bar = progress.add_task("images x methods", total=total, rate="")

        def show() -> None:
            with lock:
                done = finished
            under_way = pool.progress()
            seconds = progress.tasks[bar].elapsed or 0.0
            rate = f"{(done + under_way) / seconds:.1f}/s" if seconds else ""
            progress.update(bar, completed=min(int(done + under_way), total), rate=rate)

        def follow() -> None:
            while not ended.wait(REFRESH_SECONDS):
                show()

        def advance(count: int) -> None:
            nonlocal finished
            with lock:
                finished += count

        watcher = threading.Thread(target=follow, daemon=True)
        if console.is_terminal:
            watcher.start()
        try:
            yield advance
        finally:
            ended.set()
            if watcher.is_alive():
                watcher.join()
            progress.update(bar, completed=finished)
