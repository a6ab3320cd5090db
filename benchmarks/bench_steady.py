"""Seconds an image of LSAP_O-W+ with 1000 steps when a device is warm and full, from some steps of batches that grow.

Each precision that the device has is measured at each batch size, up to the first that the memory does not hold.
Operations of a step are counted, and their rate stands beside the best that the device gives in the same run. All
networks have random weights. Starting and finishing a batch are not in it.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from bench_profile import ProfileCell, Profiled
from measurement import append, argument_parser, clock, environment, generators, parse
from operators import OperatorTimer, Roofline, measure_roofline
from random_perceptual import PERCEPTUAL

NUM_STEPS = 1000
PRECISIONS = ("float32", "tf32")


@dataclass(frozen=True)
class SteadyCell(ProfileCell):
    """Sizes of one measurement, how products are rounded, and whether the loss is compiled."""

    precision: str
    is_compiled: bool


def measure(cell: SteadyCell, device: torch.device, roofline: Roofline, *, steps: int, repeats: int) -> dict[str, Any]:
    """The best rate of some samples, memory, and shares of the peaks."""
    with rounding(cell.precision, device):
        profiled = Profiled(cell, device)
        timer = OperatorTimer(profiled.generator, device, roofline)
        profiled.take_apart(1, timer)
        if cell.is_compiled:
            profiled.embedder.compilation = compilation_of(cell.batch_size)
            profiled.seconds(1)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        seconds = min(profiled.seconds(steps) for _ in range(repeats))
        memory = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    flops, moved = (sum(getattr(tally, name) for tally in timer.tallies.values()) for name in ("flops", "moved_bytes"))
    return {
        "step_seconds": seconds,
        "seconds_an_image": seconds / cell.batch_size * NUM_STEPS,
        "peak_memory_bytes": memory,
        "flops": flops,
        "moved_bytes": moved,
        "share_of_peak_flops": flops / seconds / roofline.peak_flops,
        "share_of_peak_bandwidth": moved / seconds / roofline.peak_bandwidth,
    }


def compilation_of(batch_size: int) -> Any:
    """What compiles for batches of a size, and says so."""
    from lsap_core.inversion.compilation import Compilation

    return Compilation(batch_size, tell=lambda told: print(told, flush=True))


@contextlib.contextmanager
def rounding(precision: str, device: torch.device) -> Iterator[None]:
    """Products of float32 as they are, or with inputs rounded to TF32, which only some GPUs do."""
    if device.type != "cuda":
        yield
        return
    places = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [place.allow_tf32 for place in places]
    for place in places:
        place.allow_tf32 = precision == "tf32"
    try:
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            place.allow_tf32 = value


if __name__ == "__main__":
    parser = argument_parser(__doc__)
    parser.add_argument("--space", choices=("w", "w_plus"), default="w_plus")
    parser.add_argument("--compile", action="store_true", help="every batch size both as it is written and compiled")
    parser.add_argument("--steps", type=int, default=8, help="steps of one sample")
    parser.add_argument("--perceptual", choices=tuple(PERCEPTUAL), help="features for digits, else lpips-vgg")
    options = parse(parser)
    if not 1 <= options.steps < NUM_STEPS:
        parser.error(f"--steps is {options.steps}; wanted 1 to {NUM_STEPS - 1}")
    device = torch.device(options.device)
    surroundings = environment(device, options.commit)
    precisions = (
        PRECISIONS if device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= 8 else PRECISIONS[:1]
    )
    for precision in precisions:
        with rounding(precision, device):
            roofline = measure_roofline(device)
        for table, resolution in generators(options):
            perceptual = PERCEPTUAL[options.perceptual or ("lpips-vgg" if table == "config_f" else "features")]
            forms = (False, True) if options.compile else (False,)
            for batch_size, is_compiled in itertools.product(sorted(options.batch_sizes), forms):
                cell = SteadyCell(table, resolution, batch_size, options.space, perceptual, precision, is_compiled)
                try:
                    found = measure(cell, device, roofline, steps=options.steps, repeats=options.repeats)
                except torch.OutOfMemoryError:
                    print(f"{cell}: out of memory")
                    break
                result = {
                    "benchmark": "steady",
                    **surroundings,
                    "load_average": [round(load, 2) for load in os.getloadavg()],
                    "clock": clock(device).__name__,
                    "sizes": asdict(cell),
                    "peak_flops": roofline.peak_flops,
                    "peak_bytes_per_second": roofline.peak_bandwidth,
                    **found,
                }
                form = f"{precision}, compiled" if is_compiled else precision
                print(
                    f"{table} {resolution} px, batch {batch_size}, {form}: {found['seconds_an_image']:.4g} s an "
                    f"image of {NUM_STEPS} steps; {found['share_of_peak_flops']:.1%} of "
                    f"{roofline.peak_flops / 1e12:.3g} TFLOP/s, {found['share_of_peak_bandwidth']:.1%} of "
                    f"{roofline.peak_bandwidth / 1e9:.4g} GB/s",
                    flush=True,
                )
                append(json.dumps(result), options.output)
