"""What an embedding returns, and what every embedder looks like."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

NOT_STOPPED = -1


@dataclass(frozen=True)
class Inversion:
    """Codes, the noise that belongs to them, and how they were found.

    Attributes:
        w_plus: [N, K, w_dim]; a W code is repeated over the K rows.
        noise: one map for each convolution, [N, 1, side, side]; edits must reuse them.
        reconstruction: the image of these codes with this noise, [N, C, R, R], unclamped.
        trace: recorded loss terms, [N, recorded steps, terms]; NaN where an image had stopped.
        trace_steps: the recorded steps.
        trace_terms: names of the terms.
        stopped_at: step at which an image's loss was no longer finite, or -1; its codes are the last finite ones.
        num_steps: steps that were asked for.
    """

    w_plus: Tensor
    noise: tuple[Tensor, ...]
    reconstruction: Tensor
    trace: Tensor
    trace_steps: tuple[int, ...]
    trace_terms: tuple[str, ...]
    stopped_at: Tensor
    num_steps: int


class Embedder(Protocol):
    """Image embedding: images in, codes out (LSAP, section 3.1)."""

    def __call__(self, target: Tensor, seeds: Sequence[int]) -> Inversion:
        """Embed images [N, C, R, R] in [-1, 1], each with the random state of its own seed."""
        ...


class PerceptualDistance(Protocol):
    """A perceptual network that lets the features of a fixed target be computed once."""

    def features(self, images: Tensor) -> list[Tensor]:
        """Features of images [N, C, H, W] in [-1, 1]."""
        ...

    def distance(self, features: list[Tensor], target_features: list[Tensor]) -> Tensor:
        """One distance for each image, [N]."""
        ...
