"""Mean and spread of W, from codes that may come in pieces."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lsap_core.errors import ShapeError


@dataclass
class CodeStatistics:
    """Mergeable sums over W codes, in float64.

    Example:
        >>> whole = CodeStatistics.of(torch.tensor([[0.0, 0.0], [2.0, 0.0]]))
        >>> whole.mean(), whole.deviation()
        (tensor([1., 0.]), 1.0)
    """

    count: int
    total: Tensor
    total_square: float

    @classmethod
    def empty(cls, w_dim: int) -> CodeStatistics:
        """No codes yet."""
        return cls(0, torch.zeros(w_dim, dtype=torch.float64), 0.0)

    @classmethod
    def of(cls, w: Tensor) -> CodeStatistics:
        """The statistics of codes [N, w_dim]."""
        statistics = cls.empty(w.shape[-1])
        statistics.update(w)
        return statistics

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
        self.total_square += wide.square().sum().item()

    def merge(self, other: CodeStatistics) -> CodeStatistics:
        """The statistics of both sets together."""
        return CodeStatistics(
            self.count + other.count, self.total + other.total, self.total_square + other.total_square
        )

    def mean(self) -> Tensor:
        """Mean code, [w_dim], float32."""
        return (self.total / self.count).float()

    def deviation(self) -> float:
        """sqrt(mean_i ||w_i - mean||^2): the root mean square distance from the mean, one number."""
        mean = self.total / self.count
        variance = self.total_square / self.count - mean.square().sum().item()
        return float(max(variance, 0.0) ** 0.5)
