"""Parquet files of what is published, by URL: for readers that know nothing of archives."""

from __future__ import annotations

from collections.abc import Sequence

from lsap_archive.errors import ArchiveKeyError
from lsap_archive.format.evaluations import EvaluationInfo
from lsap_archive.format.layout import evaluation_prefix, measurements_name, rows_name, run_prefix
from lsap_archive.format.published_list import NO_MEASUREMENTS, NO_ROWS
from lsap_archive.reading.published_runs import PublishedRuns


def files_of(table: str, runs: PublishedRuns, evaluations: Sequence[EvaluationInfo]) -> list[str]:
    """URLs of the files of a table, the oldest first, after an empty one that has all columns.

    Args:
        table: "rows" or "measurements".
        runs: of the archive.
        evaluations: that readers see, the oldest first.

    Raises:
        ArchiveKeyError: another table.
    """
    if table not in ("rows", "measurements"):
        raise ArchiveKeyError(f"no files of {table!r}: 'rows' and 'measurements' are files of an archive")
    keys, empty = [], NO_ROWS
    if table == "rows":
        for one in runs.manifests:
            named = {file.name for file in one.files}
            names = (rows_name(shard) for shard in one.own_shards if shard not in runs.hidden[one.run_id])
            keys += [f"{run_prefix(one.run_id)}/{name}" for name in names if name in named]
    else:
        empty = NO_MEASUREMENTS
        for info in evaluations:
            named = {file.name for file in info.files}
            shards = (shard for shard in range(info.num_shards) if _is_seen(info, shard, runs))
            names = (measurements_name(shard) for shard in shards)
            keys += [f"{evaluation_prefix(info.evaluation_id)}/{name}" for name in names if name in named]
    return [runs.store.join(key) for key in ([empty] if runs.store.exists(empty) else []) + keys]


def _is_seen(info: EvaluationInfo, shard: int, runs: PublishedRuns) -> bool:
    """Whether readers see some of the rows that a shard of an evaluation has measured."""
    if info.run_id is None:
        return True
    if info.run_id not in runs.numbers:
        return False
    shard_rows, hidden = runs.manifests[runs.numbers[info.run_id]].shard_rows, runs.hidden[info.run_id]
    rows = range(shard * info.shard_rows, min((shard + 1) * info.shard_rows, info.num_rows))
    return any(row // shard_rows not in hidden for row in rows)
