"""What a stage has left to do, for tests that work on it in their own process."""

from __future__ import annotations

from dataclasses import dataclass

from tasks.stage import Job, Shard


@dataclass(frozen=True)
class Planned:
    """What is left to do of a stage, all of it at once."""

    jobs: tuple[Job, ...]

    @property
    def runs(self) -> tuple[str, ...]:
        return tuple(job.job_id for job in self.jobs)

    @property
    def shards(self) -> tuple[Shard, ...]:
        return tuple(shard for job in self.jobs for shard in job.shards)
