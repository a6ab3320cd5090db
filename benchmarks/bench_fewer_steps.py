"""What fewer steps cost: LPIPS, SNCD, edits of equal effect and noise regularization against processor seconds.

Every option is run to its end in several lengths, on the same images. Time is that of one thread: short samples of the
options' steps alternate, each beside one of the published method, so that what else runs on the machine meets all of
them; a run's time is its steps times the median. Networks, directions and images are those of a domain with attributes.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from measurement import append, environment
from torch import Tensor

from domains.domain import load_domain
from domains.embedded import Attribute
from lsap_core.alignment.anchor import Anchor, estimate_anchor
from lsap_core.editing import Direction, along
from lsap_core.errors import OutOfReachError
from lsap_core.images import from_uint8, quantize
from lsap_core.inversion import (
    EncoderEmbedder,
    EncoderSettings,
    Inversion,
    OptimizationEmbedder,
    OptimizationSettings,
    embed_continuously,
)
from lsap_core.inversion.code_basis import CodeBasis
from lsap_core.metrics.editability import equal_effect
from lsap_core.objectives.terms import noise_regularization
from lsap_core.presets import method
from tasks.measuring.attributes import load_attribute
from tasks.measuring.networks import IdentityMeasure, Judge, load_judge
from tasks.measuring.of_inversions import measure
from tasks.pictures.decoding import decode_image, place_content
from tasks.sources.source import open_source
from tasks.weights.devices import place
from tasks.weights.directions import load_direction
from tasks.weights.encoders import load_encoder
from tasks.weights.generators import LoadedGenerator, load_generator
from tasks.weights.networks import NetworkChoice, Networks, load_networks
from tasks.weights.published import TORCH_CACHE

ENCODER = "lsap_e"
SPREAD_SAMPLES = 1000
EFFECTS = (("slant", 1), ("slant", -1), ("stroke_width", 1))
"""Attribute and sign of a change by one standard deviation over synthetic images."""
SAMPLED_STEPS = 5
COLOURS = ("#000000", "#0072b2", "#d55e00", "#009e73", "#cc79a7")  # Okabe and Ito's, for every eye
MARKERS = "osD^v"


@dataclass(frozen=True)
class Cell:
    """One run: an option, and how long.

    Attributes:
        option: its name.
        num_steps: steps of an image, at most.
        stop_at_lpips: where an image is done before.
    """

    option: str
    num_steps: int
    stop_at_lpips: float | None = None


@dataclass(frozen=True)
class Bench:
    """What is measured with."""

    loaded: LoadedGenerator
    anchor: Anchor
    networks: Networks
    judge: Judge
    encoder: EncoderEmbedder
    attributes: dict[str, Attribute]
    deviations: dict[str, float]
    directions: dict[str, Direction]
    options: dict[str, OptimizationSettings]
    target: Tensor
    bases: dict[str, CodeBasis | None] = field(default_factory=dict)

    def embedder(self, option: str, num_steps: int) -> OptimizationEmbedder:
        settings = replace(self.options[option], num_steps=num_steps, record_every=min(10, num_steps))
        embedder = OptimizationEmbedder(
            self.loaded.generator, self.anchor, self.networks.perceptual, settings, self.encoder
        )
        if settings.basis != "entries":  # the same for every length
            if settings.basis not in self.bases:
                self.bases[settings.basis] = embedder.basis
            embedder.basis = self.bases[settings.basis]
        return embedder

    def run(self, cell: Cell) -> dict[str, Any]:
        """One cell to its end, and what came out."""
        embedder, seeds = self.embedder(cell.option, cell.num_steps), range(len(self.target))
        if cell.stop_at_lpips is None:
            return {**asdict(cell), "mean_steps": float(cell.num_steps), **self.quality(embedder(self.target, seeds))}
        found = dict(
            embed_continuously(
                embedder,
                zip(self.target, seeds, strict=True),
                batch_size=len(self.target) // 2,
                stop_at_lpips=cell.stop_at_lpips,
            )
        )
        ones = [found[place] for place in seeds]
        together = replace(
            ones[0],
            w_plus=torch.cat([each.w_plus for each in ones]),
            noise=tuple(torch.cat(maps) for maps in zip(*(each.noise for each in ones), strict=True)),
            reconstruction=torch.cat([each.reconstruction for each in ones]),
        )
        return {
            **asdict(cell),
            "mean_steps": float(np.mean([each.num_steps for each in ones])),
            **self.quality(together),
        }

    @torch.no_grad()
    def quality(self, inversion: Inversion) -> dict[str, float]:
        """Means over the images, with the standard error of LPIPS."""
        columns = measure(
            inversion.reconstruction,
            self.target,
            inversion.w_plus,
            generator=self.loaded.generator,
            anchor=self.anchor,
            networks=self.networks,
        )
        maps = [each for each in inversion.noise if bool(each.any())]
        return {
            **{name: float(np.mean(columns[name])) for name in ("lpips", "lpips_judge", "mse", "sncd")},
            "lpips_standard_error": float(np.std(columns["lpips"], ddof=1) / math.sqrt(len(self.target))),
            "noise_regularization": float(noise_regularization(maps).mean()),
            **self.edits(inversion),
        }

    def edits(self, inversion: Inversion) -> dict[str, float]:
        """Over edits of equal effect: how strong they are, and whether the judge still sees the original.

        NaN where no strength has the effect.
        """
        classes = self.judge.probabilities(self.target).argmax(dim=1)
        identity = IdentityMeasure(self.judge)
        kept, alike, strengths = [], [], []
        for name, sign in EFFECTS:
            attribute, wanted = self.attributes[name], sign * self.deviations[name]
            before = attribute.measure(quantize(inversion.reconstruction)).double()

            def edited(strength: float, name: str = name) -> Tensor:
                codes = along(self.directions[name], strength=strength)(inversion.w_plus)
                return quantize(self.loaded.generator.synthesize(codes, noise=inversion.noise))

            def response(strength: float, attribute: Attribute = attribute, before: Tensor = before) -> float:
                return float((attribute.measure(edited(strength)).double() - before).nanmean())

            try:
                strength = equal_effect(
                    response, target=wanted, bounds=(-20, 20), tolerance=0.02 * abs(wanted)
                ).strength
            except OutOfReachError:
                strength = math.nan
            images = edited(0.0 if math.isnan(strength) else strength)
            kept.append((self.judge.probabilities(images).argmax(dim=1) == classes).double().mean().item())
            alike.append(identity(images, self.target).mean().item())
            strengths.append(abs(strength))
        is_reached = bool(np.isfinite(strengths).all())
        return {
            "class_kept": float(np.mean(kept)) if is_reached else math.nan,
            "identity_of_edits": float(np.mean(alike)) if is_reached else math.nan,
            "edit_strength": float(np.mean(strengths)),
        }

    def seconds_per_step(self, repeats: int) -> dict[str, dict[str, float]]:
        """Processor seconds of an image-step by option, and its ratio to the first, of alternating samples."""
        samples: dict[str, list[float]] = {name: [] for name in self.options}
        embedders = {name: self.embedder(name, 1000) for name in self.options}
        states = {name: each.start(range(len(self.target)), target=self.target) for name, each in embedders.items()}
        for name, each in embedders.items():
            each.advance(states[name], self.target, at_most=1)  # warm, and a basis is found
        for repeat in range(repeats):
            for name in list(samples) if repeat % 2 == 0 else reversed(samples):
                started = time.process_time()
                embedders[name].advance(states[name], self.target, at_most=SAMPLED_STEPS)
                samples[name].append((time.process_time() - started) / SAMPLED_STEPS / len(self.target))
        first = next(iter(samples.values()))
        return {
            name: {
                "median": median(each),
                "ratio": median(own / base for own, base in zip(each, first, strict=True)),
            }
            for name, each in samples.items()
        }


def options_of(base: str, sncd_weight: float) -> dict[str, OptimizationSettings]:
    """What is compared, each with one thing more than the one before it."""
    published = method(base).settings
    fast = method(f"{base}_fast").settings
    assert isinstance(published, OptimizationSettings) and isinstance(fast, OptimizationSettings)
    published, fast = (
        replace(each, sncd_weight=sncd_weight if each.sncd_weight else 0.0) for each in (published, fast)
    )
    return {
        "published": published,
        "schedule": fast,
        "schedule, basis": replace(fast, basis="sensitivity"),
        "schedule, basis, encoder": replace(fast, basis="sensitivity", start="encoder"),
    }


def build(options: argparse.Namespace) -> Bench:
    """Load what the options name."""
    domain = load_domain(options.domain)
    assert domain.generator is not None and domain.judge is not None
    loaded = load_generator(domain.generator, content_box=domain.content_box)
    device = torch.device("cpu")
    generator = place(loaded.generator, device).freeze()
    encoder = place(load_encoder(domain.encoders[ENCODER], generator_config=loaded.config).encoder, device)
    metric = domain.metric_perceptual or domain.perceptual
    attributes = {name: load_attribute(name, published=TORCH_CACHE, device=device) for name in domain.directions}
    z = torch.randn(SPREAD_SAMPLES, loaded.config.z_dim, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        images = quantize(torch.cat([generator.synthesize(generator.map(part)) for part in z.split(50)]))
    spread = {name: each.measure(images).double() for name, each in attributes.items()}
    return Bench(
        loaded,
        estimate_anchor(loaded.generator, num_samples=options.anchor_samples),
        load_networks(NetworkChoice(domain.perceptual, metric, judge=domain.judge), device),
        load_judge(domain.judge, device),
        EncoderEmbedder(loaded.generator, encoder.requires_grad_(False), EncoderSettings()),
        attributes,
        {name: float(values[values.isfinite()].std()) for name, values in spread.items()},
        {
            name: load_direction(path, config=loaded.config, generator_digest=loaded.digest)
            for name, path in domain.directions.items()
        },
        options_of(options.base, options.sncd_weight),
        read_images(options.source, options.num_images, loaded),
    )


def read_images(source: str, count: int, loaded: LoadedGenerator) -> Tensor:
    """The first images of a source, [N, C, R, R] in [-1, 1]."""
    config, pixels = loaded.config, []
    with open_source(source) as opened:
        for item in islice(opened.items(), count):
            image = decode_image(
                opened.read(item), size=config.content_size, channels=config.image_channels, fit="refuse"
            )
            pixels.append(place_content(image.pixels, resolution=config.resolution, content_box=config.content_box))
    return from_uint8(np.stack(pixels))


_benches: list[Bench] = []  # of a process that runs cells


def _run(cell: Cell) -> dict[str, Any]:
    return _benches[0].run(cell)


def _begin(options: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    _benches.append(build(options))


def run_all(options: argparse.Namespace, cells: Sequence[Cell]) -> Iterator[dict[str, Any]]:
    """What came of every cell, the shortest first."""
    ordered = sorted(cells, key=lambda cell: cell.num_steps)
    with multiprocessing.get_context("spawn").Pool(options.processes, _begin, (options,)) as pool:
        yield from pool.imap(_run, ordered)


def draw(runs: Sequence[dict[str, Any]], path: Path, title: str) -> None:
    """The curves of every option, one panel for each measure."""
    figure = Figure(figsize=(13, 7.2), layout="constrained")
    FigureCanvasAgg(figure)
    panels = (
        ("lpips", "LPIPS (in the loss)", "log"),
        ("lpips_judge", "LPIPS of the judge (in no loss)", "log"),
        ("sncd", "SNCD", "linear"),
        ("identity_of_edits", "identity after edits of equal effect", "linear"),
        ("class_kept", "edits that keep the class", "linear"),
        ("noise_regularization", "noise regularization at the end", "log"),
    )
    names = list(dict.fromkeys(run["option"] + ("" if run["stop_at_lpips"] is None else ", stops") for run in runs))
    for place_of, (column, label, scale) in enumerate(panels):
        axes = figure.add_subplot(2, 3, place_of + 1)
        for index, name in enumerate(names):
            shown = sorted(
                (run["seconds_per_image"], run[column])
                for run in runs
                if run["option"] + ("" if run["stop_at_lpips"] is None else ", stops") == name
            )
            axes.plot(*zip(*shown, strict=True), color=COLOURS[index], marker=MARKERS[index], label=name, linewidth=1.6)
        axes.set_xscale("log")
        axes.set_yscale(scale)
        axes.set_title(label, fontsize=11)
        axes.set_xlabel("processor seconds per image", fontsize=9)
        axes.grid(alpha=0.25, which="both")
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(names))
    figure.suptitle(title, fontsize=12)
    figure.savefig(path, dpi=110)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--domain", default="digits", help="with encoders, directions, attributes and a judge")
    parser.add_argument("--base", default="stylegan2_w_plus", choices=("stylegan2_w_plus", "lsap_o_w_plus"))
    parser.add_argument("--sncd-weight", type=float, default=0.5, help="of lsap_o_w_plus in this domain")
    parser.add_argument("--source", default="digits:test[100:]", help="where the images are")
    parser.add_argument("--num-images", type=int, default=32, help="embedded together")
    parser.add_argument("--published-steps", nargs="+", type=int, default=[50, 100, 200, 400, 1000])
    parser.add_argument("--steps", nargs="+", type=int, default=[50, 100, 200], help="of the other options")
    parser.add_argument("--stops", nargs="*", type=float, default=[0.02, 0.01, 0.005], help="LPIPS where images end")
    parser.add_argument("--anchor-samples", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=5, help="alternating samples of a step's time")
    parser.add_argument("--processes", type=int, default=2, help="that run to the end; time is measured in one")
    parser.add_argument("--output", type=Path, help="file of JSON lines to append to; the screen when not given")
    parser.add_argument("--figure", type=Path, help="PNG of the curves")
    parser.add_argument("--commit", help="what was measured, where the code lies outside git")
    options = parser.parse_args()
    counts = (*options.published_steps, *options.steps, options.repeats, options.processes, options.num_images - 1)
    if min(counts) < 1:
        parser.error("steps, repeats and processes must be at least 1, images at least 2")
    torch.set_num_threads(1)
    return options


def main() -> None:
    options = parse()
    bench = build(options)
    first, *others = bench.options
    cells = [Cell(first, count) for count in options.published_steps]
    cells += [Cell(name, count) for name in others for count in options.steps]
    cells += [Cell("schedule, basis", 2 * max(options.steps), stop) for stop in options.stops]
    seconds = bench.seconds_per_step(options.repeats)
    pace = seconds[first]["median"]
    runs = []
    print(
        f"{'option':>28} {'steps':>7} {'ms':>8} {'LPIPS':>16} {'judge':>7} {'SNCD':>7} {'R':>8} {'kept':>6} {'id':>6}"
    )
    for run in run_all(options, cells):
        run["seconds_per_image"] = run["mean_steps"] * seconds[run["option"]]["ratio"] * pace
        runs.append(run)
        stop = "" if run["stop_at_lpips"] is None else f" to {run['stop_at_lpips']:g}"
        print(
            f"{run['option'] + stop:>32} {run['mean_steps']:7.1f} {1e3 * run['seconds_per_image']:8.1f} "
            f"{run['lpips']:8.4f} {run['lpips_standard_error']:.4f} {run['lpips_judge']:7.4f} {run['sncd']:7.4f} "
            f"{run['noise_regularization']:8.1e} {run['class_kept']:6.3f} {run['identity_of_edits']:6.3f}",
            flush=True,
        )
    result = {
        "benchmark": "fewer_steps",
        **environment(torch.device("cpu"), options.commit),
        "sizes": {"domain": options.domain, "base": options.base, "num_images": options.num_images},
        "source": options.source,
        "settings": {name: asdict(settings) for name, settings in bench.options.items()},
        "seconds_per_image_step": seconds,
        "runs": runs,
    }
    append(json.dumps(result), options.output)
    if options.figure is not None:
        title = f"{method(options.base).title} on {options.num_images} held-out {options.domain}, one CPU thread"
        draw(sorted(runs, key=lambda run: list(bench.options).index(run["option"])), options.figure, title)


if __name__ == "__main__":
    main()
