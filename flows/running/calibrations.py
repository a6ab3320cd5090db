"""Strengths of edits of equal effect, found by workers and kept in the archive before anything is edited by them."""

from __future__ import annotations

from typing import Any

from flows.running.outcome import unfinished
from flows.running.retries import retried
from flows.running.workers import PoolWhenNeeded
from lsap_archive import ArchiveWriter
from tasks.editing.calibration import CalibrationWork
from tasks.editing.chosen import MissingCalibrations, with_deviation
from tasks.workers.pool import Pool


def calibrate_all(workers: PoolWhenNeeded, archive: ArchiveWriter, missing: MissingCalibrations) -> None:
    """Find and keep every strength that is missing, or why there is none.

    Raises:
        UnfinishedError: a worker or the store failed.
        ConfigError: an attribute does not vary.
    """
    for name, (attribute, seed) in missing.deviations.items():
        archive.keep_calibration(name, measure_deviation(workers.pool, attribute, seed))
    works = [with_deviation(work, archive) for work in missing.strengths]
    futures = [calibrate.submit(workers.pool, archive, work) for work in works]
    results = [future.result(raise_on_failure=False) for future in futures]
    problems = [
        f"{work.method}/{work.spec.name}: {result}"
        for work, result in zip(works, results, strict=True)
        if not isinstance(result, dict)
    ]
    if problems:
        raise unfinished(problems, len(works), "calibrations")


@retried("measure_deviation", "deviation-{attribute}")
def measure_deviation(pool: Pool, attribute: str, seed: int) -> dict[str, Any]:
    """The spread of an attribute over synthetic images: the unit of a change."""
    found: dict[str, Any] = pool.call("deviation", attribute, seed, about=f"the deviation of {attribute}")
    return found


@retried("calibrate", "calibrate-{work.method}-{work.spec.name}")
def calibrate(pool: Pool, archive: ArchiveWriter, work: CalibrationWork) -> dict[str, Any]:
    """The strength at which an edit has the wanted effect, kept in the archive."""
    found = pool.call("calibrate", work, about=f"the calibration of {work.method}/{work.spec.name}")
    return archive.keep_calibration(work.digest, found)
