"""What a fault has cost, counted from outside: by what an archive shows and by what its store was asked."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from lsap_archive import Archive, Store, open_archive, verify_archive
from tests.flows.faults.fault_proxy import StoreRequest

METRICS = ("mse", "lpips", "lpips_judge", "identity_similarity", "sncd", "w_distance")
UNCOUNTED = ("fault", "points", "times", "values")  # of an outcome; all others should be 0
NOT_OURS = ("Traceback (most recent call last)", "*** SIG", "Fatal Python error")
Pair = tuple[str, str]  # method and image, or what was measured of it


@dataclass(frozen=True)
class FaultOutcome:
    """One line of the fault table.

    Attributes:
        fault: what was done.
        points: moments that were drawn, each by itself.
        times: how often it was done; more than the points where one draw decides about many requests.
        values: pairs of method and image that an undisturbed run has; of evaluations, its measurements.
        lost: of these, not shown by the archive.
        duplicated: shown more than once, or shown though there is no such image.
        different: with another code, noise, image or number than in the undisturbed run.
        recomputed: made again though their shard was committed.
        hangs: commands that did not end.
        tracebacks: commands that showed a stack of calls.
        codes: commands that ended with another exit code than 0, 1 or 2.
    """

    fault: str
    points: int
    times: int
    values: int
    lost: int
    duplicated: int
    different: int
    recomputed: int
    hangs: int
    tracebacks: int
    codes: int

    @classmethod
    def total(cls, outcomes: Sequence[FaultOutcome]) -> FaultOutcome:
        """The same fault on several archives as one line."""
        counts = {name: sum(getattr(one, name) for one in outcomes) for name in vars(outcomes[0]) if name != "fault"}
        return cls(outcomes[0].fault, **counts)

    def check(self) -> None:
        """It cost nothing."""
        costs = {name: count for name, count in asdict(self).items() if name not in UNCOUNTED}
        assert not any(costs.values()), f"{self.fault}: {asdict(self)}"


def table(outcomes: Iterable[FaultOutcome]) -> list[str]:
    """The fault table in Markdown, with a last line of sums."""
    by_fault: defaultdict[str, list[FaultOutcome]] = defaultdict(list)
    for one in outcomes:
        by_fault[one.fault].append(one)
    lines = [asdict(FaultOutcome.total(of_fault)) for of_fault in by_fault.values()]
    lines.append({name: "all" if name == "fault" else sum(line[name] for line in lines) for name in lines[0]})
    names = [field.name for field in fields(FaultOutcome)]
    shown = ["| " + " | ".join(names) + " |", "| --- |" + " ---: |" * (len(names) - 1)]
    return shown + ["| " + " | ".join(str(line[name]) for name in names) + " |" for line in lines]


@dataclass(frozen=True)
class Values:
    """Everything that an archive shows, by method and image or measurement.

    Attributes:
        counts: how often each is shown.
        rows: rows, measurements and numbers of whole sets, as text with every digit.
        codes: codes, noise and kept images of the good ones.
    """

    counts: Counter[Pair]
    rows: Mapping[Pair, str]
    codes: Mapping[Pair, bytes]

    @classmethod
    def of(cls, archive: Archive) -> Values:
        rows = archive.rows(["method", "image_id", "status", *METRICS], history=True).to_pylist()
        pairs = [(row["method"], row["image_id"]) for row in rows]
        status = {pair: row["status"] for pair, row in zip(pairs, rows, strict=True)}
        shown = {pair: repr(row) for pair, row in zip(pairs, rows, strict=True)}
        codes: dict[Pair, bytes] = {}
        for method in {method for method, _ in shown}:
            ids = sorted(name for own, name in shown if own == method and status[own, name] == "ok")
            parts = [[code.tobytes() for code in archive.codes(ids, method)]]
            if method in archive.edits:
                parts.append(archive.images(ids, method))
            elif "/" in method:  # a refinement
                parts += [[one.tobytes() for one in kept] for kept in archive.refined(ids, method).values()]
            elif any(run.method == method and "noise" not in run.config for run in archive.runs):
                parts += [[one.tobytes() for one in maps] for maps in archive.noise(ids, method)]
            codes |= {(method, name): b"".join(part[i] for part in parts) for i, name in enumerate(ids)}
        for row in archive.measurements().to_pylist():
            pair = (row["method"], f"{row['image_id']} {row['measure']} {row['by']}")
            pairs.append(pair)
            shown[pair] = repr((row["value"], row["problem"]))
        for info in archive.evaluations:
            pairs.append((info.method, f"summary of {info.evaluation_id}"))
            shown[pairs[-1]] = json.dumps(info.summary, sort_keys=True)
        return cls(Counter(pairs), shown, codes)

    def differing(self, other: Values) -> list[Pair]:
        """Pairs of both whose values are not the same bits."""
        both = self.rows.keys() & other.rows.keys()
        return sorted(
            pair
            for pair in both
            if self.rows[pair] != other.rows[pair] or self.codes.get(pair) != other.codes.get(pair)
        )


COMMITTED = re.compile(r"runs/[^/]+/_commit/\d+\.json|evaluations/[^/]+/shards/\d+\.parquet")


class Finished:
    """The shards of an archive that are committed at a moment, to see later that nobody computed them again."""

    def __init__(self, store: Store, number: int) -> None:
        self._number = number
        keys = [*store.sizes("runs"), *store.sizes("evaluations")]
        self._markers = {key: store.get(key) for key in keys if COMMITTED.fullmatch(key)}

    def __len__(self) -> int:
        return len(self._markers)

    @property
    def num_images(self) -> int:
        """Good images of these shards of runs."""
        runs = [data for key, data in self._markers.items() if key.endswith(".json")]
        return sum(json.loads(data)["rows_by_status"]["ok"] for data in runs)

    def recomputed(self, store: Store, log: list[StoreRequest]) -> int:
        """Shards with another marker than then, or written by anybody who began later."""
        began: dict[str, int] = {}  # an attempt, or the file of a shard that has no attempts, by its first request
        archive = store.url.partition("://")[2]
        for number, request in enumerate(log):
            key = request.key.removeprefix(f"{archive}/")
            found = re.match(r"runs/[^/]+/_staging/\d+/[^/]+(?=/)|evaluations/[^/]+/shards/\d+\.parquet", key)
            if found and request.verb == "PUT":
                began.setdefault(found[0], number)
        again = {name for name, number in began.items() if number >= self._number}
        shards = {re.sub(r"(runs/[^/]+)/_commit/(\d+)\.json", r"\1/_staging/\2/", key) for key in self._markers}
        written = {shard for shard in shards if any(name.startswith(shard) for name in again)}
        changed = [key for key, data in self._markers.items() if store.get(key) != data]
        return len(written) + len(changed)


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
    times: int | None = None,
    may_say: Sequence[str] = (),
    ends: Mapping[str, int],
) -> FaultOutcome:
    """Count what an archive shows against an undisturbed one; it is sound, and nothing unfinished is left in it.

    Args:
        fault: what was done.
        points: moments that were drawn.
        url: the archive.
        options: of its store.
        undisturbed: what it should show.
        recomputed: counted by the test.
        times: how often it was done; once for each point by default.
        may_say: words of lines that `verify` may add about an archive that is sound.
        ends: of the commands: hangs, tracebacks, codes.
    """
    report = verify_archive(url, storage_options=options)
    assert report.problems == [], [str(problem) for problem in report.problems]
    said = [line for line in report.information if not any(word in line for word in may_say)]
    assert said == [], said
    found = Values.of(open_archive(url, storage_options=options))
    return FaultOutcome(
        fault=fault,
        points=points,
        times=points if times is None else times,
        values=len(undisturbed.rows),
        lost=len(undisturbed.rows.keys() - found.rows.keys()),
        duplicated=sum(count > 1 or pair not in undisturbed.rows for pair, count in found.counts.items()),
        different=len(found.differing(undisturbed)),
        recomputed=recomputed,
        **ends,
    )
