"""What every stage is: jobs that are planned while others are worked on, shards, and a worker that works on one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True)
class Shard:
    """A shard that still needs work; small, so that it travels to a worker.

    Attributes:
        job_id: its run or evaluation, whose plan is in the archive.
        name: what is run, such as "lsap_e" or "lsap_e/slant".
        index: its number in the job.
        num_images: how many images it has.
        places: image id -> where the image is now that lay elsewhere when it was planned; None for one that is gone.
        duplicates: image id -> id of the image with the same content, which is worked on instead.
        command: who asks, letters and digits: of a shard that is there already it tells whose work it was.
        halvings: how often batches are to be halved, because memory ran out.
    """

    job_id: str
    name: str
    index: int
    num_images: int
    places: Mapping[str, str | None] = field(default_factory=dict)
    duplicates: Mapping[str, str] = field(default_factory=dict)
    command: str = "shard"
    halvings: int = 0


@dataclass(frozen=True)
class Job:
    """A run or an evaluation to work on.

    Attributes:
        job_id: its name in the archive.
        name: what is run, such as "lsap_e" or "lsap_e/slant".
        shards: those that need work; none where it only has to be published.
        is_new: whether no earlier command began it.
        note: what whoever asked should know about it, one sentence.
    """

    job_id: str
    name: str
    shards: tuple[Shard, ...]
    is_new: bool = False
    note: str = ""

    @property
    def num_images(self) -> int:
        """Images that are left."""
        return sum(shard.num_images for shard in self.shards)


@dataclass(frozen=True)
class ShardOutcome:
    """What became of a shard; numbers only.

    Attributes:
        job_id: its run or evaluation.
        index: its number in the job.
        won: whether this attempt's result is the one in the archive.
        by_status: images by status; none where another command had put the shard into the archive already.
        by_reason: images without a result, by reason.
        seconds: wall time.
        resumed_at: the step that the first batch was resumed at, 0 when it was not.
        spent: seconds by what they were spent on, such as "reading" and "embedding".
        worker: which process did it, "host:pid".
        began: when, in seconds of that machine's clock since 1970.
        num_known: images that an earlier attempt had finished and kept.
        by_alteration: images with a result, also as copies, by what was done to their pixels; see ALTERATIONS of
            tasks/pictures/decoding.py. An image may be counted for several.
    """

    job_id: str
    index: int
    won: bool
    by_status: Mapping[str, int]
    by_reason: Mapping[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    resumed_at: int = 0
    spent: Mapping[str, float] = field(default_factory=dict)
    worker: str = ""
    began: float = 0.0
    num_known: int = 0
    by_alteration: Mapping[str, int] = field(default_factory=dict)


class Worker(Protocol):
    """Networks loaded once, in the worker's own process; called with one shard after the other."""

    def __call__(self, shard: Shard) -> ShardOutcome:
        """Work on a shard and put the result into the archive; doing it twice is harmless."""
        ...

    def progress(self) -> float:
        """Images' worth of work done on the present shard.

        It changes with every step, batch or image: a worker whose progress stays the same for long is taken to hang.
        """
        ...


class Stage(Protocol):
    """One stage of the pipeline over an archive.

    Attributes:
        part: the part of the archive that it writes: "inversions", "refinements", "edits" or "evaluations".
        verb: what is done to a shard: "embed", "refine", "edit" or "evaluate".
        build_worker: builds a worker in its process; it and what it closes over travel.
        batch_size: images that its workers take at once, of which fewer will do where memory runs out; 1 where not.
        notes: what whoever asked should know, a sentence each, so far.
    """

    @property
    def part(self) -> str: ...

    @property
    def verb(self) -> str: ...

    @property
    def build_worker(self) -> Callable[[], Worker]: ...

    @property
    def batch_size(self) -> int: ...

    @property
    def notes(self) -> Sequence[str]: ...

    def jobs(self) -> Iterator[Job]:
        """What is left to do, job by job, each with its plan in the archive; to be gone through once."""
        ...

    def publish(self, job_id: str) -> None:
        """Make a job whose every shard is in the archive visible to readers, unless they see all of it already."""
        ...
