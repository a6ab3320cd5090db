"""Where a step of LSAP_O goes: shares by part and pass, operations and bytes, beside what the device can give.

All networks have random weights. Steps as they are and steps with every operator timed by itself take turns. What the
first take longer than the work of their operators is the cost of calling them, autograd and Python (on a GPU: the time
in which it waits). Peaks of the device, by matrix products and copies, are measured in the same run.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import torch
from bench_embedding import ANCHOR_SAMPLES
from measurement import append, argument_parser, clock, environment, generators, now, parse
from operators import OperatorTimer, Roofline, measure_roofline
from random_generator import random_generator
from random_perceptual import PERCEPTUAL, random_perceptual

from lsap_core.alignment import estimate_anchor
from lsap_core.inversion import OptimizationEmbedder
from lsap_core.inversion.by_optimization import OptimizationState
from lsap_core.presets import method

BETWEEN = "calls, autograd, Python"
ROW = "{:<24} {:<9} {:>10} {:>7} {:>10} {:>9} {:>8} {:>9} {:>7} {:>12}"


@dataclass(frozen=True)
class ProfileCell:
    """Sizes of one profile."""

    table: str
    resolution: int
    batch_size: int
    space: str
    perceptual: str


class Profiled:
    """An embedding of which steps can be timed as they are, and operator by operator."""

    def __init__(self, cell: ProfileCell, device: torch.device):
        self.device = device
        self.generator = random_generator(cell.table, cell.resolution, "activations", device)
        config = self.generator.config
        self.embedder = OptimizationEmbedder(
            self.generator,
            estimate_anchor(self.generator, num_samples=ANCHOR_SAMPLES).to(device),
            random_perceptual(cell.perceptual, config).to(device),
            method(f"lsap_o_{cell.space}").settings,
        )
        shape = (cell.batch_size, config.image_channels, cell.resolution, cell.resolution)
        self.target = (2 * torch.rand(shape, generator=torch.Generator().manual_seed(1)) - 1).to(device)
        self.seeds = range(cell.batch_size)

    def seconds(self, steps: int) -> float:
        """Of one step as it is, the mean of some."""
        return self._take(steps, None)

    def take_apart(self, steps: int, timer: OperatorTimer) -> float:
        """The same, and then a step operator by operator; a step whose terms are not recorded, as most are."""
        return self._take(steps, timer)

    def _take(self, steps: int, timer: OperatorTimer | None) -> float:
        stamps: list[float] = []
        num_whole = steps + 1  # the first of a call looks at the target too, and is not among them

        def after_step(state: OptimizationState) -> None:
            if state.step in (1, num_whole):
                stamps.append(now(self.device))
            if timer is not None and state.step >= num_whole:
                timer.__enter__() if state.step == num_whole else timer.__exit__(None, None, None)

        state = self.embedder.start(self.seeds)
        until = num_whole if timer is None else num_whole + 1
        self.embedder.advance(state, self.target, until=until, after_step=after_step)
        return (stamps[1] - stamps[0]) / steps


def profile(cell: ProfileCell, device: torch.device, roofline: Roofline, *, repeats: int, steps: int) -> dict[str, Any]:
    """What goes into a line of the results."""
    profiled = Profiled(cell, device)
    whole, timed = [], []
    for _ in range(repeats):
        timer = OperatorTimer(profiled.generator, device, roofline)
        whole.append(profiled.take_apart(steps, timer))
        timed.append(timer.tallies)
    parts = [
        {
            "part": part,
            "pass": passed,
            **asdict(tally),
            "seconds": median(one[part, passed].seconds for one in timed),
        }
        for (part, passed), tally in timed[-1].items()
    ]
    return {
        "clock": clock(device).__name__,
        "repeats": repeats,
        "step": {"median_seconds": median(whole), "min_seconds": min(whole), "max_seconds": max(whole)},
        "peak_flops": roofline.peak_flops,
        "peak_bytes_per_second": roofline.peak_bandwidth,
        "parts": parts,
    }


def show(result: dict[str, Any]) -> None:
    """The table of one cell, parts by their time."""
    step, parts = result["step"]["median_seconds"], result["parts"]
    flops, bandwidth = result["peak_flops"], result["peak_bytes_per_second"]
    print(
        f"\n{result['sizes']}: {1e3 * step:.4g} ms a step; peaks {flops / 1e9:.4g} GFLOP/s, {bandwidth / 1e9:.3g} GB/s"
    )
    print(ROW.format("part", "pass", "ms", "share", "operators", "GFLOP", "GB", "GFLOP/s", "GB/s", "of its roof"))
    for part in sorted(parts, key=lambda part: -part["seconds"]):
        seconds = part["seconds"]
        print(
            ROW.format(
                part["part"],
                part["pass"],
                f"{1e3 * seconds:.3f}",
                f"{seconds / step:.1%}",
                part["operators"],
                f"{part['flops'] / 1e9:.3f}",
                f"{part['moved_bytes'] / 1e9:.3f}",
                f"{part['flops'] / seconds / 1e9:.1f}",
                f"{part['moved_bytes'] / seconds / 1e9:.1f}",
                f"{part['bound_seconds'] / seconds:.0%}",
            )
        )
    total = {name: sum(part[name] for part in parts) for name in ("seconds", "operators", "flops", "moved_bytes")}
    bound = sum(part["bound_seconds"] for part in parts)
    between = step - total["seconds"]
    print(ROW.format(BETWEEN, "", f"{1e3 * between:.3f}", f"{between / step:.1%}", *[""] * 6))
    print(
        ROW.format(
            "all",
            "",
            f"{1e3 * step:.3f}",
            "",
            total["operators"],
            f"{total['flops'] / 1e9:.3f}",
            f"{total['moved_bytes'] / 1e9:.3f}",
            f"{total['flops'] / step / 1e9:.1f}",
            f"{total['moved_bytes'] / step / 1e9:.1f}",
            f"{bound / step:.0%}",
        )
    )
    print(
        f"roofline: {1e3 * bound:.4g} ms by these operators one by one, {1e3 * total['flops'] / flops:.4g} ms for "
        f"their convolutions and products alone: at most {step / (total['flops'] / flops):.3g} times as fast as now"
    )


if __name__ == "__main__":
    parser = argument_parser(__doc__)
    parser.add_argument("--space", choices=("w", "w_plus"), default="w_plus")
    parser.add_argument("--steps", type=int, default=3, help="steps as they are between two that are taken apart")
    parser.add_argument("--perceptual", choices=tuple(PERCEPTUAL), help="features for digits, else lpips-vgg")
    options = parse(parser)
    if not 1 <= options.steps <= 8:
        parser.error(f"--steps is {options.steps}; wanted 1 to 8, so that none of them is recorded")
    device = torch.device(options.device)
    surroundings = environment(device, options.commit)
    for table, resolution in generators(options):
        perceptual = PERCEPTUAL[options.perceptual or ("lpips-vgg" if table == "config_f" else "features")]
        for batch_size in options.batch_sizes:
            cell = ProfileCell(table, resolution, batch_size, options.space, perceptual)
            result = {
                "benchmark": "profile",
                **surroundings,
                "load_average": [round(load, 2) for load in os.getloadavg()],
                "sizes": asdict(cell),
                **profile(cell, device, measure_roofline(device), repeats=options.repeats, steps=options.steps),
            }
            show(result)
            append(json.dumps(result), options.output)
