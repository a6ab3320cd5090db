"""Training HFGI's networks: everything that one optimizer step consists of (Wang et al. 2022, section 3)."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lsap_core.errors import CheckpointError, ConfigError, ShapeError, TrainingDivergedError
from lsap_core.generators.generator import Generator, Noise
from lsap_core.inversion.inversion import PerceptualDistance
from lsap_core.objectives.terms import pixel_error
from lsap_core.refinement.hfgi import misfit
from lsap_core.refinement.hfgi_fusion import Fusion
from lsap_core.refinement.hfgi_networks import HfgiNetworks
from lsap_core.training.encoder_step import IdentityNetwork
from lsap_core.training.hfgi_settings import HfgiTrainingSettings
from lsap_core.training.perspective import random_perspective
from lsap_core.training.random_numbers import draw_noise, stream
from lsap_core.training.ranger import Ranger
from lsap_core.training.workers import num_workers


class HfgiTraining:
    """HFGI's networks in training; one call of `advance` is one optimizer step.

    With X0 = G(w) and the photo x the residual D = x - X0 is warped at random, D' = ADA(warped D, X0) is drawn toward
    D, and the image that the conditions of D' give toward x. Gradients pass through the frozen generator from the
    fusion on.

    Codes come from any frozen embedding, in eval mode. (The published code leaves its frozen encoder in training mode,
    so that the batch statistics drift and the encoder that is released with HFGI is no longer the one it was.)

    All random numbers follow from the seed, the step and the samples' own seeds: a training that is saved and loaded
    goes on bit for bit.

    Args:
        networks: moved in place.
        generator: frozen, and on the networks' device like everything else.
        perceptual: frozen.
        identity: frozen; not needed where the identity term has no weight.
        settings: how to train.
        seed: of every random number.

    Attributes:
        step: steps taken.

    Raises:
        ConfigError: parts do not fit each other or the settings, or several workers train.
    """

    def __init__(
        self,
        networks: HfgiNetworks,
        generator: Generator,
        perceptual: PerceptualDistance,
        identity: IdentityNetwork | None,
        settings: HfgiTrainingSettings,
        *,
        seed: int,
    ):
        self.fusion = Fusion.of(generator.config, view_side=settings.view_side)
        if problem := misfit(networks, generator.config, self.fusion):
            raise ConfigError(problem)
        if identity is None and settings.identity_weight > 0:
            raise ConfigError(
                f"identity_weight is {settings.identity_weight} and there is no identity network: name one as "
                "identity, or set it to 0"
            )
        if num_workers() > 1:
            raise ConfigError(f"{num_workers()} workers; HFGI's networks are trained by one")
        self.networks = networks
        self.generator = generator.eval()
        self.perceptual = perceptual
        self.identity = identity
        self.settings = settings
        self.seed = seed
        self.step = 0
        self.device = next(networks.parameters()).device
        self.ranger = Ranger(networks.parameters(), lr=settings.learning_rate)

    def advance(self, images: Tensor, codes: Tensor, sample_seeds: Sequence[int]) -> dict[str, float]:
        """Take one step.

        Args:
            images: [N, C, h, w] in [-1, 1], of the fusion's view size; augmented ones come with codes of their own.
            codes: W+ codes of these images, [N, K, w_dim].
            sample_seeds: one for each image; its noise maps and its warp follow from it.

        Returns:
            Means over the images: "loss" and its terms before multiplication, and "gradient_norm".

        Raises:
            ShapeError: images, codes or seeds do not fit.
            TrainingDivergedError: a term or the gradient is not finite. Everything is as it was before the step.
        """
        self._check_batch(images, codes)
        if not len(images) == len(sample_seeds) == self.settings.batch_size:
            raise ShapeError(
                f"{len(images)} images with {len(sample_seeds)} seeds; wanted {self.settings.batch_size} of both"
            )
        before = [buffer.clone() for buffer in self.networks.buffers()]
        self.networks.train()
        self.ranger.zero_grad(set_to_none=True)
        streams = [stream(self.seed, self.step, "noise", int(each), device=self.device) for each in sample_seeds]
        noise = [draw_noise(self.generator.config, streams) for _ in range(2)]  # of both syntheses
        warps = [stream(self.seed, self.step, "warp", int(each)) for each in sample_seeds]
        terms, _ = self._terms(images.to(self.device), codes.to(self.device), noise[0], noise[1], warps)
        terms["loss"].mean().backward()
        gradients = [parameter.grad for parameter in self.networks.parameters() if parameter.grad is not None]
        terms["gradient_norm"] = nn.utils.get_total_norm(gradients)
        means = torch.stack([value.detach().mean() for value in terms.values()]).tolist()  # waits for the device once
        logged = dict(zip(terms, means, strict=True))
        if not all(map(math.isfinite, means)):
            self._give_up(before, logged)
        for group in self.ranger.param_groups:
            group["lr"] = self.settings.learning_rate_at(self.step)
        self.ranger.step()
        self.step += 1
        return logged

    @torch.no_grad()
    def validate(self, images: Tensor, codes: Tensor) -> dict[str, Tensor]:
        """How well images are refined: in eval mode, without warps, with the generator's own noise.

        Args:
            images: [N, C, h, w] in [-1, 1], of the fusion's view size.
            codes: of these images, [N, K, w_dim].

        Returns:
            "loss" and its terms before multiplication, of each image, [N].

        Raises:
            ShapeError: images or codes do not fit.
        """
        return self._in_eval_mode(images, codes)[0]

    @torch.no_grad()
    def reconstruct(self, images: Tensor, codes: Tensor) -> Tensor:
        """What `validate` compares images [N, C, h, w] with: the same shape, about [-1, 1], unclamped."""
        return self._in_eval_mode(images, codes)[1]

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on; the tensors are the training's own, not copies."""
        return {"step": self.step, "networks": self.networks.state_dict(), "ranger": self.ranger.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned; the next step then goes on bit for bit.

        Raises:
            CheckpointError: the state is that of other networks.
        """
        missing = {"step", "networks", "ranger"} - state.keys()
        if missing:
            raise CheckpointError(f"this state of a training lacks {', '.join(sorted(missing))}: it is none of ours")
        try:
            self.networks.load_state_dict(state["networks"])
            self.ranger.load_state_dict(copy.deepcopy(state["ranger"]))  # torch's optimizers keep what they are given
        except (RuntimeError, ValueError) as error:
            raise CheckpointError(f"this state is of other networks: {error}") from error
        self.step = int(state["step"])

    def _terms(
        self,
        images: Tensor,
        codes: Tensor,
        first_noise: Noise,
        second_noise: Noise,
        warps: Sequence[torch.Generator] | None,
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Loss and terms of each image, [N], and what the losses saw, [N, C, h, w]."""
        settings, conv = self.settings, self.fusion.conv
        with torch.no_grad():
            styles = self.generator.styles(codes)  # [N, width] of every layer
            first = self.fusion.view(self.generator.synthesize_styles(styles, noise=first_noise).image)
            residual = images - first  # [N, C, h, w]
            partial = self.generator.synthesize_styles(styles, noise=second_noise, collect=(conv,), until=conv)
        warped = residual
        if warps is not None:
            warped = random_perspective(
                residual, warps, distortion=settings.distortion, probability=settings.warp_probability
            )
        aligned, scale, shift = self.networks(warped, first)
        entered = self.fusion.enter(partial.states[conv], scale, shift)
        output = self.generator.synthesize_styles(styles, noise=second_noise, start=entered).image
        seen = self.fusion.pooled(output)  # [N, C, h, w]
        terms: dict[str, Tensor] = {}
        if settings.l2_weight > 0:
            terms["l2"] = pixel_error(seen, images)
        if settings.lpips_weight > 0:
            with torch.no_grad():
                target_features = self.perceptual.features(images)
            terms["lpips"] = self.perceptual.distance(self.perceptual.features(seen), target_features)
        if self.identity is not None and settings.identity_weight > 0:
            with torch.no_grad():
                embedding = self.identity.embed(images)
            terms["identity"] = 1 - (self.identity.embed(seen) * embedding).sum(dim=1)
        if settings.alignment_weight > 0:
            terms["alignment"] = (aligned - residual).abs().mean(dim=(1, 2, 3))
        weighed = [weight * terms[name] for name, weight in settings.weights.items()]
        return {"loss": torch.stack(weighed).sum(dim=0), **terms}, seen

    def _in_eval_mode(self, images: Tensor, codes: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        self._check_batch(images, codes)
        was_training = self.networks.training
        self.networks.eval()
        try:
            return self._terms(images.to(self.device), codes.to(self.device), "constant", "constant", None)
        finally:
            self.networks.train(was_training)

    @torch.no_grad()
    def _give_up(self, before: list[Tensor], logged: dict[str, float]) -> None:
        for buffer, old in zip(self.networks.buffers(), before, strict=True):
            buffer.copy_(old)
        self.ranger.zero_grad(set_to_none=True)
        found = ", ".join(f"{name} {value:g}" for name, value in logged.items())
        raise TrainingDivergedError(
            f"step {self.step}: the loss or its gradient is not finite ({found}); nothing was changed: look for "
            "damaged images or codes, lower learning_rate, or go on from an earlier checkpoint"
        )

    def _check_batch(self, images: Tensor, codes: Tensor) -> None:
        config = self.generator.config
        wanted = (config.image_channels, *self.fusion.view_size)
        if images.ndim != 4 or images.shape[1:] != wanted or not len(images):
            raise ShapeError(
                f"images are {list(images.shape)}; this training wants [N, {', '.join(map(str, wanted))}] with N > 0"
            )
        if codes.shape != (len(images), config.num_ws, config.w_dim):
            raise ShapeError(f"codes are {list(codes.shape)}; wanted {[len(images), config.num_ws, config.w_dim]}")
