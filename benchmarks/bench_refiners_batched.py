"""How much batches bring: steps of PTI and SAM on several images at once, beside the same images one after another.

Random weights, random images, no stop; both sides have to come to the same loss before anything is timed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from measurement import Benchmark, Work, argument_parser, generators, parse, run
from random_generator import random_generator
from torch import Tensor

from lsap_core.perceptual.features import FeatureDistance, FeatureNet, FeatureNetConfig
from lsap_core.refinement import Embedded
from lsap_core.refinement.pti import PtiRefiner, PtiSettings
from lsap_core.refinement.sam import SamRefiner, SamSettings

FORMS = ("batched", "one by one")
AGREEMENT = 1e-3
PTI = PtiSettings(stop_at_lpips=None, record_every=1)
SAM = SamSettings(record_every=1, prior_samples=600)


@dataclass(frozen=True)
class BatchCell:
    """Sizes of one measurement; a sample takes `steps` steps of every image of the batch."""

    refiner: str
    table: str
    resolution: int
    batch_size: int
    steps: int

    @property
    def units(self) -> int:
        """Image-steps of one call."""
        return self.batch_size * self.steps


def build(cell: BatchCell, form: str, device: torch.device) -> Work:
    """Some steps of every image; returns the loss before each of them, [N, steps]."""
    generator = random_generator(cell.table, cell.resolution, "activations", device)
    config = generator.config
    torch.manual_seed(1)
    network = FeatureNet(FeatureNetConfig(cell.resolution, config.image_channels)).requires_grad_(False).eval()
    perceptual = FeatureDistance(network).to(device)
    refiner: PtiRefiner | SamRefiner
    if cell.refiner == "pti":
        refiner = PtiRefiner(generator, perceptual=perceptual, settings=PTI)
    else:
        refiner = SamRefiner(generator, predictor=None, segment=None, perceptual=perceptual, settings=SAM)
    stream = torch.Generator().manual_seed(1)
    codes = torch.randn(cell.batch_size, config.num_ws, config.w_dim, generator=stream).to(device)
    shape = (cell.batch_size, config.image_channels, cell.resolution, cell.resolution)
    target = (2 * torch.rand(shape, generator=stream) - 1).to(device)
    size = cell.batch_size if form == "batched" else 1
    parts = [
        (_started(refiner, Embedded(w_plus), images), images)
        for w_plus, images in zip(codes.split(size), target.split(size), strict=True)
    ]

    def advance() -> Tensor:
        for state, images in parts:
            state.step = 0  # every sample takes the same steps of the schedule
            refiner.advance(state, images, until=cell.steps)
        return torch.cat([state.trace[:, : cell.steps, 0] for state, _ in parts])

    return advance


def _started(refiner: PtiRefiner | SamRefiner, embedded: Embedded, images: Tensor) -> Any:
    """The state before the first step; of SAM with an equal part of the picture in each space."""
    seeds = range(len(images))
    if isinstance(refiner, PtiRefiner):
        return refiner.start(embedded, images, seeds)
    side = images.shape[-1]
    bands = torch.arange(side) * (len(refiner.spaces) + 1) // side
    choice = bands[None, :, None].expand(len(images), -1, side)
    return refiner.start(embedded, images, seeds, choice=choice)


BENCHMARK = Benchmark(
    name="refiners_batched",
    per="image-step",
    difference_of="the loss before each step",
    build=build,
    smallest=BatchCell("pti", "tiny", 32, 2, 1),
    forms=FORMS,
    agreement=AGREEMENT,
    counts_state=True,
)

if __name__ == "__main__":
    parser = argument_parser(__doc__)
    parser.add_argument("--refiners", nargs="+", choices=("pti", "sam"), default=["pti", "sam"])
    parser.add_argument("--steps", type=int, default=2, help="steps of one sample")
    options = parse(parser)
    if options.steps < 1:
        parser.error(f"--steps is {options.steps}; wanted 1 or more")
    cells = [
        BatchCell(refiner, table, resolution, batch_size, options.steps)
        for refiner in options.refiners
        for table, resolution in generators(options)
        for batch_size in options.batch_sizes
    ]
    run(BENCHMARK, cells, options)
