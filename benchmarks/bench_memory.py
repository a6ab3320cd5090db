"""Does a long run grow? Memory of every process of a command while it works through many images with few steps.

Digits of the built-in split, each turned and moved a little by a seed so that no two are the same, go through
`lsap run invert`, `edit` and `evaluate` as commands. Every few seconds the command, its Prefect server, its Ray and
each worker are asked for their own memory (resident pages that are neither of a file nor shared: the system may drop
those of files when it likes) and for all of it (RSS). The growth is the slope over the images that were finished,
without the first part of each command, in which caches fill.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
import yaml
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from measurement import environment
from numpy.typing import NDArray
from PIL import Image
from scipy.stats import linregress

from domains.digits.data import load_split

METHOD, EDIT = "lsap_o_w_plus", "slant"
WARM_UP = 0.25  # share of a command's images
NUM_BLOCKS = 12  # samples next to each other are no independent witnesses: the slope is that of means of blocks
MOST_KEPT = 80  # samples of a process in the results
MB = 1e6


# --- images ---------------------------------------------------------------------------------------------


def varied_digits(count: int, seed: int) -> NDArray[np.uint8]:
    """Images [N, 32, 32], no two the same: digits of "train", each turned up to 15 degrees and moved up to 2 px."""
    chosen, digits = np.random.default_rng(seed), load_split("train").images
    made: dict[bytes, NDArray[np.uint8]] = {}
    while len(made) < count:
        image = Image.fromarray(digits[len(made) % len(digits)])
        moved = image.rotate(
            chosen.uniform(-15, 15), Image.Resampling.BILINEAR, translate=tuple(chosen.integers(-2, 3, 2).tolist())
        )
        pixels = np.asarray(moved, np.uint8)
        made.setdefault(hashlib.sha256(pixels.tobytes()).digest(), pixels)
    return np.stack(list(made.values()))


# --- watching -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sample:
    """Memory of one process at a moment.

    Attributes:
        images: finished by then, by all workers together.
        own: bytes that are neither of a file nor shared.
        resident: bytes with those.
    """

    images: int
    own: int
    resident: int


def part_of(process: psutil.Process, command: int) -> str | None:
    """What a process is to a command; None for one that holds nothing of the work."""
    line = process.cmdline()
    if process.pid == command:
        return "command"
    if any("prefect.server.api.server" in word for word in line):
        return "Prefect server"
    if line and line[0].startswith("ray::Host"):
        return f"worker {process.pid}"
    return "Ray" if any(name in process.name() for name in ("gcs_server", "raylet")) else None


def watch(command: subprocess.Popen[str], count: Any, seconds: float) -> dict[str, list[Sample]]:
    """Samples of every part of a command until it ends, workers numbered in the order of their coming."""
    samples: defaultdict[str, list[Sample]] = defaultdict(list)
    root = psutil.Process(command.pid)
    while command.poll() is None:
        now, images = time.monotonic(), count()
        found: defaultdict[str, list[Any]] = defaultdict(list)
        for process in [root, *root.children(recursive=True)]:
            try:
                part = part_of(process, command.pid)
                if part is not None:
                    found[part].append(process.memory_info())
            except psutil.NoSuchProcess:
                continue  # it has ended meanwhile
        for part, sizes in found.items():
            own, resident = sum(one.rss - one.shared for one in sizes), sum(one.rss for one in sizes)
            samples[part].append(Sample(images, own, resident))
        time.sleep(max(seconds - (time.monotonic() - now), 0.1))
    numbered = {part: f"worker {i}" for i, part in enumerate([part for part in samples if "worker" in part], 1)}
    return {numbered.get(part, part): found for part, found in samples.items()}


def growth(samples: Sequence[Sample], num_images: int) -> dict[str, float]:
    """Own memory after the warm-up, and its slope with standard error, in MB and MB for 1,000 images."""
    warm = [one for one in samples if WARM_UP * num_images <= one.images < num_images]
    if len(warm) < NUM_BLOCKS:
        raise SystemExit(f"{len(warm)} samples after the warm-up, {NUM_BLOCKS} are wanted: take more images")
    blocks = [warm[i * len(warm) // NUM_BLOCKS : (i + 1) * len(warm) // NUM_BLOCKS] for i in range(NUM_BLOCKS)]
    at = [statistics.fmean(one.images for one in block) for block in blocks]
    fitted = linregress(at, [statistics.fmean(one.own for one in block) / MB for block in blocks])
    return {
        "mean_mb": statistics.fmean(one.own for one in warm) / MB,
        "largest_mb": max(one.own for one in samples) / MB,
        "largest_resident_mb": max(one.resident for one in samples) / MB,
        "mb_for_1000_images": 1000 * float(fitted.slope),
        "standard_error": 1000 * float(fitted.stderr),
    }


# --- commands -------------------------------------------------------------------------------------------


def stages(source: Path, archive: Path, options: argparse.Namespace) -> list[tuple[str, dict[str, Any], str]]:
    """Verb and request of each command, and the pattern of what it has when a shard is finished."""
    workers = {"count": options.workers, "threads": 1, "device": "cpu"}
    shared = {"archive": str(archive), "domain": "digits", "workers": workers}
    invert = {"methods": [METHOD], "embedding": {"num_steps": options.steps}, "shard_rows": options.shard_rows}
    edit = {"methods": [METHOD], "edits": {EDIT: {"direction": EDIT, "strength": 1.0}}}
    evaluate = {"source": str(source), "methods": [METHOD], "frechet": "digits-judge"}
    return [
        ("invert", shared | invert | {"source": str(source), "anchor": {"num_samples": 500}}, "runs/*/_commit/*"),
        ("edit", shared | edit, "runs/*/_commit/*"),
        ("evaluate", shared | evaluate, "evaluations/*/shards/*"),
    ]


def run_stage(folder: Path, verb: str, request: dict[str, Any], finished: str, options: argparse.Namespace) -> Any:
    """One command, watched from its beginning to its end."""
    path = folder / f"{verb}.yaml"
    path.write_text(yaml.safe_dump(request))
    archive = Path(request["archive"])
    before = len(list(archive.glob(finished)))

    def count() -> int:
        committed = len(list(archive.glob(finished))) - before
        return min(committed * options.shard_rows, options.images)

    started = time.perf_counter()
    with (folder / f"{verb}.log").open("w+") as log:
        command = [sys.executable, "-m", "flows.commands.cli", "run", verb, str(path), "--json"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        samples = watch(process, count, options.every)
        log.seek(0)
        if process.returncode:
            raise SystemExit(f"{verb} failed: {log.read()[-3000:]}")
    seconds = time.perf_counter() - started
    kept = {
        part: [[one.images, round(one.own / MB, 2), round(one.resident / MB, 2)] for one in found[:: thin(found)]]
        for part, found in samples.items()
    }
    grown = {part: growth(found, options.images) for part, found in samples.items()}
    for part, told in grown.items():
        print(
            f"{verb:>9} {part:>15}: {told['mean_mb']:7.1f} MB, grows by {told['mb_for_1000_images']:+.3f} +- "
            f"{told['standard_error']:.3f} MB for 1,000 images",
            flush=True,
        )
    return {"stage": verb, "seconds": seconds, "shards": count() // options.shard_rows, "parts": grown, "samples": kept}


def thin(samples: Sequence[Sample]) -> int:
    """Every how manieth sample is kept."""
    return -(-len(samples) // MOST_KEPT)


# --- the figure -----------------------------------------------------------------------------------------


def draw(line: Mapping[str, Any], path: Path) -> None:
    """Own memory against images, a panel for each command."""
    figure = Figure(figsize=(9, 2.8), layout="constrained")
    panels = figure.subplots(1, len(line["stages"]), sharey=True, squeeze=False)[0]
    parts = list(dict.fromkeys(part for stage in line["stages"] for part in stage["samples"]))
    for ax, stage in zip(panels, line["stages"], strict=True):
        for number, part in enumerate(parts):
            samples = stage["samples"].get(part, [])
            ax.plot([one[0] / 1000 for one in samples], [one[1] for one in samples], color=f"C{number}", label=part)
        ax.axvspan(0, WARM_UP * line["images"] / 1000, color="0.93", linewidth=0)
        ax.set_title(stage["stage"], fontsize=10)
        ax.set_xlabel("1,000 images finished", fontsize=9)
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(labelsize=8)
        ax.set_ylim(0)
    panels[0].set_ylabel("own memory, MB", fontsize=9)
    panels[-1].legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    with path.open("wb") as file:
        FigureCanvasAgg(figure).print_png(file)


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, keep and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--steps", type=int, default=3, help="of the optimization")
    parser.add_argument("--shard-rows", type=int, default=64)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--every", type=float, default=2.0, help="seconds from sample to sample")
    parser.add_argument("--stages", nargs="+", default=["invert", "edit", "evaluate"], help="commands, in this order")
    parser.add_argument("--seed", type=int, default=20261124, help="of the images")
    parser.add_argument("--output", type=Path, help="file of JSON lines to append to")
    parser.add_argument("--figure", type=Path, help="PNG file to draw")
    parser.add_argument("--commit", help="what was measured, where the code lies outside git")
    options = parser.parse_args(arguments)
    line = {"benchmark": "memory", **environment(torch.device("cpu"), options.commit)}
    line |= {"load_average": [round(one, 2) for one in os.getloadavg()]}
    line |= {name: getattr(options, name) for name in ("images", "steps", "shard_rows", "workers", "every", "seed")}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = folder / "images"
        source.mkdir()
        for row, pixels in enumerate(varied_digits(options.images, options.seed)):
            Image.fromarray(pixels).save(source / f"{row:06d}.png")
        asked = stages(source, folder / "archive", options)
        line["stages"] = [run_stage(folder, *stage, options) for stage in asked if stage[0] in options.stages]
    if options.output is not None:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        with options.output.open("a") as file:
            print(json.dumps(line), file=file)
    if options.figure is not None:
        draw(line, options.figure)


if __name__ == "__main__":
    main()
