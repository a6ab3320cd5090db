"""Moments at which a process is killed: requests to the store, drawn from those of an undisturbed run."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from tests.flows.faults.fault_proxy import StoreRequest


@dataclass(frozen=True)
class KillPoint:
    """The first request of this kind about this object.

    Attributes:
        client: who asks.
        verb: what for.
        key: below the bucket, without the archive's name and the names of attempts.
        moment: "before" the store sees it, or "after" the store has done it.
    """

    client: str
    verb: str
    key: str
    moment: str

    @property
    def kind(self) -> str:
        """What it has in common with the same request about another object."""
        return f"{self.client} {self.verb} {re.sub('[0-9]+', 'N', self.key)}"


def point_at(request: StoreRequest, moment: str, archive: str) -> KillPoint:
    """The point that a request to an archive is, whichever archive it is."""
    key = re.sub(r"(_staging/[0-9]+)/[^/]+", r"\1/attempt", request.key.replace(archive, "archive"))
    return KillPoint(request.client, request.verb, key, moment)


def draw(requests: Iterable[StoreRequest], archive: str, count: int, seed: int) -> list[KillPoint]:
    """Points of as many different kinds, in the order in which an undisturbed run comes to them."""
    chosen = random.Random(seed)
    points = list(dict.fromkeys(point_at(request, "before", archive) for request in requests))
    kinds: dict[str, list[KillPoint]] = {}
    for point in points:
        kinds.setdefault(point.kind, []).append(point)
    assert len(kinds) >= count, f"{len(kinds)} kinds of requests, {count} are wanted"
    drawn = [chosen.choice(kinds[kind]) for kind in chosen.sample(sorted(kinds), count)]
    ordered = sorted(drawn, key=points.index)
    return [KillPoint(one.client, one.verb, one.key, chosen.choice(("before", "after"))) for one in ordered]


class Trap:
    """Watches a proxy and kills, once for each of its points.

    Attributes:
        left: points that have not come yet.
        sprung: points that have.
    """

    def __init__(
        self, points: Iterable[KillPoint], url: str, kill: Callable[[StoreRequest], None], *, is_deadly: bool = True
    ) -> None:
        """Begin to wait.

        Args:
            points: where to kill.
            url: the archive.
            kill: kills; told of the request.
            is_deadly: whether who asks is killed by it, so that nobody waits for the answer any more.
        """
        self.left = set(points)
        self.sprung: list[KillPoint] = []
        self._archive = url.removeprefix("s3://")
        self._kill = kill
        self._is_deadly = is_deadly

    def __call__(self, request: StoreRequest, moment: str) -> bool:
        point = point_at(request, moment, self._archive)
        if point not in self.left:
            return False
        self.left.discard(point)
        self._kill(request)
        self.sprung.append(point)
        return self._is_deadly
