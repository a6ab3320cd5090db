"""Result refinement by StyleFeatureEditor: a code of its own, a feature map, and a network that edits the map.

Bobkov et al., CVPR 2024. Here F(w) are the features of the generator at w, at a quarter of the side that is looked at
(64 of 256). The Inverter finds w and F_k; the Feature Editor H gives the features that the generator goes on with:

    inversion   G(w;  H(F_k, 0))
    edit        G(w'; H(F_k, Delta)),   Delta = F(w_E) - F(w_E')

where w_E is the code of an encoder that edits well. All of it takes the generator's own noise maps, as in training:
noise that an embedding found for its code does not belong to this one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from lsap_core.errors import ConfigError, ShapeError
from lsap_core.generators.config import GeneratorConfig
from lsap_core.generators.generator import Generator, StyleShift
from lsap_core.inversion.inversion import NOT_STOPPED
from lsap_core.refinement.refinement import Embedded, Refinement, RefinementParts, StateArray
from lsap_core.refinement.sfe_features import FeatureEditing, conv_of_side, feature_shift, image_from, invert, state_at
from lsap_core.refinement.sfe_networks import SfeNetworks, feature_size, sfe_misfit

FEATURES = "features"
GUIDE = "guide_w_plus"


@dataclass(frozen=True)
class SfeSettings:
    """StyleFeatureEditor as published; there is nothing to choose."""

    kind: ClassVar[str] = "sfe"
    num_steps: ClassVar[int] = 1  # one pass
    needs_networks: ClassVar[bool] = True
    restores_alone: ClassVar[bool] = False
    goes_back: ClassVar[bool] = False
    trace_steps: ClassVar[tuple[int, ...]] = ()  # it minimizes nothing
    trace_terms: ClassVar[tuple[str, ...]] = ()

    def refiner(self, parts: RefinementParts) -> SfeRefiner:
        """Refines with these parts.

        Raises:
            ConfigError: the networks are of another kind, or do not fit the generator.
        """
        if not isinstance(parts.networks, SfeNetworks):
            raise ConfigError(
                f"the networks are {type(parts.networks).__name__}; wanted those of StyleFeatureEditor: name its "
                "file in refiner_networks"
            )
        return SfeRefiner(parts.generator, networks=parts.networks, settings=self)

    def state_arrays(self, generator: GeneratorConfig) -> tuple[StateArray, ...]:
        """The fused feature map, and the code of the encoder that edits well.

        Raises:
            ConfigError: the generator is too small to have the feature map.
        """
        side, channels = feature_size(generator)
        return (
            StateArray(FEATURES, (channels, side, side), ("channels", "rows", "columns")),
            StateArray(GUIDE, (generator.num_ws, generator.w_dim), ("layers", "w_dim")),
        )

    def why_stopped(self, step: int) -> tuple[str, str]:
        """Reason and message of an image whose code or features were not finite."""
        return "non_finite_features", (
            "the code or the features that StyleFeatureEditor found are not finite: take this image out, or other "
            "networks"
        )


class SfeState:
    """Codes and features before or after the one pass.

    Attributes:
        step: passes made, 0 or 1.
        w_plus: [N, K, w_dim]; those of the embedding before the pass, and where it gave numbers that are not finite.
        guide_w_plus: those of the embedding, which guide edits.
        features: F_k, [N, C, side, side]; zeros before the pass.
        stopped_at: [N] int64, 0 where the pass gave numbers that are not finite, else -1.
    """

    def __init__(self, w_plus: Tensor, features: Tensor):
        self.step = 0
        self.w_plus = w_plus
        self.guide_w_plus = w_plus
        self.features = features
        self.stopped_at = torch.full((len(w_plus),), NOT_STOPPED, device=w_plus.device)

    def to_tensors(self) -> dict[str, Tensor]:
        """The whole state as named tensors on the CPU, for storage."""
        tensors = {
            "step": torch.tensor(self.step),
            "w_plus": self.w_plus,
            GUIDE: self.guide_w_plus,
            FEATURES: self.features,
            "stopped_at": self.stopped_at,
        }
        return {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over a state that `to_tensors` returned; what follows then goes on bit for bit.

        Raises:
            ShapeError: the state belongs to another batch, generator or refiner.
        """
        own = {"w_plus": self.w_plus, GUIDE: self.guide_w_plus, FEATURES: self.features, "stopped_at": self.stopped_at}
        for name, tensor in own.items():
            saved = tensors.get(name)
            if saved is None or saved.shape != tensor.shape:
                raise ShapeError(
                    f"saved {name} is {None if saved is None else list(saved.shape)}; this refinement has "
                    f"{list(tensor.shape)}: the state is of another batch, generator or refiner"
                )
        self.step = int(tensors["step"])
        self.w_plus = tensors["w_plus"].to(self.w_plus)
        self.guide_w_plus = tensors[GUIDE].to(self.guide_w_plus)
        self.features = tensors[FEATURES].to(self.features)
        self.stopped_at = tensors["stopped_at"].to(self.stopped_at)


class RefinedBySfe:
    """Images that go on from edited features.

    Args:
        generator: frozen.
        editing: the Feature Editor H.
        w_plus: StyleFeatureEditor's own codes, [N, K, w_dim].
        features: F_k, [N, C, side, side].
        guide_w_plus: codes w_E of the encoder that edits well, [N, K, w_dim].
    """

    def __init__(
        self,
        generator: Generator,
        editing: FeatureEditing,
        *,
        w_plus: Tensor,
        features: Tensor,
        guide_w_plus: Tensor,
    ):
        self.generator = generator
        self.editing = editing
        self._w_plus = w_plus
        self.features = features
        self.guide_w_plus = guide_w_plus
        self.conv = conv_of_side(features.shape[-1])

    @property
    def w_plus(self) -> Tensor:
        """StyleFeatureEditor's own codes, [N, K, w_dim]: edits start from these."""
        return self._w_plus

    def arrays(self) -> dict[str, Tensor]:
        """The fused features and the guiding codes."""
        return {FEATURES: self.features, GUIDE: self.guide_w_plus}

    @torch.no_grad()
    def synthesize(self, w_plus: Tensor | None = None, style_shift: StyleShift | None = None) -> Tensor:
        """Images [N, C, R, R], unclamped, of the inversion, or of an edit of it.

        The guiding code is edited by the same difference: w_E' = w_E + (w' - w). For edits that add something to codes
        this is the edit itself. Edits that set an absolute coordinate (GANSpace) move the guiding code as far as they
        moved w, where the published program sets the same coordinate in both.

        Args:
            w_plus: edited codes [N, K, w_dim]; equal codes give the inversion bit for bit.
            style_shift: added to the styles of the edited codes and of the guiding ones alike: an edit in S.

        Raises:
            ShapeError: the edited codes are not of the shape of the inversion's.
        """
        if w_plus is None and not style_shift:
            return self.synthesize_styles(self.generator.styles(self._w_plus))
        w_plus = self._w_plus if w_plus is None else w_plus
        if w_plus.shape != self._w_plus.shape:
            raise ShapeError(f"edited codes are {list(w_plus.shape)}; wanted {list(self._w_plus.shape)}")
        edited_guide = self.guide_w_plus + (w_plus - self._w_plus)
        return self.synthesize_styles(
            self.generator.styles(w_plus, style_shift), self.generator.styles(edited_guide, style_shift)
        )

    @torch.no_grad()
    def synthesize_styles(
        self, styles: Sequence[Tensor], guide_styles: Sequence[Tensor] | None = None, *, mask: Tensor | None = None
    ) -> Tensor:
        """Images of styles: the form for edits in S, which change the styles of w and of w_E alike.

        Args:
            styles: of the codes, edited or not, in execution order.
            guide_styles: edited styles of the guiding codes; None where nothing was edited.
            mask: where nothing is to change, as in `feature_shift`.
        """
        shift = None
        if guide_styles is not None:
            shift = feature_shift(self.guide_features, self._features_of(guide_styles), mask)
        edited = self.editing(self.features, shift)
        return image_from(self.generator, styles, state_at(self.generator, styles, self.conv), edited)

    @cached_property
    def guide_features(self) -> Tensor:
        """F(w_E), [N, C, side, side]: computed with the first edit and kept for the next ones."""
        with torch.no_grad():
            return self._features_of(self.generator.styles(self.guide_w_plus))

    def _features_of(self, styles: Sequence[Tensor]) -> Tensor:
        return self.editing.shifting(self.generator, styles, state_at(self.generator, styles, self.conv))


class SfeRefiner:
    """Finds code and features of a batch of images in one pass, each image for itself.

    StyleFeatureEditor has a code of its own. Those that it is given are of the encoder E that guides edits: any
    embedding whose codes edit well.

    Raises:
        ConfigError: the networks do not fit the generator, there is no Feature Editor, or nobody knows the generator's
            mean code, from which codes start.
    """

    def __init__(self, generator: Generator, *, networks: SfeNetworks, settings: SfeSettings):
        """All networks are put into eval mode: in training mode an image's code depends on its neighbours."""
        if problem := sfe_misfit(networks.config, generator.config):
            raise ConfigError(problem)
        if networks.editor is None:
            raise ConfigError(
                "these networks of StyleFeatureEditor have no Feature Editor: they are of the first phase of training; "
                "name those of the second in refiner_networks"
            )
        if not generator.has_w_avg:
            raise ConfigError(
                "the generator has no mean code, from which StyleFeatureEditor's codes start: take a "
                "generator file that has it (w_avg, latent_avg)"
            )
        self.generator = generator.eval()
        self.networks = networks.eval()
        self.editing = FeatureEditing(networks.editor, networks.reducer)
        self.settings = settings

    @property
    def state_arrays(self) -> tuple[StateArray, ...]:
        """The fused feature map, and the guiding code."""
        return self.settings.state_arrays(self.generator.config)

    def start(self, embedded: Embedded, target: Tensor, seeds: Sequence[int]) -> SfeState:
        """The state before the pass; the seeds are not used.

        Raises:
            ShapeError: codes, noise or images do not fit the generator or each other.
        """
        reference = self.generator.mapping.w_avg
        self._check_target(target, len(seeds))
        self._check_codes(embedded, len(seeds))
        features = reference.new_zeros(len(seeds), *self.state_arrays[0].shape)
        return SfeState(embedded.w_plus.detach().to(reference), features)

    def advance(
        self,
        state: SfeState,
        target: Tensor,
        *,
        until: int | None = None,
        after_step: Callable[[SfeState], None] | None = None,
    ) -> None:
        """Make the pass, in place, where it is not made yet.

        Args:
            state: from `start`, or loaded.
            target: the images, [N, C, R, R] in [-1, 1]; the same ones at every call.
            until: 0 for nothing.
            after_step: called with the state after the pass.

        Raises:
            ShapeError: the images do not fit the generator or the state.
        """
        self._check_target(target, len(state.w_plus))
        last = self.settings.num_steps if until is None else min(until, self.settings.num_steps)
        while state.step < last:
            self._pass(state, target.to(state.w_plus))
            if after_step is not None:
                after_step(state)

    def finish(self, state: SfeState) -> Refinement:
        """The result."""
        refined = self._refined(state.w_plus, state.features, state.guide_w_plus)
        return Refinement(
            refined,
            num_steps=torch.where(state.stopped_at == NOT_STOPPED, state.step, 0),
            stopped_at=state.stopped_at.clone(),
            trace=state.w_plus.new_zeros(len(state.w_plus), 0, 0),
        )

    def restore(self, embedded: Embedded, arrays: Mapping[str, Tensor]) -> RefinedBySfe:
        """The refined images whose codes and arrays these are; nothing is computed again.

        Args:
            embedded: StyleFeatureEditor's own codes; the noise is the generator's whatever is given.
            arrays: as `RefinedBySfe.arrays` gave them, in any floating point type.

        Raises:
            ShapeError: an array is missing, or does not fit this refiner.
        """
        num_images = len(embedded.w_plus)
        self._check_codes(embedded, num_images)
        for array in self.state_arrays:
            found = arrays.get(array.name)
            if found is None or tuple(found.shape) != (num_images, *array.shape):
                raise ShapeError(
                    f"the array {array.name} is {None if found is None else list(found.shape)}; wanted "
                    f"{[num_images, *array.shape]}: it was kept by another refiner, or of another generator"
                )
        return self._refined(embedded.w_plus, arrays[FEATURES], arrays[GUIDE])

    def _refined(self, w_plus: Tensor, features: Tensor, guide_w_plus: Tensor) -> RefinedBySfe:
        reference = self.generator.mapping.w_avg
        return RefinedBySfe(
            self.generator,
            self.editing,
            w_plus=w_plus.detach().to(reference),
            features=features.detach().to(reference),
            guide_w_plus=guide_w_plus.detach().to(reference),
        )

    @torch.no_grad()
    def _pass(self, state: SfeState, target: Tensor) -> None:
        """w and F_k, where they are finite."""
        found = invert(self.networks.inverter, self.generator, self.networks.view(target))
        is_finite = found.w_plus.isfinite().flatten(1).all(dim=1) & found.features.isfinite().flatten(1).all(dim=1)
        state.w_plus = torch.where(is_finite[:, None, None], found.w_plus, state.w_plus)
        state.features = torch.where(is_finite[:, None, None, None], found.features, state.features)
        state.stopped_at = torch.where(is_finite, state.stopped_at, state.step)
        state.step += 1

    def _check_target(self, target: Tensor, num_images: int) -> None:
        config = self.generator.config
        wanted = [num_images, *config.image_shape]
        if list(target.shape) != wanted:
            raise ShapeError(f"target images are {list(target.shape)}; wanted {wanted}")

    def _check_codes(self, embedded: Embedded, num_images: int) -> None:
        config = self.generator.config
        wanted = [num_images, config.num_ws, config.w_dim]
        if list(embedded.w_plus.shape) != wanted:
            raise ShapeError(f"codes are {list(embedded.w_plus.shape)}; wanted {wanted}")
        if not isinstance(embedded.noise, str):
            self.generator.check_noise(embedded.noise, num_images)
