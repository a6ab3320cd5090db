"""Is everything of an evaluation there, and is it what was written?"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Collection, Mapping

from lsap_archive.errors import ArchiveError, ArchiveNotFoundError, CorruptArchiveError, StoreUnavailableError
from lsap_archive.format.documents import decode_document
from lsap_archive.format.evaluations import EvaluationInfo, EvaluationPlan
from lsap_archive.format.layout import (
    MANIFEST_NAME,
    PLAN_NAME,
    copy_name,
    evaluation_manifest_key,
    evaluation_plan_key,
    evaluation_prefix,
    evaluation_retired_key,
    measurements_name,
    sequence_key,
)
from lsap_archive.format.manifest import Manifest
from lsap_archive.format.measurements import MEASUREMENT_SCHEMA
from lsap_archive.format.sequence import sequence_document
from lsap_archive.reading.evaluations import read_evaluation
from lsap_archive.reading.retirement import Retirement
from lsap_archive.stores.store import Store
from lsap_archive.upkeep.verify_objects import checked_document, checked_object, readable_table
from lsap_archive.upkeep.verify_report import VerifyReport


def verify_evaluation(
    store: Store,
    evaluation_id: str,
    runs: Mapping[str, Manifest],
    retired: Collection[str],
    report: VerifyReport,
) -> None:
    """Look at one evaluation: published, retired or under way.

    Args:
        store: the archive.
        evaluation_id: the evaluation.
        runs: every published run.
        retired: ids of the retired ones.
        report: gets counts and problems.
    """
    if store.exists(evaluation_retired_key(evaluation_id)):
        _verify_retired(store, evaluation_id, report)
        return
    key = evaluation_manifest_key(evaluation_id)
    try:
        info = read_evaluation(store, evaluation_id)
    except ArchiveNotFoundError:
        if store.exists(f"{evaluation_prefix(evaluation_id)}/{copy_name(MANIFEST_NAME)}"):
            report.note(key, "nothing", "the manifest of which there is a copy")
        else:
            _verify_unfinished(store, evaluation_id, report)
        return
    except StoreUnavailableError:
        raise
    except ArchiveError as error:
        is_damage = isinstance(error, CorruptArchiveError)
        report.note(key, str(error), "the evaluation's manifest", is_damage=is_damage)
        return
    report.count("evaluations")
    prefix = evaluation_prefix(evaluation_id)
    measured = None if info.run_id is None else runs.get(info.run_id)
    if info.run_id not in (None, *retired) and (measured is None or measured.num_rows != info.num_rows):
        wanted = f"{info.num_rows} rows in run {info.run_id}"
        report.note(key, "another or no run", wanted, is_damage=False)
    _verify_files(store, info, report)
    _verify_records(store, info, report)
    named = {file.name for file in info.files} | {MANIFEST_NAME}
    for one in store.keys(prefix):
        if one.removeprefix(f"{prefix}/") not in named and not one.startswith(f"{prefix}/_copy/"):
            report.information.append(f"{one} is named by no manifest")


def _verify_files(store: Store, info: EvaluationInfo, report: VerifyReport) -> None:
    """Every object, one in memory at a time; tables are also read."""
    prefix = evaluation_prefix(info.evaluation_id)
    files = {file.name: file for file in info.files}
    tables = [measurements_name(shard) for shard in range(-(-info.num_rows // info.shard_rows))]
    number, is_whole = 0, True
    for name in (*(name for name in tables if name not in files), *files):
        if name not in files:
            report.note(f"{prefix}/{name}", "no entry in the manifest", "one")
            is_whole = False
            continue
        data = checked_object(store, f"{prefix}/{name}", files[name], report)
        is_whole &= data is not None
        if name in tables:
            table = readable_table(data, MEASUREMENT_SCHEMA, f"{prefix}/{name}", report)
            number += 0 if table is None else table.num_rows
    report.count("measurements", number)
    if is_whole and number != info.num_measurements:
        key = evaluation_manifest_key(info.evaluation_id)
        report.note(key, f"{number} measurements", f"{info.num_measurements}", is_damage=False)


def _verify_records(store: Store, info: EvaluationInfo, report: VerifyReport) -> None:
    """The copies for repair, and the number that the manifest was given."""
    prefix = evaluation_prefix(info.evaluation_id)
    there = store.keys(f"{prefix}/_copy")
    originals = {PLAN_NAME: evaluation_plan_key, MANIFEST_NAME: evaluation_manifest_key}
    missing = [name for name in originals if f"{prefix}/{copy_name(name)}" not in there]
    if missing:
        report.information.append(f"{prefix} has no copy of {', '.join(missing)}: `lsap archive repair` makes them")
    plan = next((file for file in info.files if file.name == PLAN_NAME), None)
    if PLAN_NAME not in missing and plan is not None:
        checked_object(store, f"{prefix}/{copy_name(PLAN_NAME)}", plan, report)
    key = f"{prefix}/{copy_name(MANIFEST_NAME)}"
    if MANIFEST_NAME not in missing and store.get(key) != store.get(evaluation_manifest_key(info.evaluation_id)):
        report.note(key, "another document", "a copy of the manifest")
    if info.sequence:
        key, wanted = sequence_key(info.sequence), sequence_document(info.evaluation_id)
        document = checked_document(store, key, f"the number of evaluation {info.evaluation_id}", report)
        if document is not None and decode_document(wanted, key) != document:
            report.note(key, f"the number of {document.get('of')}", f"that of evaluation {info.evaluation_id}")


def _verify_retired(store: Store, evaluation_id: str, report: VerifyReport) -> None:
    report.count("retired_evaluations")
    key = evaluation_retired_key(evaluation_id)
    try:
        why = Retirement.decode(store.get(key), key)
    except StoreUnavailableError:
        raise
    except ArchiveError as error:
        report.note(key, str(error), "why this is retired")
        return
    report.information.append(f"{evaluation_prefix(evaluation_id)} is retired: {'; '.join(why.problems)}")


def _verify_unfinished(store: Store, evaluation_id: str, report: VerifyReport) -> None:
    """An evaluation that is under way: its shards have no digests yet, but files that tell damage themselves."""
    key, prefix = evaluation_plan_key(evaluation_id), evaluation_prefix(evaluation_id)
    if not store.exists(key):
        report.information.append(f"{prefix} has no plan: a start that was cut short")
        return
    plan = checked_document(store, key, "the evaluation's plan", report)
    if plan is None:
        return
    wanted = EvaluationPlan(**{name: plan[name] for name in EvaluationPlan.__dataclass_fields__}).num_shards
    done = store.keys(f"{prefix}/shards")
    for one in done:
        readable_table(store.get(one), MEASUREMENT_SCHEMA, one, report)
    for one in store.keys(f"{prefix}/states"):
        verify_zip(store.get(one), one, report)
    report.information.append(f"{prefix} is not published: {len(done)} of {wanted} shards are measured")


def verify_zip(data: bytes, key: str, report: VerifyReport) -> None:
    """An .npz file: its members have checksums."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as file:
            damaged = file.testzip()
    except (zipfile.BadZipFile, EOFError, ValueError, NotImplementedError, OSError) as error:
        report.note(key, f"no readable .npz file ({error})", "one")
        return
    if damaged is not None:
        report.note(key, f"an .npz file whose {damaged} is damaged", "a sound one")
