"""Training SAM's predictor of errors: everything that one optimizer step consists of (Parmar et al. 2022)."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lsap_core.errors import CheckpointError, ConfigError, ShapeError, TrainingDivergedError
from lsap_core.refinement.sam_networks import BaseName, InvertibilityPredictor
from lsap_core.training.settings import MOST_STEPS

POWER = 0.9
"""Of the share of steps that are left, which the learning rate falls with."""
BLUR_REACH = 4
"""Pixels on each side, four times the largest deviation."""
NUM_FREQUENCIES = 64
FROM_CLASSIFIER = "base.backbone."
"""What starts from a trained classifier moves slowly."""


class SpatialDistance(Protocol):
    """A perceptual network that also tells where images differ."""

    def features(self, images: Tensor) -> list[Tensor]:
        """Features of images [N, C, H, W] in [-1, 1]."""
        ...

    def spatial(self, features: list[Tensor], target_features: list[Tensor], size: tuple[int, int]) -> Tensor:
        """The distance at every pixel, [N, height, width]."""
        ...


@dataclass(frozen=True)
class PredictorTrainingSettings:
    """How a predictor is trained; the defaults are the published values.

    Attributes:
        base: of the predictor, "deeplab" or "small".
        num_steps: optimizer steps; published are 100 epochs, of 10,000 images here.
        batch_size: images of one step.
        learning_rate: of SGD at step 0, for a backbone that was trained as a classifier.
        new_factor: how much faster everything else moves.
        momentum: of SGD.
        weight_decay: of SGD.
        error_scale: what errors are multiplied by while they are learned, where a distance is much smaller than LPIPS,
            for which the rates are made; what is learned predicts errors as they are.

    Raises:
        ConfigError: a value lies outside its range.
    """

    base: BaseName = "deeplab"
    num_steps: int = 125_000
    batch_size: int = 8
    learning_rate: float = 1e-4
    new_factor: float = 10.0
    momentum: float = 0.9
    weight_decay: float = 5e-4
    error_scale: float = 1.0

    def __post_init__(self) -> None:
        """Refuse what cannot run."""
        if self.base not in get_args(BaseName):
            raise ConfigError(f'base is "{self.base}"; wanted "deeplab" or "small"')
        for name in ("num_steps", "batch_size"):
            if not 1 <= getattr(self, name) <= MOST_STEPS:
                raise ConfigError(f"{name} is {getattr(self, name)}; wanted at least 1, and at most {MOST_STEPS:,}")
        if self.base == "deeplab" and self.batch_size == 1:
            raise ConfigError("batch_size is 1; deeplab normalizes what it pools over a batch: wanted at least 2")
        for name in ("learning_rate", "new_factor", "error_scale"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name} is {getattr(self, name)}; wanted a positive number")
        if not 0 <= self.momentum < 1:
            raise ConfigError(f"momentum is {self.momentum}; wanted 0 to below 1")
        if not 0 <= self.weight_decay < math.inf:
            raise ConfigError(f"weight_decay is {self.weight_decay}; wanted a number that is not negative")

    def learning_rate_at(self, step: int) -> float:
        """learning_rate (1 - step / num_steps)^0.9, with steps counted from 0.

        Example:
            >>> settings = PredictorTrainingSettings(num_steps=4, learning_rate=1.0)
            >>> [round(settings.learning_rate_at(step), 3) for step in range(4)]
            [1.0, 0.772, 0.536, 0.287]
        """
        return self.learning_rate * float((1 - step / self.num_steps) ** POWER)


class PredictorTraining:
    """A predictor in training; one call of `advance` is one optimizer step.

    The loss is the mean squared difference of predicted errors and those that inversions in each space left, over
    spaces, pixels and images. A training that is saved and loaded goes on bit for bit, where the caller's random
    numbers do and dropout's ("deeplab") too.

    Args:
        predictor: moved in place.
        settings: how to train.

    Attributes:
        step: steps taken.
    """

    def __init__(self, predictor: InvertibilityPredictor, settings: PredictorTrainingSettings):
        self.predictor = predictor.requires_grad_(True)
        self.settings = settings
        self.step = 0
        groups: dict[float, list[nn.Parameter]] = {1.0: [], settings.new_factor: []}
        for name, parameter in predictor.named_parameters():
            groups[1.0 if name.startswith(FROM_CLASSIFIER) else settings.new_factor].append(parameter)
        self.optimizer = torch.optim.SGD(
            [{"params": parameters, "factor": factor} for factor, parameters in groups.items() if parameters],
            lr=settings.learning_rate,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
        )

    def advance(self, images: Tensor, errors: Tensor) -> dict[str, float]:
        """Take one step.

        Args:
            images: [N, C, h, w] in [-1, 1], after `augment`.
            errors: that inversions of these images left, [N, spaces, h, w], as `error_maps` gives them.

        Returns:
            Means over images and pixels: "loss", that of each space by its name, and the "gradient_norm".

        Raises:
            ShapeError: images or errors do not fit the predictor or each other.
            TrainingDivergedError: the loss or its gradient is not finite. Everything is as it was before the step.
        """
        self._check(images, errors)
        before = [buffer.clone() for buffer in self.predictor.buffers()]
        self.predictor.train()
        self.optimizer.zero_grad(set_to_none=True)
        terms = self._terms(images, errors)
        terms.mean().backward()
        gradients = [parameter.grad for parameter in self.predictor.parameters() if parameter.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        told = terms.detach() / self.settings.error_scale**2
        loss, gradient_norm, *by_space = torch.cat([told.mean()[None], norm[None], told.mean(dim=0)]).tolist()
        if not (math.isfinite(loss) and math.isfinite(gradient_norm)):
            with torch.no_grad():
                for buffer, old in zip(self.predictor.buffers(), before, strict=True):
                    buffer.copy_(old)
            self.optimizer.zero_grad(set_to_none=True)
            raise TrainingDivergedError(
                f"step {self.step}: the loss is {loss:g}, the length of its gradient {gradient_norm:g}; nothing was "
                "changed: look for damaged images, or lower learning_rate"
            )
        for group in self.optimizer.param_groups:
            group["lr"] = group["factor"] * self.settings.learning_rate_at(self.step)
        self.optimizer.step()
        self.step += 1
        named = dict(zip(self.predictor.spaces, by_space, strict=True))
        return {"loss": loss, **named, "gradient_norm": gradient_norm}

    @torch.no_grad()
    def validate(self, images: Tensor, errors: Tensor) -> Tensor:
        """The squared difference of each image and space, [N, spaces], in eval mode; shapes as in `advance`.

        Raises:
            ShapeError: images or errors do not fit the predictor or each other.
        """
        self._check(images, errors)
        self.predictor.eval()
        return self._terms(images, errors) / self.settings.error_scale**2

    @torch.no_grad()
    def trained(self) -> InvertibilityPredictor:
        """A copy of the predictor as it is now, in eval mode, which predicts errors that are not scaled."""
        predictor = copy.deepcopy(self.predictor).eval()
        for head in predictor.heads.values():
            last = head.get_submodule("m.3")
            for parameter in last.parameters():
                parameter.div_(self.settings.error_scale)
        return predictor

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on but the caller's random numbers; the training's own tensors."""
        return {
            "step": self.step,
            "predictor": self.predictor.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned.

        Raises:
            CheckpointError: the state is that of another predictor.
        """
        if missing := {"step", "predictor", "optimizer"} - state.keys():
            raise CheckpointError(f"this state of a training lacks {', '.join(sorted(missing))}: it is none of ours")
        try:
            self.predictor.load_state_dict(state["predictor"])
            self.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))  # torch keeps what it is given
        except (RuntimeError, ValueError) as error:
            raise CheckpointError(f"this state is of another predictor: {error}") from error
        self.step = int(state["step"])

    def _terms(self, images: Tensor, errors: Tensor) -> Tensor:
        predicted: Tensor = self.predictor(images)
        return (predicted - self.settings.error_scale * errors).square().mean(dim=(2, 3))

    def _check(self, images: Tensor, errors: Tensor) -> None:
        config = self.predictor.config
        wanted = [len(images), len(config.spaces), *images.shape[2:]]
        is_image = images.ndim == 4 and images.shape[1] == config.image_channels and len(images) > 0
        if not is_image or list(errors.shape) != wanted:
            raise ShapeError(
                f"images are {list(images.shape)}, errors {list(errors.shape)}; wanted [N, {config.image_channels}, h, "
                f"w] with N > 0 and [N, {len(config.spaces)}, h, w], an error map for each of "
                f"{', '.join(config.spaces)}"
            )


@torch.no_grad()
def error_maps(perceptual: SpatialDistance, images: Tensor, inversions: Sequence[Tensor]) -> Tensor:
    """What inversions in each latent space left of images: the perceptual distance at every pixel.

    Args:
        perceptual: LPIPS (VGG) as published.
        images: [N, C, h, w] in [-1, 1].
        inversions: for each space the same shape and range.

    Returns:
        [N, spaces, h, w].

    Raises:
        ShapeError: an inversion has another shape than the images.
    """
    for inversion in inversions:
        if inversion.shape != images.shape:
            raise ShapeError(f"inversions are {list(inversion.shape)}; wanted {list(images.shape)}, as the images")
    size = (images.shape[2], images.shape[3])
    features = perceptual.features(images)
    return torch.stack([perceptual.spatial(perceptual.features(one), features, size) for one in inversions], dim=1)


@torch.no_grad()
def augment(pictures: Sequence[Tensor], streams: Sequence[torch.Generator]) -> list[Tensor]:
    """Images and what belongs to them, blurred with probability 1/2, alike.

    The blur is a Gaussian whose deviation is uniform in [0, 1) pixels; beyond its borders an image goes on as it ends.
    Error maps are computed of what comes back. The published program flips half of the images, too: here that is said
    where images are read.

    Args:
        pictures: images and their inversions, each [N, any, h, w].
        streams: one for each of the N images, on any device.

    Returns:
        The same shapes.

    Raises:
        ShapeError: there is not one stream for each image.
    """
    if any(len(each) != len(streams) for each in pictures):
        raise ShapeError(f"{len(streams)} random streams for {[len(each) for each in pictures]} images; wanted as many")
    drawn = [torch.rand(2, generator=each, device=each.device).tolist() for each in streams]
    augmented = []
    for each in pictures:
        pairs = zip(each, drawn, strict=True)
        augmented.append(torch.stack([blurred(one, sigma) if blur > 0.5 else one for one, (blur, sigma) in pairs]))
    return augmented


def blurred(picture: Tensor, deviation: float) -> Tensor:
    """A picture [C, h, w] after a Gaussian of at most 1 pixel's deviation; a deviation of 0 changes nothing."""
    kernel = gaussian_kernel(deviation).to(picture)
    padded = F.pad(picture[:, None], (BLUR_REACH,) * 4, mode="replicate")  # [C, 1, h, w] and its margins
    return F.conv2d(F.conv2d(padded, kernel[None, None, None, :]), kernel[None, None, :, None])[:, 0]


def gaussian_kernel(deviation: float) -> Tensor:
    """The Gaussian on whole pixels, exp(-t) I_n(t) with t = deviation^2 (Lindeberg 1990), [9], float64.

    Samples of the continuous one would hardly blur at deviations below half a pixel. This one has variance t exactly,
    as has the chain of boxes that image libraries take. Computed from its spectrum, exp(t (cos(omega) - 1)).
    """
    omega = torch.arange(NUM_FREQUENCIES, dtype=torch.float64) * (2 * math.pi / NUM_FREQUENCIES)
    spectrum = (deviation**2 * (omega.cos() - 1)).exp()
    offsets = torch.arange(-BLUR_REACH, BLUR_REACH + 1, dtype=torch.float64)
    kernel = (spectrum * (offsets[:, None] * omega).cos()).mean(dim=1)
    return kernel / kernel.sum()
