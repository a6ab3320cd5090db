"""What a step takes from the host: rates, strengths and random numbers, of many steps in one copy to the device."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lsap_core.inversion.adam import Decays
from lsap_core.inversion.noise_maps import RandomStreams

MOST_AHEAD = 64
MOST_NUMBERS_AHEAD = 2**22
"""16 MiB of random numbers; of fewer steps where a batch needs more."""


@dataclass(frozen=True)
class Schedule:
    """What changes from step to step.

    Attributes:
        num_steps: steps T of an image.
        rate: learning rate at a time in [0, 1).
        strength: deviation of the exploration noise at a time.
        place_of: place in the trace of each recorded step.
        decays: of Adam.
    """

    num_steps: int
    rate: Callable[[float], float]
    strength: Callable[[float], float]
    place_of: Mapping[int, int]
    decays: Decays

    def numbers(self, step: int) -> tuple[float, float, float]:
        """Rate and root correction as `StepNumbers` has them, and strength, of an image that has taken `step` steps."""
        time = min(step, self.num_steps - 1) / self.num_steps  # an image that is done asks too, and does not move
        rate = self.rate(time) / self.decays.first_correction(step + 1)
        return rate, math.sqrt(self.decays.second_correction(step + 1)), self.strength(time)


@dataclass(frozen=True)
class StepNumbers:
    """One step of every image, each at its own place of the schedule; on the device but for `moved`.

    Attributes:
        rate: learning rate over 1 - beta_1^t, [N, 1]; t counts an image's steps from 1.
        root_correction: (1 - beta_2^t)^(1/2), [N, 1].
        moves: whether the image takes the step, [N] bool.
        step: steps that it has taken before, [N] int64.
        record_at: place in the trace, [N] int64; the number of places where nothing is recorded.
        exploration: what is added to its clean code, [N, ...].
        moved: `moves` as 0 and 1, [N] int64, on the CPU.
        is_recorded: whether any image records.
    """

    rate: Tensor
    root_correction: Tensor
    moves: Tensor
    step: Tensor
    record_at: Tensor
    exploration: Tensor
    moved: Tensor
    is_recorded: bool


def steps_ahead(
    schedule: Schedule, steps: Sequence[int], *, last: int, at_most: int, streams: RandomStreams, codes: Tensor
) -> list[StepNumbers]:
    """The next steps of a batch, as many as are left for the image that is least far; of a long run the first 64.

    Args:
        schedule: what changes from step to step.
        steps: steps that each image has taken; one that has taken `last` rests.
        last: steps that an image takes at most.
        at_most: steps to prepare at most.
        streams: of the random numbers; read ahead.
        codes: of the images, [N, ...]; the numbers have their device and dtype.
    """
    count = min(last - min(steps), at_most, MOST_AHEAD, max(1, MOST_NUMBERS_AHEAD // codes.numel()))
    taken = torch.tensor(steps) + torch.arange(count)[:, None]  # [T, N]
    taken = taken.clamp_max(last)
    moves = taken < last
    nowhere = len(schedule.place_of)
    known = {step: (*schedule.numbers(step), schedule.place_of.get(step, nowhere)) for step in taken.unique().tolist()}
    numbers = torch.tensor([[known[step] for step in row] for row in taken.tolist()], dtype=torch.float64)
    rates, corrections, strengths, places = numbers.unsqueeze(-1).unbind(2)  # [T, N, 1]
    strengths = strengths * moves[..., None]
    places = places[..., 0].long().where(moves, nowhere)
    exploration = torch.empty(count, *codes.shape)
    streams.read_ahead(exploration, (strengths[..., 0] != 0).tolist())
    dtype, device = codes.dtype, codes.device
    strength = _moved(strengths, device, dtype).view(*moves.shape, *[1] * (codes.ndim - 1))
    columns = zip(
        _moved(rates, device, dtype),
        _moved(corrections, device, dtype),
        _moved(moves, device),
        _moved(taken, device),
        _moved(places, device),
        _moved(exploration, device, dtype) * strength,
        moves.long(),
        (places != nowhere).any(dim=1).tolist(),
        strict=True,
    )
    return [StepNumbers(*column) for column in columns]


def _moved(values: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """Values of the CPU on a device; a GPU is not waited for."""
    values = values if dtype is None else values.to(dtype)
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values.to(device)
