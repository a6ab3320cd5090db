"""Is everything there, and is it what was written? Reads the whole archive once, one object at a time."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from lsap_archive.errors import OBJECT_ERRORS, ArchiveMismatchError, ArchiveNotFoundError, CorruptArchiveError
from lsap_archive.format.documents import decode_document
from lsap_archive.format.evaluations import EvaluationInfo
from lsap_archive.format.layout import (
    ANCHOR_COPIES_PREFIX,
    ANCHORS_PREFIX,
    ARCHIVE_KEY,
    CALIBRATING_PREFIX,
    CALIBRATIONS_PREFIX,
    EVALUATIONS_PREFIX,
    MANIFEST_NAME,
    RUNS_PREFIX,
    SEEN_PREFIX,
    SEQUENCE_PREFIX,
    SETS_PREFIX,
    VERSIONS_PREFIX,
    Geometry,
    anchor_copy_key,
    anchor_key,
    run_prefix,
    sequence_key,
)
from lsap_archive.format.manifest import Manifest, Published
from lsap_archive.format.rows import STATUSES
from lsap_archive.reading.checked import read_header
from lsap_archive.reading.kept import (
    npz_problem,
    read_anchor_copy,
    read_calibration,
    read_calibration_part,
    read_kept_anchor,
    read_seen,
    read_versions,
)
from lsap_archive.reading.lost import vanished
from lsap_archive.reading.retirement import RetiredShards, hidden_of, may_be_twice, retired_by_run
from lsap_archive.reading.sets import FID, image_sets, set_summary
from lsap_archive.stores.store import Store
from lsap_archive.upkeep.verify_evaluations import verify_evaluation
from lsap_archive.upkeep.verify_publication import verify_manifest, verify_retired
from lsap_archive.upkeep.verify_published import verify_published
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
    _verify_numbers(store, [*runs.values(), *evaluations], report)
    _verify_anchors(store, runs, report)
    _verify_calibrations(store, runs, report)
    for key in store.keys(CALIBRATING_PREFIX):
        report.count("objects")
        _note_errors(key, "a part of a calibration", report, read_calibration_part, store, key)
    for key in store.keys(SEEN_PREFIX):
        report.count("objects")
        digest = key.rsplit("/", 1)[1].removesuffix(".parquet")
        _note_errors(key, "what was seen of originals", report, read_seen, store, digest)
    for key in store.keys(VERSIONS_PREFIX):
        _note_errors(key, "the versions that it is named by", report, read_versions, store, key)
    oldest_first = sorted(runs.values(), key=lambda one: one.order)
    hidden = {one.run_id: hidden_of(one, found) for one in oldest_first}
    once = [one for one in oldest_first if not may_be_twice(one, found)]
    _verify_sets(store, once, evaluations, hidden, report)
    verify_published(store, report)
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


def _note_errors(key: str, wanted: str, report: VerifyReport, read: Callable[..., object], *arguments: object) -> bool:
    """Read an object, and note the problem if it is missing or damaged; whether there was none."""
    try:
        read(*arguments)
    except OBJECT_ERRORS as error:
        report.note(key, str(error), wanted)
        return False
    return True


def _verify_numbers(store: Store, manifests: Sequence[Published], report: VerifyReport) -> None:
    """Numbers that no manifest has: it can be read whose they are, and of those something is there."""
    known = {one.sequence for one in manifests}
    for key in sorted(set(store.keys(SEQUENCE_PREFIX)) - {sequence_key(number) for number in known}):
        _note_errors(key, "who got this number", report, _read_document, store, key)
    for number, of in vanished(store, known).items():
        if _note_errors(sequence_key(number), "a name", report, run_prefix, of):
            wanted = f"run or evaluation {of}, which got number {number} when it was published"
            report.note(f"{run_prefix(of)}/{MANIFEST_NAME}", "nothing, and no other object of it", wanted)


def _read_document(store: Store, key: str) -> None:
    decode_document(store.get(key), key)


def _verify_anchors(store: Store, runs: Mapping[str, Manifest], report: VerifyReport) -> None:
    """Every anchor that is kept, or that a run was made with, and its copy."""
    kept = [*store.keys(ANCHORS_PREFIX), *store.keys(ANCHOR_COPIES_PREFIX)]
    used = {one.config.get("anchor") for one in runs.values()}
    names = {key.rsplit("/", 1)[1].rsplit(".", 1)[0] for key in kept}
    for digest in sorted(names | {one for one in used if isinstance(one, str)}):
        try:
            key, copy_key = anchor_key(digest), anchor_copy_key(digest)
        except ArchiveMismatchError as error:
            report.information.append(f"below {ANCHORS_PREFIX}/ is what is no anchor: {error}")
            continue
        if digest not in names:  # taken away by a repair that had no copy, perhaps
            report.information.append(
                f"{key} is not there, and runs were made with it: `lsap run invert` finds it again"
            )
            continue
        report.count("objects", 1 + (copy_key in kept))
        is_copied = _note_errors(copy_key, "the copy of an anchor", report, read_anchor_copy, store, digest)
        read = (read_kept_anchor, store, digest) if is_copied else (_read_npz, store, key)
        _note_errors(key, "an anchor", report, *read)


def _read_npz(store: Store, key: str) -> None:
    if problem := npz_problem(store.get(key)):
        raise CorruptArchiveError(problem)


def _verify_calibrations(store: Store, runs: Mapping[str, Manifest], report: VerifyReport) -> None:
    """Every calibration that is kept or used; edits have what they used in their plans as well."""
    used = {one.config["calibration_digest"]: one for one in runs.values() if one.config.get("calibration_digest")}
    kept = {key.rsplit("/", 1)[1].removesuffix(".json") for key in store.keys(CALIBRATIONS_PREFIX)}
    for digest in sorted({*kept, *used}):
        key = f"{CALIBRATIONS_PREFIX}/{digest}.json"
        report.count("objects")
        is_sound = _note_errors(key, "a calibration", report, read_calibration, store, digest)
        by = used.get(digest)
        if is_sound and by is not None and read_calibration(store, digest) != by.config.get("calibration"):
            report.note(key, "another calibration", f"that of run {by.run_id}")


def _verify_sets(
    store: Store,
    runs: Sequence[Manifest],
    evaluations: Sequence[EvaluationInfo],
    hidden: Mapping[str, Collection[int]],
    report: VerifyReport,
) -> None:
    """Numbers of sets that are kept; of what readers see without one it is told that there is none.

    Not looked at are runs of which some images count in others.
    """
    are_sound = True
    for key in store.keys(SETS_PREFIX):
        report.count("objects")
        are_sound &= _note_errors(key, "the number of a set of images", report, _read_set, store, key)
    if not are_sound:
        return
    for one in image_sets(store, runs, sorted(evaluations, key=lambda info: info.order), hidden, {}):
        if one.problem is not None:
            report.information.append(
                f"{FID} [{one.network}] of {one.method} is not known for the images that readers see ({one.problem}): "
                "`lsap run evaluate` finds it"
            )


def _read_set(store: Store, key: str) -> None:
    set_summary(store.get(key), key, key)
