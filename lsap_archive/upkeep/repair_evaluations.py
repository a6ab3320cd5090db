"""Mending one evaluation: what has a copy is restored; else it is retired, and what is sound of it taken over."""

from __future__ import annotations

from collections.abc import Sequence

from lsap_archive.format.documents import sha256_of
from lsap_archive.format.evaluations import EvaluationInfo
from lsap_archive.format.layout import (
    MANIFEST_NAME,
    copy_name,
    evaluation_manifest_key,
    evaluation_prefix,
    evaluation_retired_key,
)
from lsap_archive.reading.evaluations import read_evaluation
from lsap_archive.reading.retirement import Retirement, retire_evaluation
from lsap_archive.stores.store import Store
from lsap_archive.upkeep.repair_report import RepairReport
from lsap_archive.upkeep.repair_runs import LOST_REASON, bytes_or_none, is_readable
from lsap_archive.upkeep.verify_report import Problem


def restore_evaluation_manifest(store: Store, evaluation_id: str, report: RepairReport) -> None:
    """Give an evaluation its damaged manifest back; without a copy it is taken away, and the next run publishes."""
    key = evaluation_manifest_key(evaluation_id)
    data = bytes_or_none(store, f"{evaluation_prefix(evaluation_id)}/{copy_name(MANIFEST_NAME)}")
    if data is not None and is_readable(lambda: EvaluationInfo.decode(data, key)):
        report.restored.append(key)
        if not report.dry_run:
            store.put(key, data)
        return
    report.removed.append(key)
    if not report.dry_run and not is_readable(lambda: read_evaluation(store, evaluation_id)):
        store.delete(key)


def mend_evaluation(store: Store, evaluation_id: str, problems: Sequence[Problem], report: RepairReport) -> None:
    """Mend an evaluation whose manifest is sound, or that has none yet."""
    prefix = evaluation_prefix(evaluation_id)
    if store.exists(evaluation_retired_key(evaluation_id)):
        report.restored.append(evaluation_retired_key(evaluation_id))
        if not report.dry_run:
            why = Retirement(evaluation_id, None, (LOST_REASON,), "")
            store.put(evaluation_retired_key(evaluation_id), why.encode())
        return
    if not store.exists(evaluation_manifest_key(evaluation_id)):
        _take_away(store, prefix, problems, report)
        return
    info = read_evaluation(store, evaluation_id)
    lost = []
    for problem in problems:
        data = _wanted(store, prefix, info, problem.key.removeprefix(f"{prefix}/"))
        if data is None:
            lost.append(str(problem))
            continue
        report.restored.append(problem.key)
        if not report.dry_run:
            store.put(problem.key, data)
    if lost:
        report.retired.append(prefix)
        if not report.dry_run:
            retire_evaluation(store, evaluation_id, lost)


def _wanted(store: Store, prefix: str, info: EvaluationInfo, name: str) -> bytes | None:
    """The bytes that should stand there, if they can still be had."""
    original = name.removeprefix(copy_name(""))
    if original == MANIFEST_NAME:
        return bytes_or_none(store, f"{prefix}/{MANIFEST_NAME}")
    wanted = next((file for file in info.files if file.name == original), None)
    for place in (original, copy_name(original)):
        data = bytes_or_none(store, f"{prefix}/{place}")
        if wanted is not None and data is not None and (len(data), sha256_of(data)) == (wanted.size, wanted.sha256):
            return data
    return None


def _take_away(store: Store, prefix: str, problems: Sequence[Problem], report: RepairReport) -> None:
    """What is damaged of an evaluation that is not published; with a state its measurements, so that both are made."""
    keys = {problem.key for problem in problems}
    states = {key for key in keys if "/states/" in key}
    measured = {key.replace("/states/", "/shards/").replace(".npz", ".parquet") for key in states}
    for key in (*sorted(measured | keys - states), *sorted(states)):  # without measurements a shard counts as missing
        report.removed.append(key)
        if not report.dry_run and not store.exists(f"{prefix}/{MANIFEST_NAME}"):
            store.delete(key)
