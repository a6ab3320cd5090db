"""How much processor time the LSAP authors' loop takes to its LPIPS and SNCD, and ours to the same.

Their loop, from a checkout of github.com/caopulan/GANInverter, takes all its steps on one image after another. Ours is
run whole in several lengths on a batch in which these images are; the cheapest whose mean LPIPS and SNCD on them are at
most theirs counts. Their images and our runs take turns, lest a busy hour meets one side alone. Generator, network and
images are those of a domain; the encoder's time is in ours where codes start there, compiling is told by itself.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import torch
from bench_encoder_start import ENCODER_NAME, Bench
from bench_encoder_start import build as load_bench
from bench_steady import compilation_of
from measurement import append, clock, environment, now, parse_shared, shared_parser
from published_optimizers import Run, toolbox_loop

from domains.domain import Domain, load_domain
from lsap_core.inversion import OptimizationEmbedder, OptimizationSettings, OptimizationState
from lsap_core.presets import METHODS


@dataclass(frozen=True)
class Cell:
    """One of our methods in one length, on a batch.

    Attributes:
        method: its name.
        settings: of the domain, with what was asked for.
        is_compiled: whether the loss is.
    """

    method: str
    settings: OptimizationSettings
    is_compiled: bool


class Published:
    """The authors' loop on one image after another."""

    def __init__(self, bench: Bench, checkout: Path, steps: int):
        self.bench, self.steps = bench, steps
        self.loop = toolbox_loop(checkout, bench.loaded.generator, bench.networks.perceptual)
        self.runs: list[Run] = []

    def take(self) -> None:
        """All steps on the next image."""
        index = len(self.runs)
        self.runs.append(self.loop.take(self.bench.target[index : index + 1], index, self.steps, False))

    def found(self) -> dict[str, Any]:
        """Seconds an image, and what was reached."""
        codes = torch.cat([run.codes for run in self.runs])
        maps = [torch.cat(each).detach() for each in zip(*(run.maps for run in self.runs), strict=True)]
        with torch.no_grad():
            image = self.bench.loaded.generator.synthesize(codes, noise=maps)
        seconds = [run.step_seconds * self.steps for run in self.runs]
        return {
            "num_steps": self.steps,
            "seconds_per_image": summary(seconds),
            **quality(self.bench, SimpleNamespace(reconstruction=image, w_plus=codes), len(self.runs)),
        }


class Ours:
    """Our methods, each run whole."""

    def __init__(self, bench: Bench, num_images: int):
        self.bench, self.num_images = bench, num_images
        self.compilation = compilation_of(len(bench.target))
        self.compiling_seconds = 0.0
        self.seconds: dict[Cell, list[float]] = {}
        self.qualities: dict[Cell, dict[str, float]] = {}

    def take(self, cell: Cell) -> None:
        """One run; before the first compiled one a step of another, which compiles."""
        embedder = OptimizationEmbedder(
            self.bench.loaded.generator, self.bench.anchor, self.bench.networks.perceptual, cell.settings
        )
        if cell.is_compiled:
            embedder.compilation = self.compilation
            before = now(self.bench.target.device)
            embedder.advance(self._start(embedder), self.bench.target, until=1)
            if self.compiling_seconds == 0.0:
                self.compiling_seconds = now(self.bench.target.device) - before
        begins = now(self.bench.target.device)
        state = self._start(embedder)
        embedder.advance(state, self.bench.target)
        inversion = embedder.finish(state)
        seconds = (now(self.bench.target.device) - begins) / len(self.bench.target)
        self.seconds.setdefault(cell, []).append(seconds)
        self.qualities[cell] = quality(self.bench, inversion, self.num_images)

    def _start(self, embedder: OptimizationEmbedder) -> OptimizationState:
        codes = self.bench.encoder.codes(self.bench.target) if embedder.settings.needs_encoder else None
        return embedder.start(range(len(self.bench.target)), codes=codes)


def summary(values: Sequence[float]) -> dict[str, float]:
    """Median, smallest and largest."""
    return {"median": median(values), "min": min(values), "max": max(values)}


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
    parser.add_argument("--compile", choices=("no", "only", "both"), default="no", help="how ours is run")
    parser.add_argument("--anchor-samples", type=int, default=10_000)
    parser.set_defaults(repeats=1, fit="refuse", num_passes=1)
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
    forms = (False, True) if options.compile == "both" else (options.compile == "only",)
    cells = [
        Cell(name, settings_of(domain, name, steps, options.set), is_compiled)
        for name in options.methods
        for steps in sorted(set(options.steps))
        for is_compiled in forms
    ]
    published = Published(bench, options.ganinverter, options.published_steps)
    ours = Ours(bench, options.published_images)
    runs: list[Callable[[], None]] = [partial(ours.take, cell) for cell in cells * options.repeats]
    for place in range(options.published_images):
        published.take()
        share = slice(*((place + more) * len(runs) // options.published_images for more in (0, 1)))
        for run in runs[share]:
            run()
    theirs, rows = published.found(), []
    print(f"{'':<34} steps   s an image        LPIPS    SNCD   times as fast")
    shown = "{:<34} {:>5} {:>9.4f} s {:>12.5f} {:>7.4f}   {}"
    by_them = theirs["seconds_per_image"]["median"]
    print(shown.format("published, batch 1", theirs["num_steps"], by_them, theirs["lpips"], theirs["sncd"], ""))
    for cell in cells:
        found, seconds = ours.qualities[cell], summary(ours.seconds[cell])
        reached = found["lpips"] <= theirs["lpips"] and found["sncd"] <= theirs["sncd"]
        ratio = by_them / seconds["median"]
        rows.append({**asdict(cell), "seconds_per_image": seconds, **found, "ratio": ratio, "reached": reached})
        name = f"{cell.method}{', compiled' if cell.is_compiled else ''}"
        gain = f"{ratio:.1f}{'' if reached else ', not there'}"
        print(shown.format(name, cell.settings.num_steps, seconds["median"], found["lpips"], found["sncd"], gain))
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
        "compiling_seconds": ours.compiling_seconds,
        "published": theirs,
        "ours": rows,
        "ratio": None if best is None else best["ratio"],
    }
    append(json.dumps(result), options.output)
