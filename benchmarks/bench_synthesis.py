"""What an image costs: synthesis from W+ codes by frozen weights, forward and with the gradient to the codes.

The frozen-weight form ("activations") against the published grouped form ("weights"), alternately in one run.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from measurement import Benchmark, Work, argument_parser, generators, parse, run
from random_generator import random_generator
from torch import Tensor

from lsap_core.generators import Modulation

FORWARD, BACKWARD = "forward", "forward+backward"


@dataclass(frozen=True)
class SynthesisCell:
    """Sizes of one measurement."""

    table: str
    resolution: int
    batch_size: int
    passes: str

    @property
    def units(self) -> int:
        """Images of one call."""
        return self.batch_size


def build(cell: SynthesisCell, form: Modulation, device: torch.device) -> Work:
    """Forward returns the images, forward+backward the gradient of the sum of their squares."""
    generator = random_generator(cell.table, cell.resolution, form, device)
    config = generator.config
    codes = torch.randn(cell.batch_size, config.num_ws, config.w_dim, generator=torch.Generator().manual_seed(1))
    codes = codes.to(device).requires_grad_(cell.passes == BACKWARD)

    def forward() -> Tensor:
        return generator.synthesize(codes)

    def forward_and_backward() -> Tensor:
        return torch.autograd.grad(forward().square().sum(), codes)[0]

    return forward_and_backward if cell.passes == BACKWARD else forward


BENCHMARK = Benchmark(
    name="synthesis",
    per="image",
    difference_of="images (forward) or gradients to the codes (forward+backward)",
    build=build,
    smallest=SynthesisCell("tiny", 16, 1, BACKWARD),
)


if __name__ == "__main__":
    options = parse(argument_parser(__doc__))
    cells = [
        SynthesisCell(table, resolution, batch_size, passes)
        for table, resolution in generators(options)
        for batch_size in options.batch_sizes
        for passes in (FORWARD, BACKWARD)
    ]
    run(BENCHMARK, cells, options)
