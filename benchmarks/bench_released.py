"""What a worker takes for faces of 1024 px by a released encoder: files in the published layouts, at their full sizes.

Generator (config-f), e4e's encoder with the generator inside, and the trunks of LPIPS with the classifiers that
torchvision's files carry are filled with random numbers and written as the published files are. `lsap run invert` then
inverts a few random images of 1024 px, first as a dry run. Every process is asked all the time for the most that it
ever held (VmHWM, Linux); that of a worker stands beside what the dry run expects of it.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
import yaml
from measurement import append, environment
from PIL import Image
from random_generator import random_generator
from torchvision.models import alexnet, vgg16

from domains.domain import load_domain
from lsap_core.encoders import Encoder, EncoderConfig
from lsap_core.encoders.checkpoints.published import PREFIXES
from lsap_core.generators.checkpoints import CanonicalCheckpoint, to_rosinality_document

RESOLUTION = 1024
ENCODER = "e4e"
PROBE, WORKER = "probe", "worker"
HIGH_WATER = re.compile(r"VmHWM:\s+(\d+) kB")


# --- files ----------------------------------------------------------------------------------------------


def write_files(folder: Path) -> dict[str, Path]:
    """The files that `domain: face` wants of a run with e4e, by role; what is there already stays."""
    folder.mkdir(parents=True, exist_ok=True)
    makers = {"generator": generator_file, ENCODER: encoder_file, "lpips-vgg": vgg16, "lpips-alex": alexnet}
    paths = {role: folder / load_domain("face").weights[role].file for role in makers}
    for role, path in paths.items():
        if path.exists():
            continue
        made = makers[role]()
        unfinished = path.with_name(f"{path.name}.unfinished")
        if role.startswith("lpips"):  # published before torch's files were zips; LPIPS wants a seventh of VGG's
            torch.save(made.state_dict(), unfinished, _use_new_zipfile_serialization=False)
        else:
            torch.save(made, unfinished)
        unfinished.rename(path)
        print(f"{path.name}: {path.stat().st_size / 1e6:.0f} MB", flush=True)
    return paths


def generator_file() -> dict[str, Any]:
    """rosinality's layout."""
    generator = random_generator("config_f", RESOLUTION, "activations", torch.device("cpu"))
    generator.mapping.w_avg.zero_()
    document = to_rosinality_document(CanonicalCheckpoint(generator.config, dict(generator.state_dict())))
    return {name: document[name] for name in ("g_ema", "latent_avg")}


def encoder_file() -> dict[str, Any]:
    """e4e's layout: the encoder, and the generator that it was trained with."""
    inside = generator_file()
    torch.manual_seed(2)
    generator = random_generator("config_f", RESOLUTION, "activations", torch.device("cpu"))
    encoder = Encoder(EncoderConfig.for_generator(generator.config, heads="offsets", backbone="ir_se_50"))
    tensors = {name: tensor for name, tensor in encoder.state_dict().items() if name != "w_avg"}
    state = {f"encoder.{published_name(name)}": tensor for name, tensor in tensors.items()}
    state |= {f"decoder.{name}": tensor for name, tensor in inside["g_ema"].items()}
    return {
        "state_dict": state,
        "latent_avg": inside["latent_avg"].repeat(generator.config.num_ws, 1),
        "opts": {
            "encoder_type": "Encoder4Editing",
            "start_from_latent_avg": True,
            "input_nc": 3,
            "stylegan_size": RESOLUTION,
        },
    }


def published_name(name: str) -> str:
    """What e4e calls a tensor of ours."""
    published = next(one for one, ours in PREFIXES.items() if name.startswith(ours))
    return published + name.removeprefix(PREFIXES[published])


def write_images(folder: Path, count: int) -> None:
    """Smooth random pictures of 1024 px."""
    folder.mkdir()
    chosen = np.random.default_rng(0)
    for row in range(count):
        small = Image.fromarray(chosen.integers(0, 256, (16, 16, 3), np.uint8))
        small.resize((RESOLUTION, RESOLUTION), Image.Resampling.BICUBIC).save(folder / f"{row:04d}.png")


# --- the command ----------------------------------------------------------------------------------------


def high_water(process: psutil.Process) -> int:
    """The most bytes that a process ever had resident; 0 of one that has ended."""
    try:
        found = HIGH_WATER.search(Path(f"/proc/{process.pid}/status").read_text())
    except OSError:
        return 0
    return 1024 * int(found[1]) if found else 0


def part_of(process: psutil.Process, command: int) -> str | None:
    """What a process is to a command; None for what holds no network."""
    line = process.cmdline()
    if process.pid == command:
        return "command"
    if line and line[0].startswith("ray::Host"):
        return WORKER
    return PROBE if any("multiprocessing.spawn" in word for word in line) else None


def run(request: Path, *options: str) -> tuple[dict[str, Any], dict[str, int]]:
    """What a command told, and the high water of its parts, of several the largest."""
    command = [sys.executable, "-m", "flows.commands.cli", "run", "invert", str(request), "--json", *options]
    highest: dict[str, int] = {}
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stdout=out, stderr=log, text=True)
        root = psutil.Process(process.pid)
        while process.poll() is None:
            for one in [root, *root.children(recursive=True)]:
                try:
                    part = part_of(one, process.pid)
                except psutil.NoSuchProcess:
                    continue  # it has ended meanwhile
                if part is not None:
                    highest[part] = max(highest.get(part, 0), high_water(one))
            time.sleep(0.05)
        out.seek(0)
        log.seek(0)
        if process.returncode:
            raise SystemExit(f"lsap run invert failed: {log.read()[-3000:]}")
        told: dict[str, Any] = json.loads(out.read())
    return told, highest


def measure(folder: Path, files: dict[str, Path], options: argparse.Namespace) -> dict[str, Any]:
    """Both commands with each method: bytes that were expected, and those that were taken."""
    source = folder / "images"
    write_images(source, options.images)
    os.environ |= {
        "LSAP_BACKBONES": str(files["generator"].parent),
        "LSAP_OTHER_WEIGHTS": "1",
        "LSAP_CACHE": str(folder / "cache"),
    }
    measured = {}
    for method in options.methods:
        request = folder / f"{method}.yaml"
        asked: dict[str, Any] = {
            "source": str(source),
            "archive": str(folder / f"archive-{method}"),
            "domain": "face",
            "methods": [method],
            "encoders": {ENCODER: str(files[ENCODER])},
            "embedding": {"num_steps": options.steps},
            "anchor": {"num_samples": 1000},
            "shard_rows": options.images,
            "compile": "never",
            "workers": {"count": 1, "threads": 1, "device": "cpu"},
        }
        if method == ENCODER:
            del asked["embedding"]
        if options.batch_size is not None:
            asked["batch_size"] = options.batch_size
        request.write_text(yaml.safe_dump(asked))
        expected, dry = run(request, "--dry-run")
        _, taken = run(request)
        measured[method] = {"dry_run": expected, "dry_run_high_water": dry, "high_water": taken}
        shown = {name: f"{number / 2**30:.2f}" for name, number in taken.items()}
        print(f"{method}: high water, GiB: {shown}; of the dry run {[f'{k} {v / 2**30:.2f}' for k, v in dry.items()]}")
        print(json.dumps(expected), flush=True)
    return measured


def main(arguments: list[str] | None = None) -> None:
    """Write, run, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--methods", nargs="+", default=[ENCODER])
    parser.add_argument("--batch-size", type=int, help="the domain's, or what fits, when not given")
    parser.add_argument("--steps", type=int, default=2, help="of optimizations")
    parser.add_argument("--files", type=Path, help="folder for the files (2 GB), which stay; else a temporary one")
    parser.add_argument("--output", type=Path, help="file of JSON lines to append to")
    parser.add_argument("--commit", help="what was measured, where the code lies outside git")
    options = parser.parse_args(arguments)
    line = {"benchmark": "released", **environment(torch.device("cpu"), options.commit)}
    line |= {"load_average": [round(one, 2) for one in os.getloadavg()]}
    line |= {name: getattr(options, name) for name in ("images", "batch_size", "steps")}
    with tempfile.TemporaryDirectory() as name:
        files = write_files(options.files or Path(name) / "weights")
        line["methods"] = measure(Path(name), files, options)
    append(json.dumps(line), options.output)


if __name__ == "__main__":
    main()
