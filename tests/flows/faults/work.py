"""What is disturbed: commands on archives in a bucket, behind the proxy, and how they ended."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from lsap_archive import Store, open_archive
from tests.flows.faults.fault_proxy import FaultProxy, StoreRequest
from tests.flows.faults.kill_points import KillPoint, Trap, draw, draw_in_shards
from tests.flows.faults.machines import MortalServer
from tests.flows.faults.outcome import NOT_OURS, FaultOutcome, Finished, Values, outcome_of, read_again

FLOW, WORKER = "FLOWPROCESS", "WORKERPROCESS"  # access keys, by which the proxy tells them apart
PATIENCE_SECONDS = 180.0
METHOD = "lsap_e"
WORKERS = {"count": 1, "threads": 1, "device": "cpu"}
INTERRUPTED = "lsap: interrupted; the same command goes on where this one stopped"
REQUESTS = {
    "invert": {"methods": [METHOD], "shard_rows": 4, "report_images": 0, "anchor": {"num_samples": 500}},
    "edit": {"methods": [METHOD], "edits": {"slant": {"direction": "slant", "strength": 1.0}}, "keep_images": True},
    "refine": {
        "methods": [METHOD],
        "refiners": ["pti"],
        "refiner_settings": {"pti": {"num_steps": 4, "stop_at_lpips": None}},
        "report_images": 0,
    },
    "evaluate": {"methods": [METHOD], "frechet": "digits-judge"},
}


class Commands:
    """The commands of a test, and how they ended."""

    def __init__(self) -> None:
        self._all: list[Any] = []
        self._killed: set[int] = set()
        self._num_hangs = 0

    def add(self, command: Any) -> Any:
        """Know of a command."""
        self._all.append(command)
        return command

    def signal(self, command: Any, by: signal.Signals) -> None:
        """Send a signal; kill -9 is an end of which the command is not to blame."""
        if by is signal.SIGKILL:
            self._killed.add(command.pid)
        os.kill(command.pid, by)

    def ended(self, command: Any, patience_seconds: float = PATIENCE_SECONDS) -> Any:
        """A command that has ended, by itself or because nobody waits for it any longer."""
        command.process.join(patience_seconds)
        if command.process.exitcode is None:
            self._num_hangs += 1
            self._killed.add(command.pid)
            command.kill()
        return command.wait()

    def ends(self) -> dict[str, int]:
        """Hangs, stacks shown and exit codes beyond 2, of those that have ended since this was asked last."""
        ended = [command for command in self._all if command.has_ended]
        shown = [command.text("err") + command.text("out") for command in ended]
        told = {
            "hangs": self._num_hangs,
            "tracebacks": sum(any(words in text for words in NOT_OURS) for text in shown),
            "codes": sum(one.process.exitcode not in (0, 1, 2) and one.pid not in self._killed for one in ended),
        }
        self._all = [command for command in self._all if command not in ended]
        self._num_hangs = 0
        return told

    def end(self) -> None:
        """End those that are still there."""
        for command in self._all:
            if not command.has_ended:
                command.kill()


@dataclass(frozen=True)
class Undisturbed:
    """What an archive shows after a command that nobody disturbed, and what the store was asked on the way.

    Attributes:
        verb: of the command.
        values: that the archive shows.
        requests: of the command.
        archive: the bucket and the archive's name.
        members: key of a shard's commit -> keys of the source images of which it is.
        base: what was there before the command.
    """

    verb: str
    values: Values
    requests: list[StoreRequest]
    archive: str
    members: Mapping[str, set[str]]
    base: str | None


@dataclass(frozen=True)
class Bench:
    """Commands that work on `source`, through the proxy; archives are read past it."""

    lsap: Any
    proxy: FaultProxy
    source: str
    files: Any
    folder: Path
    commands: Commands = field(repr=False)

    @property
    def options(self) -> dict[str, Any]:
        """Of stores that are asked past the proxy."""
        own: dict[str, Any] = {**self.files.storage_options}
        own.pop("use_listings_cache")
        return own

    def of(self, commands: Commands) -> Bench:
        """The same for the commands of one test."""
        return replace(self, commands=commands)

    def against(self, server: MortalServer, **variables: str) -> Bench:
        """The same commands, reporting to another Prefect server."""
        return self.with_variables(PREFECT_API_URL=server.url, **variables)

    def with_variables(self, **variables: str) -> Bench:
        """The same commands, with further variables."""
        return replace(self, lsap=self.lsap.with_variables(**variables))

    def start(self, verb: str, archive: str, **fields: Any) -> Any:
        """Begin a command, with further fields; `__` stands for a dot."""
        path = self.folder / f"{verb}.yaml"
        if not path.exists():
            path.write_text(yaml.safe_dump({"domain": "digits", "batch_size": 4, "workers": WORKERS, **REQUESTS[verb]}))
        wanted = {"archive": archive, **({} if verb == "edit" else {"source": self.source}), **fields}
        changes = [f"{name.replace('__', '.')}={value}" for name, value in wanted.items()]
        return self.commands.add(
            self.lsap.start("run", verb, str(path), "--json", *(x for c in changes for x in ("--set", c)))
        )

    def invert(self, archive: str, **fields: Any) -> Any:
        """Begin to invert."""
        return self.start("invert", archive, **fields)

    def copy(self, archive: str, url: str) -> None:
        """An archive once more, without reports."""
        for name in self.files.find(archive):
            self.files.cp_file(name, name.replace(archive, url.removeprefix("s3://"), 1))

    def store(self, archive: str) -> Store:
        return Store.from_url(archive, self.options if "://" in archive else {})

    def values(self, archive: str) -> Values:
        return Values.of(open_archive(archive, storage_options=self.options if "://" in archive else {}))

    def finished_shards(self, archive: str) -> Finished:
        return Finished(self.store(archive), len(self.proxy.log))

    def undisturbed(self, verb: str, base: Undisturbed | None = None) -> Undisturbed:
        """Run a command and leave it alone."""
        url = f"s3://lsap/faults/undisturbed-{verb}"
        if base is not None:
            self.copy(base.archive, url)
        start = len(self.proxy.log)
        finished = self.start(verb, url).wait(90)
        assert finished.code == 0, finished.err
        requests = self.proxy.log[start:]
        archive = open_archive(url, storage_options=self.options)
        members: dict[str, set[str]] = {}
        sources = {
            (row["run_id"], row["row"]): row["uri"].removeprefix("s3://")
            for row in archive.rows(history=True).to_pylist()
        }
        if verb in ("invert", "refine"):
            for row in archive.rows(history=True).to_pylist():
                if verb == "refine" and row["subject_run_id"] is None:  # it was there before
                    continue
                marker = f"runs/{row['run_id']}/_commit/{row['shard']:05d}.json"
                members.setdefault(marker, set()).add(sources[row["run_id"], row["row"]])
        elif verb == "evaluate":
            for row in archive.measurements().to_pylist():
                marker = f"evaluations/{row['evaluation_id']}/shards/{row['shard']:05d}.parquet"
                members.setdefault(marker, set()).add(sources[row["run_id"], row["row"]])
        return Undisturbed(
            verb, Values.of(archive), requests, url.removeprefix("s3://"), members, base.archive if base else None
        )

    def outcome(
        self,
        fault: str,
        points: int,
        archive: str,
        undisturbed: Undisturbed,
        recomputed: int,
        **more: Any,
    ) -> FaultOutcome:
        """What a fault has cost: an archive, and how the commands since the last outcome have ended."""
        options = self.options if "://" in archive else {}
        ends = self.commands.ends()
        return outcome_of(fault, points, archive, options, undisturbed.values, recomputed, ends=ends, **more)


@dataclass(frozen=True)
class Work:
    """One kind of command, each time on a fresh archive."""

    bench: Bench
    undisturbed: Undisturbed

    @property
    def verb(self) -> str:
        return self.undisturbed.verb

    def archive(self, name: str) -> str:
        """URL of an archive that the command begins with."""
        url = f"s3://lsap/faults/{self.verb}-{name}"
        if self.undisturbed.base is not None:
            self.bench.copy(self.undisturbed.base, url)
        return url

    def start(self, url: str, **fields: Any) -> Any:
        """Begin a command."""
        return self.bench.start(self.verb, url, **fields)

    def draw(self, count: int, chosen: Any) -> list[KillPoint]:
        """Moments of the command and of its workers."""
        return draw(self.undisturbed.requests, self.undisturbed.archive, count, chosen)

    def draw_in_shards(self, count: int, chosen: Any) -> list[KillPoint]:
        """Moments of workers, each in another shard."""
        requests = [request for request in self.undisturbed.requests if request.client == WORKER]
        return draw_in_shards(requests, self.undisturbed.archive, self.undisturbed.members, count, chosen)

    def finish(self, url: str) -> Any:
        """The same command, to its end."""
        finished = self.bench.commands.ended(self.start(url))
        assert finished.code == 0, finished.err
        return finished

    def read_again(self, start: int, url: str) -> int:
        """Images that workers read since a number of the log though their shard was committed."""
        return read_again(self.bench.proxy.log[start:], WORKER, url, self.undisturbed.members)

    def outcome(self, fault: str, points: int, url: str, recomputed: int, **more: Any) -> FaultOutcome:
        return self.bench.outcome(fault, points, url, self.undisturbed, recomputed, **more)

    def stopped_again_and_again(
        self, url: str, points: list[KillPoint], by: signal.Signals
    ) -> tuple[list[KillPoint], list[Any], int]:
        """End a command at each of the points that it comes to, go on with the same command, and let the last finish.

        Returns:
            The points that were reached, how each of these commands ended, and what was computed twice.
        """
        log = self.bench.proxy.log
        start = len(log)
        reached: list[KillPoint] = []
        ended = []
        finished_before = []
        for point in points:
            command = self.start(url)
            trap = Trap(
                [point],
                url,
                lambda _, command=command: self.bench.commands.signal(command, by),
                is_deadly=by is signal.SIGKILL,
            )
            with self.bench.proxy.watched(trap):
                finished = self.bench.commands.ended(command)
            if not trap.sprung:  # what it should have died of was done before
                assert finished.code == 0, finished.err
                break
            reached.append(point)
            ended.append(finished)
            finished_before.append(self.bench.finished_shards(url))
        else:
            finished = self.finish(url)
            told = json.loads(finished.out)
            if self.verb == "invert" and finished_before:
                assert told["embedded"] <= len(self.undisturbed.values.rows) - finished_before[-1].num_images
        again = sum(one.recomputed(self.bench.store(url), log) for one in finished_before)
        return reached, ended, again + self.read_again(start, url)

    def finished_under(
        self, trap: Trap, url: str, meanwhile: Callable[[], None] = lambda: time.sleep(0.1), **fields: Any
    ) -> tuple[Any, int]:
        """A command with two workers during which a trap does things to others; what was computed twice."""
        start = len(self.bench.proxy.log)
        command = self.start(url, **{"workers.count": 2, **fields})
        deadline = time.monotonic() + PATIENCE_SECONDS
        with self.bench.proxy.watched(trap):
            while not command.has_ended and time.monotonic() < deadline:
                meanwhile()
        finished = self.bench.commands.ended(command, max(deadline - time.monotonic(), 0.1))
        return finished, self.read_again(start, url)
