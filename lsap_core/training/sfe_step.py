"""Training StyleFeatureEditor: one step of the Inverter (first phase) or of the Feature Editor (second phase).

Bobkov et al., CVPR 2024, section 3.3.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from lsap_core.errors import CheckpointError, ConfigError, ShapeError, TrainingDivergedError
from lsap_core.generators.discriminator import Discriminator
from lsap_core.generators.generator import Generator
from lsap_core.images import comparison_view
from lsap_core.inversion.inversion import PerceptualDistance
from lsap_core.refinement.sfe_features import feature_shift, image_from, invert, state_at
from lsap_core.refinement.sfe_networks import SfeNetworks, sfe_misfit
from lsap_core.training.encoder_step import IdentityNetwork
from lsap_core.training.image_adversary import ImageAdversary
from lsap_core.training.image_terms import ImageTerms
from lsap_core.training.random_numbers import stream
from lsap_core.training.ranger import Ranger
from lsap_core.training.sfe_edits import TrainingEdit, draw_edit
from lsap_core.training.sfe_settings import SfeTrainingSettings


class GuideEncoder(Protocol):
    """The encoder that edits well, as `EncoderEmbedder` asks it; frozen and in eval mode."""

    def codes_of_view(self, view: Tensor) -> Tensor:
        """Codes [N, K, w_dim] of images [N, C, h, w] of its input size."""
        ...


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


class InverterTraining:
    """The first phase: backbone, heads, content layer and Fuser; one call of `advance` is one optimizer step.

    Of every photo x there are two images, each of which counts half: G(w; F_k), with F_k faded in over the first steps,
    and G(w).

    Args:
        parts: networks, generator, losses.
        settings: how to train.

    Attributes:
        step: steps taken.

    Raises:
        ConfigError: parts do not fit each other or the settings.
    """

    def __init__(self, parts: SfeTrainingParts, settings: SfeTrainingSettings):
        self._training = _Training(parts, parts.networks.inverter, settings)
        self.parts = parts
        self.settings = settings

    @property
    def step(self) -> int:
        """Steps taken."""
        return self._training.step

    def advance(self, images: Tensor) -> dict[str, float]:
        """Take one step.

        Args:
            images: the batch, [N, C, R, R] in [-1, 1].

        Returns:
            Means over the images: "loss" and its terms before multiplication, "gradient_norm", and "discriminator" and
            "r1" where the discriminator learned.

        Raises:
            ShapeError: images of another number or shape.
            TrainingDivergedError: a term or a gradient is not finite. Everything is as it was before the step.
        """
        is_adversarial = self.step + 1 > self.settings.adversarial_start
        return self._training.advance(images, self.terms, is_adversarial=is_adversarial)

    def terms(self, images: Tensor, step: int) -> tuple[dict[str, Tensor], Tensor]:
        """Terms of each image but the discriminator's, [N], at a step counted from 1, and the 2 N images made."""
        generator, scale = self.parts.generator, self.settings.feature_scale(step)
        found = invert(self.parts.networks.inverter, generator, self.parts.networks.view(images))
        styles = generator.styles(found.w_plus)
        inversion = image_from(generator, styles, found.at_layer, found.features, scale=scale)
        of_code = image_from(generator, styles, found.at_layer)
        terms = self._training.image_terms.averaged([(inversion, images), (of_code, images)])
        terms["feature"] = (found.features - found.at_layer.features).square().mean(dim=(1, 2, 3))
        return terms, torch.cat([inversion, of_code])

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on; see `EncoderTraining.state_dict`."""
        return self._training.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned; the next step then goes on bit for bit.

        Raises:
            CheckpointError: the state is of other networks, or of ones with or without a discriminator.
        """
        self._training.load_state_dict(state)


class EditorTraining:
    """The second phase: the Feature Editor H; one call of `advance` is one optimizer step.

    Half of the loss is the inversion G(w; H(F_k, 0)) of a photo x. The other half is a synthetic pair, for which the
    result of an edit is known: X_E = G(w_E) of the guiding encoder's code and X_E' = G(w_E') of the edited one. The
    Inverter finds (w, F_k) of X_E, and G(w'; H(F_k, F(w_E) - F(w_E'))) is to be X_E'.

    The discriminator compares inversions with photos. Inverter and encoder stay in eval mode: the batch statistics of
    the released Inverter went on moving in this phase, which nothing here depends on.

    Args:
        parts: networks, generator, losses.
        guide: the encoder that edits well.
        edits: one of them is drawn for every batch, and one of its powers.
        settings: how to train.
        seed: of what is drawn.

    Raises:
        ConfigError: parts do not fit each other or the settings, or there are no edits.
    """

    def __init__(
        self,
        parts: SfeTrainingParts,
        guide: GuideEncoder,
        edits: Sequence[TrainingEdit],
        settings: SfeTrainingSettings,
        *,
        seed: int,
    ):
        if parts.networks.editor is None:
            raise ConfigError("the networks have no Feature Editor to train: build them with has_editor")
        if not edits:
            raise ConfigError("there are no edits; wanted at least one that the Feature Editor learns from")
        self._training = _Training(parts, parts.networks.editor, settings)
        self.editor = parts.networks.editor
        parts.networks.inverter.requires_grad_(False).eval()
        self.parts = parts
        self.guide = guide
        self.edits = tuple(edits)
        self.settings = settings
        self.seed = seed

    @property
    def step(self) -> int:
        """Steps taken."""
        return self._training.step

    def advance(self, images: Tensor) -> dict[str, float]:
        """Take one step; see `InverterTraining.advance`."""
        return self._training.advance(images, self.terms, is_adversarial=True)

    def terms(self, images: Tensor, step: int) -> tuple[dict[str, Tensor], Tensor]:
        """Terms of each image but the discriminator's, [N], at a step counted from 1, and the N inversions."""
        edit, power = draw_edit(self.edits, stream(self.seed, step, "edit"))
        generator, networks = self.parts.generator, self.parts.networks
        with torch.no_grad():
            of_photo = invert(networks.inverter, generator, networks.view(images))
            photo_styles = generator.styles(of_photo.w_plus)
            guide_codes = self.guide.codes_of_view(self._guide_view(images))
            guide_styles, edited_guide_styles = generator.styles(guide_codes), edit.styles(guide_codes, power)
            conv = of_photo.at_layer.conv
            before, after = (state_at(generator, styles, conv) for styles in (guide_styles, edited_guide_styles))
            made = image_from(generator, guide_styles, before)
            edited_target = image_from(generator, edited_guide_styles, after)
            of_made = invert(networks.inverter, generator, networks.view(made))
            edited_styles = edit.styles(of_made.w_plus, power)
            edited_state = state_at(generator, edited_styles, conv)
            shift = feature_shift(before.features, after.features)
        inverted = self.editor(torch.cat([of_photo.features, torch.zeros_like(of_photo.features)], dim=1))
        inversion = image_from(generator, photo_styles, of_photo.at_layer, inverted)
        moved = self.editor(torch.cat([of_made.features, shift], dim=1))
        edited = image_from(generator, edited_styles, edited_state, moved)
        return self._training.image_terms.averaged([(inversion, images), (edited, edited_target)]), inversion

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on; see `EncoderTraining.state_dict`."""
        return self._training.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned; see `InverterTraining.load_state_dict`."""
        self._training.load_state_dict(state)

    def _guide_view(self, images: Tensor) -> Tensor:
        content_box = self.parts.generator.config.content_box
        return comparison_view(images, content_box=content_box, downsampling="bilinear_noaa")


Terms = Callable[[Tensor, int], tuple[dict[str, Tensor], Tensor]]


class _Training:
    """What both phases share: losses on images, optimizers, and a step that is taken as a whole or not at all."""

    def __init__(self, parts: SfeTrainingParts, trained: nn.Module, settings: SfeTrainingSettings):
        _check_parts(parts, settings)
        self.parts = parts
        self.trained = trained.requires_grad_(True)
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

    def advance(self, images: Tensor, terms_of: Terms, *, is_adversarial: bool) -> dict[str, float]:
        self._check_images(images)
        images = images.to(self.parts.generator.mapping.w_avg)
        buffers = [buffer.clone() for buffer in self.trained.buffers()]
        self.trained.train()
        try:
            terms, made = terms_of(images, self.step + 1)
            adversary = self.adversary if is_adversarial else None
            if adversary is not None:
                terms["adversarial"] = adversary.refiner_loss(made)
            # One mean for each term: there are twice as many images made as photos in the first phase.
            means = {name: values.mean() for name, values in terms.items()}
            loss = torch.stack([getattr(self.settings, f"{name}_weight") * mean for name, mean in means.items()]).sum()
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
        self.ranger.step()
        if adversary is not None:
            adversary.adam.step()
        self.step += 1
        return values

    def state_dict(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "trained": self.trained.state_dict(),
            "ranger": self.ranger.state_dict(),
            "adversary": None if self.adversary is None else self.adversary.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
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
        wanted = [self.settings.batch_size, config.image_channels, config.resolution, config.resolution]
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
            f"identity_weight is {settings.identity_weight} without an identity network; pass one, or set it to 0"
        )
    if settings.adversarial_weight > 0 and parts.discriminator is None:
        raise ConfigError(
            f"adversarial_weight is {settings.adversarial_weight} without a discriminator; pass one, or set it to 0"
        )
