"""What a step of embedding costs here, beside published loops from checkouts of their repositories.

All sides have the same weights, the same image and one network that compares images, in one process. First a loop and
ours take the same steps from the same random numbers: the perceptual distance and the regularization of the noise maps
in every step have to agree to 1e-3, codes and maps after the last one to 1e-2, or nothing is timed. Then they take
turns.
Ours keeps the memory that tensors leave free, as the project's workers do (`lsap_core.memory`); a published loop is
timed with what the system does by itself, and that way too.
A published loop has one image at a time (more of them would share their noise maps' deviations and its loss's mean);
ours has each of --batch-sizes.

    --ganinverter CHECKOUT      the LSAP authors' toolbox, in W+: github.com/caopulan/GANInverter
    --rosinality CHECKOUT       its projector, in W+, config-f alone: github.com/rosinality/stylegan2-pytorch
    --stylegan2-ada CHECKOUT    its projector, in W: github.com/NVlabs/stylegan2-ada-pytorch

Of the toolbox there are also --methods pti, sam and e4e (its encoder), at config-f.
"""

from __future__ import annotations

import argparse
import functools
import gc
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, Protocol

import torch
from bench_steady import compilation_of
from measurement import (
    append,
    argument_parser,
    clock,
    environment,
    exact_convolutions,
    generators,
    memory_given_back,
    parse,
    peak_bytes,
    reset_peak,
)
from published_optimizers import Loop, Run, drawn_on_cpu, nvlabs_loop, rosinality_loop, stamp, toolbox_loop
from published_toolbox import EncoderSides, PtiSides, SamSides
from random_generator import random_generator
from random_perceptual import PERCEPTUAL, random_perceptual
from torch import Tensor

from lsap_core.alignment import Anchor, SncdLoss, estimate_anchor
from lsap_core.generators import Generator
from lsap_core.images import comparison_view
from lsap_core.inversion import OptimizationEmbedder, OptimizationSettings, OptimizationState
from lsap_core.inversion.by_optimization import TRACE_TERMS
from lsap_core.inversion.inversion import PerceptualDistance
from lsap_core.perceptual.lpips import LpipsDistance

TOOLBOX = {"pti": PtiSides, "sam": SamSides, "e4e": EncoderSides}
LOOPS: dict[str, Callable[[Path, Generator, PerceptualDistance], Loop]] = {
    "ganinverter": toolbox_loop,
    "rosinality": rosinality_loop,
    "stylegan2_ada": nvlabs_loop,
}
PUBLISHED, OURS = "published", "ours"
KEPT = f"{PUBLISHED}, memory kept"
OPTIMIZATION = "optimization"
AGREEMENT = {"lpips": 1e-3, "noise": 1e-3, "codes": 1e-2, "noise maps": 1e-2}
ANCHOR_SAMPLES = 512
SEED = 5


@dataclass(frozen=True)
class PeerCell:
    """Sizes of one measurement; of a published loop the batch is 1."""

    peer: str
    method: str
    table: str
    resolution: int
    batch_size: int
    perceptual: str
    steps: int


class Sides(Protocol):
    """A published method and ours, with the same networks and image."""

    def published(self, steps: int, *, keeps_terms: bool = False) -> Run:
        """Steps of the published method on the image."""

    def ours(self, steps: int, batch_size: int) -> Run:
        """Steps of ours on a batch of that image."""

    def ours_from_the_same(self, steps: int) -> Run:
        """Steps of ours with all that the published method starts from, its random numbers too."""

    def quality(self, run: Run) -> dict[str, float]:
        """How good what came of it is."""


class OptimizationSides:
    """A published loop of optimization and ours."""

    def __init__(
        self, loop: Loop, generator: Generator, perceptual: PerceptualDistance, image: Tensor, device: torch.device
    ):
        self.loop, self.generator, self.perceptual = loop, generator, perceptual
        self.image, self.device = image, device
        self.compilations: dict[int, Any] = {}  # by batch size
        self.anchor = estimate_anchor(self.generator, num_samples=ANCHOR_SAMPLES).to(device)
        self.settings = OptimizationSettings(
            space=self.loop.space,  # type: ignore[arg-type]
            noise_normalization=self.loop.noise_normalization,
            downsampling=self.loop.downsampling,
        )

    def published(self, steps: int, *, keeps_terms: bool = False) -> Run:
        """Steps of the published loop on the image."""
        return self.loop.take(self.image, SEED, steps, keeps_terms)

    def ours(self, steps: int, batch_size: int, *, is_compiled: bool = False) -> Run:
        """Steps of ours on a batch of that image."""
        embedder = self._embedder(self.anchor, steps, record_every=10)
        if is_compiled:
            embedder.compilation = self.compilations.setdefault(batch_size, compilation_of(batch_size))
        return self._run(embedder, embedder.start(range(batch_size)))

    def ours_from_the_same(self, steps: int) -> Run:
        """Steps of ours from where the published loop begins, with its random numbers."""
        beginning = self.loop.begin(SEED)
        anchor = replace(self.anchor, w_avg=beginning.w_avg, code_deviation=beginning.deviation)
        embedder = self._embedder(anchor, steps, record_every=1)
        state = embedder.start([SEED], noise=[maps.to(self.device) for maps in beginning.maps])
        state.load_tensors({**state.to_tensors(), "streams": beginning.stream.get_state()[None]})
        run = self._run(embedder, state)
        run.lpips, run.noise = (
            list(state.trace[0, :, TRACE_TERMS.index(name)]) for name in ("lpips", "noise_regularization")
        )
        return run

    @torch.no_grad()
    def quality(self, run: Run) -> dict[str, float]:
        """LPIPS and SNCD of the clean codes with their noise maps, and the share of values outside [-1, 1]."""
        w_plus = self.generator.expand(run.codes[:1])
        image = self.generator.synthesize(w_plus, noise=run.maps)
        seen, target = (comparison_view(images, downsampling=self.loop.downsampling) for images in (image, self.image))
        sncd = SncdLoss(self.generator, self.anchor)(w_plus)
        return {
            "lpips": self.perceptual(seen, target).item(),  # type: ignore[operator]
            "sncd": sncd.item(),
            "outside": (image.abs() > 1).float().mean().item(),
        }

    def _embedder(self, anchor: Anchor, steps: int, *, record_every: int) -> OptimizationEmbedder:
        settings = replace(self.settings, num_steps=steps, record_every=record_every)
        return OptimizationEmbedder(self.generator, anchor, self.perceptual, settings)

    def _run(self, embedder: OptimizationEmbedder, state: OptimizationState) -> Run:
        run = Run()
        target = self.image.expand(len(state.codes), -1, -1, -1)
        embedder.advance(state, target, after_step=lambda _: run.stamps.append(stamp(self.device)))
        result = embedder.finish(state)
        run.codes, run.maps = state.codes.detach(), [maps[:1] for maps in result.noise]
        return run


def sides_of(checkout: Path, cell: PeerCell, device: torch.device) -> Sides:
    """Both sides of a cell."""
    generator = random_generator(cell.table, cell.resolution, "activations", device)
    perceptual = random_perceptual(cell.perceptual, generator.config).to(device)
    shape = (1, generator.config.image_channels, cell.resolution, cell.resolution)
    image = (2 * torch.rand(shape, generator=torch.Generator().manual_seed(1)) - 1).to(device)
    if cell.method != OPTIMIZATION:
        assert isinstance(perceptual, LpipsDistance)
        return TOOLBOX[cell.method](checkout, generator, perceptual, image, device)
    loop = LOOPS[cell.peer](checkout, generator, perceptual)
    return OptimizationSides(loop, generator, perceptual, image, device)


def compare_steps(sides: Sides, cell: PeerCell, steps: int, device: torch.device) -> dict[str, Any]:
    """The terms of both in every step, and how far they differ; what came of both.

    Raises:
        SystemExit: they do not do the same.
    """
    runs, memory = {}, {}
    with exact_convolutions():
        with drawn_on_cpu(device):
            runs[PUBLISHED], memory[PUBLISHED] = with_peak_memory(
                lambda: sides.published(steps, keeps_terms=True), device
            )
        runs[OURS], memory[OURS] = with_peak_memory(lambda: sides.ours_from_the_same(steps), device)
    terms = {
        name: {"lpips": [float(value) for value in run.lpips], "noise": [float(value) for value in run.noise]}
        for name, run in runs.items()
    }
    published, ours = runs[PUBLISHED], runs[OURS]
    pairs = {
        "lpips": (published.lpips, ours.lpips),
        "noise": (published.noise, ours.noise),
        "codes": ([published.codes], [ours.codes]),
        "noise maps": (published.maps, ours.maps),
    }
    found = {
        name: difference(*(torch.cat([one.detach().flatten() for one in side]) for side in pair))
        for name, pair in pairs.items()
        if all(sum(one.numel() for one in side) for side in pair)
    }
    assert found, f"{cell}: nothing of both sides can be compared"
    for name, value in found.items():
        if not value <= AGREEMENT[name]:
            raise SystemExit(
                f"{cell}: the two do not compute the same, so nothing was timed: {name} differ by {value:.2e}, "
                f"relatively; wanted at most {AGREEMENT[name]:g}; terms {json.dumps(terms)}"
            )
    final = {name: sides.quality(run) for name, run in runs.items()}
    return {"terms": terms, "differences": found, "final": final, "peak_memory_bytes": memory}


def difference(theirs: Tensor, ours: Tensor) -> float:
    """Length of the difference beside the length of theirs; NaN where one of them is."""
    return float((theirs - ours).norm() / theirs.norm())


def measure(checkout: Path, cell: PeerCell, batch_sizes: Sequence[int], options: Any) -> dict[str, Any]:
    """What goes into a line of the results."""
    device = torch.device(options.device)
    sides = sides_of(checkout, cell, device)
    equality = compare_steps(sides, cell, options.equal_steps, device)
    memory = equality.pop("peak_memory_bytes")
    forms: dict[str, Callable[[int], Run]] = {PUBLISHED: as_the_system_does(sides.published), KEPT: sides.published}
    sizes = {PUBLISHED: 1, KEPT: 1}
    memory[KEPT] = memory[PUBLISHED]
    for size in batch_sizes:
        name = f"{OURS}, batch {size}"
        forms[name], sizes[name] = functools.partial(sides.ours, batch_size=size), size
        if size == 1:
            memory[name] = memory[OURS]
        else:  # a warm-up; with one image, both sides have had theirs
            memory[name] = with_peak_memory(lambda take=forms[name]: take(2), device)[1]
        if options.compile:
            compiled = f"{name}, compiled"
            forms[compiled], sizes[compiled] = functools.partial(sides.ours, batch_size=size, is_compiled=True), size
            found = difference(sides.ours(2, size).codes, forms[compiled](2).codes)
            if not found <= AGREEMENT["codes"]:
                raise SystemExit(f"{cell}: compiled, the codes differ by {found:.2e}, relatively: nothing was timed")
            memory[compiled] = with_peak_memory(lambda take=forms[compiled]: take(2), device)[1]
    samples: dict[str, list[float]] = {name: [] for name in forms}
    for repeat in range(options.repeats):
        for name, take in forms.items() if repeat % 2 else reversed(forms.items()):
            samples[name].append(take(cell.steps).step_seconds / sizes[name])
    ratios = {
        name: [theirs / ours for theirs, ours in zip(samples[PUBLISHED], samples[name], strict=True)]
        for name in forms
        if name != PUBLISHED
    }
    best = max((name for name in ratios if name != KEPT), key=lambda name: median(ratios[name]))
    return {
        "per": "image-step",
        "clock": "cuda events" if device.type == "cuda" else clock(device).__name__,
        "repeats": options.repeats,
        "equality": equality,
        "forms": {name: {**_summary(samples[name]), "peak_memory_bytes": memory[name]} for name in forms},
        "ratios": {name: _summary(values) for name, values in ratios.items()},
        "best": {"form": best, "ratio": median(ratios[best])},
    }


def as_the_system_does(take: Callable[[int], Run]) -> Callable[[int], Run]:
    """The same with memory given back to the system as glibc does unasked."""

    def taken(steps: int) -> Run:
        with memory_given_back():
            return take(steps)

    return taken


def with_peak_memory(take: Callable[[], Run], device: torch.device) -> tuple[Run, int]:
    """What was taken, and the bytes that it needed at its peak above what was held before, both networks at least."""
    gc.collect()
    reset_peak(device)
    held = peak_bytes(device)
    run = take()
    return run, peak_bytes(device) - held


def _summary(values: Sequence[float]) -> dict[str, float]:
    return {"median": median(values), "min": min(values), "max": max(values)}


def show(result: dict[str, Any]) -> None:
    """Both sides, and what each of ours gains."""
    equality = result["equality"]
    print(f"\n{result['sizes']}")
    differences = ", ".join(f"{name} {value:.1e}" for name, value in equality["differences"].items())
    print(f"  the same to {differences}; after these steps {equality['final']}")
    for name, form in result["forms"].items():
        ratio = result["ratios"].get(name)
        gain = "" if ratio is None else f"{ratio['median']:.2f} [{ratio['min']:.2f}, {ratio['max']:.2f}] times as fast"
        print(
            f"  {name:<16} {1e3 * form['median']:>9.2f} ms  {form['peak_memory_bytes'] / 2**20:>8.0f} MiB  {gain}",
            flush=True,
        )


if __name__ == "__main__":
    parser = argument_parser(__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    for name in LOOPS:
        parser.add_argument(f"--{name.replace('_', '-')}", type=Path, metavar="CHECKOUT")
    parser.add_argument("--methods", nargs="+", choices=(OPTIMIZATION, *TOOLBOX), default=[OPTIMIZATION])
    parser.add_argument("--compile", action="store_true", help="ours both as it is written and compiled")
    parser.add_argument("--steps", type=int, default=3, help="steps of one sample")
    parser.add_argument("--equal-steps", type=int, default=4, help="steps that are compared before")
    parser.add_argument("--perceptual", choices=tuple(PERCEPTUAL), help="features for digits, else lpips-vgg")
    options = parse(parser)
    peers = [name for name in LOOPS if getattr(options, name) is not None]
    if not peers:
        parser.error("no checkout is named: wanted one or more of --ganinverter, --rosinality and --stylegan2-ada")
    if min(options.steps, options.equal_steps) < 2:
        parser.error(f"--steps is {options.steps}, --equal-steps {options.equal_steps}; wanted 2 or more")
    if options.compile and options.methods != [OPTIMIZATION]:
        parser.error(f"--compile is of --methods {OPTIMIZATION} alone")
    surroundings = environment(torch.device(options.device), options.commit)
    wanted = [
        (peer, way, table, resolution)
        for peer in peers
        for way in options.methods
        for table, resolution in generators(options)
        if (peer == "ganinverter" or way == OPTIMIZATION)
        and (table == "config_f" or (peer != "rosinality" and way == OPTIMIZATION))
    ]
    for peer, way, table, resolution in wanted:
        perceptual = PERCEPTUAL[options.perceptual or ("lpips-vgg" if table == "config_f" else "features")]
        cell = PeerCell(peer, way, table, resolution, 1, perceptual, options.steps)
        result = {
            "benchmark": "against_peer",
            **surroundings,
            "load_average": [round(load, 2) for load in os.getloadavg()],
            "sizes": {**asdict(cell), "batch_size": options.batch_sizes},
            **measure(getattr(options, peer), cell, options.batch_sizes, options),
        }
        show(result)
        append(json.dumps(result), options.output)
