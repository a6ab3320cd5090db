"""Is everything of an evaluation there, and is it what was written?"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from lsap_archive.format.evaluations import EvaluationInfo, EvaluationPlan
from lsap_archive.format.layout import MANIFEST_NAME, PLAN_NAME, measurements_name
from lsap_archive.format.manifest import Manifest
from lsap_archive.format.measurements import MEASUREMENT_SCHEMA, STATE_NOTE
from lsap_archive.format.rows import notes_of
from lsap_archive.reading.checked import describe, digest_or_none
from lsap_archive.upkeep.verify_objects import checked_object, readable_table, verify_npz
from lsap_archive.upkeep.verify_publication import checked_plan, verify_manifest, verify_records, verify_retired
from lsap_archive.upkeep.verify_report import VerifyReport
from lsap_archive.writing.publication import Publication


def verify_evaluation(
    publication: Publication[EvaluationInfo],
    runs: Mapping[str, Manifest],
    retired: Collection[str],
    report: VerifyReport,
) -> EvaluationInfo | None:
    """Look at one evaluation: published, retired or under way; its manifest if readers see it.

    Args:
        publication: the evaluation.
        runs: every published run.
        retired: ids of the retired ones.
        report: gets counts and problems.
    """
    if verify_retired(publication, report):
        return None
    info = verify_manifest(publication, _verify_unfinished, report)
    if info is None:
        return None
    report.count("evaluations")
    measured = None if info.run_id is None else runs.get(info.run_id)
    if info.run_id not in (None, *retired) and (measured is None or measured.num_rows != info.num_rows):
        wanted = f"{info.num_rows} rows in run {info.run_id}"
        report.note(publication.key(MANIFEST_NAME), "another or no run", wanted, is_damage=False)
    _verify_files(publication, info, report)
    verify_records(publication, info, report)
    return info


def _verify_files(publication: Publication[EvaluationInfo], info: EvaluationInfo, report: VerifyReport) -> None:
    """Every object, one in memory at a time; tables are also read."""
    files = {file.name: file for file in info.files}
    tables = [measurements_name(shard) for shard in range(info.num_shards)]
    number, is_whole = 0, True
    for name in (*(name for name in tables if name not in files), *files):
        if name not in files:
            report.note(publication.key(name), "no entry in the manifest", "one")
            is_whole = False
            continue
        data = checked_object(publication.store, publication.key(name), files[name], report)
        is_whole &= data is not None
        if name in tables:
            table = readable_table(data, MEASUREMENT_SCHEMA, publication.key(name), report)
            number += 0 if table is None else table.num_rows
    report.count("measurements", number)
    if is_whole and number != info.num_measurements:
        key = publication.key(MANIFEST_NAME)
        report.note(key, f"{number} measurements", f"{info.num_measurements}", is_damage=False)


def _verify_unfinished(publication: Publication[EvaluationInfo], report: VerifyReport) -> None:
    """An evaluation that is under way: its shards have no digests yet, but files that tell damage themselves."""
    store, prefix = publication.store, publication.prefix
    if not publication.is_planned:
        report.information.append(f"{prefix} has no plan: a start that was cut short")
        return
    plan = checked_plan(publication, report)
    if plan is None:
        return
    wanted = EvaluationPlan.of(plan, publication.key(PLAN_NAME)).num_shards
    done = store.keys(f"{prefix}/shards")
    for one in done:
        data = store.get(one)
        if readable_table(data, MEASUREMENT_SCHEMA, one, report) is None:
            continue
        state = one.replace("/shards/", "/states/").replace(".parquet", ".npz")
        if digest := notes_of(data, one).get(STATE_NOTE):
            found = digest_or_none(store, state)
            if found is None or found[1] != digest:
                report.note(state, describe(found), f"the sums that {one} was put with, sha256 {digest[:16]}")
    for one in store.keys(f"{prefix}/states"):
        verify_npz(store.get(one), one, report)
    report.information.append(f"{prefix} is not published: {len(done)} of {wanted} shards are measured")
