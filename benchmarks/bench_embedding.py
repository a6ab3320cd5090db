"""What a step of LSAP_O costs: embedding by optimization with SNCD, noise maps and a perceptual distance.

The frozen-weight form ("activations") against the published grouped form ("weights"), alternately in one run. All
networks have random weights: this measures what embedding costs, and says nothing about how good it is.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from measurement import Benchmark, Work, argument_parser, generators, parse, run
from random_generator import random_generator
from random_perceptual import PERCEPTUAL, random_perceptual
from torch import Tensor

from lsap_core.alignment import estimate_anchor
from lsap_core.generators import Modulation
from lsap_core.inversion import OptimizationEmbedder
from lsap_core.inversion.by_optimization import TRACE_TERMS
from lsap_core.inversion.inversion import NOT_STOPPED
from lsap_core.presets import method

ANCHOR_SAMPLES = 64  # few: its memory must not hide that of the steps


@dataclass(frozen=True)
class EmbeddingCell:
    """Sizes of one measurement; a sample takes the first `steps` of the published method's 1000."""

    table: str
    resolution: int
    batch_size: int
    space: str
    perceptual: str
    steps: int

    @property
    def units(self) -> int:
        """Image-steps of one call."""
        return self.batch_size * self.steps


def build(cell: EmbeddingCell, form: Modulation, device: torch.device) -> Work:
    """Some steps of LSAP_O; returns the perceptual distances of the first step, before the codes have moved."""
    generator = random_generator(cell.table, cell.resolution, form, device)
    embedder = OptimizationEmbedder(
        generator,
        estimate_anchor(generator, num_samples=ANCHOR_SAMPLES).to(device),
        random_perceptual(cell.perceptual, generator.config).to(device),
        method(f"lsap_o_{cell.space}").settings,
    )
    stream = torch.Generator().manual_seed(1)
    shape = (cell.batch_size, generator.config.image_channels, cell.resolution, cell.resolution)
    target = (2 * torch.rand(shape, generator=stream) - 1).to(device)
    state = embedder.start(range(cell.batch_size))

    def advance() -> Tensor:
        state.steps.zero_()  # every sample takes the same steps of the schedule
        embedder.advance(state, target, until=cell.steps)
        if bool((state.stopped_at != NOT_STOPPED).any()):
            raise RuntimeError(f"the loss is no longer finite in {cell}: stopped images cost less than others")
        return state.trace[:, 0, TRACE_TERMS.index("lpips")].clone()

    return advance


def benchmark(perceptual: str) -> Benchmark[EmbeddingCell]:
    """The benchmark with one of the perceptual networks."""
    return Benchmark(
        name="embedding",
        per="image-step",
        difference_of="perceptual distances at the first step",
        build=build,
        smallest=EmbeddingCell("tiny", 16, 1, "w_plus", perceptual, 2),
    )


if __name__ == "__main__":
    parser = argument_parser(__doc__)
    parser.add_argument("--spaces", nargs="+", choices=("w", "w_plus"), default=["w", "w_plus"])
    parser.add_argument("--steps", type=int, default=10, help="steps of one sample")
    parser.add_argument(
        "--perceptual", choices=tuple(PERCEPTUAL), default="features", help="random weights in any case"
    )
    options = parse(parser)
    if not 1 <= options.steps <= 1000:
        parser.error(f"--steps is {options.steps}; wanted 1 to 1000, the steps of the published method")
    perceptual = PERCEPTUAL[options.perceptual]
    cells = [
        EmbeddingCell(table, resolution, batch_size, space, perceptual, options.steps)
        for table, resolution in generators(options)
        for batch_size in options.batch_sizes
        for space in options.spaces
    ]
    run(benchmark(perceptual), cells, options)
