"""What Prefect, Ray and storage cost over the bare optimization loop.

Both sides embed the same digits with the same settings, batch size and number of processes, in pieces that alternate
(bare, flow; flow, bare; ...), so that what slows the machine down meets both. The overhead is the median over the pairs
of pieces: a machine that is shared may be slower for one of them.

- *bare*: processes that call `OptimizationEmbedder` batch after batch; codes and noise stay in memory.
- *flow*: `lsap run invert` as it is, in this process, with a Ray and an archive of its own for each piece: images are
  read and digested, embedded, measured, written, published and shown in a report.

A piece of the flow has a fixed part (before the first worker begins its first shard, after the last one has ended its
last, and what a worker's first shard takes longer than its others: the bare processes are warm) and a steady one. A run
of some length has the fixed part once, and as the first piece has it, which also starts Prefect's temporary server.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from measurement import environment

from domains.domain import load_domain
from flows import invert as invert_module
from flows.parameters import InvertRun
from flows.run_report import Embedded
from lsap_core.alignment.anchor import estimate_anchor
from lsap_core.images import from_uint8
from lsap_core.inversion import Inversion, OptimizationEmbedder, OptimizationSettings
from tasks.cluster import worker_environment
from tasks.decoding import decode_image
from tasks.embed import ShardOutcome
from tasks.networks import load_networks, place
from tasks.settings import Settings
from tasks.sources import open_source
from tasks.weights import load_generator

METHOD = "lsap_o_w_plus"
MOST_IMAGES = 4000  # of digits:train
PARTS = ("reading", "embedding", "measuring", "writing")
FIXED = ("start", "warm_up", "end")  # of a run, however long it is


def settings_of(num_steps: int) -> OptimizationSettings:
    """The domain's settings of the method, with another length."""
    settings = load_domain("digits").method(METHOD, {}, shared={"num_steps": num_steps}).settings
    assert isinstance(settings, OptimizationSettings)
    return settings


# --- the bare side ------------------------------------------------------------------------------------


class BareWorker:
    """Networks and images, loaded once; results are kept for the length of a piece."""

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


def embed_batch(start: int, stop: int) -> None:
    """Runs in a process of the bare side."""
    assert _worker is not None
    if start == 0:
        _worker.kept.clear()  # a new piece
    _worker.embed(start, stop)


def bare_seconds(pool: ProcessPoolExecutor, num_images: int, batch_size: int) -> float:
    """Seconds for so many images."""
    started = time.perf_counter()
    starts = range(0, num_images, batch_size)
    list(pool.map(embed_batch, starts, [min(start + batch_size, num_images) for start in starts]))
    return time.perf_counter() - started


# --- the flow -----------------------------------------------------------------------------------------


def flow_piece(archive: str, num_images: int, options: argparse.Namespace) -> dict[str, Any]:
    """One command on a new archive; its seconds, and those of its shards."""
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
    kept: list[Embedded] = []
    embed_all = invert_module.embed_all

    def keep(*arguments: Any, **named: Any) -> Embedded:
        kept.append(embed_all(*arguments, **named))
        return kept[-1]

    invert_module.embed_all = keep
    began, used = time.time(), time.process_time()
    try:
        invert_module.invert(run)
    finally:
        invert_module.embed_all = embed_all
    ended = time.time()
    outcomes = kept[0].outcomes
    assert sum(outcome.by_status.get("ok", 0) for outcome in outcomes) == num_images, "images are missing"
    first, last = min(one.began for one in outcomes), max(one.began + one.seconds for one in outcomes)
    warm_up = warm_up_seconds(outcomes)
    return {
        "seconds": ended - began,
        "start_seconds": first - began,
        "warm_up_seconds": warm_up,
        "steady_seconds": last - first - warm_up,
        "end_seconds": ended - last,
        "driver_processor_seconds": time.process_time() - used,
        "outcomes": outcomes,
    }


def warm_up_seconds(outcomes: Sequence[ShardOutcome]) -> float:
    """What the first shard of a worker takes longer than the median of its others, mean over the workers."""
    excess = []
    for worker in {one.worker for one in outcomes}:
        first, *others = [one.seconds for one in sorted(outcomes, key=lambda one: one.began) if one.worker == worker]
        excess.append(max(first - statistics.median(others), 0.0) if others else 0.0)
    return statistics.fmean(excess)


def shard_times(pieces: Sequence[Sequence[ShardOutcome]]) -> dict[str, list[float]]:
    """Seconds of every shard by what they were spent on; "between" is a worker's pause before its next shard."""
    times: dict[str, list[float]] = {"between": [], **{part: [] for part in PARTS}, "rest": []}
    for outcomes in pieces:
        last_end: dict[str, float] = {}
        for one in sorted(outcomes, key=lambda one: one.began):
            if one.worker in last_end:
                times["between"].append(one.began - last_end[one.worker])
            last_end[one.worker] = one.began + one.seconds
            for part in PARTS:
                times[part].append(one.spent.get(part, 0.0))
            times["rest"].append(one.seconds - sum(one.spent.values()))
    return times


def summary(values: Sequence[float]) -> dict[str, float]:
    """Mean and percentiles."""
    ordered = sorted(values)
    return {
        "mean": statistics.fmean(ordered),
        "p50": statistics.median(ordered),
        "p95": ordered[min(len(ordered) - 1, round(0.95 * len(ordered)))],
    }


# --- both ---------------------------------------------------------------------------------------------


def compare(archive: str, options: argparse.Namespace) -> dict[str, Any]:
    """Alternate pieces of both sides, and what follows for a run of `--minutes`."""
    pieces = max(2, round(options.minutes / options.piece_minutes))
    environment_of_worker = worker_environment(1)
    with changed_environment(environment_of_worker):
        context = get_context("spawn")
        with ProcessPoolExecutor(
            options.workers, mp_context=context, initializer=start_worker, initargs=(options.steps,)
        ) as pool:
            warm_up = 2 * options.workers * options.batch_size
            bare_seconds(pool, warm_up, options.batch_size)
            seconds = bare_seconds(pool, warm_up, options.batch_size) / warm_up
            whole = options.workers * options.shard_rows
            num_images = round(60 * options.minutes / pieces / seconds / whole) * whole
            num_images = min(max(num_images, 2 * whole), MOST_IMAGES // whole * whole)
            bare, flow = [], []
            for piece in range(pieces):
                for side in (bare, flow) if piece % 2 == 0 else (flow, bare):
                    if side is bare:
                        bare.append(bare_seconds(pool, num_images, options.batch_size))
                        print(f"piece {piece}: bare {bare[-1]:.1f} s", flush=True)
                    else:
                        flow.append(flow_piece(f"{archive}/piece-{piece:03d}", num_images, options))
                        told = ", ".join(f"{name} {flow[-1][f'{name}_seconds']:.1f} s" for name in (*FIXED, "steady"))
                        print(f"piece {piece}: flow {told}", flush=True)
    return result(bare, flow, num_images, options)


def result(
    bare: Sequence[float], flow: Sequence[dict[str, Any]], num_images: int, options: argparse.Namespace
) -> dict[str, Any]:
    """Overheads in %, and seconds of shards."""
    outcomes = [piece["outcomes"] for piece in flow]
    times = shard_times(outcomes)
    num_shards = sum(len(one) for one in outcomes)
    fixed_parts = {f"{part}_seconds": flow[0][f"{part}_seconds"] for part in FIXED}
    fixed = sum(fixed_parts.values())
    pairs = [piece["steady_seconds"] / seconds - 1 for piece, seconds in zip(flow, bare, strict=True)]
    share = statistics.median(pairs)
    measuring = sum(times["measuring"]) / options.workers / sum(bare)
    work = 60 * options.minutes
    return {
        "pieces": len(bare),
        "images_of_a_piece": num_images,
        "bare_seconds": list(bare),
        "flow_seconds": [{name: value for name, value in piece.items() if name != "outcomes"} for piece in flow],
        "steady_overhead_percent": 100 * share,
        "steady_overhead_percent_by_piece": [100 * pair for pair in pairs],
        "steady_overhead_percent_of_sums": 100 * (sum(piece["steady_seconds"] for piece in flow) / sum(bare) - 1),
        "of_which_measuring_percent": 100 * measuring,
        "fixed_seconds": fixed,
        **fixed_parts,
        "overhead_percent": 100 * (share + fixed / work),
        "overhead_percent_of_30_minutes": 100 * (share + fixed / 1800),
        "shards": num_shards,
        "seconds_of_a_shard": {part: summary(values) for part, values in times.items()},
        "driver_processor_seconds_of_a_shard": sum(piece["driver_processor_seconds"] for piece in flow) / num_shards,
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
def opened_place(asked: str) -> Iterator[str]:
    """A folder or URL for archives; "s3" starts a server of its own, in a process that shares this machine."""
    if asked == "folder":
        with tempfile.TemporaryDirectory() as folder:
            yield folder
        return
    if asked != "s3":
        yield asked
        return
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    endpoint = f"http://127.0.0.1:{port}"
    names = {"AWS_ENDPOINT_URL": endpoint, "AWS_ACCESS_KEY_ID": "bench", "AWS_SECRET_ACCESS_KEY": "bench"}
    try:
        with changed_environment({**names, "AWS_DEFAULT_REGION": "us-east-1"}):
            make_bucket(endpoint)
            yield "s3://bench/flow"
    finally:
        server.terminate()
        server.wait()


def make_bucket(endpoint: str) -> None:
    """Wait for the server and make the bucket."""
    for _ in range(100):
        with contextlib.suppress(OSError):
            urllib.request.urlopen(urllib.request.Request(f"{endpoint}/bench", method="PUT"), timeout=5)
            return
        time.sleep(0.2)
    raise SystemExit(f"{endpoint} did not answer")


def main(arguments: list[str] | None = None) -> None:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0, help="work of each side, in all")
    parser.add_argument("--piece-minutes", type=float, default=3.0)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--shard-rows", type=int, default=32)
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
    with opened_place(options.archive) as archive:
        line |= compare(archive, options)
    show(line)
    if options.output is not None:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        with options.output.open("a") as file:
            print(json.dumps(line), file=file)


def show(line: dict[str, Any]) -> None:
    """For people."""
    print(
        f"overhead {line['overhead_percent']:.1f} % on {line['minutes']:g} minutes "
        f"({line['overhead_percent_of_30_minutes']:.1f} % on 30): steady {line['steady_overhead_percent']:.1f} % "
        f"(measuring {line['of_which_measuring_percent']:.1f} %), fixed {line['fixed_seconds']:.1f} s "
        f"(start {line['start_seconds']:.1f}, warm-up {line['warm_up_seconds']:.1f}, end {line['end_seconds']:.1f})"
    )
    by_piece = ", ".join(f"{percent:.1f}" for percent in line["steady_overhead_percent_by_piece"])
    print(f"steady by piece: {by_piece} %; of the sums {line['steady_overhead_percent_of_sums']:.1f} %")
    print(f"{line['shards']} shards; driver {line['driver_processor_seconds_of_a_shard']:.3f} processor seconds each")
    for part, seconds in line["seconds_of_a_shard"].items():
        print(f"  {part:>10}: mean {seconds['mean']:.3f} s, p50 {seconds['p50']:.3f} s, p95 {seconds['p95']:.3f} s")


if __name__ == "__main__":
    main()
