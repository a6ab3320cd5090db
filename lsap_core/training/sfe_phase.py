"""StyleFeatureEditor in training: what its two phases, Inverter and Feature Editor, share."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lsap_core.errors import CheckpointError, ConfigError, ShapeError, TrainingDivergedError
from lsap_core.generators.discriminator import Discriminator
from lsap_core.generators.generator import Generator
from lsap_core.inversion.inversion import PerceptualDistance
from lsap_core.refinement.sfe_networks import SfeNetworks, sfe_misfit
from lsap_core.training.encoder_step import IdentityNetwork
from lsap_core.training.image_adversary import ImageAdversary
from lsap_core.training.image_terms import ImageTerms
from lsap_core.training.ranger import Ranger
from lsap_core.training.sfe_settings import SfeTrainingSettings


@dataclass(frozen=True)
class SfeTrainingParts:
    """What both phases are built from. All but networks and discriminator are frozen.

    Attributes:
        networks: moved in place: the Inverter in the first phase, the Feature Editor in the second.
        generator: of the images.
        perceptual: the network of the perceptual distance.
        identity: None where the identity term has no weight.
        discriminator: moved in place; None where the adversarial term has no weight.
    """

    networks: SfeNetworks
    generator: Generator
    perceptual: PerceptualDistance
    identity: IdentityNetwork | None = None
    discriminator: Discriminator | None = None


Terms = Callable[[Tensor, int], tuple[dict[str, Tensor], Tensor]]


class PhaseTraining:
    """Losses on images, optimizers, and a step that is taken as a whole or not at all."""

    def __init__(self, parts: SfeTrainingParts, trained: nn.Module, settings: SfeTrainingSettings):
        _check_parts(parts, settings)
        self.parts = parts
        self.trained = trained.requires_grad_(True).eval()
        self.settings = settings
        self.step = 0
        self.image_terms = ImageTerms(
            parts.perceptual, parts.identity, settings, content_box=parts.generator.config.content_box
        )
        self.ranger = Ranger(trained.parameters(), lr=settings.learning_rate)
        self.adversary = (
            None
            if parts.discriminator is None or settings.adversarial_weight == 0
            else ImageAdversary(
                parts.discriminator,
                learning_rate=settings.discriminator_learning_rate,
                r1_gamma=settings.r1_gamma,
                r1_every=settings.r1_every,
            )
        )

    def advance(self, images: Tensor, terms_of: Terms) -> dict[str, float]:
        """Take one step; see `InverterTraining.advance`."""
        self._check_images(images)
        images = self.like_weights(images)
        buffers = [buffer.clone() for buffer in self.trained.buffers()]
        self.trained.train()
        try:
            terms, made = terms_of(images, self.step + 1)
            adversary = self.adversary if self.step + 1 > self.settings.adversarial_start else None
            if adversary is not None:
                terms["adversarial"] = adversary.refiner_loss(made)
            # One mean for each term: there are twice as many images made as photos in the first phase.
            means = {name: values.mean() for name, values in terms.items()}
            loss = self._loss(means)
            self.ranger.zero_grad(set_to_none=True)
            loss.backward(inputs=list(self.trained.parameters()))
            gradients = [each.grad for each in self.trained.parameters() if each.grad is not None]
            logged = {"loss": loss.detach(), **{name: mean.detach() for name, mean in means.items()}}
            logged["gradient_norm"] = nn.utils.get_total_norm(gradients)
            if adversary is not None:
                # On the same images, made before the step.
                losses = adversary.learned(images, made, step=self.step + 1)
                adversary.backward(losses)
                logged |= {name: value.detach() for name, value in losses.items()}
                gradients = [*gradients, *adversary.gradients()]
            values = self._read(logged, gradients, buffers)
        finally:
            self.trained.eval()
        for group in self.ranger.param_groups:
            group["lr"] = self.settings.learning_rate_at(self.step)
        self.ranger.step()
        if adversary is not None:
            adversary.adam.step()
        self.step += 1
        return values

    def like_weights(self, images: Tensor) -> Tensor:
        """Images in the type and on the device of the generator."""
        return images.to(self.parts.generator.mapping.w_avg)

    def measured(self, terms: dict[str, Tensor]) -> dict[str, Tensor]:
        """Terms of each image with their loss before them."""
        return {"loss": self._loss(terms), **terms}

    def _loss(self, terms: dict[str, Tensor]) -> Tensor:
        return torch.stack([getattr(self.settings, f"{name}_weight") * term for name, term in terms.items()]).sum(dim=0)

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on; see `EncoderTraining.state_dict`."""
        return {
            "step": self.step,
            "trained": self.trained.state_dict(),
            "ranger": self.ranger.state_dict(),
            "adversary": None if self.adversary is None else self.adversary.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned; see `InverterTraining.load_state_dict`."""
        missing = {"step", "trained", "ranger", "adversary"} - state.keys()
        if missing:
            raise CheckpointError(f"this state of a training lacks {', '.join(sorted(missing))}: it is none of ours")
        if (state["adversary"] is None) != (self.adversary is None):
            found, wanted = ("no", "one") if state["adversary"] is None else ("a", "none")
            raise CheckpointError(
                f"this state of a training has {found} discriminator; wanted {wanted}: go on with the "
                "adversarial_weight that it was made with"
            )
        try:
            self.trained.load_state_dict(state["trained"])
            self.ranger.load_state_dict(copy.deepcopy(state["ranger"]))  # torch's optimizers keep what they are given
            if self.adversary is not None:
                self.adversary.load_state_dict(copy.deepcopy(state["adversary"]))
        except (RuntimeError, ValueError) as error:
            raise CheckpointError(f"this state is of other networks: {error}") from error
        self.step = int(state["step"])

    @torch.no_grad()
    def _read(self, logged: dict[str, Tensor], gradients: list[Tensor], buffers: list[Tensor]) -> dict[str, float]:
        """The terms as numbers: the one place where a step waits for the device."""
        values = torch.stack([*logged.values(), nn.utils.get_total_norm(gradients)])
        *numbers, norm = values.tolist()
        read = dict(zip(logged, numbers, strict=True))
        if not bool(values.isfinite().all()):
            for buffer, old in zip(self.trained.buffers(), buffers, strict=True):
                buffer.copy_(old)
            found = ", ".join(f"{name} {value:g}" for name, value in read.items())
            raise TrainingDivergedError(
                f"step {self.step + 1}: a term or a gradient is not finite ({found}; gradients {norm:g}); nothing was "
                "changed: look for damaged images, lower learning_rate, or go on from an earlier checkpoint"
            )
        return read

    def _check_images(self, images: Tensor) -> None:
        config = self.parts.generator.config
        wanted = [self.settings.batch_size, *config.image_shape]
        if list(images.shape) != wanted:
            raise ShapeError(f"images are {list(images.shape)}; this training wants {wanted}")


def _check_parts(parts: SfeTrainingParts, settings: SfeTrainingSettings) -> None:
    if problem := sfe_misfit(parts.networks.config, parts.generator.config):
        raise ConfigError(problem)
    if any(parameter.requires_grad for parameter in parts.generator.parameters()):
        raise ConfigError("the generator has weights that want a gradient; wanted a frozen one: call `freeze`")
    if not parts.generator.has_w_avg:
        raise ConfigError("the generator has no mean code, from which codes start: estimate it first")
    if settings.identity_weight > 0 and parts.identity is None:
        raise ConfigError(
            f"identity_weight is {settings.identity_weight} without an identity network: name one as identity, or set "
            "identity_weight to 0"
        )
    if settings.adversarial_weight > 0 and parts.discriminator is None:
        raise ConfigError(
            f"adversarial_weight is {settings.adversarial_weight} without a discriminator: name its file, or set "
            "adversarial_weight to 0"
        )
