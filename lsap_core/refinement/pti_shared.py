"""Pivotal tuning of one generator to many images: what rendering with it takes (Roich et al. 2022, section 3.2)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from lsap_core.errors import ConfigError, ShapeError
from lsap_core.generators.config import GeneratorConfig
from lsap_core.generators.generator import Generator, StyleShift
from lsap_core.inversion.inversion import NOT_STOPPED
from lsap_core.refinement.refined_by_pti import num_parameters, tuned_weights
from lsap_core.refinement.refinement import Embedded, Refinement, RefinementParts, StateArray
from lsap_core.refinement.tuned_weights import TunedGenerator, noise_like, synthesis_shapes


class SharedWeights(nn.Module):
    """How far each parameter of synthesis moved for all images of a group.

    Attributes:
        config: of the generator whose parameters they are.
        weights: differences to its parameters, [parameters], in the order of `synthesis_shapes`; new ones are 0.
    """

    def __init__(self, config: GeneratorConfig):
        super().__init__()
        self.config = config
        self.weights = nn.Parameter(torch.zeros(num_parameters(config)))


@dataclass(frozen=True)
class SharedPtiSettings:
    """Nothing is searched of an image, and nothing kept: the weights that its group shares were tuned before."""

    kind: ClassVar[str] = "pti_shared"
    needs_networks: ClassVar[bool] = True
    restores_alone: ClassVar[bool] = False
    goes_back: ClassVar[bool] = False
    trace_steps: ClassVar[tuple[int, ...]] = ()
    trace_terms: ClassVar[tuple[str, ...]] = ()
    num_steps: ClassVar[int] = 1  # one look at what the weights give

    def refiner(self, parts: RefinementParts) -> SharedPtiRefiner:
        """The refiner with these weights.

        Raises:
            ConfigError: there are none, or they are those of another kind of generator.
        """
        if not isinstance(parts.networks, SharedWeights):
            found = "none" if parts.networks is None else type(parts.networks).__name__
            raise ConfigError(f"PTI with shared weights needs them, found {found}: name their file in refiner_networks")
        return SharedPtiRefiner(parts.generator, weights=parts.networks, settings=self)

    def state_arrays(self, generator: GeneratorConfig) -> tuple[StateArray, ...]:
        """Of an image nothing is kept but its code."""
        return ()

    def why_stopped(self, step: int) -> tuple[str, str]:
        """Reason and message of an image that is not finite."""
        return "non_finite_image", (
            "the image that the shared weights give of its code is not finite: tune them at a lower learning_rate, or "
            "take this image out"
        )


class SharedPtiState:
    """Which images the weights give.

    Attributes:
        step: looks taken, 0 or 1.
        embedded: what is refined.
        stopped_at: [N] int64, 0 where the image is not finite, or -1.
    """

    def __init__(self, embedded: Embedded):
        self.step = 0
        self.embedded = embedded
        self.stopped_at = torch.full((len(embedded.w_plus),), NOT_STOPPED, device=embedded.w_plus.device)

    def to_tensors(self) -> dict[str, Tensor]:
        """The whole state as named tensors on the CPU, for storage; codes and noise are those of `start`."""
        return {"step": torch.tensor(self.step), "stopped_at": self.stopped_at.cpu().clone()}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over a state that `to_tensors` returned.

        Raises:
            ShapeError: the state belongs to another batch.
        """
        saved = tensors.get("stopped_at")
        if saved is None or saved.shape != self.stopped_at.shape:
            raise ShapeError(
                f"saved stopped_at is {None if saved is None else list(saved.shape)}; this refinement has "
                f"{list(self.stopped_at.shape)}: it is of another batch"
            )
        self.step = int(tensors["step"])
        self.stopped_at = saved.to(self.stopped_at, copy=True)


class SharedPtiRefiner:
    """Renders images of one generator that was tuned to all of them.

    Example:
        >>> config = GeneratorConfig(8, (4, 4), z_dim=3, w_dim=5, num_mapping_layers=2)
        >>> refiner = SharedPtiRefiner(
        ...     Generator(config).freeze(), weights=SharedWeights(config), settings=SharedPtiSettings()
        ... )
        >>> refined = refiner.restore(Embedded(torch.zeros(2, 4, 5)), {})
        >>> tuple(refined.synthesize().shape), refined.arrays()
        ((2, 3, 8, 8), {})
    """

    def __init__(self, generator: Generator, *, weights: SharedWeights, settings: SharedPtiSettings):
        """Nothing is computed yet.

        Raises:
            ConfigError: the weights are those of another kind of generator.
        """
        found, wanted = synthesis_shapes(weights.config), synthesis_shapes(generator.config)
        if found != wanted:
            name = next(name for name in {**wanted, **found} if found.get(name) != wanted.get(name))
            raise ConfigError(
                f"these shared weights are of a generator whose {name} is {_shown(found.get(name))}, here it is "
                f"{_shown(wanted.get(name))}: pass the generator that they were tuned from"
            )
        self.generator = generator
        self.weights = weights
        self.settings = settings
        self.tuned = TunedGenerator(generator)

    @property
    def state_arrays(self) -> tuple[StateArray, ...]:
        """None."""
        return self.settings.state_arrays(self.generator.config)

    def start(self, embedded: Embedded, target: Tensor, seeds: Sequence[int]) -> SharedPtiState:
        """The state before the look; of images and seeds only the number is looked at.

        Raises:
            ShapeError: codes, images or seeds do not fit each other.
        """
        numbers = {len(embedded.w_plus), len(target), len(seeds)}
        if len(numbers) != 1:
            raise ShapeError(
                f"{len(embedded.w_plus)} codes with {len(target)} images and {len(seeds)} seeds; wanted as many of each"
            )
        return SharedPtiState(self._placed(embedded))

    @torch.no_grad()
    def advance(
        self,
        state: SharedPtiState,
        target: Tensor,
        *,
        until: int | None = None,
        after_step: Callable[[SharedPtiState], None] | None = None,
    ) -> None:
        """Look whether the images are finite, unless that is known or `until` is 0; `target` is not looked at.

        Raises:
            ShapeError: codes or noise do not fit the generator.
        """
        if state.step >= 1 or until == 0:
            return
        is_finite = self.render(state.embedded).isfinite().flatten(1).all(dim=1)  # [N]
        state.stopped_at = torch.where(is_finite, state.stopped_at, state.step)
        state.step += 1
        if after_step is not None:
            after_step(state)

    def finish(self, state: SharedPtiState) -> Refinement:
        """The result; there is no loss to record."""
        return Refinement(
            refined=RefinedBySharedWeights(self, state.embedded),
            num_steps=torch.where(state.stopped_at == NOT_STOPPED, state.step, state.stopped_at),
            stopped_at=state.stopped_at,
            trace=state.embedded.w_plus.new_zeros(len(state.stopped_at), 0, 0),
        )

    def restore(self, embedded: Embedded, arrays: Mapping[str, Tensor]) -> RefinedBySharedWeights:
        """The refined images of these codes; nothing else of them is kept.

        Raises:
            ShapeError: there are arrays, so that these are images of another refiner.
        """
        if arrays:
            raise ShapeError(f"{', '.join(sorted(arrays))} are kept of these images; wanted nothing but codes")
        return RefinedBySharedWeights(self, self._placed(embedded))

    @torch.no_grad()
    def render(self, embedded: Embedded, style_shift: StyleShift | None = None) -> Tensor:
        """Images [N, C, R, R], unclamped, of codes, and styles that are shifted, with the shared weights."""
        weights = tuned_weights(self.tuned, self.weights.weights.to(embedded.w_plus))
        return self.tuned.synthesize_alike(embedded.w_plus, weights, noise=embedded.noise, style_shift=style_shift)

    def _placed(self, embedded: Embedded) -> Embedded:
        like = self.tuned.parameter("const")
        return Embedded(embedded.w_plus.detach().to(like), noise_like(embedded.noise, like))


class RefinedBySharedWeights:
    """Images of a generator that was tuned to all of a group."""

    def __init__(self, refiner: SharedPtiRefiner, embedded: Embedded):
        self._refiner = refiner
        self._embedded = embedded

    @property
    def w_plus(self) -> Tensor:
        """The pivots, [N, K, w_dim]."""
        return self._embedded.w_plus

    def synthesize(self, w_plus: Tensor | None = None, style_shift: StyleShift | None = None) -> Tensor:
        """Images [N, C, R, R], unclamped, of the pivots, or of edits of them in W+ and S, with the same weights."""
        codes, noise = self.w_plus if w_plus is None else w_plus, self._embedded.noise
        return self._refiner.render(Embedded(codes, noise), style_shift)

    def arrays(self) -> dict[str, Tensor]:
        """Nothing."""
        return {}


def _shown(shape: tuple[int, ...] | None) -> str:
    return "missing" if shape is None else str(list(shape))
