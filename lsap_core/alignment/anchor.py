"""The anchor: the mean of normalized styles over codes that the generator itself produces."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from lsap_core.errors import ShapeError
from lsap_core.generators.generator import Generator
from lsap_core.spaces.statistics import CodeStatistics
from lsap_core.spaces.styles import StyleSet, normalize, select

EVALUATION_SAMPLES = 50_000
SAMPLE_BATCH = 4096


@dataclass(frozen=True)
class Anchor:
    """mu_l = mean of normalized styles of sampled codes, one vector for each style layer (LSAP, eq. 6).

    The vectors are not normalized again: their length, below 1, carries the spread.

    Attributes:
        directions: one vector [width] for each layer, float32.
        w_avg: mean code, the checkpoint's own when it has one, [w_dim].
        code_deviation: root mean square distance of codes from their mean.
        style_set: which style vectors the layers are.
        num_samples: how many codes were sampled.
    """

    directions: tuple[Tensor, ...]
    w_avg: Tensor
    code_deviation: float
    style_set: StyleSet
    num_samples: int

    @cached_property
    def by_layer(self) -> tuple[Tensor, Tensor]:
        """Directions, and ones, each in the rows of its layer's vector and the column of its layer: [sum of widths, L].

        What style vectors in one row [N, sum of widths] are multiplied by to have a sum for every layer.
        """
        columns = [direction[:, None] for direction in self.directions]
        return torch.block_diag(*columns), torch.block_diag(*(torch.ones_like(column) for column in columns))

    def lengths(self) -> Tensor:
        """||mu_l|| for each layer, [L], float64."""
        return torch.stack([direction.double().norm() for direction in self.directions])

    def floor(self) -> float:
        """The smallest SNCD that any codes can have: mean_l (1 - ||mu_l||)."""
        return (1 - self.lengths()).mean().item()

    def self_score(self) -> float:
        """The SNCD of the synthetic distribution itself: mean_l (1 - ||mu_l||^2)."""
        return (1 - self.lengths().square()).mean().item()

    def to(self, device: torch.device | str) -> Anchor:
        """The same anchor on another device."""
        return Anchor(
            tuple(direction.to(device) for direction in self.directions),
            self.w_avg.to(device),
            self.code_deviation,
            self.style_set,
            self.num_samples,
        )

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Everything as named arrays, for storage."""
        arrays = {f"direction_{index:02d}": d.cpu().numpy() for index, d in enumerate(self.directions)}
        return {
            **arrays,
            "w_avg": self.w_avg.cpu().numpy(),
            "code_deviation": np.asarray(self.code_deviation),
            "style_set": np.asarray(self.style_set),
            "num_samples": np.asarray(self.num_samples),
        }

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray]) -> Anchor:
        """The inverse of `to_arrays`."""
        names = sorted(name for name in arrays if name.startswith("direction_"))
        return cls(
            tuple(torch.from_numpy(np.array(arrays[name])) for name in names),
            torch.from_numpy(np.array(arrays["w_avg"])),
            float(arrays["code_deviation"]),
            str(arrays["style_set"]),  # type: ignore[arg-type]
            int(arrays["num_samples"]),
        )


@torch.no_grad()
def estimate_anchor(
    generator: Generator,
    *,
    num_samples: int = EVALUATION_SAMPLES,
    style_set: StyleSet = "authors",
    seed: int = 0,
) -> Anchor:
    """Sample codes without truncation and average their normalized styles, streamed, in float64.

    The error of the estimate is about spread / sqrt(num_samples): 1e-4 in SNCD at 50,000.

    Args:
        generator: the generator; its mapping and affine layers are used.
        num_samples: codes to draw; LSAP evaluates with 50,000.
        style_set: which style vectors.
        seed: of the random codes, drawn on the CPU whatever the generator's device.

    Raises:
        ShapeError: fewer than two samples.
    """
    if num_samples < 2:
        raise ShapeError(f"{num_samples} samples for the anchor; wanted at least 2")
    config = generator.config
    device = generator.mapping.w_avg.device
    stream = torch.Generator().manual_seed(seed)
    statistics = CodeStatistics.empty(config.w_dim)
    totals: list[Tensor] | None = None
    for start in range(0, num_samples, SAMPLE_BATCH):
        count = min(SAMPLE_BATCH, num_samples - start)
        z = torch.randn(count, config.z_dim, generator=stream).to(device, generator.mapping.w_avg.dtype)
        w = generator.map(z)
        statistics.update(w)
        sums = [
            direction.double().sum(dim=0) for direction in normalize(select(generator.styles(w), config, style_set))
        ]
        totals = sums if totals is None else [a + b for a, b in zip(totals, sums, strict=True)]
    assert totals is not None
    w_avg = generator.mapping.w_avg.clone() if generator.has_w_avg else statistics.mean().to(device)
    return Anchor(
        tuple((total / num_samples).float() for total in totals),
        w_avg,
        statistics.deviation(),
        style_set,
        num_samples,
    )


def anchor_digest(generator_digest: str, *, num_samples: int, style_set: StyleSet, seed: int) -> str:
    """Name of a kept anchor: a digest of the weights and of every option that decides it."""
    key = {"generator": generator_digest, "num_samples": num_samples, "style_set": style_set, "seed": seed}
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]
