"""The rows that belong beside every printed SNCD: alone it would reward collapse to the mean."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch

from lsap_core.alignment.anchor import Anchor
from lsap_core.alignment.sncd import SncdLoss
from lsap_core.generators.generator import Generator

REFERENCE_SAMPLES = 4096


@dataclass(frozen=True)
class ReferenceRows:
    """SNCD of code sets whose alignment is known.

    Attributes:
        floor: the best value that any method can get; also that of one constant code along the anchor.
        mean_code: the mean code; a method near it has collapsed.
        truncated_05: synthetic codes at truncation 0.5.
        truncated_07: synthetic codes at truncation 0.7.
        synthetic: synthetic codes without truncation, perfectly aligned in distribution.
    """

    floor: float
    mean_code: float
    truncated_05: float
    truncated_07: float
    synthetic: float

    def labelled(self) -> dict[str, float]:
        """The rows under the names that are printed."""
        labels = ("floor", "mean code", "synthetic, psi = 0.5", "synthetic, psi = 0.7", "synthetic, psi = 1")
        return dict(zip(labels, asdict(self).values(), strict=True))


@torch.no_grad()
def reference_rows(
    generator: Generator, anchor: Anchor, *, num_samples: int = REFERENCE_SAMPLES, seed: int = 1
) -> ReferenceRows:
    """Measure the reference rows on fresh codes, independent of those that the anchor was estimated from."""
    distance = SncdLoss(generator, anchor)
    w_avg = anchor.w_avg.to(generator.mapping.w_avg)
    stream = torch.Generator().manual_seed(seed)
    z = torch.randn(num_samples, generator.config.z_dim, generator=stream).to(w_avg)
    offset = generator.map(z) - w_avg

    def at(psi: float) -> float:
        return distance(w_avg + psi * offset).double().mean().item()

    return ReferenceRows(anchor.floor(), distance(w_avg[None]).item(), at(0.5), at(0.7), at(1.0))
