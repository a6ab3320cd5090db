"""Where SAM's optimization of a batch stands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lsap_core.errors import ShapeError
from lsap_core.generators.generator import Noise
from lsap_core.inversion.inversion import NOT_STOPPED


class SamState:
    """Everything that the next step depends on.

    Attributes:
        step: steps taken.
        codes: W+ codes [N, K, w_dim].
        start_codes: those of the embedding, the same shape.
        offsets: of every feature space, [N, channels, side, side].
        masks: of every feature space, [N, 1, side, side].
        noise: of the embedding, as `Generator.synthesize` takes it.
        is_active: which images still move, [N] bool.
        stopped_at: [N] int64, -1 while active.
        trace: [N, recorded steps, terms].
    """

    def __init__(
        self,
        codes: Tensor,
        offsets: Sequence[Tensor],
        masks: Sequence[Tensor],
        noise: Noise,
        *,
        learning_rate: float,
        num_recorded: int,
        num_terms: int,
    ):
        self.start_codes = codes.detach().clone()
        self.codes = codes.detach().clone().requires_grad_(True)
        self.offsets = [offset.requires_grad_(True) for offset in offsets]
        self.masks = list(masks)
        self.noise = noise
        self.optimizer = torch.optim.Adam(self.parameters, lr=learning_rate)
        self.step = 0
        self.is_active = torch.ones(len(codes), dtype=torch.bool, device=codes.device)
        self.stopped_at = torch.full((len(codes),), NOT_STOPPED, device=codes.device)
        self.trace = codes.new_full((len(codes), num_recorded, num_terms), torch.nan)

    @property
    def parameters(self) -> list[Tensor]:
        """Codes, then offsets: what Adam moves."""
        return [self.codes, *self.offsets]

    def to_tensors(self) -> dict[str, Tensor]:
        """The whole state but the embedding as named tensors on the CPU, for storage."""
        tensors = {
            "step": torch.tensor(self.step),
            "is_active": self.is_active,
            "stopped_at": self.stopped_at,
            "trace": self.trace,
        }
        for index, mask in enumerate(self.masks):
            tensors[f"mask.{index}"] = mask
        for index, parameter in enumerate(self.parameters):
            tensors[f"parameter.{index}"] = parameter
            for name, value in self.optimizer.state[parameter].items():
                tensors[f"adam.{index}.{name}"] = value
        return {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}

    @torch.no_grad()
    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over a state that `to_tensors` returned; the next step then goes on bit for bit.

        Raises:
            ShapeError: the state belongs to another batch, generator or settings.
        """
        self._check_tensors(tensors)
        for index, mask in enumerate(self.masks):
            mask.copy_(tensors[f"mask.{index}"])
        for index, parameter in enumerate(self.parameters):
            parameter.copy_(tensors[f"parameter.{index}"])
            prefix = f"adam.{index}."
            self.optimizer.state[parameter] = {
                name.removeprefix(prefix): (value.to(parameter.device) if value.ndim else value).clone()
                for name, value in tensors.items()
                if name.startswith(prefix)
            }
        self.step = int(tensors["step"])
        self.is_active.copy_(tensors["is_active"])
        self.stopped_at.copy_(tensors["stopped_at"])
        self.trace.copy_(tensors["trace"])

    @torch.no_grad()
    def stop(self, is_finite: Tensor) -> None:
        """Stop images [N] whose numbers are no longer finite; no branch, so that a GPU need not wait."""
        stops = self.is_active & ~is_finite
        self.stopped_at.copy_(torch.where(stops, self.step, self.stopped_at))
        self.is_active &= is_finite

    @torch.no_grad()
    def move(self) -> None:
        """One step of Adam on the images that still move; one that leaves the finite numbers stops where it was."""
        before = [parameter.detach().clone() for parameter in self.parameters]
        self.optimizer.step()
        self.stop(all_finite(self.parameters))
        for parameter, old in zip(self.parameters, before, strict=True):
            parameter.copy_(torch.where(per_image(self.is_active, parameter), parameter, old))
        self.step += 1

    def _check_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        wanted = {f"parameter.{index}": parameter.shape for index, parameter in enumerate(self.parameters)}
        wanted |= {f"mask.{index}": mask.shape for index, mask in enumerate(self.masks)}
        for name, shape in {**wanted, "trace": self.trace.shape}.items():
            saved = tensors.get(name)
            if saved is None or saved.shape != shape:
                raise ShapeError(
                    f"saved {name} is {None if saved is None else list(saved.shape)}; this refinement has "
                    f"{list(shape)}: the state is of another batch, generator or settings"
                )


def all_finite(tensors: Sequence[Tensor]) -> Tensor:
    """Of which images every number of every tensor [N, ...] is finite: [N] bool."""
    return torch.stack([tensor.flatten(1).isfinite().all(dim=1) for tensor in tensors]).all(dim=0)


def per_image(flags: Tensor, like: Tensor) -> Tensor:
    """Flags [N] in a shape that multiplies a tensor [N, ...]."""
    return flags.view(-1, *[1] * (like.ndim - 1))
