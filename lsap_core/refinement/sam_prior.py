"""How plausible W+ codes are: a Gaussian where W is nearly one (Wulff and Torralba 2020; Parmar et al. 2022)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lsap_core.errors import ShapeError
from lsap_core.generators.generator import Generator

SLOPE = 5.0
"""Undoes the last leaky ReLU (slope 0.2) of the mapping network, up to a factor."""
RIDGE = 1e-8
NUM_SAMPLES = 5000
SAMPLE_BATCH = 1000


@dataclass(frozen=True)
class GaussianPrior:
    """Mean and inverse covariance of v = LeakyReLU_5(w).

    The mean is that of W, transformed; it is not the mean of the transformed codes.

    Attributes:
        mean: of v, [w_dim], float64.
        inverse_covariance: [w_dim, w_dim], float64.
    """

    mean: Tensor
    inverse_covariance: Tensor

    @classmethod
    def of_codes(cls, w: Tensor) -> GaussianPrior:
        """The prior of sampled codes [M, w_dim], in float64: 1e-8 is added to the diagonal of their covariance.

        Raises:
            ShapeError: fewer than two codes, or no codes of W.
        """
        if w.ndim != 2 or len(w) < 2:
            raise ShapeError(f"codes are {list(w.shape)}; wanted [M, w_dim] with at least 2 of them")
        w = w.double()
        v = gaussianized(w)
        v = v - v.mean(dim=0)
        covariance = v.T @ v / (len(v) - 1)
        covariance.diagonal().add_(RIDGE)
        return cls(gaussianized(w.mean(dim=0)), torch.linalg.inv(covariance))

    @classmethod
    @torch.no_grad()
    def estimate(cls, generator: Generator, *, num_samples: int = NUM_SAMPLES, seed: int = 0) -> GaussianPrior:
        """The prior of a generator, from codes that it maps; the numbers are drawn on the CPU for every device."""
        stream = torch.Generator().manual_seed(seed)
        z = torch.randn(num_samples, generator.config.z_dim, generator=stream).to(generator.mapping.w_avg)
        return cls.of_codes(torch.cat([generator.map(part) for part in z.split(SAMPLE_BATCH)]))

    def distance(self, w_plus: Tensor) -> Tensor:
        """sum_l (v_l - mean)^T inverse_covariance (v_l - mean), v_l = LeakyReLU_5(w_l), in float64.

        Args:
            w_plus: codes [N, K, w_dim].

        Returns:
            One value for each image, [N], float64.
        """
        centered = gaussianized(w_plus.double()) - self.mean  # [N, K, w_dim]
        return ((centered @ self.inverse_covariance) * centered).sum(dim=(1, 2))


def gaussianized(w: Tensor) -> Tensor:
    """v = LeakyReLU_5(w), of codes of any shape."""
    return F.leaky_relu(w, SLOPE)
