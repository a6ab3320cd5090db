"""What a run did, in numbers, and when that counts as a failure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tasks.inversion.worker import ShardOutcome


class UnfinishedError(RuntimeError):
    """Some shards could not be embedded; the same command goes on where this one stopped."""


@dataclass(frozen=True)
class Embedded:
    """What became of a command's shards.

    Attributes:
        outcomes: of the shards that were embedded.
        problems: a sentence for every shard that failed on its last try.
        seconds: wall time of embedding.
    """

    outcomes: Sequence[ShardOutcome]
    problems: Sequence[str]
    seconds: float

    @property
    def by_status(self) -> dict[str, int]:
        """Image-method pairs by status."""
        return _total(outcome.by_status for outcome in self.outcomes)

    @property
    def by_reason(self) -> dict[str, int]:
        """Failed image-method pairs by reason."""
        return _total(outcome.by_reason for outcome in self.outcomes)

    @property
    def num_ok(self) -> int:
        """Image-method pairs that have a code now."""
        return self.by_status.get("ok", 0)


def check_finished(embedded: Embedded) -> None:
    """Every shard is in the archive.

    Raises:
        UnfinishedError: some are not.
    """
    if embedded.problems:
        total = len(embedded.problems) + len(embedded.outcomes)
        raise UnfinishedError(
            f"{len(embedded.problems)} of {total} shards could not be embedded ({embedded.problems[0]}); "
            "the others are kept: run the same command again once the cause is mended"
        )


def _total(counts: Iterable[dict[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for count in counts:
        total.update(count)
    return dict(total)
