"""What a fault has cost, counted from outside: by what an archive shows and by what its store was asked."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from lsap_archive import Archive, Store, open_archive, verify_archive
from tests.flows.faults.fault_proxy import StoreRequest

METRICS = ("mse", "lpips", "lpips_judge", "identity_similarity", "sncd", "w_distance")
Pair = tuple[str, str]  # method and image


@dataclass(frozen=True)
class FaultOutcome:
    """One line of the fault table.

    Attributes:
        fault: what was done.
        points: at how many moments, or to how many requests.
        images: image-method pairs that an undisturbed run has.
        lost: of these, not shown by the archive.
        duplicated: shown more than once, or shown though there is no such image.
        different: with another code, noise or metric than in the undisturbed run.
        recomputed: embedded again though their shard was committed.
    """

    fault: str
    points: int
    images: int
    lost: int
    duplicated: int
    different: int
    recomputed: int

    @classmethod
    def total(cls, outcomes: Sequence[FaultOutcome]) -> FaultOutcome:
        """The same fault on several archives as one line."""
        counts = {name: sum(getattr(one, name) for one in outcomes) for name in vars(outcomes[0]) if name != "fault"}
        return cls(outcomes[0].fault, **counts)

    def check(self) -> None:
        """It cost nothing."""
        costs = {name: getattr(self, name) for name in ("lost", "duplicated", "different", "recomputed")}
        assert not any(costs.values()), f"{self.fault}: {asdict(self)}"


def table(outcomes: Iterable[FaultOutcome]) -> list[str]:
    """The fault table in Markdown."""
    names = [field.name for field in fields(FaultOutcome)]
    lines = ["| " + " | ".join(names) + " |", "| --- |" + " ---: |" * (len(names) - 1)]
    return lines + ["| " + " | ".join(str(getattr(one, name)) for name in names) + " |" for one in outcomes]


@dataclass(frozen=True)
class Values:
    """Everything that an archive shows, by method and image."""

    counts: Counter[Pair]
    rows: Mapping[Pair, tuple[Any, ...]]
    codes: Mapping[Pair, bytes]

    @classmethod
    def of(cls, archive: Archive) -> Values:
        """Rows of every method, and codes and noise of the good ones, as bytes."""
        rows = archive.rows(["method", "image_id", "status", *METRICS]).to_pylist()
        pairs = [(row["method"], row["image_id"]) for row in rows]
        shown = {pair: (row["status"], *(row[name] for name in METRICS)) for pair, row in zip(pairs, rows, strict=True)}
        codes: dict[Pair, bytes] = {}
        for method in {method for method, _ in shown}:
            ids = sorted(name for own, name in shown if own == method and shown[own, name][0] == "ok")
            arrays = [archive.codes(ids, method)]
            if any(run.method == method and "noise" not in run.config for run in archive.runs):
                arrays += archive.noise(ids, method)
            codes |= {(method, name): b"".join(a[i].tobytes() for a in arrays) for i, name in enumerate(ids)}
        return cls(Counter(pairs), shown, codes)

    def differing(self, other: Values) -> list[Pair]:
        """Pairs of both whose values are not the same bits."""
        both = self.rows.keys() & other.rows.keys()
        return sorted(
            pair
            for pair in both
            if not np.array_equal(self.rows[pair][1:], other.rows[pair][1:])
            or self.rows[pair][0] != other.rows[pair][0]
            or self.codes.get(pair) != other.codes.get(pair)
        )


class Finished:
    """The shards of an archive that are committed at a moment, to see later that nobody computed them again."""

    def __init__(self, store: Store, number: int) -> None:
        self._number = number
        self._markers = {key: store.get(key) for key in store.sizes("runs") if "/_commit/" in key}

    def __len__(self) -> int:
        return len(self._markers)

    @property
    def num_images(self) -> int:
        """Good images of these shards."""
        return sum(json.loads(data)["rows_by_status"]["ok"] for data in self._markers.values())

    def recomputed(self, store: Store, log: list[StoreRequest]) -> int:
        """Shards with another marker than then, or staged by anybody who came later."""
        shards = {re.sub(r"(runs/[^/]+)/_commit/(\d+)\.json", r"\1/_staging/\2/", key) for key in self._markers}
        began: dict[str, int] = {}
        for number, request in enumerate(log):
            found = re.search(r"(runs/[^/]+/_staging/\d+/[^/]+)/", request.key)
            if found and request.verb == "PUT":
                began.setdefault(found[1], number)
        again = {name for name, number in began.items() if number >= self._number}
        staged = {shard for shard in shards if any(name.startswith(shard) for name in again)}
        changed = [key for key, data in self._markers.items() if store.get(key) != data]
        return len(staged) + len(changed)


def read_again(log: Iterable[StoreRequest], worker: str, url: str, members: Mapping[str, set[str]]) -> int:
    """Images that a worker read from the source though the shard that they belong to was committed.

    Args:
        log: requests in order.
        worker: the workers' access key.
        url: the archive.
        members: marker key below the archive -> keys of the source images of its shard.
    """
    archive = url.removeprefix("s3://")
    open_shards: dict[str, set[str]] = defaultdict(set)
    for marker, images in members.items():
        for image in images:
            open_shards[image].add(marker)
    again = 0
    for request in log:
        marker = request.key.removeprefix(f"{archive}/")
        if request.verb == "PUT" and marker in members:
            for image in members[marker]:
                open_shards[image].discard(marker)
        elif request.verb == "GET" and request.client == worker and request.key in open_shards:
            again += not open_shards[request.key]
    return again


def outcome_of(
    fault: str,
    points: int,
    url: str,
    options: Mapping[str, Any],
    undisturbed: Values,
    recomputed: int,
    *,
    has_retired: bool = False,
) -> FaultOutcome:
    """Count what an archive shows against an undisturbed one; it is sound, and no run is left unfinished in it."""
    report = verify_archive(url, storage_options=options)
    assert report.problems == [], [str(problem) for problem in report.problems]
    # What a command leaves that is killed right after its manifest; no reader sees it, `lsap archive repair` mends it.
    known = ["_staging/", "has no copy"] + (["retired"] if has_retired else [])
    said = [line for line in report.information if not any(word in line for word in known)]
    assert said == [], said
    found = Values.of(open_archive(url, storage_options=options))
    return FaultOutcome(
        fault=fault,
        points=points,
        images=len(undisturbed.rows),
        lost=len(undisturbed.rows.keys() - found.rows.keys()),
        duplicated=sum(count > 1 or pair not in undisturbed.rows for pair, count in found.counts.items()),
        different=len(found.differing(undisturbed)),
        recomputed=recomputed,
    )
