"""What a look through an archive found."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        key: the object, relative to the archive.
        found: what is there.
        wanted: what should be.
        is_damage: whether the object is missing, altered or unreadable, so that repair restores or retires it; else
            sound objects contradict each other.
        is_twice: whether it is an image that an older run has with the same content, which repair lets count once.
    """

    key: str
    found: str
    wanted: str
    is_damage: bool = True
    is_twice: bool = False

    def __str__(self) -> str:
        return f"{self.key}: found {self.found}, wanted {self.wanted}"


@dataclass
class VerifyReport:
    """What verify_archive found.

    Attributes:
        url: the archive.
        counts: number of published_runs, unfinished_runs, retired_runs, retired_shards, objects, bytes, rows, rows by
            status, evaluations, retired_evaluations, and measurements. What is retired counts nowhere else.
        problems: what is wrong; empty if the archive is sound.
        information: what is unusual and harmless: unfinished runs, retired shards, orphaned staging, objects nobody
            names.
    """

    url: str
    counts: dict[str, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    information: list[str] = field(default_factory=list)

    @property
    def is_sound(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON values."""
        return {
            "url": self.url,
            "is_sound": self.is_sound,
            "counts": dict(self.counts),
            "problems": [vars(problem) for problem in self.problems],
            "information": list(self.information),
        }

    def count(self, name: str, number: int = 1) -> None:
        """Add to a count."""
        self.counts[name] = self.counts.get(name, 0) + number

    def note(self, key: str, found: str, wanted: str, *, is_damage: bool = True, is_twice: bool = False) -> None:
        """Add a problem."""
        self.problems.append(Problem(key, found, wanted, is_damage, is_twice))
