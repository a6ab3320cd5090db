"""What a run did, in numbers, and when that counts as a failure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tasks.inversion.worker import ShardOutcome


class TooManyFailuresError(RuntimeError):
    """The share of images that could not be inverted is above the run's limit."""


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


@dataclass(frozen=True)
class RunReport:
    """What a run did, in numbers.

    Attributes:
        archive: URL of the archive.
        report: URL of the HTML report.
        num_images: images in the source.
        embedded: image-method pairs embedded by this command.
        by_status: image-method pairs of this command by status.
        by_reason: failed ones by reason.
        seconds: wall time of this command.
        images_per_second: image-method pairs embedded per second of embedding.
        table: the comparison table, Markdown.
    """

    archive: str
    report: str
    num_images: int
    embedded: int
    by_status: dict[str, int]
    by_reason: dict[str, int]
    seconds: float
    images_per_second: float
    table: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    @property
    def outcome(self) -> str:
        """What this command did, in a few words."""
        counts = ", ".join(f"{count} {status}" for status, count in sorted(self.by_status.items()))
        return f"{self.num_images} images; this command: {counts or 'nothing was left to do'}"

    def summary(self) -> str:
        """For people."""
        lines = [self.table, "", self.outcome]
        lines += [f"  failed: {count} {reason}" for reason, count in sorted(self.by_reason.items())]
        if self.embedded:
            lines.append(f"{self.images_per_second:.2f} image-method pairs per second, {self.seconds:.0f} s in all")
        lines += [f"archive: {self.archive}", f"report:  {self.report}"]
        return "\n".join(lines)


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


def check_failures(result: RunReport, limit: float) -> None:
    """Not more images failed than the run allows.

    Raises:
        TooManyFailuresError: more did.
    """
    failed = result.by_status.get("failed", 0)
    total = sum(result.by_status.values())
    if total and failed / total > limit:
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(result.by_reason.items()))
        raise TooManyFailuresError(
            f"{failed} of {total} images failed ({reasons}), above the limit of {limit:.0%}; everything else is in "
            f"{result.archive}, see {result.report}: mend the images or raise max_failed_share"
        )


def _total(counts: Iterable[dict[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for count in counts:
        total.update(count)
    return dict(total)
