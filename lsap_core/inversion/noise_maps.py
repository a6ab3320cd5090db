"""Noise maps of single images: drawn from the image's own stream, normalized for itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from lsap_core.generators.config import GeneratorConfig

NoiseNormalization = Literal["unbiased", "biased"]


def random_streams(seeds: Sequence[int]) -> list[torch.Generator]:
    """One random stream for each image, on the CPU, so that results do not depend on the device or the batch."""
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def draw(streams: Sequence[torch.Generator], shape: Sequence[int]) -> Tensor:
    """Standard normal numbers, row n from stream n: [N, *shape], float32, on the CPU."""
    return torch.stack([torch.randn(*shape, generator=stream) for stream in streams])


def draw_noise(config: GeneratorConfig, streams: Sequence[torch.Generator]) -> list[Tensor]:
    """One set of noise maps for each image, [N, 1, h, w] for each convolution."""
    return [draw(streams, (1, *size)) for size in config.noise_sizes]


class RandomStreams:
    """One random stream for each image, read ahead of the steps that use the numbers.

    Numbers of many steps are drawn at once, so that they reach a device in one copy. Where a stream *stands* follows
    from the steps that used their numbers: how far was read ahead changes nothing.
    """

    def __init__(self, streams: Sequence[torch.Generator]):
        self._streams = list(streams)
        self._before = [stream.get_state() for stream in self._streams]  # of the first step that was read ahead
        self._drawn: list[Sequence[bool]] = []  # of each step that was read ahead, which images draw
        self._shape: tuple[int, ...] = ()
        self._used = 0  # of these steps

    def read_ahead(self, out: Tensor, is_drawn: Sequence[Sequence[bool]]) -> None:
        """Fill `out` [T, N, ...] with the numbers of the next T steps; what was read ahead before is read again.

        Args:
            out: standard normal numbers, float32 on the CPU; 0 for an image that draws none.
            is_drawn: of each step, which images draw.
        """
        self.rewind()
        self._drawn, self._shape = list(is_drawn), tuple(out.shape[2:])
        out.zero_()
        for numbers, drawn in zip(out, self._drawn, strict=True):
            for row, stream in enumerate(self._streams):
                if drawn[row]:
                    torch.randn(self._shape, generator=stream, out=numbers[row])

    @property
    def is_ahead(self) -> bool:
        """Whether there are numbers that were read ahead and not used."""
        return self._used < len(self._drawn)

    def use(self) -> None:
        """The numbers of one more step are used."""
        self._used += 1

    def rewind(self) -> None:
        """Forget what was read ahead."""
        self.load(self.state())

    def state(self) -> Tensor:
        """Where every stream stands, [N, bytes] uint8."""
        return torch.stack([self._state_of(row) for row in range(len(self._streams))])

    def load(self, states: Tensor) -> None:
        """Go on where other streams stand, as `state` told it."""
        for stream, state in zip(self._streams, states, strict=True):
            stream.set_state(state.clone())  # a row of a larger tensor makes torch 2.15 crash
        self._before = [stream.get_state() for stream in self._streams]
        self._drawn, self._used = [], 0

    def rows(self, rows: Sequence[int]) -> RandomStreams:
        """Copies of some of the streams, in this order."""
        copies = RandomStreams([torch.Generator() for _ in rows])
        copies.load(self.state()[list(rows)])
        return copies

    def replace_rows(self, rows: Sequence[int], other: RandomStreams) -> None:
        """Let some of the streams go on where others stand."""
        states = self.state()
        states[list(rows)] = other.state()
        self.load(states)

    def _state_of(self, row: int) -> Tensor:
        if not self.is_ahead:
            return self._streams[row].get_state()
        stream = torch.Generator()
        stream.set_state(self._before[row])
        for drawn in self._drawn[: self._used]:
            if drawn[row]:
                torch.randn(self._shape, generator=stream)
        return stream.get_state()


@torch.no_grad()
def normalize_noise_(
    noise: Sequence[Tensor], normalization: NoiseNormalization = "unbiased", *, moves: Tensor | None = None
) -> None:
    """Bring every map of every image to mean 0 and deviation 1, in place.

    "unbiased" divides by the deviation with n - 1 (rosinality, GANInverter), "biased" with n (NVlabs, PTI).

    Args:
        noise: maps, [N, 1, h, w] each.
        normalization: which deviation.
        moves: the images whose maps are normalized, [N, 1] bool; the others' stay as they are. All by default.
    """
    correction = 1 if normalization == "unbiased" else 0
    for maps in noise:
        deviation, mean = torch.std_mean(maps, dim=(1, 2, 3), keepdim=True, correction=correction)
        if moves is not None:
            chosen = moves[..., None, None]
            deviation, mean = deviation.where(chosen, 1), mean.where(chosen, 0)
        maps.sub_(mean).div_(deviation)
