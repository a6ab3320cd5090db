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
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import yaml
from embedded_images import quality, read_images
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from measurement import append, environment
from torch import Tensor

from domains.domain import load_domain
from domains.embedded import Attribute
from lsap_core.alignment.anchor import Anchor, estimate_anchor
from lsap_core.editing import Direction, along
from lsap_core.errors import OutOfReachError
from lsap_core.images import quantize
from lsap_core.inversion import (
    EncoderEmbedder,
    EncoderSettings,
    Inversion,
    OptimizationEmbedder,
    OptimizationSettings,
    RefilledBatch,
)
from lsap_core.metrics.editability import equal_effect
from lsap_core.objectives.terms import noise_regularization
from lsap_core.presets import method
from tasks.measuring.attributes import load_attribute
from tasks.measuring.networks import IdentityMeasure, Judge, load_judge
from tasks.weights.devices import place
from tasks.weights.directions import load_direction
from tasks.weights.encoders import load_encoder
from tasks.weights.generators import LoadedGenerator, load_generator
from tasks.weights.networks import NetworkChoice, Networks, load_networks
from tasks.weights.published import TORCH_CACHE

ENCODER = "lsap_e"
PUBLISHED, FAST, FROM_ENCODER, EARLY_STOP = "as published", "fast", "fast, from the encoder", "fast, early stop"
SMALLER = 4
"""How many times a batch that is filled again is smaller than all images."""
SPREAD_SAMPLES = 1000
EFFECTS = (("slant", 1), ("slant", -1), ("stroke_width", 1))
"""Attribute and sign of a change by one standard deviation over synthetic images."""
SAMPLED_STEPS = 5
COLOURS = ("#000000", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#f0e442")  # Okabe and Ito's
MARKERS = "osD^vP*X"
BESIDE = ((0, 7), (13, 4), (-6, -14), (-14, -9))
"""Where numbers stand beside the points of an option, in printer's points: lines run close to each other."""


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

    def embedder(self, cell: Cell) -> OptimizationEmbedder:
        """Of the option, as long as the cell says."""
        settings = replace(
            self.options[cell.option],
            num_steps=cell.num_steps,
            record_every=min(5, cell.num_steps),
            stop_at_lpips=cell.stop_at_lpips,
        )
        return OptimizationEmbedder(
            self.loaded.generator, self.anchor, self.networks.perceptual, settings, self.encoder
        )

    def run(self, cell: Cell) -> dict[str, Any]:
        """One cell to its end, and what came out."""
        embedder = self.embedder(cell)
        if cell.stop_at_lpips is None:
            inversion = embedder(self.target, range(len(self.target)))
        else:
            inversion = self.refilled(embedder)
        return {
            **asdict(cell),
            "mean_steps": float(inversion.num_steps.double().mean()),
            **self.means(inversion),
        }

    def refilled(self, embedder: OptimizationEmbedder) -> Inversion:
        """All images in a batch of fewer rows, which the next ones take when images end."""
        batch: RefilledBatch[int] = RefilledBatch(embedder, max(1, len(self.target) // SMALLER))
        waiting, places, found = list(range(len(self.target))), list[int](), list[Inversion]()
        while waiting or batch.under_way:
            coming = waiting[: batch.num_free]
            del waiting[: len(coming)]
            batch.put([(place, self.target[place], place) for place in coming])
            done, inversion = batch.advance()
            places += done
            found.append(inversion)
        order = torch.tensor(places).argsort()
        names = ("w_plus", "reconstruction", "trace", "stopped_at", "num_steps")
        return replace(
            found[0],
            noise=tuple(torch.cat(maps)[order] for maps in zip(*(each.noise for each in found), strict=True)),
            **{name: torch.cat([getattr(each, name) for each in found])[order] for name in names},
        )

    @torch.no_grad()
    def means(self, inversion: Inversion) -> dict[str, float]:
        """Means over the images, with the standard error of LPIPS, and LPIPS with the generator's constant noise."""
        used = {"loaded": self.loaded, "anchor": self.anchor, "networks": self.networks}
        columns = quality(inversion, self.target, **used)
        plain = replace(inversion, reconstruction=self.loaded.generator.synthesize(inversion.w_plus))
        maps = [each for each in inversion.noise if bool(each.any())]
        return {
            **{name: float(np.mean(columns[name])) for name in ("lpips", "lpips_judge", "mse", "sncd")},
            "lpips_standard_error": float(np.std(columns["lpips"], ddof=1) / math.sqrt(len(self.target))),
            "lpips_with_constant_noise": float(np.mean(quality(plain, self.target, **used)["lpips"])),
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
        embedders = {name: self.embedder(Cell(name, 1000)) for name in self.options}
        states = {name: each.start(range(len(self.target)), target=self.target) for name, each in embedders.items()}
        for name, each in embedders.items():
            each.advance(states[name], self.target, at_most=1)  # warm
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


def options_of(base: str, sncd_weight: float, variants: Sequence[str]) -> dict[str, OptimizationSettings]:
    """What is compared: the published method, the fast one, that with one thing more, and with settings changed."""
    published = method(base).settings
    fast = method(f"{base}_fast").settings
    assert isinstance(published, OptimizationSettings) and isinstance(fast, OptimizationSettings)
    published, fast = (
        replace(each, sncd_weight=sncd_weight if each.sncd_weight else 0.0) for each in (published, fast)
    )
    return {
        PUBLISHED: published,
        FAST: fast,
        FROM_ENCODER: replace(fast, start="encoder"),
        EARLY_STOP: fast,
        **{text: replace(fast, **yaml.safe_load(text)) for text in variants},
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
        options_of(options.base, options.sncd_weight, options.variants),
        read_images(options.source, options.num_images, loaded),
    )


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
        ("lpips", "LPIPS, in the loss (lower is closer)", "log"),
        ("lpips_judge", "LPIPS of the judge, in no loss (lower is closer)", "log"),
        ("sncd", "SNCD (lower is more aligned)", "linear"),
        ("identity_of_edits", "identity after edits of equal effect (higher is better)", "linear"),
        ("class_kept", "share of edits that keep the class (higher is better)", "linear"),
        ("noise_regularization", "noise regularization at the end (lower is better)", "log"),
    )
    names = list(dict.fromkeys(run["option"] for run in runs))
    for place_of, (column, label, scale) in enumerate(panels):
        axes = figure.add_subplot(2, 3, place_of + 1)
        for index, name in enumerate(names):
            shown = sorted(
                (run["seconds_per_image"], run[column], run["mean_steps"]) for run in runs if run["option"] == name
            )
            seconds, values, steps = zip(*shown, strict=True)
            axes.plot(
                seconds,
                values,
                color=COLOURS[index % len(COLOURS)],
                marker=MARKERS[index % len(MARKERS)],
                label=name,
                linewidth=1.6,
            )
            if place_of == 0:
                for x, y, count in zip(seconds, values, steps, strict=True):
                    axes.annotate(
                        f"{count:.0f}",
                        (x, y),
                        BESIDE[index % len(BESIDE)],
                        textcoords="offset points",
                        fontsize=8,
                        ha="center",
                        color=COLOURS[index % len(COLOURS)],
                    )
        axes.margins(0.09)
        axes.set_xscale("log")
        axes.set_yscale(scale)
        for axis in (axes.xaxis, axes.yaxis) if scale == "log" and column != "noise_regularization" else (axes.xaxis,):
            axis.set_major_locator(
                LogLocator(subs=(1, 2, 5) if axis is axes.xaxis else (1, 1.5, 2, 3, 5, 7), numticks=20)
            )
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.set_minor_formatter(NullFormatter())
        axes.set_title(label, fontsize=11)
        axes.set_xlabel("processor seconds per image", fontsize=9)
        axes.grid(alpha=0.25, which="both")
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(names))
    figure.suptitle(f"{title}; numbers at points: steps an image", fontsize=12)
    figure.savefig(path, dpi=110)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--domain", default="digits", help="with encoders, directions, attributes and a judge")
    parser.add_argument("--base", default="stylegan2_w_plus", choices=("stylegan2_w_plus", "lsap_o_w_plus"))
    parser.add_argument("--sncd-weight", type=float, default=0.5, help="of lsap_o_w_plus in this domain")
    parser.add_argument("--source", default="digits:test[100:]", help="where the images are")
    parser.add_argument("--num-images", type=int, default=32, help="embedded together")
    parser.add_argument("--published-steps", nargs="*", type=int, default=[100, 200, 400, 1000])
    parser.add_argument("--steps", nargs="+", type=int, default=[100, 200, 400], help="of the fast method")
    parser.add_argument("--encoder-steps", nargs="*", type=int, default=[50, 100, 200], help="from the encoder's codes")
    parser.add_argument("--stops", nargs="*", type=float, default=[0.02, 0.01, 0.006], help="LPIPS where images end")
    parser.add_argument(
        "--variants", nargs="*", default=[], help='settings of the fast method to change, "{learning_rate: 0.2}" each'
    )
    parser.add_argument("--anchor-samples", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=5, help="alternating samples of a step's time")
    parser.add_argument("--processes", type=int, default=1, help="that run to the end; time is measured in one")
    parser.add_argument("--output", type=Path, help="file of JSON lines to append to; the screen when not given")
    parser.add_argument("--figure", type=Path, help="PNG of the curves")
    parser.add_argument("--commit", help="what was measured, where the code lies outside git")
    options = parser.parse_args()
    counts = (
        *options.published_steps,
        *options.steps,
        *options.encoder_steps,
        options.repeats,
        options.processes,
        options.num_images - 1,
    )
    if min(counts) < 1:
        parser.error("steps, repeats and processes must be at least 1, images at least 2")
    torch.set_num_threads(1)
    return options


def main() -> None:
    options = parse()
    bench = build(options)
    cells = [Cell(PUBLISHED, count) for count in options.published_steps]
    cells += [Cell(name, count) for name in (FAST, *options.variants) for count in options.steps]
    cells += [Cell(FROM_ENCODER, count) for count in options.encoder_steps]
    cells += [Cell(EARLY_STOP, max(options.steps), stop) for stop in options.stops]
    seconds = bench.seconds_per_step(options.repeats)
    pace = seconds[PUBLISHED]["median"]
    runs = []
    print(
        f"{'option':>32} {'steps':>7} {'ms':>7} {'LPIPS':>15} {'plain':>7} {'judge':>7} {'SNCD':>7} "
        f"{'R':>8} {'kept':>6} {'id':>6}"
    )
    for run in run_all(options, cells):
        run["seconds_per_image"] = run["mean_steps"] * seconds[run["option"]]["ratio"] * pace
        runs.append(run)
        stop = "" if run["stop_at_lpips"] is None else f" to {run['stop_at_lpips']:g}"
        print(
            f"{run['option'] + stop:>32} {run['mean_steps']:7.1f} {1e3 * run['seconds_per_image']:7.1f} "
            f"{run['lpips']:8.4f} {run['lpips_standard_error']:.4f} {run['lpips_with_constant_noise']:7.4f} "
            f"{run['lpips_judge']:7.4f} {run['sncd']:7.4f} "
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
