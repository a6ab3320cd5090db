"""Training StyleFeatureEditor: one step of the Inverter (first phase) or of the Feature Editor (second phase).

Bobkov et al., CVPR 2024, section 3.3.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from lsap_core.errors import ConfigError
from lsap_core.images import comparison_view
from lsap_core.refinement.sfe_features import FeatureEditing, feature_shift, image_from, invert, state_at
from lsap_core.training.random_numbers import stream
from lsap_core.training.sfe_edits import TrainingEdit, draw_edit
from lsap_core.training.sfe_phase import PhaseTraining, SfeTrainingParts
from lsap_core.training.sfe_settings import SfeTrainingSettings


class GuideEncoder(Protocol):
    """The encoder that edits well, as `EncoderEmbedder` asks it; frozen and in eval mode."""

    def codes_of_view(self, view: Tensor) -> Tensor:
        """Codes [N, K, w_dim] of images [N, C, h, w] of its input size."""
        ...


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
        self._training = PhaseTraining(parts, parts.networks.inverter, settings)
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
        return self._training.advance(images, self.terms)

    @torch.no_grad()
    def validate(self, images: Tensor) -> dict[str, Tensor]:
        """The loss without the discriminator's term, and its terms, of each image, [N]: in eval mode, F_k in full.

        Args:
            images: [N, C, R, R] in [-1, 1], as many as there are.
        """
        return self._training.measured(self.terms(self._training.like_weights(images), self.settings.fade_steps)[0])

    @torch.no_grad()
    def reconstruct(self, images: Tensor) -> Tensor:
        """Inversions G(w; F_k) [N, C, R, R], about [-1, 1], unclamped, of images of that shape."""
        images = self._training.like_weights(images)
        found = invert(self.parts.networks.inverter, self.parts.generator, self.parts.networks.view(images))
        generator = self.parts.generator
        return image_from(generator, generator.styles(found.w_plus), found.at_layer, found.features)

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
        self.editing = FeatureEditing(parts.networks.editor, parts.networks.reducer)
        trained = {"editor": self.editing.editor, "reducer": self.editing.reducer}
        present = {name: network for name, network in trained.items() if network is not None}
        self._training = PhaseTraining(parts, nn.ModuleDict(present), settings)
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
        return self._training.advance(images, self.terms)

    @torch.no_grad()
    def validate(self, images: Tensor) -> dict[str, Tensor]:
        """The loss without the discriminator's term, and its terms, of each image, [N]: in eval mode.

        The mean over all edits, each with the power of largest magnitude.

        Args:
            images: [N, C, R, R] in [-1, 1], as many as there are.
        """
        images = self._training.like_weights(images)
        every = [self._terms(images, edit, max(edit.powers, key=abs))[0] for edit in self.edits]
        means = {name: torch.stack([terms[name] for terms in every]).mean(dim=0) for name in every[0]}
        return self._training.measured(means)

    @torch.no_grad()
    def reconstruct(self, images: Tensor) -> Tensor:
        """Inversions G(w; H(F_k, 0)) [N, C, R, R], about [-1, 1], unclamped, of images of that shape."""
        generator, networks = self.parts.generator, self.parts.networks
        found = invert(networks.inverter, generator, networks.view(self._training.like_weights(images)))
        return image_from(generator, generator.styles(found.w_plus), found.at_layer, self.editing(found.features))

    def terms(self, images: Tensor, step: int) -> tuple[dict[str, Tensor], Tensor]:
        """Terms of each image but the discriminator's, [N], at a step counted from 1, and the N inversions."""
        return self._terms(images, *draw_edit(self.edits, stream(self.seed, step, "edit")))

    def _terms(self, images: Tensor, edit: TrainingEdit, power: float) -> tuple[dict[str, Tensor], Tensor]:
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
            shift = feature_shift(
                self.editing.shifting(generator, guide_styles, before),
                self.editing.shifting(generator, edited_guide_styles, after),
            )
        inversion = image_from(generator, photo_styles, of_photo.at_layer, self.editing(of_photo.features))
        edited = image_from(generator, edited_styles, edited_state, self.editing(of_made.features, shift))
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
