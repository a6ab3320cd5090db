"""HFGI: what a code cannot hold goes back through the features of the generator (Wang et al. 2022)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lsap_core.errors import ConfigError, ShapeError
from lsap_core.generators.config import GeneratorConfig
from lsap_core.generators.generator import Generator, StyleShift
from lsap_core.inversion.inversion import NOT_STOPPED
from lsap_core.refinement.hfgi_fusion import Fusion, check_view_side
from lsap_core.refinement.hfgi_networks import HfgiNetworks
from lsap_core.refinement.refinement import Embedded, Refinement, RefinementParts, StateArray

RESIDUAL = "residual"


@dataclass(frozen=True)
class HfgiSettings:
    """How HFGI is asked: everything else is in its networks.

    Attributes:
        view_side: pixels on the longer side of the images that the networks see; None for those of the picture, at most
            256. Published networks want 256, also for smaller generators.

    Raises:
        ConfigError: a value lies outside its range.
    """

    kind: ClassVar[str] = "hfgi"
    needs_networks: ClassVar[bool] = True
    restores_alone: ClassVar[bool] = False
    goes_back: ClassVar[bool] = False
    trace_steps: ClassVar[tuple[int, ...]] = ()  # it minimizes nothing
    trace_terms: ClassVar[tuple[str, ...]] = ()
    num_steps: ClassVar[int] = 1  # one pass

    view_side: int | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot run."""
        check_view_side(self.view_side)

    def fusion(self, generator: GeneratorConfig) -> Fusion:
        """Where conditions enter such a generator."""
        return Fusion.of(generator, view_side=self.view_side)

    def refiner(self, parts: RefinementParts) -> HfgiRefiner:
        """The refiner of these networks.

        Raises:
            ConfigError: there are none, others than HFGI's, or they do not fit the generator.
        """
        if not isinstance(parts.networks, HfgiNetworks):
            found = "none" if parts.networks is None else type(parts.networks).__name__
            raise ConfigError(f"HFGI needs its networks, found {found}: name their file in refiner_networks")
        return HfgiRefiner(parts.generator, networks=parts.networks, settings=self)

    def state_arrays(self, generator: GeneratorConfig) -> tuple[StateArray, ...]:
        """The residual, at the size of the view."""
        shape = (generator.image_channels, *self.fusion(generator).view_size)
        return (StateArray(RESIDUAL, shape, ("channel", "row", "column")),)

    def why_stopped(self, step: int) -> tuple[str, str]:
        """Reason and message of an image whose residual was not finite."""
        return "non_finite_residual", (
            "the image, or what its code gives, is not finite: take this image out, or embed it again"
        )


class HfgiState:
    """Residuals before and after the one pass.

    Attributes:
        step: passes made, 0 or 1.
        embedded: what is refined.
        residual: what the codes lost, [N, C, h, w]; 0 before the pass, and where it is not finite.
        stopped_at: [N] int64, 0 where the residual is not finite, or -1.
    """

    def __init__(self, embedded: Embedded, residual: Tensor):
        self.step = 0
        self.embedded = embedded
        self.residual = residual
        self.stopped_at = torch.full((len(residual),), NOT_STOPPED, device=residual.device)

    def to_tensors(self) -> dict[str, Tensor]:
        """The whole state as named tensors on the CPU, for storage; codes and noise are those of `start`."""
        tensors = {"step": torch.tensor(self.step), RESIDUAL: self.residual, "stopped_at": self.stopped_at}
        return {name: tensor.cpu().clone() for name, tensor in tensors.items()}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over a state that `to_tensors` returned; what follows is then the same bit for bit.

        Raises:
            ShapeError: the state belongs to another batch or another view.
        """
        for name, own in ((RESIDUAL, self.residual), ("stopped_at", self.stopped_at)):
            saved = tensors.get(name)
            if saved is None or saved.shape != own.shape:
                found = None if saved is None else list(saved.shape)
                raise ShapeError(
                    f"saved {name} is {found}; this refinement has {list(own.shape)}: it is of another batch"
                )
        self.step = int(tensors["step"])
        self.residual = tensors[RESIDUAL].to(self.residual, copy=True)
        self.stopped_at = tensors["stopped_at"].to(self.stopped_at, copy=True)


class HfgiRefiner:
    """Brings back into images, and into edits of them, what their codes lost.

    With X0 = G(w) and the photo x the residual is D = x - X0. For an edit Y = G(w'), or Y = X0 for the inversion, the
    aligned residual D' = ADA(D, Y) gives scale and shift, and the image is G(w') with one feature f replaced by
    f (1 + scale) + shift (section 3). Nothing is searched: D alone is kept of an image.

    An image whose residual is 0 everywhere has lost nothing, or was stopped: it gets nothing back, G(w') itself.

    Example:
        >>> from lsap_core.refinement.hfgi_networks import HfgiConfig
        >>> config = GeneratorConfig(16, (4, 4, 4), z_dim=3, w_dim=5, num_mapping_layers=2)
        >>> networks = HfgiNetworks(HfgiConfig.for_generator(config, widths="small"))
        >>> refiner = HfgiRefiner(Generator(config).freeze(), networks=networks, settings=HfgiSettings())
        >>> refinement = refiner(Embedded(torch.zeros(2, 6, 5)), torch.ones(2, 3, 16, 16))
        >>> tuple(refinement.refined.synthesize().shape)
        (2, 3, 16, 16)
    """

    def __init__(self, generator: Generator, *, networks: HfgiNetworks, settings: HfgiSettings):
        """All networks are put into eval mode: in training mode an image depends on its neighbours.

        Raises:
            ConfigError: the networks do not fit the generator.
        """
        self.fusion = settings.fusion(generator.config)
        if problem := misfit(networks, generator.config, self.fusion):
            raise ConfigError(problem)
        self.generator = generator.eval()
        self.networks = networks.eval()
        self.settings = settings

    def __call__(self, embedded: Embedded, target: Tensor) -> Refinement:
        """Refine codes of N images [N, C, R, R] in [-1, 1].

        Raises:
            ShapeError: codes, noise or images do not fit the generator or each other.
        """
        state = self.start(embedded, target, range(len(target)))
        self.advance(state, target)
        return self.finish(state)

    @property
    def state_arrays(self) -> tuple[StateArray, ...]:
        """The residual, at the size of the view."""
        return self.settings.state_arrays(self.generator.config)

    def start(self, embedded: Embedded, target: Tensor, seeds: Sequence[int]) -> HfgiState:
        """The state before the pass; of the seeds only the number is looked at.

        Raises:
            ShapeError: codes, noise, images or seeds do not fit the generator or each other.
        """
        self._check_target(target, len(seeds))
        self._check_embedded(embedded, len(seeds))
        return HfgiState(embedded, embedded.w_plus.new_zeros(len(seeds), *self.state_arrays[0].shape))

    def advance(
        self,
        state: HfgiState,
        target: Tensor,
        *,
        until: int | None = None,
        after_step: Callable[[HfgiState], None] | None = None,
    ) -> None:
        """Make the pass, in place, unless it is made or `until` is 0.

        Args:
            state: from `start`, or loaded.
            target: the images, [N, C, R, R] in [-1, 1]; the same ones at every call.
            until: stop before this pass.
            after_step: called with the state after the pass.

        Raises:
            ShapeError: the images do not fit the generator or the state.
        """
        self._check_target(target, len(state.residual))
        if state.step >= 1 or until == 0:
            return
        residual = self.residual(state.embedded, self.fusion.view(target.to(state.residual), antialias=True))
        is_finite = residual.isfinite().flatten(1).all(dim=1)  # [N]
        state.stopped_at = torch.where(is_finite, state.stopped_at, state.step)
        state.residual = torch.where(is_finite[:, None, None, None], residual, state.residual)
        state.step += 1
        if after_step is not None:
            after_step(state)

    def finish(self, state: HfgiState) -> Refinement:
        """The result; there is no loss to record."""
        return Refinement(
            refined=RefinedByHfgi(self, state.embedded, state.residual),
            num_steps=torch.where(state.stopped_at == NOT_STOPPED, state.step, state.stopped_at),
            stopped_at=state.stopped_at,
            trace=state.residual.new_zeros(len(state.residual), 0, 0),
        )

    def restore(self, embedded: Embedded, arrays: Mapping[str, Tensor]) -> RefinedByHfgi:
        """The refined images whose codes and residuals these are.

        Args:
            embedded: codes of the refined inversion, and the noise of the embedding.
            arrays: as `Refined.arrays` gave them, in any floating point type.

        Raises:
            ShapeError: the residual is missing, or does not fit this refiner.
        """
        wanted = (len(embedded.w_plus), *self.state_arrays[0].shape)
        found = arrays.get(RESIDUAL)
        if found is None or found.shape != wanted or not found.is_floating_point():
            shape = None if found is None else f"{found.dtype} {list(found.shape)}"
            raise ShapeError(f"the kept {RESIDUAL} is {shape}; wanted floating point numbers {list(wanted)}")
        self._check_embedded(embedded, len(embedded.w_plus))
        return RefinedByHfgi(self, embedded, found.to(embedded.w_plus))

    @torch.no_grad()
    def residual(self, embedded: Embedded, view: Tensor) -> Tensor:
        """What codes lost of images [N, C, h, w] in [-1, 1] at the size of the view: the same shape, in [-2, 2]."""
        return view - self.fusion.view(self.generator.synthesize(embedded.w_plus, noise=embedded.noise))

    @torch.no_grad()
    def render(self, embedded: Embedded, residual: Tensor, style_shift: StyleShift | None = None) -> Tensor:
        """Images [N, C, R, R], unclamped, of codes, with residuals [N, C, h, w] brought back into them."""
        conv, styles = self.fusion.conv, self.generator.styles(embedded.w_plus, style_shift)
        plain = self.generator.synthesize_styles(styles, noise=embedded.noise, collect=(conv,))
        _, scale, shift = self.networks(residual, self.fusion.view(plain.image))
        has_lost = (residual != 0).flatten(1).any(dim=1)[:, None, None, None]  # [N, 1, 1, 1]
        entered = self.fusion.enter(plain.states[conv], scale.where(has_lost, 0), shift.where(has_lost, 0))
        return self.generator.synthesize_styles(styles, noise=embedded.noise, start=entered).image

    def _check_target(self, target: Tensor, num_images: int) -> None:
        config = self.generator.config
        wanted = [num_images, *config.image_shape]
        if list(target.shape) != wanted:
            raise ShapeError(f"target images are {list(target.shape)}; wanted {wanted}")

    def _check_embedded(self, embedded: Embedded, num_images: int) -> None:
        config = self.generator.config
        wanted = [num_images, config.num_ws, config.w_dim]
        if list(embedded.w_plus.shape) != wanted:
            raise ShapeError(f"codes are {list(embedded.w_plus.shape)}; wanted W+ codes {wanted}")
        if not isinstance(embedded.noise, str):
            self.generator.check_noise(embedded.noise, num_images)


class RefinedByHfgi:
    """Images and the residuals that belong to them."""

    def __init__(self, refiner: HfgiRefiner, embedded: Embedded, residual: Tensor):
        self._refiner = refiner
        self._embedded = embedded
        self._residual = residual

    @property
    def w_plus(self) -> Tensor:
        """Codes [N, K, w_dim] of the refined inversion, which are those of the embedding."""
        return self._embedded.w_plus

    def synthesize(self, w_plus: Tensor | None = None, style_shift: StyleShift | None = None) -> Tensor:
        """Images [N, C, R, R], unclamped: of the refined inversion, or of edited codes with the residual realigned.

        Args:
            w_plus: edited codes [N, K, w_dim].
            style_shift: added to the styles of the edited codes, as `Generator.styles` takes it: an edit in S.

        Raises:
            ShapeError: codes of another shape.
        """
        codes = self.w_plus if w_plus is None else w_plus
        if codes.shape != self.w_plus.shape:
            raise ShapeError(f"edited codes are {list(codes.shape)}; wanted {list(self.w_plus.shape)}")
        return self._refiner.render(Embedded(codes, self._embedded.noise), self._residual, style_shift)

    def arrays(self) -> dict[str, Tensor]:
        """The residual, [N, C, h, w] float32."""
        return {RESIDUAL: self._residual.float()}


def misfit(networks: HfgiNetworks, generator: GeneratorConfig, fusion: Fusion) -> str | None:
    """Why networks cannot be those of a generator, in a sentence; None where they can."""
    found = (networks.config.image_channels, networks.config.condition_channels)
    wanted = (generator.image_channels, fusion.channels)
    if found == wanted:
        return None
    return (
        f"HFGI's networks read images of {found[0]} channels and condition {found[1]}; the generator's images have "
        f"{wanted[0]} and its features of {fusion.size[0]} x {fusion.size[1]} {wanted[1]}: pass the generator "
        "and the view_side that they were trained for"
    )
