"""Tuning one generator to many images: everything that one optimizer step consists of (Roich et al. 2022)."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lsap_core.errors import CheckpointError, ConfigError, ShapeError, TrainingDivergedError
from lsap_core.generators.generator import Generator
from lsap_core.inversion.inversion import PerceptualDistance
from lsap_core.refinement.pti_loss import PtiLoss
from lsap_core.refinement.pti_shared import SharedWeights
from lsap_core.refinement.refined_by_pti import tuned_weights
from lsap_core.refinement.refinement import Embedded
from lsap_core.refinement.tuned_weights import TunedGenerator
from lsap_core.training.pti_settings import PtiTrainingSettings
from lsap_core.training.random_numbers import stream
from lsap_core.training.workers import num_workers


class PtiTraining:
    """The weights that a group of images shares, in training; one call of `advance` is one optimizer step.

    What moves is the difference to the generator's weights, as for the weights of one image: with one image and steps
    of one image it moves as `PtiRefiner` does. Pivots never move.

    All random numbers follow from the seed, the step and the samples' own seeds: a training that is saved and loaded
    goes on bit for bit.

    Args:
        weights: moved in place.
        generator: as it was before tuning; frozen, and on the weights' device like everything else.
        perceptual: frozen.
        settings: how to train.
        seed: of every random number.

    Attributes:
        step: steps taken.

    Raises:
        ConfigError: locality is regularized around the mean of W, and the generator has none; or several workers train.
    """

    def __init__(
        self,
        weights: SharedWeights,
        generator: Generator,
        perceptual: PerceptualDistance,
        settings: PtiTrainingSettings,
        *,
        seed: int,
    ):
        if num_workers() > 1:
            raise ConfigError(f"{num_workers()} workers; shared weights are tuned by one")
        self.loss = PtiLoss(generator, perceptual=perceptual, settings=settings)
        self.weights = weights.requires_grad_(True)
        self.generator = generator.eval()
        self.perceptual = perceptual
        self.settings = settings
        self.seed = seed
        self.step = 0
        self.tuned = TunedGenerator(generator)
        self.adam = torch.optim.Adam(self.weights.parameters(), lr=settings.learning_rate)

    def advance(self, images: Tensor, embedded: Embedded, sample_seeds: Sequence[int]) -> dict[str, float]:
        """Take one step.

        Args:
            images: [N, C, h, w] in [-1, 1], where the generator has its picture.
            embedded: pivots of these images, and the noise that belongs to them.
            sample_seeds: one for each image; where its locality is looked at follows from it.

        Returns:
            Means over the images: "loss" and its terms before multiplication, and "gradient_norm".

        Raises:
            ShapeError: images, codes, noise or seeds do not fit.
            TrainingDivergedError: a term or the gradient is not finite. Everything is as it was before the step.
        """
        if not len(images) == len(sample_seeds) == self.settings.batch_size:
            raise ShapeError(
                f"{len(images)} images with {len(sample_seeds)} seeds; wanted {self.settings.batch_size} of both"
            )
        z = None
        if self.settings.regularizes_locality:
            streams = [stream(self.seed, self.step, "locality", int(each)) for each in sample_seeds]
            z = torch.stack([torch.randn(self.generator.config.z_dim, generator=each) for each in streams])
        differences = self.weights.weights
        self.adam.zero_grad(set_to_none=True)
        terms = self._terms(images, embedded, differences, z)
        terms["loss"].mean().backward()
        assert differences.grad is not None
        terms["gradient_norm"] = torch.linalg.vector_norm(differences.grad)
        means = torch.stack([value.detach().mean() for value in terms.values()]).tolist()  # waits for the device once
        logged = dict(zip(terms, means, strict=True))
        if not all(map(math.isfinite, means)):
            self.adam.zero_grad(set_to_none=True)
            found = ", ".join(f"{name} {value:g}" for name, value in logged.items())
            raise TrainingDivergedError(
                f"step {self.step}: the loss or its gradient is not finite ({found}); nothing was changed: look for "
                "damaged images or codes, lower learning_rate, or go on from an earlier checkpoint"
            )
        for group in self.adam.param_groups:
            group["lr"] = self.settings.learning_rate_at(self.step)
        self.adam.step()
        self.step += 1
        return logged

    @torch.no_grad()
    def validate(self, images: Tensor, embedded: Embedded) -> dict[str, Tensor]:
        """How well the weights, rounded as they are kept, give images; without locality.

        Args:
            images: [N, C, h, w] in [-1, 1], where the generator has its picture.
            embedded: pivots of these images, and the noise that belongs to them.

        Returns:
            "loss" and its terms before multiplication, of each image, [N].

        Raises:
            ShapeError: images, codes or noise do not fit.
        """
        return self._terms(images, embedded, self._seen(), None)

    @torch.no_grad()
    def reconstruct(self, images: Tensor, embedded: Embedded) -> Tensor:
        """What `validate` compares images [N, C, h, w] with: the same shape, about [-1, 1], unclamped."""
        self._check_batch(images, embedded)
        weights = tuned_weights(self.tuned, self._seen())
        return self.loss.view(self.tuned.synthesize_alike(embedded.w_plus, weights, noise=embedded.noise))

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on; the tensors are the training's own, not copies."""
        return {"step": self.step, "networks": self.weights.state_dict(), "adam": self.adam.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned; the next step then goes on bit for bit.

        Raises:
            CheckpointError: the state is that of another generator's weights.
        """
        if missing := {"step", "networks", "adam"} - state.keys():
            raise CheckpointError(f"this state of a training lacks {', '.join(sorted(missing))}: it is none of ours")
        try:
            self.weights.load_state_dict(state["networks"])
            self.adam.load_state_dict(copy.deepcopy(state["adam"]))  # torch's optimizers keep what they are given
        except (RuntimeError, ValueError) as error:
            raise CheckpointError(f"this state is of other weights: {error}") from error
        self.step = int(state["step"])

    def kept(self) -> dict[str, Tensor]:
        """The tensors of the weights in the type that they are kept in, on the CPU."""
        dtype = getattr(torch, self.settings.weights_type)
        return {name: value.to(device="cpu", dtype=dtype) for name, value in self.weights.state_dict().items()}

    def _seen(self) -> Tensor:
        """The weights as whoever reads them from their file has them."""
        weights = self.weights.weights.detach()
        return weights.to(getattr(torch, self.settings.weights_type)).to(weights)

    def _terms(self, images: Tensor, embedded: Embedded, differences: Tensor, z: Tensor | None) -> dict[str, Tensor]:
        """Loss and terms of each image, [N]."""
        self._check_batch(images, embedded)
        weights = tuned_weights(self.tuned, differences)
        view = images.to(differences)
        with torch.no_grad():
            features = self.perceptual.features(view) if self.settings.lpips_weight > 0 else []
        return self.loss.terms(
            lambda codes, noise: self.tuned.synthesize_alike(codes, weights, noise=noise),
            embedded.w_plus,
            embedded.noise,
            view,
            features,
            z=z,
        )

    def _check_batch(self, images: Tensor, embedded: Embedded) -> None:
        config = self.generator.config
        wanted = (config.image_channels, *config.content_size)
        if images.ndim != 4 or tuple(images.shape[1:]) != wanted or not len(images):
            raise ShapeError(
                f"images are {list(images.shape)}; this training wants [N, {', '.join(map(str, wanted))}] with N > 0"
            )
        if embedded.w_plus.shape != (len(images), config.num_ws, config.w_dim):
            raise ShapeError(
                f"codes are {list(embedded.w_plus.shape)}; wanted {[len(images), config.num_ws, config.w_dim]}"
            )
