"""Mending an archive: what follows from something else is restored bit for bit, what does not is retired.

Nothing that was published is changed. A damaged object gets back the very bytes that its manifest names, from a copy;
where there are none its shard is retired, and the next run finds that these images are missing and makes them again.
What is not published yet is taken away instead, so that the run that goes on makes it again.

Every step may be killed and repeated, by anybody, at any time: bytes are only put where their digest is right, keys
that retire are create-only, and what no reader sees yet costs no more than to be made again.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from lsap_archive.errors import (
    OBJECT_ERRORS,
    ArchiveKeyError,
    ArchiveMismatchError,
    ArchiveNotFoundError,
    CorruptArchiveError,
)
from lsap_archive.format.documents import decode_document, encode_document
from lsap_archive.format.evaluations import EvaluationInfo
from lsap_archive.format.layout import (
    ANCHORS_PREFIX,
    ARCHIVE_KEY,
    CALIBRATING_PREFIX,
    CALIBRATIONS_PREFIX,
    COPY_FOLDER,
    EVALUATIONS_PREFIX,
    FORMAT_VERSION,
    MANIFEST_NAME,
    PUBLISHED_PREFIX,
    RUNS_PREFIX,
    SEEN_PREFIX,
    SEQUENCE_PREFIX,
    SETS_PREFIX,
    VERSIONS_PREFIX,
    anchor_key,
    calibration_key,
    evaluation_prefix,
    run_prefix,
    sequence_key,
)
from lsap_archive.format.manifest import Manifest, encode_header
from lsap_archive.format.sequence import sequence_document
from lsap_archive.reading.checked import read_header, read_manifest
from lsap_archive.reading.evaluations import read_evaluations
from lsap_archive.reading.kept import encode_anchor_copy, encode_calibration, npz_problem, read_anchor_copy
from lsap_archive.reading.retirement import is_retired
from lsap_archive.stores.store import Store
from lsap_archive.upkeep.repair_evaluations import EvaluationRepair
from lsap_archive.upkeep.repair_publication import bytes_or_none, is_readable
from lsap_archive.upkeep.repair_report import RepairedRun, RepairReport, flow_of
from lsap_archive.upkeep.repair_runs import RunRepair
from lsap_archive.upkeep.verify import verify_archive
from lsap_archive.upkeep.verify_report import Problem
from lsap_archive.writing.archive_writer import ArchiveWriter
from lsap_archive.writing.evaluation_writer import EvaluationWriter
from lsap_archive.writing.overlaps import Overlaps
from lsap_archive.writing.publication import Publication
from lsap_archive.writing.published_lists import keep_published_lists
from lsap_archive.writing.run_writer import RunWriter

_MANIFEST = re.compile(rf"({RUNS_PREFIX}|{EVALUATIONS_PREFIX})/[^/]+/{re.escape(MANIFEST_NAME)}")


def repair_archive(
    url: str, storage_options: Mapping[str, Any] | None = None, *, dry_run: bool = False
) -> RepairReport:
    """Restore what can be restored, retire what cannot, so that the next run makes exactly what is missing.

    Looks at everything, as `verify_archive` does. Afterwards readers see sound rows only.

    Args:
        url: a local path, or a URL of one of the stores.
        storage_options: what the store's client takes.
        dry_run: only say what would be done. What lies behind a damaged manifest or header is not looked at then.

    Raises:
        ArchiveNotFoundError: no archive is there.
        ArchiveMismatchError: a newer version of the format wrote it.
        StoreRefusedError: this process may not write there.
        StoreUnavailableError: the store does not answer or refuses.
    """
    store = Store.from_url(url, storage_options)
    if not dry_run:
        store.check_writable()
    report = RepairReport(store.url, dry_run)
    _restore_header(store, report)
    problems = verify_archive(url, storage_options).problems
    if _restore_manifests(store, problems, report) and not dry_run:
        problems = verify_archive(url, storage_options).problems  # what they name can be looked at only now
    _mend(store, [one for one in problems if one.is_damage], report)
    _count_once(store, [one for one in problems if one.is_twice], report)
    report.left += [str(one) for one in problems if not one.is_damage and not one.is_twice]
    if not (dry_run and any(one.is_damage for one in problems)):  # else they may not be readable yet
        _give_up_seen(store, report)
    _keep_copies(store, report)
    _list_published(store, problems, report)
    return report


def give_up_unfinished(
    url: str, names: Sequence[str], storage_options: Mapping[str, Any] | None = None, *, dry_run: bool = False
) -> RepairReport:
    """Give up runs or evaluations that are under way: readers and the next command see nothing of them.

    What is done of them is lost. Nothing else of the archive is looked at.

    Args:
        url: a local path, or a URL of one of the stores.
        names: ids, as plans, messages and `verify_archive` give them, also with "runs/" or "evaluations/" before.
        storage_options: what the store's client takes.
        dry_run: only say what would be done.

    Raises:
        ArchiveNotFoundError: no archive is there.
        ArchiveKeyError: nothing of that name is under way.
        ArchiveMismatchError: it is published.
        CorruptArchiveError: its plan is damaged.
        StoreUnavailableError: the store does not answer or refuses.
    """
    store = Store.from_url(url, storage_options)
    report = RepairReport(store.url, dry_run)
    writer = ArchiveWriter(store, *read_header(store))
    chosen = [_unfinished(writer, name) for name in dict.fromkeys(names)]  # all are looked at before one is given up
    for one in chosen:
        if isinstance(one, RunWriter):
            key = run_prefix(one.run_id)
            report.runs[one.run_id] = RepairedRun(one.plan["method"], flow_of(one.subject), images=one.num_rows)
        else:
            key = evaluation_prefix(one.evaluation_id)
        report.given_up.append(key)
        if not dry_run:
            one.give_up("somebody asked for it")
    return report


def _unfinished(writer: ArchiveWriter, name: str) -> RunWriter | EvaluationWriter:
    """The run or evaluation of a name, which is under way or was given up before."""
    folder, _, rest = name.rpartition("/")
    found: list[RunWriter | EvaluationWriter] = []
    if folder in ("", RUNS_PREFIX) and rest in writer.store.folders(RUNS_PREFIX) and writer.is_planned(rest):
        found.append(writer.run(rest))
    if folder in ("", EVALUATIONS_PREFIX) and rest in writer.store.folders(EVALUATIONS_PREFIX):
        found.append(EvaluationWriter(writer.store, rest))
    if not found:
        under_way = ", ".join(run.run_id for run in writer.unfinished_runs()) or "none"
        raise ArchiveKeyError(
            f"{writer.store.url} has no run or evaluation {name}: name one that is under way, as `lsap archive verify` "
            f"does; of runs that is {under_way}"
        )
    if found[0].is_published and not found[0].is_given_up:
        raise ArchiveMismatchError(
            f"{name} is published in {writer.store.url} and readers see it: only what is under way can be given up"
        )
    return found[0]


def _restore_header(store: Store, report: RepairReport) -> None:
    """Write archive.json again from the oldest manifest that can be read."""
    try:
        read_header(store)
        return
    except (ArchiveNotFoundError, CorruptArchiveError) as error:
        manifests = _manifests(store)
        if not manifests:
            if isinstance(error, ArchiveNotFoundError):
                raise
            raise CorruptArchiveError(
                f"{store.join(ARCHIVE_KEY)} is damaged and no run is published that tells what it held: "
                "delete this object, the next run writes it again"
            ) from error
    oldest = min(manifests, key=lambda one: one.order)
    report.restored.append(ARCHIVE_KEY)
    if report.dry_run:
        raise CorruptArchiveError(
            f"{store.join(ARCHIVE_KEY)} is damaged and would be written again from run {oldest.run_id}: "
            "repair without --dry-run, then look at the rest"
        )
    store.put(ARCHIVE_KEY, encode_header(oldest.generator, oldest.geometry, oldest.created))


def _repair_of(store: Store, key: str, report: RepairReport) -> RunRepair | EvaluationRepair | None:
    """What mends the run or evaluation that an object belongs to; None for what lies beside them."""
    folder, _, rest = key.partition("/")
    name = rest.partition("/")[0]
    if folder == RUNS_PREFIX:
        return RunRepair(Publication(store, Manifest, name), report)
    if folder == EVALUATIONS_PREFIX:
        return EvaluationRepair(Publication(store, EvaluationInfo, name), report)
    return None


def _restore_manifests(store: Store, problems: list[Problem], report: RepairReport) -> bool:
    """Mend damaged manifests first, as they say what else there is; whether there were some."""
    found = False
    for problem in problems:
        if problem.is_damage and _MANIFEST.fullmatch(problem.key):
            repair = _repair_of(store, problem.key, report)
            assert repair is not None
            repair.restore_manifest()
            found = True
    return found


def _mend(store: Store, problems: list[Problem], report: RepairReport) -> None:
    """Mend each run, each evaluation, and what lies beside them."""
    groups: dict[tuple[str, str], list[Problem]] = {}
    for problem in problems:
        folder, _, rest = problem.key.partition("/")
        if not _MANIFEST.fullmatch(problem.key):
            groups.setdefault((folder, rest.partition("/")[0]), []).append(problem)
    for (folder, name), of_one in groups.items():
        if repair := _repair_of(store, of_one[0].key, report):
            repair.mend(of_one)
        elif folder in (ANCHORS_PREFIX, COPY_FOLDER):  # the copies are those of anchors
            for problem in of_one:
                _mend_anchor(store, problem, report)
        elif folder in (
            CALIBRATING_PREFIX,
            SEEN_PREFIX,
            SETS_PREFIX,
            VERSIONS_PREFIX,
        ):  # found again by whoever needs it
            _remove(store, of_one, report)
        elif folder == CALIBRATIONS_PREFIX:
            _mend_calibration(store, name.removesuffix(".json"), of_one, report)
        elif folder == SEQUENCE_PREFIX:
            _mend_sequence(store, of_one, report)


def _mend_anchor(store: Store, problem: Problem, report: RepairReport) -> None:
    """Take an anchor from its copy, or a copy from its anchor, else away: the next inversion estimates it again."""
    digest = problem.key.rsplit("/", 1)[1].rpartition(".")[0]
    if problem.key == anchor_key(digest):
        is_copied = is_readable(lambda: read_anchor_copy(store, digest))
        restored = read_anchor_copy(store, digest) if is_copied else None
    else:
        data = bytes_or_none(store, anchor_key(digest))
        restored = encode_anchor_copy(digest, data) if data is not None and npz_problem(data) is None else None
    if restored is None:
        _remove(store, [problem], report)
        return
    report.restored.append(problem.key)
    if not report.dry_run:
        store.put(problem.key, restored)


def _count_once(store: Store, problems: list[Problem], report: RepairReport) -> None:
    """Let what older runs have with the same content count there; what was made of them does as they do."""
    twice: dict[str, list[Problem]] = {}
    for problem in problems:
        twice.setdefault(problem.key.split("/")[1], []).append(problem)
    there = _manifests(store)
    manifests = sorted((one for one in there if one.run_id in twice), key=lambda one: one.order)
    inversions = {one.run_id for one in manifests if one.subject is None}
    writer = ArchiveWriter(store, *read_header(store))
    overlaps = Overlaps(store, writer.generator, writer.geometry)
    for manifest in manifests:
        number = len(twice[manifest.run_id])
        if manifest.subject is None:
            report.counted_once.append(f"{number} images of {run_prefix(manifest.run_id)}")
            if not report.dry_run:
                overlaps.settle(writer.run(manifest.run_id))
        elif manifest.inversion not in inversions:
            report.left += [str(problem) for problem in twice[manifest.run_id]]
    made = {one.run_id: one for one in there if one.subject is not None and one.inversion in inversions}
    measured = [one.evaluation_id for one in read_evaluations(store) if one.run_id in inversions | made.keys()]
    report.made_of_them += [*map(run_prefix, sorted(made)), *map(evaluation_prefix, measured)]
    report.has_refinements = any(one.subject and not one.is_edit for one in there)


def _give_up_seen(store: Store, report: RepairReport) -> None:
    """Give up unfinished inversions whose images readers see all: two commands at once planned them."""
    writer = ArchiveWriter(store, *read_header(store))
    overlaps = Overlaps(store, writer.generator, writer.geometry)
    for run in writer.unfinished_runs():
        if overlaps.seen_in(run):
            report.given_up.append(run_prefix(run.run_id))
            if not report.dry_run:
                overlaps.give_up_if_seen(run)


def _mend_calibration(store: Store, digest: str, problems: list[Problem], report: RepairReport) -> None:
    """Take it from a run that was edited by it, else take it away: the next editing run measures it again.

    In archives begun before version 4 calibrations do not tell their name; with theirs they get the same bytes again.
    """
    for manifest in _manifests(store):
        if manifest.config.get("calibration_digest") == digest:
            report.restored.append(calibration_key(digest))
            if not report.dry_run:
                values, key = manifest.config["calibration"], calibration_key(digest)
                is_older = decode_document(store.get(ARCHIVE_KEY), ARCHIVE_KEY)["format_version"] < FORMAT_VERSION
                store.put(key, encode_document(values, key) if is_older else encode_calibration(digest, values))
            return
    _remove(store, problems, report)


def _mend_sequence(store: Store, problems: list[Problem], report: RepairReport) -> None:
    """Note again which numbers were given to manifests; of one that no manifest has nobody can tell whose it was."""
    given = {one.sequence: one.name for one in (*_manifests(store), *read_evaluations(store))}
    wanted = {sequence_key(number): sequence_document(of) for number, of in given.items() if number}
    unknown = {one.key: encode_document({"of": None}, one.key) for one in problems if one.key not in wanted}
    for key, document in (wanted | unknown).items():
        if bytes_or_none(store, key) != document:
            report.restored.append(key)
            if not report.dry_run:
                store.put(key, document)


def _remove(store: Store, problems: list[Problem], report: RepairReport) -> None:
    report.removed += [problem.key for problem in problems]
    if not report.dry_run:
        for problem in problems:
            store.delete(problem.key)


def _manifests(store: Store) -> list[Manifest]:
    """Manifests of published runs that can be read and are not retired."""
    found = []
    for run_id in store.folders(RUNS_PREFIX):
        try:
            found.append(read_manifest(store, Manifest, run_id))
        except OBJECT_ERRORS:
            continue
    return [one for one in found if not is_retired(store, "run", one.run_id)]


def _list_published(store: Store, problems: list[Problem], report: RepairReport) -> None:
    """Write the lists for other readers, where they are damaged or what this repair did made them stale."""
    report.restored += [one.key for one in problems if one.key.startswith(f"{PUBLISHED_PREFIX}/")]
    if report.dry_run:
        return
    try:
        keep_published_lists(store, anew=True)
    except OBJECT_ERRORS as error:
        report.left.append(f"{PUBLISHED_PREFIX}/ cannot be written: {error}")


def _keep_copies(store: Store, report: RepairReport) -> None:
    """Archives of older versions have no copies of what a whole run hangs on: make them while it is sound."""
    if report.dry_run:
        return
    for manifest in (*_manifests(store), *read_evaluations(store)):
        publication = Publication(store, type(manifest), manifest.name)
        report.copied += [publication.key(name) for name in publication.keep_copies()]
