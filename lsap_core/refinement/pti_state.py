"""Where pivotal tuning stands between two steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lsap_core.errors import ShapeError
from lsap_core.inversion.inversion import NOT_STOPPED
from lsap_core.inversion.noise_maps import random_streams
from lsap_core.refinement.refinement import Embedded

TRACE_TERMS = ("loss", "lpips", "mse", "locality")
ADAM_AVERAGES = ("exp_avg", "exp_avg_sq")


class PtiState:
    """The tuning of a batch; everything that the next step depends on but the embedding, which `start` was given.

    An image's weights are a tensor of their own, so that Adam counts the image's own steps and leaves it alone once it
    has stopped.

    Attributes:
        step: steps taken.
        w_plus: the pivots, [N, K, w_dim].
        noise: of the embedding.
        weights: for each image the differences to the generator's weights, [parameters].
        streams: each image's own random numbers.
        is_active: which images still move, [N] bool.
        stopped_at: [N] int64, the step whose loss was not finite, or -1.
        num_steps: how often each image moved, [N] int64.
        trace: [N, recorded steps, terms].
    """

    def __init__(
        self,
        embedded: Embedded,
        *,
        num_parameters: int,
        seeds: Sequence[int],
        learning_rate: float,
        trace_steps: Sequence[int],
    ):
        codes, num_images = embedded.w_plus, len(embedded.w_plus)
        self.w_plus = codes
        self.noise = embedded.noise
        self.weights = [codes.new_zeros(num_parameters).requires_grad_(True) for _ in range(num_images)]
        self.streams = random_streams(seeds)
        self.optimizer = torch.optim.Adam(self.weights, lr=learning_rate)
        self.step = 0
        self.is_active = torch.ones(num_images, dtype=torch.bool, device=codes.device)
        self.stopped_at = torch.full((num_images,), NOT_STOPPED, device=codes.device)
        self.num_steps = torch.zeros(num_images, dtype=torch.int64, device=codes.device)
        self.trace = codes.new_full((num_images, len(trace_steps), len(TRACE_TERMS)), torch.nan)

    def to_tensors(self) -> dict[str, Tensor]:
        """The whole state as named tensors on the CPU, for storage: three numbers for each weight of each image."""
        tensors = {
            "step": torch.tensor(self.step),
            "is_active": self.is_active,
            "stopped_at": self.stopped_at,
            "num_steps": self.num_steps,
            "trace": self.trace,
            "streams": torch.stack([stream.get_state() for stream in self.streams]),
            "weights": torch.stack([each.detach() for each in self.weights]),
        }
        moments = [self.optimizer.state.get(each, {}) for each in self.weights]  # nothing before an image's first step
        for name in ADAM_AVERAGES:
            rows = [found.get(name, torch.zeros_like(each)) for found, each in zip(moments, self.weights, strict=True)]
            tensors[f"adam.{name}"] = torch.stack([row.detach() for row in rows])
        return {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}

    @torch.no_grad()
    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over a state that `to_tensors` returned; the next step then goes on bit for bit.

        Raises:
            ShapeError: the state belongs to another batch, generator or settings.
        """
        weights_shape = (len(self.weights), *self.weights[0].shape)
        shapes = {"weights": weights_shape, **{f"adam.{name}": weights_shape for name in ADAM_AVERAGES}}
        for name, shape in {**shapes, "trace": tuple(self.trace.shape)}.items():
            saved = tensors.get(name)
            if saved is None or tuple(saved.shape) != shape:
                raise ShapeError(
                    f"saved {name} is {None if saved is None else list(saved.shape)}; this refinement has "
                    f"{list(shape)}: the state is of another batch, generator or settings"
                )
        self.num_steps.copy_(tensors["num_steps"])
        for row, (weights, steps) in enumerate(zip(self.weights, self.num_steps.tolist(), strict=True)):
            weights.copy_(tensors["weights"][row])
            self.optimizer.state.pop(weights, None)
            if steps:
                averages = {name: tensors[f"adam.{name}"][row].to(weights).clone() for name in ADAM_AVERAGES}
                self.optimizer.state[weights] = {"step": torch.tensor(float(steps)), **averages}
        self.step = int(tensors["step"])
        self.is_active.copy_(tensors["is_active"])
        self.stopped_at.copy_(tensors["stopped_at"])
        self.trace.copy_(tensors["trace"])
        for stream, saved in zip(self.streams, tensors["streams"], strict=True):
            stream.set_state(saved.clone())  # a row of a larger tensor makes torch 2.15 crash
