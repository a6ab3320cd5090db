"""Moments at which something is done to a process: requests to the store, drawn from those of an undisturbed run."""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from tests.flows.faults.fault_proxy import StoreRequest

MOMENTS = ("before", "after")
OF_A_SHARD = re.compile(r"(?:/_staging/|/_commit/|/rows/shard-|/w_plus/c/|/shards/|/states/)0*(\d+)")


@dataclass(frozen=True)
class KillPoint:
    """The first request of this kind about this object.

    Attributes:
        client: who asks.
        verb: what for.
        key: below the bucket, without the archive's name, those of attempts and that of what is written as a trial.
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
    key = re.sub(r"^archive/writable-[0-9a-f]+$", "archive/writable-probe", key)
    return KillPoint(request.client, request.verb, key, moment)


def draw(requests: Iterable[StoreRequest], archive: str, count: int, chosen: random.Random) -> list[KillPoint]:
    """Points of as many different kinds, in the order in which an undisturbed run comes to them."""
    points = list(dict.fromkeys(point_at(request, "before", archive) for request in requests))
    kinds: dict[str, list[KillPoint]] = {}
    for point in points:
        kinds.setdefault(point.kind, []).append(point)
    assert len(kinds) >= count, f"{len(kinds)} kinds of requests, {count} are wanted"
    drawn = [chosen.choice(kinds[kind]) for kind in chosen.sample(sorted(kinds), count)]
    return [replace(point, moment=chosen.choice(MOMENTS)) for point in sorted(drawn, key=points.index)]


def draw_in_shards(
    requests: Iterable[StoreRequest],
    archive: str,
    members: Mapping[str, set[str]],
    count: int,
    chosen: random.Random,
) -> list[KillPoint]:
    """A request of each of some shards, of different kinds where there are enough: reading, staging, committing, ...

    Args:
        requests: of workers.
        archive: to which.
        members: keys of the source images that belong to a shard, by a key that has the shard's number.
        count: how many shards.
        chosen: draws.
    """
    shard_of = {image: number_of(key) for key, images in members.items() for image in images}
    by_shard: defaultdict[int, dict[str, list[KillPoint]]] = defaultdict(dict)
    for request in requests:
        shard = shard_of.get(request.key, number_of(f"/{request.key}"))
        if shard is not None:
            point = point_at(request, "before", archive)
            by_shard[shard].setdefault(f"{point.verb} {re.sub('[0-9]+', 'N', point.key)}", []).append(point)
    points, taken = [], set()
    for shard in chosen.sample(sorted(by_shard), count):
        kinds = by_shard[shard]
        kind = chosen.choice(sorted(kinds.keys() - taken) or sorted(kinds))
        taken.add(kind)
        points.append(replace(chosen.choice(kinds[kind]), moment=chosen.choice(MOMENTS)))
    return points


def number_of(key: str) -> int | None:
    """The shard that a key belongs to."""
    found = OF_A_SHARD.search(key)
    return int(found[1]) if found else None


class Trap:
    """Watches a proxy and does something, once for each of its points.

    Attributes:
        left: points that have not come yet.
        sprung: points that have.
    """

    def __init__(
        self, points: Iterable[KillPoint], url: str, do: Callable[[StoreRequest], None], *, is_deadly: bool = True
    ) -> None:
        """Begin to wait.

        Args:
            points: when to do it.
            url: the archive.
            do: does it; told of the request.
            is_deadly: whether who asks is killed by it, so that nobody waits for the answer any more.
        """
        self.left = set(points)
        self.sprung: list[KillPoint] = []
        self._archive = url.removeprefix("s3://")
        self._do = do
        self._is_deadly = is_deadly

    def __call__(self, request: StoreRequest, moment: str) -> bool:
        point = point_at(request, moment, self._archive)
        if point not in self.left:
            return False
        self.left.discard(point)
        self._do(request)
        self.sprung.append(point)
        return self._is_deadly


class Gate:
    """Holds the first request at a point until something has come, of whichever run; others pass meanwhile.

    Attributes:
        has_held: whether the request has come.
    """

    def __init__(self, point: KillPoint, url: str, has_come: Callable[[], bool]) -> None:
        self.has_held = False
        self._point = self._of_any_run(replace(point, moment="before"))
        self._archive = url.removeprefix("s3://")
        self._has_come = has_come

    def __call__(self, request: StoreRequest) -> Callable[[], bool] | None:
        point = point_at(request, "before", self._archive)
        if self.has_held or self._of_any_run(point) != self._point:
            return None
        self.has_held = True
        return self._has_come

    @staticmethod
    def _of_any_run(point: KillPoint) -> KillPoint:
        return replace(point, key=re.sub(r"(/runs)/[^/]+/", r"\1/run/", point.key))
