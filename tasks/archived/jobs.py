"""What runs and evaluations have in common while they are planned: their shards, and what made them."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from lsap_archive import (
    FAILED,
    ArchiveWriter,
    CorruptArchiveError,
    Provenance,
    RunPlan,
    RunWriter,
    committed_rows,
    count_alterations,
    count_open,
    retired_of,
)
from tasks.stage import Shard, ShardOutcome

logger = logging.getLogger(__name__)

PROVENANCE_PACKAGES = ("torch", "ray", "prefect", "lpips", "pillow", "safetensors")


def provenance_of(generator_digest: str, *packages: str, settings: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What a plan keeps of its making: versions and digests. The archive notes the time; a plan is always the same.

    Args:
        generator_digest: of the generator.
        packages: whose versions count too.
        settings: what else is worth keeping, JSON values.
    """
    digests = {"generator": generator_digest}
    provenance = Provenance.collect((*PROVENANCE_PACKAGES, *packages), digests=digests, settings=settings).to_dict()
    del provenance["created"]
    return provenance


def shards_of(job_id: str, name: str, num_rows: int, shard_rows: int, left: Iterable[int]) -> tuple[Shard, ...]:
    """The shards that are left of a job whose images lie where they lay."""
    return tuple(Shard(job_id, name, index, min(shard_rows, num_rows - index * shard_rows)) for index in left)


def opened(writer: ArchiveWriter, plan: RunPlan) -> RunWriter:
    """The run of a plan; one that was planned before may have been told the same files by other names."""
    return writer.run(plan.run_id) if writer.is_planned(plan.run_id) else writer.start_run(plan)


def plan_of_missing(writer: ArchiveWriter, plan: RunPlan, *, tidy: bool) -> RunPlan | None:
    """The plan of the run that is left to be made of a subject: itself, or one more with the shards retired since.

    Args:
        writer: the archive.
        plan: with all shards.
        tidy: whether what killed commands left of published runs is removed.

    Returns:
        A plan, of a run that may be under way; None if readers see every shard that the subject has.
    """
    assert plan.subject is not None
    wanted = set(writer.run(plan.subject.run_id).own_shards)
    for run_id in plan.subject.lineage:
        wanted -= retired_of(writer.store, run_id).shards
    if not wanted:
        return None
    asked = plan if len(wanted) == plan.num_shards else replace(plan, shards=tuple(sorted(wanted)))
    repetition = 1
    while writer.is_taken(asked.run_id):
        retired = retired_of(writer.store, asked.run_id)
        if tidy and retired.whole:
            writer.tidy([asked.run_id])
        elif tidy and not (run := writer.run(asked.run_id)).is_tidy:
            run.tidy()
        own = set(range(plan.num_shards) if asked.shards is None else asked.shards)
        wanted -= set() if retired.whole else own - retired.shards
        if not wanted:
            return None
        repetition += 1
        shards = tuple(sorted(wanted))
        asked = replace(plan, run_id=f"{plan.run_id}.{repetition}", shards=shards)
    return asked


def publish_made(archive: str, run_id: str) -> None:
    """Check every object of an edit or a refinement whose every shard is committed, and make it visible to readers.

    Raises:
        IncompleteRunError: it was given up meanwhile.
    """
    run = RunWriter.open(archive, run_id)
    run.refuse_given_up()
    try:
        run.promote_committed()
        run.publish(summary_of(run))
    finally:  # what it consists of is removed when it is given up
        run.refuse_given_up()


def stored_bytes(archive: str, run_ids: Iterable[str]) -> int:
    """Of all objects of those of these runs that readers see."""
    runs = (RunWriter.open(archive, run_id) for run_id in run_ids)
    return sum(run.manifest().num_bytes for run in runs if run.is_published)


def summary_of(run: RunWriter) -> dict[str, int]:
    """What the manifest of a run says that its plan does not; all its shards are committed."""
    return count_open(run)


def goes_on_in_shards_of(kind: str, name: str, *, begun: int, asked: int, archive: str) -> str:
    """What whoever asked for shards of another size should know.

    Args:
        kind: "run" or "evaluation".
        name: its id.
        begun: images of its shards.
        asked: images of a shard that were asked for.
        archive: URL of the archive.
    """
    return (
        f"{kind} {name} was begun with shard_rows {begun}, and parts of it are done: it goes on so, and not with "
        f"{asked}; to give it up instead, with what is done of it: lsap archive repair {archive} --give-up {name}"
    )


def outcome_of_committed(run: RunWriter, shard: Shard, seconds: float) -> ShardOutcome:
    """The outcome of a shard that is in the archive: of an earlier try of this command, or of another command."""
    commit = run.commit_of(shard.index)
    if not commit.attempt.startswith(f"{shard.command}-"):
        return ShardOutcome(shard.job_id, shard.index, False, {}, {}, seconds)
    try:
        rows = committed_rows(run, commit, ["status", "reason", "altered"]).to_pylist()
    except CorruptArchiveError as error:  # of a run that is given up, or just being published; the marker has counts
        logger.info("shard %d of %s is told without reasons: %s", shard.index, shard.job_id, error)
        counts = {status: count for status, count in commit.rows_by_status.items() if count}
        return ShardOutcome(shard.job_id, shard.index, True, counts, {}, seconds)
    return ShardOutcome(
        shard.job_id,
        shard.index,
        True,
        dict(Counter(row["status"] for row in rows)),
        dict(Counter(row["reason"] for row in rows if row["status"] == FAILED)),
        seconds,
        by_alteration=count_alterations(rows),
    )
