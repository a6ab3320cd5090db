"""Strengths of edits of equal effect, found by workers and kept in the archive before anything is edited by them."""

from __future__ import annotations

import threading
from typing import Any

from flows.running.outcome import unfinished
from flows.running.progress import shown_progress
from flows.running.retries import RETRY_DELAYS_SECONDS, retried
from flows.running.workers import PoolWhenNeeded
from lsap_archive import ArchiveWriter
from tasks.editing.calibration import CalibrationWork, Measure, SpreadWork, find_spread, find_strength
from tasks.editing.chosen import MissingCalibrations, with_deviation
from tasks.editing.shared_out import SharedOut


def calibrate_all(workers: PoolWhenNeeded, archive: ArchiveWriter, missing: MissingCalibrations, *, size: int) -> None:
    """Find and keep every strength that is missing, or why there is none.

    What is measured for it is kept part by part, so that the command after one that was killed goes on.

    Args:
        workers: are started when there is something to find.
        archive: where it is kept.
        missing: what has to be found.
        size: images of a part.

    Raises:
        UnfinishedError: a worker or the store failed.
        ConfigError: an attribute does not vary.
    """
    if not missing.spreads and not missing.strengths:
        return
    pool, asked = workers.pool, _Asked()
    with shown_progress(pool, lambda: asked.num_images) as advance:

        def measure(digest: str) -> Measure:
            return SharedOut(pool, archive, digest, retry_after=RETRY_DELAYS_SECONDS, asked=asked.add, done=advance)

        for spread in missing.spreads:
            measure_spread(archive, spread, measure(spread.digest), size)
        works = [with_deviation(work, archive) for work in missing.strengths]
        futures = [calibrate.submit(archive, work, measure(work.digest), size) for work in works]
        results = [future.result(raise_on_failure=False) for future in futures]
    problems = [
        f"{work.method}/{work.spec.name}: {result}"
        for work, result in zip(works, results, strict=True)
        if not isinstance(result, dict)
    ]
    if problems:
        raise unfinished(problems, len(works), "calibrations")


@retried("measure_spread", "spread-{work.attribute}")
def measure_spread(archive: ArchiveWriter, work: SpreadWork, measure: Measure, size: int) -> dict[str, Any]:
    """The spread of an attribute over synthetic images, the unit of a change, kept in the archive."""
    return archive.keep_calibration(work.digest, find_spread(work, measure, size))


@retried("calibrate", "calibrate-{work.method}-{work.spec.name}")
def calibrate(archive: ArchiveWriter, work: CalibrationWork, measure: Measure, size: int) -> dict[str, Any]:
    """The strength at which an edit has the wanted effect, kept in the archive."""
    return archive.keep_calibration(work.digest, find_strength(work, archive.store.url, measure, size))


class _Asked:
    """How many images calibrations have asked for so far, in any thread; a search asks as it goes."""

    def __init__(self) -> None:
        self.num_images = 0
        self._lock = threading.Lock()

    def add(self, count: int) -> None:
        """So many more."""
        with self._lock:
            self.num_images += count
