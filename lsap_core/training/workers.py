"""Several workers, one training: gradients, batch statistics and codes of the whole batch."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx


def num_workers() -> int:
    """Processes that train together; 1 without `torch.distributed`."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def gather(values: Tensor) -> Tensor:
    """The values [N, ...] of all workers, one after another, [W N, ...], without gradient."""
    if num_workers() == 1:
        return values.detach()
    parts = [torch.empty_like(values) for _ in range(num_workers())]
    dist.all_gather(parts, values.detach().contiguous())
    return torch.cat(parts)


def all_workers(claim: Tensor) -> Tensor:
    """Whether a claim, a bool without dimensions, holds for every worker."""
    if num_workers() == 1:
        return claim
    count = claim.to(torch.int32)
    dist.all_reduce(count, op=dist.ReduceOp.MIN)
    return count.bool()


def synchronize_batch_norm(module: nn.Module) -> None:
    """Let the batch normalizations inside a module take their statistics over all workers, in place.

    Names and tensors stay as they are. On a GPU these are torch's own; they refuse other devices, so elsewhere
    `WholeBatchNorm` does the same.
    """
    for name, child in module.named_children():
        if not isinstance(child, nn.BatchNorm2d):
            synchronize_batch_norm(child)
        elif child.running_mean is not None and child.running_mean.is_cuda:
            setattr(module, name, nn.SyncBatchNorm.convert_sync_batchnorm(child))
        else:
            child.__class__ = WholeBatchNorm


class WholeBatchNorm(nn.BatchNorm2d):
    """Batch normalization over the images of all workers, which must have equally many.

    With mean m_r and variance v_r of worker r: m = mean_r m_r, v = mean_r (v_r + (m_r - m)^2).
    """

    def forward(self, features: Tensor) -> Tensor:
        """[N, C, H, W] -> the same shape."""
        if not self.training or num_workers() == 1:
            return super().forward(features)
        own = torch.stack(torch.var_mean(features, dim=(0, 2, 3), correction=0))  # [2, C]
        variances, means = cast(Tensor, _GatherStatistics.apply(own)).unbind(1)  # [W, C]
        mean = means.mean(dim=0)
        variance = (variances + (means - mean).square()).mean(dim=0)
        self._remember(mean.detach(), variance.detach(), features.numel() // len(mean) * num_workers())
        scale = self.weight * (variance + self.eps).rsqrt()
        return (features - mean[:, None, None]) * scale[:, None, None] + self.bias[:, None, None]

    def _remember(self, mean: Tensor, variance: Tensor, count: int) -> None:
        assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)


class _GatherStatistics(torch.autograd.Function):
    """Statistics [...] of every worker, [W, ...]; every worker's loss has a gradient in them."""

    @staticmethod
    def forward(ctx: FunctionCtx, statistics: Tensor) -> Tensor:
        return gather(statistics[None])

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: Any) -> Tensor:
        total = gradients[0].contiguous()
        dist.all_reduce(total)
        return cast(Tensor, total[dist.get_rank()])
