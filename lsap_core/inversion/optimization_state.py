"""Where the optimization of a batch stands: one row for each image, which goes at its own pace."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from lsap_core.errors import ShapeError
from lsap_core.inversion.inversion import NOT_STOPPED
from lsap_core.inversion.noise_maps import RandomStreams


@dataclass
class OptimizationState:
    """Everything that the next step of each image depends on; rows know nothing of each other.

    Attributes:
        shapes: of an image's code, then of its noise maps: what a row of `values` holds, in this order.
        values: clean codes p and the maps of the convolutions that add noise, [N, P].
        first_moments: Adam's running mean of gradients, [N, P].
        second_moments: Adam's running mean of squared gradients, [N, P].
        steps: steps that each image has taken, [N] int64, on the CPU.
        is_active: which images still move, [N] bool.
        stopped_at: step at which an image's loss was no longer finite, [N] int64, -1 while active.
        trace: recorded loss terms, [N, recorded steps, terms]; NaN where nothing was recorded.
        streams: the random numbers of each image.
    """

    shapes: tuple[tuple[int, ...], ...]
    values: Tensor
    first_moments: Tensor
    second_moments: Tensor
    steps: Tensor
    is_active: Tensor
    stopped_at: Tensor
    trace: Tensor
    streams: RandomStreams

    @classmethod
    def begin(
        cls, codes: Tensor, noise: Sequence[Tensor], streams: RandomStreams, trace_shape: tuple[int, int]
    ) -> OptimizationState:
        """The state before the first step of codes [N, ...] and noise maps [N, 1, side, side], which are copied."""
        parts = [codes, *noise]
        values = torch.cat([part.detach().to(codes).flatten(1) for part in parts], dim=1)
        return cls(
            shapes=tuple(tuple(part.shape[1:]) for part in parts),
            values=values,
            first_moments=torch.zeros_like(values),
            second_moments=torch.zeros_like(values),
            steps=torch.zeros(len(codes), dtype=torch.int64),
            is_active=torch.ones(len(codes), dtype=torch.bool, device=codes.device),
            stopped_at=torch.full((len(codes),), NOT_STOPPED, device=codes.device),
            trace=codes.new_full((len(codes), *trace_shape), torch.nan),
            streams=streams,
        )

    def __len__(self) -> int:
        """Images of the batch."""
        return len(self.values)

    @property
    def step(self) -> int:
        """Steps that every image has taken: those of the one that is least far."""
        return int(self.steps.min())

    @property
    def codes(self) -> Tensor:
        """The clean codes, [N, w_dim] or [N, K, w_dim]: a view of `values`."""
        return self.split(self.values)[0]

    @property
    def noise(self) -> list[Tensor]:
        """Maps of the convolutions that add noise, [N, 1, side, side] each: views of `values`."""
        return self.split(self.values)[1:]

    def split(self, values: Tensor) -> list[Tensor]:
        """Code and noise maps of rows [N, P] as `values` has them."""
        parts = values.split([math.prod(shape) for shape in self.shapes], dim=1)
        return [part.unflatten(1, shape) for part, shape in zip(parts, self.shapes, strict=True)]

    @torch.no_grad()
    def record(self, terms: Tensor, place: Tensor) -> None:
        """Write terms [N, terms] into the traces of the images at their places [N]; the number of places is nowhere."""
        found = torch.where(self.is_active[:, None], terms.detach(), torch.nan)
        images, num_places = torch.arange(len(self), device=found.device), self.trace.shape[1]
        at, records = place.clamp_max(num_places - 1), (place < num_places)[:, None]
        self.trace[images, at] = torch.where(records, found, self.trace[images, at])

    def rows(self, rows: Sequence[int]) -> OptimizationState:
        """A copy of some images, in this order; their results are those that they have here."""
        chosen = {name: tensor[list(rows)] for name, tensor in self._per_image().items()}  # an index copies
        return OptimizationState(shapes=self.shapes, streams=self.streams.rows(rows), **chosen)

    def replace_rows(self, rows: Sequence[int], other: OptimizationState) -> None:
        """Put the images of another state in the place of some of this one, which are lost, in place.

        A row of the batch whose image is done is filled again in this way, by what `OptimizationEmbedder.start` gives
        for the next images; these get the results that they would get alone.

        Raises:
            ShapeError: the other state has another number of images than `rows`, or is of another space, generator or
                settings.
        """
        if len(other) != len(rows) or other.shapes != self.shapes or other.trace.shape[1:] != self.trace.shape[1:]:
            raise ShapeError(
                f"{len(other)} images of {list(other.shapes)}, trace {list(other.trace.shape[1:])}, for the rows "
                f"{list(rows)} of a state of {list(self.shapes)}, trace {list(self.trace.shape[1:])}: wanted as many "
                "images as rows, started by the same embedder"
            )
        theirs = other._per_image()
        for name, tensor in self._per_image().items():
            tensor[list(rows)] = theirs[name].to(tensor.device)
        self.streams.replace_rows(rows, other.streams)

    def to_tensors(self) -> dict[str, Tensor]:
        """The whole state as named tensors on the CPU, for storage."""
        tensors = {
            "step": self.steps,
            "is_active": self.is_active,
            "stopped_at": self.stopped_at,
            "trace": self.trace,
            "streams": self.streams.state(),
            **self._named(),
        }
        return {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over a state that `to_tensors` returned; the next step then goes on bit for bit.

        Raises:
            ShapeError: the state belongs to another batch, space or generator.
        """
        own = {**self._named(), "trace": self.trace}
        for name, value in own.items():
            saved = tensors.get(name)
            if saved is None or saved.shape != value.shape:
                raise ShapeError(
                    f"saved {name} is {None if saved is None else list(saved.shape)}; this optimization has "
                    f"{list(value.shape)}: the state is of another batch, generator or settings"
                )
        for name, value in {**own, "is_active": self.is_active, "stopped_at": self.stopped_at}.items():
            value.copy_(tensors[name])
        self.steps.copy_(tensors["step"])  # states of earlier versions have one number for all images
        self.streams.load(tensors["streams"])

    def _named(self) -> dict[str, Tensor]:
        """Code, maps and their moments under the names that they are stored by: views."""
        return {
            f"{prefix}.{index:02d}{suffix}": part
            for prefix, suffix, tensor in (
                ("parameter", "", self.values),
                ("adam", ".exp_avg", self.first_moments),
                ("adam", ".exp_avg_sq", self.second_moments),
            )
            for index, part in enumerate(self.split(tensor))
        }

    def _per_image(self) -> dict[str, Tensor]:
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in named.items() if isinstance(value, Tensor)}
