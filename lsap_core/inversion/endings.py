"""What ends the search of an image before its last step: it is near enough, or its loss is no longer finite."""

from __future__ import annotations

import torch
from torch import Tensor

from lsap_core.inversion.optimization_state import OptimizationState
from lsap_core.inversion.steps_ahead import StepNumbers


@torch.no_grad()
def stop_non_finite_(state: OptimizationState, loss: Tensor, gradient: Tensor, numbers: StepNumbers) -> None:
    """Stop images whose loss [N] or gradient [N, P] is not finite; no branch, so that a GPU need not wait."""
    is_finite = loss.isfinite() & gradient.isfinite().all(dim=1)
    stops = state.is_active & numbers.moves & ~is_finite
    state.stopped_at.copy_(torch.where(stops, numbers.step, state.stopped_at))
    state.is_active &= ~stops


def near_enough(lpips: Tensor, numbers: StepNumbers, state: OptimizationState, stop_at_lpips: float) -> Tensor:
    """Which images are at their end, [N] bool: those that record in this step a distance not above the limit.

    Args:
        lpips: distance of each image, [N], before it moves in this step.
        numbers: of the step.
        state: of the batch; an image whose loss was not finite is at no end.
        stop_at_lpips: the limit.
    """
    records = numbers.record_at < state.trace.shape[1]
    return records & state.is_active & (lpips.detach() <= stop_at_lpips)


def rest_(state: OptimizationState, is_near: Tensor, num_steps: int) -> None:
    """Let images that are near enough, [N] bool, take no step any more; a GPU is waited for."""
    rows = is_near.cpu()
    if bool(rows.any()):
        state.steps[rows] = num_steps
        state.streams.rewind()  # the steps that were prepared are of more images


def steps_taken(trace: Tensor, trace_steps: tuple[int, ...], *, stop_at_lpips: float | None, num_steps: int) -> Tensor:
    """Steps of each image, [N] int64 on the CPU: up to the one at which it recorded that it was near enough.

    Args:
        trace: recorded distance of each image, [N, recorded steps], NaN where it recorded nothing.
        trace_steps: the recorded steps.
        stop_at_lpips: where images are near enough, or None.
        num_steps: of an image that never was.
    """
    taken = torch.full((len(trace),), num_steps)
    if stop_at_lpips is not None:
        is_near = trace.cpu() <= stop_at_lpips  # [N, recorded steps]: once at most, and NaN never
        taken = torch.where(is_near.any(dim=1), torch.tensor(trace_steps)[is_near.int().argmax(dim=1)], taken)
    return taken
