"""Copies of images that failed in another shard, which a command counts as what they are: failed."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from lsap_archive import DUPLICATE, FAILED, CorruptArchiveError, RunWriter, committed_rows, count_alterations
from tasks.stage import ShardOutcome


def with_failed_copies(archive: str, outcomes: Sequence[ShardOutcome]) -> list[ShardOutcome]:
    """Outcomes of shards, in which a copy whose original failed in another shard is failed for the same reason.

    Whoever works on a shard does not know what becomes of originals in others, which may be under way: it leaves their
    copies to them. So does the archive, whose readers follow the copy; here the counts do.

    Args:
        archive: URL.
        outcomes: of inversions, when no shard is under way any more.

    Raises:
        CorruptArchiveError: rows are missing or altered.
    """
    by_run: defaultdict[str, list[ShardOutcome]] = defaultdict(list)
    for outcome in outcomes:
        if outcome.by_status.get(DUPLICATE):
            by_run[outcome.job_id].append(outcome)
    corrected = {
        (one.job_id, one.index): one for run_id, some in by_run.items() for one in _corrected(archive, run_id, some)
    }
    return [corrected.get((outcome.job_id, outcome.index), outcome) for outcome in outcomes]


def _corrected(archive: str, run_id: str, outcomes: Sequence[ShardOutcome]) -> Sequence[ShardOutcome]:
    run = RunWriter.open(archive, run_id)
    try:
        return list(_counted_anew(run, outcomes))
    except CorruptArchiveError:
        if not run.is_given_up:
            raise
        return outcomes  # what it consisted of is removed: readers see its images in the run of another command


def _counted_anew(run: RunWriter, outcomes: Sequence[ShardOutcome]) -> Iterator[ShardOutcome]:
    commits = {shard: run.commit_of(shard) for shard in sorted(run.committed_shards())}
    reasons: dict[str, str] = {}
    for commit in commits.values():
        if commit.rows_by_status[FAILED]:
            rows = committed_rows(run, commit, ["image_id", "status", "reason"]).to_pylist()
            reasons |= {row["image_id"]: row["reason"] for row in rows if row["status"] == FAILED}
    if reasons:
        for outcome in outcomes:
            columns = ["status", "reason", "duplicate_of", "altered"]
            rows = committed_rows(run, commits[outcome.index], columns).to_pylist()
            yield _of_rows(outcome, [_followed(row, reasons) for row in rows])


def _followed(row: dict[str, Any], reasons: dict[str, str]) -> dict[str, Any]:
    if row["status"] != DUPLICATE or row["duplicate_of"] not in reasons:
        return row
    return {**row, "status": FAILED, "reason": reasons[row["duplicate_of"]]}


def _of_rows(outcome: ShardOutcome, rows: Sequence[dict[str, Any]]) -> ShardOutcome:
    return replace(
        outcome,
        by_status=dict(Counter(row["status"] for row in rows)),
        by_reason=dict(Counter(row["reason"] for row in rows if row["status"] == FAILED)),
        by_alteration=count_alterations(rows),
    )
