"""How much processor time the LSAP authors' loop takes to its LPIPS and SNCD, and ours to the same.

Their loop, from a checkout of github.com/caopulan/GANInverter, takes all its steps on one image after another. Ours is
run whole in several lengths on a batch in which these images are; the shortest whose mean LPIPS and SNCD on them are at
most theirs counts. Generator, network and images are those of a domain; the encoder's time is in ours where codes start
there.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import torch
from bench_encoder_start import ENCODER_NAME, Bench
from bench_encoder_start import build as load_bench
from measurement import append, clock, environment, now, parse_shared, shared_parser
from published_optimizers import Run, toolbox_loop

from domains.domain import Domain, load_domain
from lsap_core.inversion import OptimizationEmbedder, OptimizationSettings
from lsap_core.presets import METHODS


@dataclass(frozen=True)
class Ours:
    """One of our methods in one length.

    Attributes:
        method: its name.
        settings: of the domain, with what was asked for.
        seconds_per_image: the median of some runs.
        lpips: mean over the images that the published loop had.
        sncd: the same.
    """

    method: str
    settings: OptimizationSettings
    seconds_per_image: float
    lpips: float
    sncd: float


def published(bench: Bench, checkout: Path, num_images: int, steps: int) -> dict[str, Any]:
    """Seconds per image of the authors' loop, and what it reaches."""
    loop = toolbox_loop(checkout, bench.loaded.generator, bench.networks.perceptual)
    runs: list[Run] = []
    for index in range(num_images):
        runs.append(loop.take(bench.target[index : index + 1], index, steps, False))
    codes = torch.cat([run.codes for run in runs])
    maps = [torch.cat(each).detach() for each in zip(*(run.maps for run in runs), strict=True)]
    with torch.no_grad():
        image = bench.loaded.generator.synthesize(codes, noise=maps)
    return {
        "num_steps": steps,
        "seconds_per_image": median(run.step_seconds for run in runs) * steps,
        **quality(bench, SimpleNamespace(reconstruction=image, w_plus=codes), num_images),
    }


def ours(bench: Bench, name: str, settings: OptimizationSettings, num_images: int, repeats: int) -> Ours:
    """One method, run whole."""
    device, seeds = bench.target.device, range(len(bench.target))
    embedder = OptimizationEmbedder(bench.loaded.generator, bench.anchor, bench.networks.perceptual, settings)
    seconds = []
    for _ in range(repeats):
        start = now(device)
        state = embedder.start(seeds, codes=bench.encoder.codes(bench.target) if settings.needs_encoder else None)
        embedder.advance(state, bench.target)
        inversion = embedder.finish(state)
        seconds.append((now(device) - start) / len(seeds))
    return Ours(name, settings, median(seconds), **quality(bench, inversion, num_images))


def quality(bench: Bench, inversion: Any, num_images: int) -> dict[str, float]:
    """Mean LPIPS and SNCD of the first images, as a report gives them."""
    first = SimpleNamespace(reconstruction=inversion.reconstruction[:num_images], w_plus=inversion.w_plus[:num_images])
    alone = Bench(bench.loaded, bench.anchor, bench.networks, bench.encoder, bench.settings, bench.target[:num_images])
    return alone.quality(first)  # type: ignore[arg-type]


def settings_of(domain: Domain, name: str, steps: int, changes: Sequence[str]) -> OptimizationSettings:
    """A method of the domain with another length and other settings, given as name=value."""
    given = {key: json.loads(value) for key, _, value in (change.partition("=") for change in changes)}
    settings = domain.method(name, {"num_steps": steps, "record_every": steps, **given}).settings
    if not isinstance(settings, OptimizationSettings):
        raise SystemExit(f"{name} does not optimize; wanted one of {', '.join(optimizations())}")
    return settings


def optimizations() -> list[str]:
    """Names of the methods that optimize."""
    return [name for name, method in METHODS.items() if isinstance(method.settings, OptimizationSettings)]


if __name__ == "__main__":
    parser = shared_parser(__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--ganinverter", type=Path, metavar="CHECKOUT", required=True)
    parser.add_argument("--domain", default="digits")
    parser.add_argument("--generator", help="weights; the domain's when not given")
    parser.add_argument("--encoder", help=f"weights; the domain's {ENCODER_NAME} when not given")
    parser.add_argument("--source", default="digits:test", help="where the images are")
    parser.add_argument("--published-steps", type=int, default=1000)
    parser.add_argument("--published-images", type=int, default=4, help="the first of the batch")
    parser.add_argument("--num-images", type=int, default=32, help="of our batch")
    parser.add_argument("--methods", nargs="+", choices=optimizations(), default=["lsap_o_w_plus_from_lsap_e"])
    parser.add_argument("--steps", nargs="+", type=int, default=[25, 50, 100, 200], help="lengths of ours")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="settings of all our methods")
    parser.add_argument("--anchor-samples", type=int, default=10_000)
    parser.set_defaults(repeats=3, fit="refuse", num_passes=1)
    options = parse_shared(parser)
    options.encoder = options.encoder or load_domain(options.domain).encoders.get(ENCODER_NAME)
    if not 1 <= options.published_images <= options.num_images:
        parser.error(
            f"--published-images is {options.published_images}; wanted 1 to --num-images, {options.num_images}"
        )
    if min(*options.steps, options.published_steps - 1) < 1:
        parser.error("--steps must be at least 1, --published-steps 2")
    device = torch.device(options.device)
    domain, bench = load_domain(options.domain), load_bench(options, device)
    theirs = published(bench, options.ganinverter, options.published_images, options.published_steps)
    print(f"published, {theirs['num_steps']} steps: {theirs['seconds_per_image']:.3f} s an image, ", end="")
    print(f"LPIPS {theirs['lpips']:.4f}, SNCD {theirs['sncd']:.4f}")
    rows = []
    for name in options.methods:
        for steps in sorted(set(options.steps)):
            settings = settings_of(domain, name, steps, options.set)
            row = ours(bench, name, settings, options.published_images, options.repeats)
            reached = row.lpips <= theirs["lpips"] and row.sncd <= theirs["sncd"]
            ratio = theirs["seconds_per_image"] / row.seconds_per_image
            rows.append({**asdict(row), "ratio": ratio, "reached": reached})
            print(
                f"{name}, {steps} steps: {row.seconds_per_image:.4f} s an image, LPIPS {row.lpips:.4f}, "
                f"SNCD {row.sncd:.4f}; {ratio:.1f} times as fast{'' if reached else ', not there'}",
                flush=True,
            )
    best = max((row for row in rows if row["reached"]), key=lambda row: row["ratio"], default=None)
    print("never there" if best is None else f"to equal LPIPS and SNCD: {best['ratio']:.1f} times as fast")
    result = {
        "benchmark": "to_equal_peer",
        **environment(device, options.commit),
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "clock": clock(device).__name__,
        "sizes": {"domain": options.domain, "source": options.source, "num_images": options.num_images},
        "published_images": options.published_images,
        "repeats": options.repeats,
        "published": theirs,
        "ours": rows,
        "ratio": None if best is None else best["ratio"],
    }
    append(json.dumps(result), options.output)
