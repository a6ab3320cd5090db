"""A basis of codes in which every direction changes the image by itself: where Adam's rate of each fits better."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lsap_core.alignment.anchor import Anchor
from lsap_core.generators.generator import Generator
from lsap_core.images import comparison_view
from lsap_core.inversion.inversion import PerceptualDistance

SAMPLES_PER_DIMENSION = 8
MOST_PIXELS = 2**20
"""Of the images that are looked at together: one at 1024, 16 at 256."""
STEP_AWAY = 0.3
"""How far codes that are compared lie apart, in deviations of W."""
LEAST_SENSITIVITY = 1e-4
"""Share of the largest sensitivity at which a direction takes half a step; below it there is nothing but rounding."""


@dataclass(frozen=True)
class CodeBasis:
    """An orthonormal basis for every row of a code, and how much of a step each of its directions takes.

    Attributes:
        vectors: [K, D, D], row e of `vectors[k]` the direction e of row k; K is 1 in W.
        shares: [K, D], in [0, 1].
    """

    vectors: Tensor
    shares: Tensor

    def coordinates(self, gradient: Tensor) -> Tensor:
        """Rows [N, P] whose first K D columns are codes, told in the basis; the other columns as they are."""
        return self._turned(gradient, self.vectors.transpose(1, 2))

    def step(self, coordinates: Tensor) -> Tensor:
        """The step of codes and other columns [N, P] that coordinates stand for, each direction's share of it."""
        return self._turned(coordinates, self.shares[..., None] * self.vectors)

    def _turned(self, values: Tensor, matrices: Tensor) -> Tensor:
        codes, others = values[:, : self.shares.numel()], values[:, self.shares.numel() :]
        turned = codes.unflatten(1, self.shares.shape).transpose(0, 1) @ matrices  # [K, N, D]
        return torch.cat([turned.transpose(0, 1).flatten(1), others], dim=1)


def sensitive_basis(
    generator: Generator,
    perceptual: PerceptualDistance,
    anchor: Anchor,
    *,
    space: Literal["w", "w_plus"],
    samples_per_dimension: int = SAMPLES_PER_DIMENSION,
    seed: int = 0,
) -> CodeBasis:
    """The directions of codes by how much the perceptual distance feels them.

    Of synthetic codes w and others w' = w + 0.3 deviation N(0, 1) / D^(1/2) the gradients g of LPIPS(G(w), G(w')) are
    taken, row by row of W+; the eigenvectors of E[g g^T] are the basis, and the roots of its eigenvalues, h, are how
    sensitive the directions are. For small steps g = H (w - w') with H the Gauss-Newton matrix of the distance, of
    which this is the square: in its eigenvectors Adam, which scales every coordinate for itself, scales what has to be
    scaled. A direction takes the share h / (h + 1e-4 max h) of a step, so that those which change nothing stay.

    Costs D times `samples_per_dimension` images with their gradients, once for a generator; drawn on the CPU.

    Args:
        generator: of the images; frozen.
        perceptual: the distance of the loss.
        anchor: of the generator; its deviation.
        space: "w" for one basis of W, "w_plus" for one of every row.
        samples_per_dimension: at least 1.
        seed: of the random codes.
    """
    config, w_avg = generator.config, generator.mapping.w_avg
    stream = torch.Generator().manual_seed(seed)
    length = STEP_AWAY * anchor.code_deviation / config.w_dim**0.5
    at_once = max(1, min(32, MOST_PIXELS // config.resolution**2))
    num_rows = 1 if space == "w" else config.num_ws
    moment = torch.zeros(num_rows, config.w_dim, config.w_dim, dtype=torch.float64, device=w_avg.device)
    for start in range(0, samples_per_dimension * config.w_dim, at_once):
        count = min(at_once, samples_per_dimension * config.w_dim - start)
        z = torch.randn(count, config.z_dim, generator=stream)
        away = torch.randn(count, num_rows, config.w_dim, generator=stream)
        codes = generator.map(z.to(w_avg)).detach()[:, None].expand(-1, num_rows, -1)  # [n, rows, D]
        gradient = _gradient(generator, perceptual, codes, codes + length * away.to(w_avg)).double().transpose(0, 1)
        moment += gradient.transpose(1, 2) @ gradient
    values, vectors = torch.linalg.eigh(moment.cpu())  # the same basis on every device
    sensitivity = values.clamp_min(0).sqrt()
    shares = sensitivity / (sensitivity + LEAST_SENSITIVITY * sensitivity.max())
    rows = vectors.transpose(1, 2)
    largest = rows.gather(2, rows.abs().argmax(dim=2, keepdim=True))  # a sign that rounding does not choose
    return CodeBasis((rows * largest.sign()).contiguous().to(w_avg), shares.to(w_avg))


def _gradient(generator: Generator, perceptual: PerceptualDistance, codes: Tensor, others: Tensor) -> Tensor:
    """Gradient of the perceptual distance of the images of two codes to the first, [n, rows, D]."""
    codes = codes.clone().requires_grad_(True)
    with torch.no_grad():
        target = perceptual.features(_seen(generator, others))
    distance = perceptual.distance(perceptual.features(_seen(generator, codes)), target)
    (gradient,) = torch.autograd.grad(distance.sum(), codes)
    return gradient


def _seen(generator: Generator, codes: Tensor) -> Tensor:
    """The images of codes [n, 1 or K, D], as losses look at them."""
    w_plus = codes.expand(-1, generator.config.num_ws, -1)
    return comparison_view(generator.synthesize(w_plus), content_box=generator.config.content_box)
