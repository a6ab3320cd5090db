"""Is everything there, and is it what was written? Reads the whole archive once, one object at a time."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from lsap_archive.errors import OBJECT_ERRORS, ArchiveMismatchError, ArchiveNotFoundError
from lsap_archive.format.calibrations import decode_calibration
from lsap_archive.format.evaluations import EvaluationInfo
from lsap_archive.format.layout import (
    ANCHORS_PREFIX,
    ARCHIVE_KEY,
    CALIBRATIONS_PREFIX,
    EVALUATIONS_PREFIX,
    MANIFEST_NAME,
    RUNS_PREFIX,
    SETS_PREFIX,
    Geometry,
    calibration_key,
)
from lsap_archive.format.manifest import Manifest
from lsap_archive.format.rows import STATUSES
from lsap_archive.reading.checked import read_header
from lsap_archive.reading.retirement import RetiredShards, hidden_of, may_be_twice, retired_by_run
from lsap_archive.reading.sets import FID, image_sets, set_summary
from lsap_archive.stores.store import Store
from lsap_archive.upkeep.verify_evaluations import verify_evaluation
from lsap_archive.upkeep.verify_objects import verify_zip
from lsap_archive.upkeep.verify_publication import verify_manifest, verify_retired
from lsap_archive.upkeep.verify_report import VerifyReport
from lsap_archive.upkeep.verify_rows import RowLedger
from lsap_archive.upkeep.verify_runs import PublishedRun, verify_subjects, verify_unfinished
from lsap_archive.writing.publication import Publication

COUNTS = (
    *("published_runs", "unfinished_runs", "retired_runs", "retired_shards", "objects", "bytes", "rows"),
    *(*STATUSES, "evaluations", "retired_evaluations", "measurements"),
)


def verify_archive(url: str, storage_options: Mapping[str, Any] | None = None) -> VerifyReport:
    """Check every object: size, digest, checksums, and that rows and arrays agree.

    Reads the archive once, holding one object and one shard's rows in memory; what has to be remembered of every row
    goes to a temporary folder when it is much. What is wrong is reported, not raised. What is retired is not looked at.

    Args:
        url: a local path, or a URL of one of the stores.
        storage_options: what the store's client takes.

    Raises:
        ArchiveNotFoundError: no archive is there.
        StoreUnavailableError: the store does not answer or refuses.
    """
    store = Store.from_url(url, storage_options)
    report = VerifyReport(store.url, dict.fromkeys(COUNTS, 0))
    geometry: Geometry | None = None
    try:
        _, geometry = read_header(store)
    except OBJECT_ERRORS as error:
        run_ids = store.folders(RUNS_PREFIX)
        if isinstance(error, ArchiveNotFoundError) and not run_ids:
            raise
        is_damage = not isinstance(error, ArchiveMismatchError)
        report.note(ARCHIVE_KEY, str(error), "the archive's header", is_damage=is_damage)
        if not is_damage:  # of a version that nobody here knows
            return report
    runs, retired = _read_runs(store, report)
    found = retired_by_run(store, list(runs.values()))
    with RowLedger() as ledger:
        for manifest in runs.values():
            publication = Publication(store, Manifest, manifest.run_id)
            PublishedRun(publication, manifest, hidden_of(manifest, found), report).verify(geometry, ledger)
        _verify_once(ledger, runs, found, report)
    verify_subjects(runs, retired, report)
    evaluations = []
    for evaluation_id in store.folders(EVALUATIONS_PREFIX):
        info = verify_evaluation(Publication(store, EvaluationInfo, evaluation_id), runs, retired, report)
        evaluations += [] if info is None else [info]
    _verify_kept(store, runs, report)
    oldest_first = sorted(runs.values(), key=lambda one: one.order)
    hidden = {one.run_id: hidden_of(one, found) for one in oldest_first}
    _verify_sets(store, oldest_first, evaluations, hidden, report)
    return report


def _read_runs(store: Store, report: VerifyReport) -> tuple[dict[str, Manifest], set[str]]:
    """The manifests of published runs, and the ids of retired ones; runs that are under way are looked at here."""
    runs: dict[str, Manifest] = {}
    retired: set[str] = set()
    for run_id in store.folders(RUNS_PREFIX):
        publication = Publication(store, Manifest, run_id)
        if verify_retired(publication, report):
            retired.add(run_id)
        elif manifest := verify_manifest(publication, verify_unfinished, report):
            runs[run_id] = manifest
    return runs, retired


def _verify_once(
    ledger: RowLedger, runs: Mapping[str, Manifest], found: Mapping[str, RetiredShards], report: VerifyReport
) -> None:
    """No image is there twice, but in runs whose rows count in older ones that have them too."""
    for one in ledger.twice(sorted(runs.values(), key=lambda manifest: manifest.order)):
        if may_be_twice(runs[one.run_id], found):
            report.count("rows", -1)
            report.count(one.status, -1)
        elif one.is_result:
            report.note(
                f"{RUNS_PREFIX}/{one.run_id}/{MANIFEST_NAME}",
                f"image {one.image_id} of content {one.digest[:16]} a second time, first in run {one.run_before}",
                "one row per method, image and content",
                is_damage=False,
                is_twice=True,
            )


def _verify_kept(store: Store, runs: Mapping[str, Manifest], report: VerifyReport) -> None:
    """Anchors and calibrations: no manifest has their digests, but their files tell damage themselves."""
    for key in store.keys(ANCHORS_PREFIX):
        report.count("objects")
        verify_zip(store.get(key), key, report)
    used = {one.config["calibration_digest"] for one in runs.values() if one.config.get("calibration_digest")}
    for key in sorted({*store.keys(CALIBRATIONS_PREFIX), *map(calibration_key, used)}):
        report.count("objects")
        try:
            decode_calibration(store.get(key), key)
        except OBJECT_ERRORS as error:
            report.note(key, str(error), "a calibration")


def _verify_sets(
    store: Store,
    runs: Sequence[Manifest],
    evaluations: Sequence[EvaluationInfo],
    hidden: Mapping[str, Collection[int]],
    report: VerifyReport,
) -> None:
    """Numbers of sets that are kept; of what readers see without one it is told that there is none."""
    are_sound = True
    for key in store.keys(SETS_PREFIX):
        report.count("objects")
        try:
            set_summary(store.get(key), key, key)
        except OBJECT_ERRORS as error:
            report.note(key, str(error), "the number of a set of images")
            are_sound = False
    if not are_sound:
        return
    for one in image_sets(store, runs, sorted(evaluations, key=lambda info: info.order), hidden):
        if one.problem is not None:
            report.information.append(
                f"{FID} [{one.network}] of {one.method} is not known for the images that readers see ({one.problem}): "
                "`lsap run evaluate` finds it"
            )
