"""Refinement by pivotal tuning: the generator's weights follow the image, its code stays (Roich et al. 2022, PTI)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lsap_core.errors import ConfigError, ShapeError
from lsap_core.generators.config import GeneratorConfig
from lsap_core.generators.generator import Generator
from lsap_core.inversion.inversion import PerceptualDistance
from lsap_core.refinement.pti_loss import PtiLoss, check_pti_loss
from lsap_core.refinement.pti_state import TRACE_TERMS, PtiState
from lsap_core.refinement.refined_by_pti import WEIGHTS, RefinedByPti, num_parameters, tuned_weights
from lsap_core.refinement.refinement import Embedded, Refinement, RefinementParts, StateArray
from lsap_core.refinement.tuned_weights import TunedGenerator, noise_like, noise_of

MOST_STEPS = 10**9
MOST_RECORDED = 100_000
"""Of an image's trace, which is kept in memory step by step."""


@dataclass(frozen=True)
class PtiSettings:
    """How the generator is tuned to an image; the defaults are published.

    The loss of an image is mse_weight MSE + lpips_weight LPIPS between G(w; theta) and the image, both at the
    generator's full size (section 3.2). Adam moves every parameter of synthesis, and w never moves. With locality
    regularization (section 3.3), locality_mse_weight MSE + locality_lpips_weight LPIPS is added between G(w_r; theta)
    and G(w_r) without noise, for one w_r = w + alpha (w_z - w) / ||w_z - w||_2 in each step, where
    w_z = w_avg + psi (f(z) - w_avg) of a z from the image's own random stream.

    Attributes:
        num_steps: Adam steps at most.
        learning_rate: of Adam, with torch's other constants.
        mse_weight: multiplier of the pixel error.
        lpips_weight: multiplier of the perceptual distance.
        stop_at_lpips: an image moves no more once its perceptual distance is not above this; None for never.
        regularizes_locality: whether other codes are held where they were.
        locality_alpha: how far from w, over all rows of W+, others are held.
        locality_psi: truncation of what is drawn.
        locality_mse_weight: multiplier of the pixel error there.
        locality_lpips_weight: multiplier of the perceptual distance there.
        record_every: steps between recorded loss terms; the last step is always recorded.

    Raises:
        ConfigError: a value lies outside its range.
    """

    kind: ClassVar[str] = "pti"
    needs_networks: ClassVar[bool] = False
    restores_alone: ClassVar[bool] = True
    goes_back: ClassVar[bool] = True
    trace_terms: ClassVar[tuple[str, ...]] = TRACE_TERMS

    num_steps: int = 350
    learning_rate: float = 3e-4
    mse_weight: float = 1.0
    lpips_weight: float = 1.0
    stop_at_lpips: float | None = 0.06
    regularizes_locality: bool = False
    locality_alpha: float = 30.0
    locality_psi: float = 0.5
    locality_mse_weight: float = 0.1
    locality_lpips_weight: float = 0.1
    record_every: int = 10

    def __post_init__(self) -> None:
        """Refuse what cannot run."""
        for name in ("num_steps", "record_every"):
            if not 1 <= getattr(self, name) <= MOST_STEPS:
                raise ConfigError(f"{name} is {getattr(self, name)}; wanted at least 1, and at most {MOST_STEPS:,}")
        recorded = -(-self.num_steps // self.record_every)
        if recorded > MOST_RECORDED:
            raise ConfigError(
                f"num_steps is {self.num_steps} and record_every is {self.record_every}: a trace of {recorded} steps "
                f"cannot be kept of every image; wanted at most {MOST_RECORDED:,}: raise record_every"
            )
        check_pti_loss(self)
        if self.stop_at_lpips is not None and not 0 <= self.stop_at_lpips < math.inf:
            raise ConfigError(
                f"stop_at_lpips is {self.stop_at_lpips}; wanted a distance that is not negative, or null for never"
            )

    @property
    def trace_steps(self) -> tuple[int, ...]:
        """The steps whose loss terms are recorded."""
        return tuple(sorted({*range(0, self.num_steps, self.record_every), self.num_steps - 1}))

    def refiner(self, parts: RefinementParts) -> PtiRefiner:
        """Tunes the generator of these parts."""
        return PtiRefiner(parts.generator, perceptual=parts.perceptual, settings=self)

    def state_arrays(self, generator: GeneratorConfig) -> tuple[StateArray, ...]:
        """One array: how far each parameter of synthesis moved.

        Parameters follow each other in the order of `synthesis_shapes`, each in row-major order.
        """
        return (StateArray(WEIGHTS, (num_parameters(generator),), ("parameter",)),)

    def why_stopped(self, step: int) -> tuple[str, str]:
        """Reason and message of an image whose loss was no longer finite at a step."""
        return "non_finite_loss", (
            f"the loss was no longer finite at step {step} of {self.num_steps}: lower learning_rate, or take this "
            "image out"
        )


class PtiRefiner:
    """Tunes the generator to each image of a batch, each image for itself.

    What moves is the difference to the generator's weights, one row of numbers for each image. Images that have
    stopped are no longer rendered, and neither their weights nor their averages in Adam move.
    """

    def __init__(self, generator: Generator, *, perceptual: PerceptualDistance, settings: PtiSettings):
        """Nothing is computed yet.

        Raises:
            ConfigError: locality is regularized around the mean of W, and the generator has none.
        """
        self.loss = PtiLoss(generator, perceptual=perceptual, settings=settings)
        self.generator = generator
        self.perceptual = perceptual
        self.settings = settings
        self.tuned = TunedGenerator(generator)

    @property
    def state_arrays(self) -> tuple[StateArray, ...]:
        """The difference of all weights."""
        return self.settings.state_arrays(self.generator.config)

    def start(self, embedded: Embedded, target: Tensor, seeds: Sequence[int]) -> PtiState:
        """The state before the first step; `target` is not looked at yet.

        Raises:
            ShapeError: codes, noise or images do not fit the generator or each other.
        """
        config, w_plus = self.generator.config, embedded.w_plus
        if w_plus.shape[1:] != (config.num_ws, config.w_dim) or len(seeds) != len(w_plus):
            raise ShapeError(
                f"codes are {list(w_plus.shape)} with {len(seeds)} seeds; this generator wants W+ "
                f"[N, {config.num_ws}, {config.w_dim}] and N seeds"
            )
        if not isinstance(embedded.noise, str):
            self.generator.check_noise(embedded.noise, len(w_plus))
        self._check_target(target, len(w_plus))
        like = self.tuned.parameter("const")
        codes = Embedded(w_plus.detach().to(like), noise_like(embedded.noise, like))
        return PtiState(
            codes,
            num_parameters=num_parameters(config),
            seeds=seeds,
            learning_rate=self.settings.learning_rate,
            trace_steps=self.settings.trace_steps,
        )

    def advance(
        self,
        state: PtiState,
        target: Tensor,
        *,
        until: int | None = None,
        after_step: Callable[[PtiState], None] | None = None,
    ) -> None:
        """Take steps up to step `until` (all of them by default), in place; no more once every image has stopped.

        Args:
            state: from `start`, or loaded.
            target: the images, [N, C, R, R] in [-1, 1]; the same ones at every call.
            until: stop before this step.
            after_step: called with the state after every step, to show progress or to save.

        Raises:
            ShapeError: the images do not fit the generator or the state.
        """
        self._check_target(target, len(state.weights))
        view = self.loss.view(target.to(state.w_plus))
        with torch.no_grad():
            target_features = self.perceptual.features(view) if self._looks_at_lpips else []
        last = self.settings.num_steps if until is None else min(until, self.settings.num_steps)
        while state.step < last:
            rows = state.is_active.nonzero().flatten()
            if len(rows):
                self._step(state, rows, view, target_features)
                state.step += 1
            else:
                state.step = last
            if after_step is not None:
                after_step(state)

    def finish(self, state: PtiState) -> Refinement:
        """The result."""
        differences = torch.stack([each.detach() for each in state.weights])
        return Refinement(
            refined=RefinedByPti(self.tuned, state.w_plus, state.noise, differences),
            num_steps=state.num_steps.clone(),
            stopped_at=state.stopped_at.clone(),
            trace=state.trace.clone(),
            trace_steps=self.settings.trace_steps,
            trace_terms=TRACE_TERMS,
        )

    def restore(self, embedded: Embedded, arrays: Mapping[str, Tensor]) -> RefinedByPti:
        """The refined images whose codes and differences of weights these are.

        Raises:
            ShapeError: the differences are missing, or are not those of this generator.
        """
        found = arrays.get(WEIGHTS)
        wanted = [len(embedded.w_plus), *self.state_arrays[0].shape]
        if found is None or list(found.shape) != wanted:
            raise ShapeError(
                f"{WEIGHTS} are {'missing' if found is None else list(found.shape)}; wanted {wanted}: pass the arrays "
                "of these images, and the generator that they were made with"
            )
        like = self.tuned.parameter("const")
        noise = noise_like(embedded.noise, like)
        return RefinedByPti(self.tuned, embedded.w_plus.to(like), noise, found.detach().to(like))

    @property
    def _looks_at_lpips(self) -> bool:
        return self.settings.lpips_weight > 0 or self.settings.stop_at_lpips is not None

    def _step(self, state: PtiState, rows: Tensor, view: Tensor, target_features: list[Tensor]) -> None:
        """Move the images `rows`, [n], those that have not stopped."""
        is_whole = len(rows) == len(view)
        terms = self._terms(
            state,
            rows,
            view if is_whole else view[rows],
            target_features if is_whole else [tap[rows] for tap in target_features],
        )
        state.optimizer.zero_grad(set_to_none=True)
        terms["loss"].sum().backward()
        values = {name: value.detach() for name, value in terms.items()}
        self._stop(state, rows, values)
        state.optimizer.step()  # leaves images without a gradient alone
        state.num_steps += state.is_active

    def _terms(self, state: PtiState, rows: Tensor, view: Tensor, target_features: list[Tensor]) -> dict[str, Tensor]:
        """The loss of each image, [n], and its terms."""
        weights = tuned_weights(self.tuned, torch.stack([state.weights[row] for row in rows.tolist()]))
        z = None
        if self.settings.regularizes_locality:
            streams = [state.streams[row] for row in rows.tolist()]
            z = torch.stack([torch.randn(self.generator.config.z_dim, generator=stream) for stream in streams])
        return self.loss.terms(
            lambda codes, noise: self.tuned.synthesize(codes, weights, noise=noise),
            state.w_plus[rows],
            noise_of(state.noise, rows, len(state.w_plus)),
            view,
            target_features,
            z=z,
            measures_lpips=self.settings.stop_at_lpips is not None,
        )

    @torch.no_grad()
    def _stop(self, state: PtiState, rows: Tensor, values: dict[str, Tensor]) -> None:
        """Stop images that are close enough, and those whose loss or gradient is not finite."""
        moving = [state.weights[row] for row in rows.tolist()]
        gradients = [each.grad for each in moving if each.grad is not None]  # every image has one
        is_finite = values["loss"].isfinite() & torch.stack([each.isfinite().all() for each in gradients])
        state.stopped_at[rows] = torch.where(is_finite, state.stopped_at[rows], state.step)
        if state.step in self.settings.trace_steps:
            recorded = state.trace[:, self.settings.trace_steps.index(state.step)]
            for column, name in enumerate(TRACE_TERMS):
                if name in values:
                    recorded[rows, column] = torch.where(is_finite, values[name], torch.nan)
        moves = is_finite
        if self.settings.stop_at_lpips is not None:
            moves = moves & ~(values["lpips"] <= self.settings.stop_at_lpips)
        state.is_active[rows] = moves
        for weights, stays in zip(moving, (~moves).tolist(), strict=True):
            if stays:
                weights.grad = None

    def _check_target(self, target: Tensor, num_images: int) -> None:
        config = self.generator.config
        wanted = [num_images, *config.image_shape]
        if list(target.shape) != wanted:
            raise ShapeError(f"target images are {list(target.shape)}; wanted {wanted}")
