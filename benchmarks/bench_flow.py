"""What Prefect, Ray and storage cost over the bare optimization loop.

Both sides embed the same digits with the same settings, batch size and number of processes, and take turns every few
seconds: while one works, every process of the other is stopped (SIGSTOP), the S3 server among them. So what else a
shared machine does meets both alike, and neither side slows the other down.

- *bare*: processes that call `OptimizationEmbedder` batch after batch; codes and noise stay in memory.
- *flow*: `lsap run invert` as it is, in a process of its own, with a Prefect server, a Ray and an archive of its own:
  images are read and digested, embedded, measured, written, published and shown in a report.

Seconds of the flow are those in which it was not stopped. A command has a fixed part (before the first worker begins
its first shard, after the last one has ended its last, and what a worker's first shard takes longer than its others:
the bare processes are warm) and a steady one, which is compared with the bare side shard by shard.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import math
import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil
import torch
from measurement import environment
from s3_server import opened_s3_server

from domains.domain import load_domain
from flows import invert as invert_module
from flows.parameters.invert import InvertRun
from flows.running.outcome import Worked
from lsap_core.alignment.anchor import estimate_anchor
from lsap_core.images import from_uint8
from lsap_core.inversion import Inversion, OptimizationEmbedder, OptimizationSettings
from tasks.inversion.worker import ShardOutcome
from tasks.pictures.decoding import decode_image
from tasks.settings import Settings
from tasks.sources.source import open_source
from tasks.weights.devices import place
from tasks.weights.generators import load_generator
from tasks.weights.networks import load_networks
from tasks.workers.cluster import worker_environment

METHOD = "lsap_o_w_plus"
MOST_IMAGES = 4000  # of digits:train
PARTS = ("reading", "measuring", "writing")
FIXED = ("start", "warm_up", "end")  # of a command, however long it is
BATCHES_OF_A_TURN = 2


def settings_of(num_steps: int) -> OptimizationSettings:
    """The domain's settings of the method, with another length."""
    settings = load_domain("digits").method(METHOD, {}, shared={"num_steps": num_steps}).settings
    assert isinstance(settings, OptimizationSettings)
    return settings


# --- the bare side ------------------------------------------------------------------------------------


class BareWorker:
    """Networks and images, loaded once; results are kept for one pass over the images."""

    def __init__(self, num_steps: int) -> None:
        torch.set_num_threads(1)
        domain = load_domain("digits")
        loaded = load_generator(str(domain.generator))
        self.generator = place(loaded.generator, torch.device("cpu")).freeze()  # type: ignore[operator]
        choice = InvertRun(source="digits:test", archive="a", domain="digits").resolve(Settings()).networks
        self.perceptual = load_networks(choice, torch.device("cpu")).perceptual
        self.embedder = OptimizationEmbedder(
            self.generator, estimate_anchor(loaded.generator, num_samples=500), self.perceptual, settings_of(num_steps)
        )
        self.kept: list[Inversion] = []
        config = loaded.config
        with open_source("digits:train") as source:
            data = [source.read(item) for item in source.items()]
        self.pixels = [
            decode_image(one, size=config.content_size, channels=config.image_channels).pixels for one in data
        ]

    def embed(self, start: int, stop: int) -> None:
        """One batch."""
        target = from_uint8(torch.stack([torch.from_numpy(self.pixels[i]) for i in range(start, stop)]).numpy())
        state = self.embedder.start(range(start, stop))
        self.embedder.advance(state, target)
        self.kept.append(self.embedder.finish(state))


_worker: BareWorker | None = None


def start_worker(num_steps: int) -> None:
    """Runs once in every process of the bare side."""
    global _worker
    _worker = BareWorker(num_steps)


def embed_batch(start: int, stop: int) -> float:
    """Seconds of a batch; runs in a process of the bare side."""
    assert _worker is not None
    if start == 0:
        _worker.kept.clear()  # a new pass
    started = time.perf_counter()
    _worker.embed(start, stop)
    return time.perf_counter() - started


class BareSide:
    """The loop in as many processes as the flow has workers."""

    def __init__(self, pool: ProcessPoolExecutor, options: argparse.Namespace) -> None:
        self._pool = pool
        self._batches_of_a_turn = BATCHES_OF_A_TURN * options.workers
        starts = range(0, MOST_IMAGES - options.batch_size + 1, options.batch_size)
        self._batches = itertools.cycle([(start, start + options.batch_size) for start in starts])

    def turn(self) -> float:
        """Mean seconds of a batch of some."""
        batches = itertools.islice(self._batches, self._batches_of_a_turn)
        return statistics.fmean(self._pool.map(embed_batch, *zip(*batches, strict=True)))


@contextlib.contextmanager
def opened_bare_side(options: argparse.Namespace) -> Iterator[BareSide]:
    """Started, and warm."""
    context = get_context("spawn")
    with ProcessPoolExecutor(
        options.workers, mp_context=context, initializer=start_worker, initargs=(options.steps,)
    ) as pool:
        side = BareSide(pool, options)
        side.turn()
        yield side


# --- the flow -----------------------------------------------------------------------------------------


def run_flow(answer: Connection, archive: str, num_images: int, options: argparse.Namespace) -> None:
    """One command on a new archive; runs in a process of its own and answers with what `flow_times` wants."""
    run = InvertRun(
        source=f"digits:train[:{num_images}]",
        archive=archive,
        domain="digits",
        methods=(METHOD,),
        embedding={"num_steps": options.steps},
        anchor={"num_samples": 500},
        shard_rows=options.shard_rows,
        batch_size=options.batch_size,
        workers={"count": options.workers, "device": "cpu"},
    )
    kept: list[Worked] = []
    work_through = invert_module.work_through

    def keep(*arguments: Any, **named: Any) -> Worked:
        kept.append(work_through(*arguments, **named))
        return kept[-1]

    invert_module.work_through = keep
    began, used = time.time(), time.process_time()
    invert_module.invert(run)
    outcomes = kept[0].outcomes
    assert sum(outcome.by_status.get("ok", 0) for outcome in outcomes) == num_images, "images are missing"
    answer.send((began, time.time(), time.process_time() - used, outcomes))


# --- turns --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Turn:
    """A turn of the bare side: from when to when the flow was stopped, and what a batch took meanwhile."""

    began: float
    ended: float
    batch_seconds: float


class ActiveClock:
    """Turns times of day into seconds in which the flow was not stopped."""

    def __init__(self, turns: Sequence[Turn]) -> None:
        self._turns = turns

    def __call__(self, when: float) -> float:
        """Seconds since an arbitrary moment."""
        return when - sum(min(turn.ended, when) - turn.began for turn in self._turns if turn.began < when)


@contextlib.contextmanager
def stopped(roots: Sequence[psutil.Process]) -> Iterator[None]:
    """Stop processes and all that they have started, and let them go on afterwards."""
    held: dict[int, psutil.Process] = {}
    try:
        while new := [process for process in family(roots) if process.pid not in held]:  # until none was overlooked
            for process in new:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.suspend()
                held[process.pid] = process
        yield
    finally:
        for process in held.values():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()


def family(roots: Sequence[psutil.Process]) -> list[psutil.Process]:
    """Processes and all that they have started, parents first."""
    found = []
    for root in roots:
        with contextlib.suppress(psutil.NoSuchProcess):
            found += [root, *root.children(recursive=True)]
    return found


def take_turns(
    bare: BareSide, archive: str, num_images: int, servers: Sequence[int], options: argparse.Namespace
) -> dict[str, Any]:
    """A command that takes turns with the bare side; its times as `flow_times` has them."""
    context = get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    flow = context.Process(target=run_flow, args=(sender, archive, num_images, options))
    flow.start()
    sender.close()  # so that the flow's end is heard of
    roots = [psutil.Process(pid) for pid in (flow.pid, *servers) if pid is not None]
    turns: list[Turn] = []
    turn_seconds = 0.0
    while not receiver.poll(turn_seconds):
        with stopped(roots):
            began = time.time()
            batch_seconds = bare.turn()
            turns.append(Turn(began, time.time(), batch_seconds))
        turn_seconds = turns[-1].ended - began
    try:
        answer = receiver.recv()
    except EOFError:
        raise SystemExit("the flow failed; it says why above") from None
    flow.join()
    return flow_times(*answer, turns=turns, options=options)


def flow_times(
    began: float,
    ended: float,
    processor_seconds: float,
    outcomes: Sequence[ShardOutcome],
    turns: Sequence[Turn],
    options: argparse.Namespace,
) -> dict[str, Any]:
    """Where the seconds of a command went, and what the bare side takes for the same images.

    Args:
        began: when the command began, in seconds since 1970.
        ended: when it ended.
        processor_seconds: of the command's own process.
        outcomes: of its shards.
        turns: of the bare side; the flow was stopped meanwhile.
        options: of the benchmark.
    """
    clock = ActiveClock(turns)
    first, last = min(one.began for one in outcomes), max(end_of(one) for one in outcomes)
    warm_up = warm_up_seconds(outcomes, clock)
    batch_seconds = statistics.fmean(turn.batch_seconds for turn in turns if first <= turn.began < last)
    num_batches = sum(num_images_of(one) for one in outcomes) / options.batch_size
    return {
        "bare_seconds": num_batches / options.workers * batch_seconds,
        "start_seconds": clock(first) - clock(began),
        "warm_up_seconds": warm_up,
        "steady_seconds": clock(last) - clock(first) - warm_up,
        "end_seconds": clock(ended) - clock(last),
        "driver_processor_seconds": processor_seconds,
        "shard_overheads": shard_overheads(outcomes, turns, options.batch_size),
        "shard_times": shard_times(outcomes, clock),
    }


def end_of(outcome: ShardOutcome) -> float:
    """When a shard ended, in seconds since 1970."""
    return outcome.began + outcome.seconds


def num_images_of(outcome: ShardOutcome) -> int:
    """Images of a shard."""
    return sum(outcome.by_status.values())


def by_worker(outcomes: Sequence[ShardOutcome]) -> list[list[ShardOutcome]]:
    """The shards of each worker, in the order of their beginnings."""
    ordered = sorted(outcomes, key=lambda one: (one.worker, one.began))
    return [list(shards) for _, shards in itertools.groupby(ordered, key=lambda one: one.worker)]


def warm_up_seconds(outcomes: Sequence[ShardOutcome], clock: ActiveClock) -> float:
    """What the first shard of a worker takes longer than the median of its others, mean over the workers."""
    excess = []
    for shards in by_worker(outcomes):
        first, *others = [clock(end_of(one)) - clock(one.began) for one in shards]
        excess.append(max(first - statistics.median(others), 0.0) if others else 0.0)
    return statistics.fmean(excess)


def shard_overheads(outcomes: Sequence[ShardOutcome], turns: Sequence[Turn], batch_size: int) -> list[float]:
    """What each shard, with the pause before it, takes longer than its batches on the bare side at that time, in %.

    Without the first shard of each worker.
    """
    clock = ActiveClock(turns)
    overheads = []
    for shards in by_worker(outcomes):
        for before, one in itertools.pairwise(shards):
            began, ended = end_of(before), end_of(one)
            meanwhile = [turn.batch_seconds for turn in turns if turn.began < ended and turn.ended > began]
            if meanwhile:
                bare = num_images_of(one) / batch_size * statistics.fmean(meanwhile)
                overheads.append(100 * ((clock(ended) - clock(began)) / bare - 1))
    return overheads


def shard_times(outcomes: Sequence[ShardOutcome], clock: ActiveClock) -> dict[str, list[float]]:
    """Seconds of every shard by what they were spent on; "between" is a worker's pause before its next shard.

    A turn of the bare side is taken to fall into the embedding, which is nearly always so: of the other parts a few
    are too long by one, and medians tell.
    """
    times: dict[str, list[float]] = {"between": [], "embedding": [], **{part: [] for part in PARTS}, "rest": []}
    for shards in by_worker(outcomes):
        times["between"] += [clock(one.began) - clock(end_of(before)) for before, one in itertools.pairwise(shards)]
        for one in shards:
            when_stopped = one.seconds - (clock(end_of(one)) - clock(one.began))
            times["embedding"].append(one.spent["embedding"] - when_stopped)
            for part in PARTS:
                times[part].append(one.spent[part])
            times["rest"].append(one.seconds - sum(one.spent.values()))
    return times


# --- both ---------------------------------------------------------------------------------------------


def compare(archive: str, servers: Sequence[int], options: argparse.Namespace) -> dict[str, Any]:
    """One command, or several where there are not images enough, for so many minutes of work on each side."""
    with changed_environment(worker_environment(1)), opened_bare_side(options) as bare:
        whole = options.workers * options.shard_rows
        most = MOST_IMAGES // whole * whole
        images_of_all = 60 * options.minutes / bare.turn() * options.workers * options.batch_size
        num_commands = math.ceil(images_of_all / most)
        num_images = min(max(round(images_of_all / num_commands / whole), 2) * whole, most)
        commands = []
        for index in range(num_commands):
            commands.append(take_turns(bare, f"{archive}/command-{index:03d}", num_images, servers, options))
            told = [f"{name} {commands[-1][f'{name}_seconds']:.1f} s" for name in ("bare", "steady", *FIXED)]
            print(f"command {index}: {', '.join(told)}", flush=True)
    return {"images_of_a_command": num_images, **result(commands, options)}


def result(commands: Sequence[dict[str, Any]], options: argparse.Namespace) -> dict[str, Any]:
    """Overheads in %, and seconds of shards."""
    overheads = [percent for command in commands for percent in command["shard_overheads"]]
    names = commands[0]["shard_times"]
    times = {name: [one for command in commands for one in command["shard_times"][name]] for name in names}
    num_shards = len(times["rest"])
    bare = sum(command["bare_seconds"] for command in commands)
    steady = 100 * (sum(command["steady_seconds"] for command in commands) / bare - 1)
    fixed_parts = {
        f"{part}_seconds": statistics.fmean(command[f"{part}_seconds"] for command in commands) for part in FIXED
    }
    fixed = sum(fixed_parts.values())
    return {
        "commands": [{name: value for name, value in command.items() if name != "shard_times"} for command in commands],
        "bare_seconds": bare,
        "steady_overhead_percent": steady,
        "standard_error_percent": statistics.stdev(overheads) / len(overheads) ** 0.5,
        "of_which_measuring_percent": 100 * statistics.median(times["measuring"]) * num_shards / options.workers / bare,
        "fixed_seconds": fixed,
        **fixed_parts,
        "overhead_percent": steady + 100 * len(commands) * fixed / bare,
        "overhead_percent_of_30_minutes": steady + 100 * fixed / 1800,
        "shards": num_shards,
        "median_seconds_of_a_shard": {part: statistics.median(values) for part, values in times.items()},
        "driver_processor_seconds_of_a_shard": sum(one["driver_processor_seconds"] for one in commands) / num_shards,
    }


@contextlib.contextmanager
def changed_environment(values: dict[str, str]) -> Iterator[None]:
    """Variables for the processes that are started meanwhile."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextlib.contextmanager
def opened_place(asked: str) -> Iterator[tuple[str, list[int]]]:
    """A folder or URL for archives, and the servers that were started for it: "s3" starts one on this machine."""
    if asked == "folder":
        with tempfile.TemporaryDirectory() as folder:
            yield folder, []
        return
    if asked != "s3":
        yield asked, []
        return
    with opened_s3_server("bench") as server:
        names = {"AWS_ENDPOINT_URL": server.endpoint, "AWS_ACCESS_KEY_ID": "bench", "AWS_SECRET_ACCESS_KEY": "bench"}
        with changed_environment({**names, "AWS_DEFAULT_REGION": "us-east-1"}):
            yield "s3://bench/flow", [server.pid]


def main(arguments: list[str] | None = None) -> None:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0, help="work of each side")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--shard-rows", type=int, default=128)
    parser.add_argument(
        "--archive", default="folder", help='"folder" (temporary), "s3" (a server on this machine), or a URL'
    )
    parser.add_argument("--output", type=Path, help="file of JSON lines to append to")
    parser.add_argument("--commit", help="what was measured, where the code lies outside git")
    options = parser.parse_args(arguments)
    line = {"benchmark": "flow", **environment(torch.device("cpu"), options.commit)}
    line |= {"load_average": [round(one, 2) for one in os.getloadavg()]}
    line |= {
        name: getattr(options, name) for name in ("minutes", "steps", "workers", "batch_size", "shard_rows", "archive")
    }
    with opened_place(options.archive) as (archive, servers):
        line |= compare(archive, servers, options)
    show(line)
    if options.output is not None:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        with options.output.open("a") as file:
            print(json.dumps(line), file=file)


def show(line: dict[str, Any]) -> None:
    """For people."""
    print(
        f"overhead {line['overhead_percent']:.1f} % on {line['bare_seconds'] / 60:.1f} minutes in "
        f"{len(line['commands'])} commands ({line['overhead_percent_of_30_minutes']:.1f} % on 30 in one): steady "
        f"{line['steady_overhead_percent']:.1f} +- {line['standard_error_percent']:.1f} % (measuring "
        f"{line['of_which_measuring_percent']:.1f} %), fixed {line['fixed_seconds']:.1f} s (start "
        f"{line['start_seconds']:.1f}, warm-up {line['warm_up_seconds']:.1f}, end {line['end_seconds']:.1f})"
    )
    print(f"{line['shards']} shards; driver {line['driver_processor_seconds_of_a_shard']:.3f} processor seconds each")
    for part, seconds in line["median_seconds_of_a_shard"].items():
        print(f"  {part:>10}: median {seconds:.3f} s")


if __name__ == "__main__":
    main()
