"""How much sooner an optimization that starts at an encoder's codes reaches a given LPIPS and SNCD.

Complete optimizations of several lengths, from the mean of W and from the encoder's codes, alternately in one run. The
time of a start at the encoder includes the encoder. It does without exploration noise; lest this be taken for the
encoder's merit, the start at the mean is measured without it as well. Networks and images are those of a domain.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from embedded_images import quality, read_images
from measurement import environment
from torch import Tensor

from domains.domain import load_domain
from lsap_core.alignment.anchor import Anchor, estimate_anchor
from lsap_core.inversion import EncoderEmbedder, EncoderSettings, Inversion, OptimizationEmbedder, OptimizationSettings
from tasks.settings import Settings
from tasks.weights.devices import place
from tasks.weights.encoders import check_generator, load_encoder
from tasks.weights.generators import LoadedGenerator, load_generator
from tasks.weights.networks import NetworkChoice, Networks, load_networks
from tasks.weights.published import Published

METHOD, METHOD_FROM_ENCODER = "lsap_o_w_plus", "lsap_o_w_plus_from_lsap_e"
MEAN, MEAN_WITHOUT_EXPLORATION, ENCODER = "mean", "mean, no exploration", "encoder"
ENCODER_NAME = "lsap_e"


@dataclass(frozen=True)
class Bench:
    """What is measured with: networks on a device, and the images to embed."""

    loaded: LoadedGenerator
    anchor: Anchor
    networks: Networks
    encoder: EncoderEmbedder
    settings: dict[str, OptimizationSettings]  # by start
    target: Tensor

    def embed(self, start: str, num_steps: int) -> Inversion:
        """One complete optimization; of 0 steps from the encoder, its codes as they are."""
        seeds = range(len(self.target))
        if num_steps == 0:
            return self.encoder(self.target, seeds)
        settings = replace(self.settings[start], num_steps=num_steps, record_every=num_steps)
        embedder = OptimizationEmbedder(self.loaded.generator, self.anchor, self.networks.perceptual, settings)
        state = embedder.start(seeds, codes=self.encoder.codes(self.target) if start == ENCODER else None)
        embedder.advance(state, self.target)
        return embedder.finish(state)

    def quality(self, inversion: Inversion) -> dict[str, float]:
        """Mean LPIPS and SNCD as a report gives them."""
        columns = quality(inversion, self.target, loaded=self.loaded, anchor=self.anchor, networks=self.networks)
        return {name: float(np.mean(columns[name])) for name in ("lpips", "sncd")}


def build(options: argparse.Namespace, device: torch.device) -> Bench:
    """Load what the options name."""
    domain = load_domain(options.domain)
    generator = options.generator or domain.generator
    if generator is None:
        raise SystemExit(f'domain "{domain.name}" has no weights of its own: name a file with --generator')
    loaded = load_generator(generator, content_box=domain.content_box)
    encoder = load_encoder(options.encoder, generator_config=loaded.config)
    check_generator(encoder, loaded, options.encoder)
    place(loaded.generator, device).freeze()  # type: ignore[operator]
    place(encoder.encoder, device).requires_grad_(False)
    metric = domain.metric_perceptual or domain.perceptual
    choice = NetworkChoice(domain.perceptual, metric, published=Published(Settings.from_environment().backbones))
    from_mean, from_encoder = (domain.method(name).settings for name in (METHOD, METHOD_FROM_ENCODER))
    assert isinstance(from_mean, OptimizationSettings) and isinstance(from_encoder, OptimizationSettings)
    settings = {MEAN: from_mean, MEAN_WITHOUT_EXPLORATION: replace(from_mean, exploration=0.0), ENCODER: from_encoder}
    return Bench(
        loaded,
        estimate_anchor(loaded.generator, num_samples=options.anchor_samples).to(device),
        load_networks(choice, device),
        EncoderEmbedder(loaded.generator, encoder.encoder, EncoderSettings(options.num_passes)),
        settings,
        read_images(options.source, options.num_images, loaded, fit=options.fit).to(device),
    )


def measure_all(bench: Bench, steps: list[int], repeats: int) -> list[dict[str, Any]]:
    """Seconds per image and quality of every start and length; samples alternate and change order."""
    cells = [(ENCODER, 0), *((start, count) for count in steps for start in bench.settings)]
    quality = {cell: bench.quality(bench.embed(*cell)) for cell in cells}  # also the warm-up
    samples: dict[tuple[str, int], list[float]] = {cell: [] for cell in cells}
    for repeat in range(repeats):
        for cell in cells if repeat % 2 == 0 else reversed(cells):
            samples[cell].append(seconds_of(lambda cell=cell: bench.embed(*cell), bench.target.device))  # type: ignore[misc]
    return [
        {
            "start": start,
            "num_steps": count,
            "seconds_per_image": median(samples[start, count]) / len(bench.target),
            "min_seconds_per_image": min(samples[start, count]) / len(bench.target),
            "max_seconds_per_image": max(samples[start, count]) / len(bench.target),
            **quality[start, count],
        }
        for start, count in cells
    ]


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def time_to(runs: list[dict[str, Any]], targets: dict[str, float]) -> dict[str, dict[str, Any]]:
    """For LPIPS, SNCD and both: seconds per image until each start is there, and their ratios to the encoder's.

    None stands for never.
    """
    found = {}
    for wanted in (["lpips"], ["sncd"], ["lpips", "sncd"]):
        there = [run for run in runs if all(run[name] <= targets[name] for name in wanted)]
        seconds = {
            start: min((run["seconds_per_image"] for run in there if run["start"] == start), default=None)
            for start in (MEAN, MEAN_WITHOUT_EXPLORATION, ENCODER)
        }
        at_encoder = seconds[ENCODER]
        ratio = {
            start: None if each is None or at_encoder is None else each / at_encoder for start, each in seconds.items()
        }
        found[" and ".join(wanted)] = {"seconds": seconds, "ratio": ratio}
    return found


def print_table(runs: list[dict[str, Any]], targets: dict[str, float], times: dict[str, dict[str, Any]]) -> None:
    print(f"{'start':>20}  {'steps':>5}  {'ms per image':>28}  {'LPIPS':>8}  {'SNCD':>8}")
    for run in runs:
        middle, low, high = (1e3 * run[f"{name}seconds_per_image"] for name in ("", "min_", "max_"))
        spread = f"{middle:.4g} [{low:.4g}, {high:.4g}]"
        print(f"{run['start']:>20}  {run['num_steps']:>5}  {spread:>28}  {run['lpips']:8.4f}  {run['sncd']:8.4f}")
    for name, each in times.items():
        level = " and ".join(f"{part.upper()} {targets[part]:.4f}" for part in name.split(" and "))
        told = []
        for start, seconds in each["seconds"].items():
            ratio = each["ratio"][start]
            shown = "never" if seconds is None else f"{1e3 * seconds:.4g} ms"
            told.append(f"{start} {shown}" if ratio is None or start == ENCODER else f"{start} {shown} ({ratio:.2f} x)")
        print(f"to {level}: {'; '.join(told)}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--domain", default="digits", help="name, or path of a .yaml")
    parser.add_argument("--generator", help="weights; the domain's when not given")
    parser.add_argument("--encoder", help=f"weights; the domain's {ENCODER_NAME} when not given")
    parser.add_argument("--num-passes", type=int, default=1, help="passes through the encoder, 5 for ReStyle")
    parser.add_argument("--source", default="digits:test", help="where the images are")
    parser.add_argument("--fit", choices=("refuse", "crop", "letterbox", "stretch"), default="refuse")
    parser.add_argument("--num-images", type=int, default=16, help="embedded together")
    parser.add_argument("--steps", nargs="+", type=int, default=[5, 10, 25, 50, 100], help="lengths of optimizations")
    parser.add_argument("--lpips", type=float, help="to reach; that of the longest start at the mean when not given")
    parser.add_argument("--sncd", type=float, help="to reach; that of the longest start at the mean when not given")
    parser.add_argument("--within", type=float, default=0.02, help="share above these that still counts as reached")
    parser.add_argument("--anchor-samples", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=3, help="samples of each, taken alternately")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, help="file of JSON lines to append to; the screen when not given")
    parser.add_argument("--commit", help="what was measured, where the code lies outside git")
    options = parser.parse_args()
    if options.device == "auto":
        options.device = "cuda" if torch.cuda.is_available() else "cpu"
    numbers = (options.num_images, options.repeats, options.threads, options.anchor_samples - 1, *options.steps)
    if min(numbers) < 1 or not 0 <= options.within < math.inf:
        parser.error("numbers of images, steps, repeats, samples and threads must be at least 1, --within not negative")
    options.encoder = options.encoder or load_domain(options.domain).encoders.get(ENCODER_NAME)
    if options.encoder is None or ("://" not in options.encoder and not Path(options.encoder).is_file()):
        parser.error(f"no weights of {ENCODER_NAME} at {options.encoder}: name a file with --encoder")
    torch.set_num_threads(options.threads)
    return options


def main() -> None:
    options = parse()
    device = torch.device(options.device)
    bench = build(options, device)
    surroundings = environment(device, options.commit)
    print(f"encoder start on {surroundings['device_name']}, {options.threads} thread(s), {options.num_images} images")
    runs = measure_all(bench, sorted(set(options.steps)), options.repeats)
    longest = next(run for run in reversed(runs) if run["start"] == MEAN)
    given = {name: getattr(options, name) for name in ("lpips", "sncd")}
    targets = {name: (1 + options.within) * longest[name] if value is None else value for name, value in given.items()}
    times = time_to(runs, targets)
    print_table(runs, targets, times)
    result = {
        "benchmark": "encoder_start",
        **surroundings,
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "sizes": {"domain": options.domain, "num_images": options.num_images, "source": options.source},
        "encoder": {
            "digest": load_encoder(options.encoder, generator_config=bench.loaded.config).digest,
            **bench.encoder.encoder.config.to_dict(),
        },
        "settings": {start: asdict(settings) for start, settings in bench.settings.items()},
        "repeats": options.repeats,
        "runs": runs,
        "targets": targets,
        "time_to": times,
    }
    if options.output is None:
        print(json.dumps(result))
        return
    options.output.parent.mkdir(parents=True, exist_ok=True)
    with options.output.open("a") as file:
        print(json.dumps(result), file=file)


if __name__ == "__main__":
    main()
