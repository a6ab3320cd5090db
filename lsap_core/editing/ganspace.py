"""Principal components of W (GANSpace, Härkönen et al. 2020), from codes that may come in pieces."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lsap_core.editing.components import Components
from lsap_core.errors import ConfigError, ShapeError


@dataclass
class CovarianceSum:
    """Mergeable sums over W codes, in float64: count, sum of w and sum of w w^T.

    Example:
        >>> codes = torch.tensor([[0.0, 0.0], [2.0, 0.0]])
        >>> sums = CovarianceSum.empty(2)
        >>> sums.update(codes)
        >>> sums.covariance()
        tensor([[2., 0.], [0., 0.]], dtype=torch.float64)
    """

    count: int
    total: Tensor
    products: Tensor

    @classmethod
    def empty(cls, w_dim: int) -> CovarianceSum:
        """No codes yet."""
        return cls(0, torch.zeros(w_dim, dtype=torch.float64), torch.zeros(w_dim, w_dim, dtype=torch.float64))

    def update(self, w: Tensor) -> None:
        """Add codes [N, w_dim].

        Raises:
            ShapeError: the codes have another width.
        """
        if w.ndim != 2 or w.shape[1] != self.total.shape[0]:
            raise ShapeError(f"codes are {list(w.shape)}; wanted [N, {self.total.shape[0]}]")
        wide = w.detach().to("cpu", torch.float64)
        self.count += len(wide)
        self.total = self.total + wide.sum(dim=0)
        self.products = self.products + wide.T @ wide

    def merge(self, other: CovarianceSum) -> CovarianceSum:
        """The sums of both sets together."""
        return CovarianceSum(self.count + other.count, self.total + other.total, self.products + other.products)

    def mean(self) -> Tensor:
        """Mean code, [w_dim], float64."""
        return self.total / self.count

    def covariance(self) -> Tensor:
        """Sum of (w - mean)(w - mean)^T / (count - 1), [w_dim, w_dim], float64.

        Raises:
            ConfigError: fewer than two codes.
        """
        if self.count < 2:
            raise ConfigError(f"{self.count} codes for a covariance; wanted at least 2")
        mean = self.mean()
        return (self.products - self.count * torch.outer(mean, mean)) / (self.count - 1)

    def components(
        self, num_components: int, *, generator: str | None = None, provenance: Mapping[str, Any] | None = None
    ) -> Components:
        """The principal components with the largest deviations, the largest first.

        The sign of each makes its largest entry positive, so that fitting again gives the same ones.

        Args:
            num_components: how many, at most w_dim.
            generator: digest of the generator that the codes are of.
            provenance: how they were sampled.

        Raises:
            ConfigError: too many components, or fewer than two codes.
        """
        width = len(self.total)
        if not 1 <= num_components <= width:
            raise ConfigError(f"{num_components} components were asked for; wanted 1 to {width}, the width of W")
        variances, vectors = torch.linalg.eigh(self.covariance())  # ascending
        kept = vectors.flip(1)[:, :num_components].T  # [M, D]
        return Components(
            "pca",
            with_positive_peaks(kept).float(),
            deviations=variances.flip(0)[:num_components].clamp_min(0).sqrt().float(),
            mean=self.mean().float(),
            generator=generator,
            provenance={**(provenance or {}), "num_codes": self.count},
        )


def fit_pca(
    batches: Iterable[Tensor],
    *,
    num_components: int,
    generator: str | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> Components:
    """Principal components of W codes that come batch by batch; only sums are kept of them.

    Args:
        batches: codes [N, w_dim]; GANSpace samples 10^6.
        num_components: how many to keep; GANSpace keeps 80.
        generator: digest of the generator that the codes are of.
        provenance: how they were sampled.

    Raises:
        ConfigError: too many components, or fewer than two codes.
        ShapeError: batches of different widths.
    """
    sums: CovarianceSum | None = None
    for w in batches:
        sums = sums or CovarianceSum.empty(w.shape[-1])
        sums.update(w)
    if sums is None:
        raise ConfigError("no codes were given; wanted at least 2")
    return sums.components(num_components, generator=generator, provenance=provenance)


def with_positive_peaks(vectors: Tensor) -> Tensor:
    """Vectors [M, D], each with the sign that makes its largest entry (by absolute value) positive."""
    peaks = vectors.gather(1, vectors.abs().argmax(dim=1, keepdim=True))
    return vectors * torch.where(peaks < 0, -1.0, 1.0)
