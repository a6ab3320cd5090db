"""What became of a stage's shards, in numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from tasks.stage import ShardOutcome


class UnfinishedError(RuntimeError):
    """Some shards could not be finished; the same command goes on where this one stopped."""


@dataclass(frozen=True)
class Worked:
    """What became of a command's shards.

    Attributes:
        outcomes: of the shards that are done.
        problems: a sentence for every shard that failed on its last try, and every job that could not be published.
        seconds: wall time.
    """

    outcomes: Sequence[ShardOutcome]
    problems: Sequence[str]
    seconds: float

    @property
    def by_status(self) -> dict[str, int]:
        """Images, each counted for every method or edit, by status."""
        return _total(outcome.by_status for outcome in self.outcomes)

    @property
    def by_reason(self) -> dict[str, int]:
        """Those without a result by reason."""
        return _total(outcome.by_reason for outcome in self.outcomes)

    @property
    def by_alteration(self) -> dict[str, int]:
        """Those that have one by what was done to their pixels."""
        return _total(outcome.by_alteration for outcome in self.outcomes)

    @property
    def num_ok(self) -> int:
        """Those that have a result now."""
        return self.by_status.get("ok", 0)

    def check_finished(self, notes: Sequence[str] = ()) -> None:
        """Every shard is in the archive.

        Args:
            notes: what whoever asked should know; it belongs to the error, where it may be the way out.

        Raises:
            UnfinishedError: some are not.
        """
        if self.problems:
            raise unfinished(self.problems, len(self.problems) + len(self.outcomes), "shards", notes)


def unfinished(problems: Sequence[str], number: int, what: str, notes: Sequence[str] = ()) -> UnfinishedError:
    """The error of work that is done in part: how much of it, why, and what to do."""
    message = (
        f"{len(problems)} of {number} {what} could not be finished ({problems[0]}); the others are kept: run the same "
        "command again once the cause is mended"
    )
    return UnfinishedError("; ".join([message, *notes]))


def _total(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for count in counts:
        total.update(count)
    return dict(total)
