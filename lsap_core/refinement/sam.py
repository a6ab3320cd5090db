"""SAM, spatially-adaptive multilayer selection (Parmar et al. 2022): each segment in the space that can invert it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, get_args

import torch
from torch import Tensor

from lsap_core.errors import ConfigError, ShapeError
from lsap_core.generators.config import GeneratorConfig
from lsap_core.generators.generator import Generator
from lsap_core.images import comparison_size
from lsap_core.inversion.by_optimization import MOST_RECORDED, MOST_STEPS
from lsap_core.inversion.inversion import NOT_STOPPED, PerceptualDistance
from lsap_core.inversion.schedule import learning_rate
from lsap_core.refinement.refinement import Embedded, Refinement, RefinementParts, StateArray
from lsap_core.refinement.sam_loss import TRACE_TERMS, WEIGHTED_TERMS, SamLoss, SamTarget, Size, view_of
from lsap_core.refinement.sam_networks import ErrorPredictor, SamNetworks, Segment
from lsap_core.refinement.sam_prior import NUM_SAMPLES, GaussianPrior
from lsap_core.refinement.sam_refined import RefinedBySam, check_embedded, restored, state_arrays
from lsap_core.refinement.sam_selection import choose_spaces, masks_of_choice, resize_masks
from lsap_core.refinement.sam_spaces import W_PLUS, FeatureSpace, Placement, feature_spaces, synthesize_with_offsets
from lsap_core.refinement.sam_state import SamState, all_finite


@dataclass(frozen=True)
class SamSettings:
    """How SAM refines; the defaults are those of the paper's method, in the placement of its authors' program.

    The loss of an image is mse_weight MSE + lpips_weight LPIPS + prior_weight sum_l (v_l - v)^T S^-1 (v_l - v)
    + delta_weight sum_(l >= 1) ||w_l - w_0|| + features_weight sum_i mean(dF_i^2).

    Attributes:
        num_steps: Adam steps; the published programs take 1001.
        learning_rate: the largest rate, reached after the warm-up.
        spaces: latent spaces to choose from, or None for all that the generator has. One alone takes whole images, and
            nothing is predicted: such inversions are what a predictor learns from.
        placement: where offsets are added, after a "block" or after its "up_conv".
        threshold: tau, the mean predicted error up to which a space is good enough for a segment.
        predicted_on: size of the images that are segmented and whose errors are predicted: "full", as published for
            faces, or "comparison", at most 256 pixels, as for cars.
        pixels_on: size of the images whose pixels are compared; LPIPS sees at most 256 pixels.
        mse_weight: multiplier of the pixel error.
        lpips_weight: multiplier of the perceptual distance.
        prior_weight: multiplier of the Gaussian prior on W+.
        delta_weight: multiplier of the distances between rows of W+.
        features_weight: multiplier of the mean squared offset of every feature space.
        weighs_codes: whether the mean squared move of the codes is in the features' term too.
        prior_samples: codes that the prior is estimated from.
        prior_seed: of the numbers that they are mapped from.
        record_every: steps between recorded loss terms; the last step is always recorded.

    Raises:
        ConfigError: a value lies outside its range.
    """

    kind: ClassVar[str] = "sam"
    restores_alone: ClassVar[bool] = True
    goes_back: ClassVar[bool] = True
    trace_terms: ClassVar[tuple[str, ...]] = TRACE_TERMS

    num_steps: int = 500
    learning_rate: float = 0.05
    spaces: tuple[str, ...] | None = None
    placement: Placement = "block"
    threshold: float = 0.225
    predicted_on: Size = "full"
    pixels_on: Size = "comparison"
    mse_weight: float = 1.0
    lpips_weight: float = 1.0
    prior_weight: float = 1e-8
    delta_weight: float = 1e-3
    features_weight: float = 5.0
    weighs_codes: bool = False
    prior_samples: int = NUM_SAMPLES
    prior_seed: int = 0
    record_every: int = 10

    def __post_init__(self) -> None:
        """Refuse what cannot run."""
        for name, least in (("num_steps", 1), ("record_every", 1), ("prior_samples", 2)):
            if not least <= getattr(self, name) <= MOST_STEPS:
                raise ConfigError(
                    f"{name} is {getattr(self, name)}; wanted at least {least}, and at most {MOST_STEPS:,}"
                )
        if -(-self.num_steps // self.record_every) > MOST_RECORDED:
            raise ConfigError(
                f"num_steps is {self.num_steps} and record_every is {self.record_every}: wanted at most "
                f"{MOST_RECORDED:,} recorded steps: raise record_every"
            )
        if not 0 < self.learning_rate < math.inf:
            raise ConfigError(f"learning_rate is {self.learning_rate}; wanted a positive number")
        for name in (*(f"{term}_weight" for term in WEIGHTED_TERMS), "threshold"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"{name} is {getattr(self, name)}; wanted a number that is not negative")
        if self.lpips_weight == self.mse_weight == 0:
            raise ConfigError("lpips_weight and mse_weight are both 0: nothing would pull toward the target")
        for name, allowed in (("placement", Placement), ("predicted_on", Size), ("pixels_on", Size)):
            if getattr(self, name) not in get_args(allowed):
                wanted = " or ".join(f'"{one}"' for one in get_args(allowed))
                raise ConfigError(f'{name} is "{getattr(self, name)}"; wanted {wanted}')
        if self.spaces is not None:
            object.__setattr__(self, "spaces", tuple(self.spaces))  # a list, where a file was read
            is_choice = W_PLUS in self.spaces and len(set(self.spaces)) == len(self.spaces)
            if self.only is None and not is_choice:
                raise ConfigError(
                    f"spaces are {list(self.spaces)}; wanted W+ and feature spaces, each once, or one space alone"
                )

    @property
    def only(self) -> str | None:
        """The space that takes whole images, or None where spaces are chosen."""
        return self.spaces[0] if self.spaces is not None and len(self.spaces) == 1 else None

    @property
    def needs_networks(self) -> bool:
        """Whether errors are predicted: with one space there is nothing to choose."""
        return self.only is None

    @property
    def trace_steps(self) -> tuple[int, ...]:
        """The steps whose loss terms are recorded."""
        return tuple(sorted({*range(0, self.num_steps, self.record_every), self.num_steps - 1}))

    def feature_spaces(self, generator: GeneratorConfig) -> tuple[FeatureSpace, ...]:
        """The feature spaces of a generator that are chosen from, from the most editable to the least.

        Raises:
            ConfigError: the generator does not have one of them, or an offset there would change nothing.
        """
        return feature_spaces(generator, self.placement, self.spaces)

    def refiner(self, parts: RefinementParts) -> SamRefiner:
        """Builds the refiner; one without networks restores refined images, has one space, or is told what to take.

        Raises:
            ConfigError: the networks are none of SAM, do not know one of the spaces, or read other images.
        """
        networks = parts.networks
        if networks is not None and not isinstance(networks, SamNetworks):
            raise ConfigError(f"networks are {type(networks).__name__}; wanted SamNetworks: a predictor of errors")
        if networks is not None:
            found, wanted = networks.predictor.config.image_channels, parts.generator.config.image_channels
            if found != wanted:
                raise ConfigError(
                    f"the predictor reads {found}-channel images, the generator makes {wanted}-channel ones: pass the "
                    "predictor of this generator's spaces"
                )
        return SamRefiner(
            parts.generator,
            predictor=None if networks is None else networks.predictor,
            segment=None if networks is None else networks.segmenter,
            perceptual=parts.perceptual,
            settings=self,
        )

    def state_arrays(self, generator: GeneratorConfig) -> tuple[StateArray, ...]:
        """Offset and mask of every feature space."""
        return state_arrays(self.feature_spaces(generator))

    def why_stopped(self, step: int) -> tuple[str, str]:
        """Reason and message of an image whose loss was no longer finite at a step."""
        return "non_finite_loss", (
            f"the loss was no longer finite at step {step} of {self.num_steps}: lower learning_rate or a term's weight"
        )


SAM_TOOLBOX = SamSettings(
    num_steps=1001, spaces=(W_PLUS, "F4", "F6", "F10"), placement="up_conv", pixels_on="full", weighs_codes=True
)
"""As GANInverter refines; its face parser has hair in the face."""


class SamRefiner:
    """Chooses a latent space for every segment, then searches codes and offsets of features together.

    Losses are summed over the batch, never averaged, and errors are predicted image by image: what an image gets does
    not depend on its neighbours. No random number is drawn but for the prior.

    Args:
        generator: of the images; frozen.
        predictor: of the errors of latent spaces, or None where a choice is given to `start`.
        segment: finds segments, or None where they or a choice are given.
        perceptual: the network of the loss.
        settings: how to refine.

    Raises:
        ConfigError: the predictor does not know one of the spaces, or the generator does not have it.
    """

    def __init__(
        self,
        generator: Generator,
        *,
        predictor: ErrorPredictor | None,
        segment: Segment | None,
        perceptual: PerceptualDistance,
        settings: SamSettings,
    ):
        self.generator = generator
        self.predictor = predictor
        self.segment = segment
        self.perceptual = perceptual
        self.settings = settings
        self.spaces = settings.feature_spaces(generator.config)
        self._names = (W_PLUS, *(space.name for space in self.spaces))
        if predictor is not None and (missing := [name for name in self._names if name not in predictor.spaces]):
            raise ConfigError(
                f"the predictor knows {', '.join(predictor.spaces)}; the settings choose from {missing[0]} too: pass "
                "the predictor of this generator's spaces, or leave it out of `spaces`"
            )

    @cached_property
    def loss(self) -> SamLoss:
        """What is minimized. The prior is estimated when it is first needed."""
        settings, prior = self.settings, None
        if settings.prior_weight > 0:
            prior = GaussianPrior.estimate(self.generator, num_samples=settings.prior_samples, seed=settings.prior_seed)
        weights = {name: getattr(settings, f"{name}_weight") for name in WEIGHTED_TERMS}
        return SamLoss(
            self.generator.config, self.perceptual, prior, weights, settings.pixels_on, settings.weighs_codes
        )

    @property
    def state_arrays(self) -> tuple[StateArray, ...]:
        """Offset and mask of every feature space."""
        return state_arrays(self.spaces)

    @property
    def segments_size(self) -> tuple[int, int]:
        """Height and width of the images whose errors are predicted, and so of their segments."""
        size = self.generator.config.content_size
        return size if self.settings.predicted_on == "full" else comparison_size(*size)

    def start(
        self,
        embedded: Embedded,
        target: Tensor,
        seeds: Sequence[int],
        *,
        segments: Tensor | None = None,
        choice: Tensor | None = None,
    ) -> SamState:
        """The state before the first step: the embedding's codes, masks as they were chosen, and no offsets.

        Args:
            embedded: codes and noise of N images.
            target: the images, [N, C, R, R] in [-1, 1].
            seeds: not used.
            segments: labels of the images, as `choose` takes them; asked for by default.
            choice: indices of spaces [N, h, w], as `choose` or `everywhere` gives them; that of `choose` by default.

        Raises:
            ShapeError: codes, noise, images or choice do not fit the generator or each other.
            ConfigError: nothing was chosen, and there is no predictor or no segmenter.
        """
        check_embedded(embedded, self.generator)
        self._check_target(target, len(embedded.w_plus))
        codes = embedded.w_plus
        if choice is None:
            choice = self.choose(target.to(codes), segments)
        if choice.ndim != 3 or len(choice) != len(codes):
            raise ShapeError(f"the choice of spaces is {list(choice.shape)}; wanted [{len(codes)}, h, w]")
        masks = masks_of_choice(choice.to(codes.device), len(self.spaces) + 1, self.generator.config)[:, 1:]
        return SamState(
            codes,
            [codes.new_zeros(len(codes), *space.shape) for space in self.spaces],
            [resize_masks(masks[:, i : i + 1], space.size).to(codes) for i, space in enumerate(self.spaces)],
            embedded.noise,
            learning_rate=self.settings.learning_rate,
            num_recorded=len(self.settings.trace_steps),
            num_terms=len(TRACE_TERMS),
        )

    @torch.no_grad()
    def choose(self, target: Tensor, segments: Tensor | None = None) -> Tensor:
        """Which space each pixel belongs to: 0 for W+, i for the i-th feature space.

        Args:
            target: images [N, C, R, R] in [-1, 1].
            segments: labels [N, h, w] of the content box, of `segments_size`; asked for by default.

        Returns:
            Indices [N, h, w], of the content box.

        Raises:
            ShapeError: the segments are not of these images in this size.
            ConfigError: there is no predictor, or neither segments nor a segmenter.
        """
        if self.settings.only is not None:
            return self.everywhere(self.settings.only, len(target))
        if self.predictor is None:
            raise ConfigError(
                "nothing predicts errors: name a predictor in refiner_networks, or take a choice that is made already"
            )
        view = view_of(target, self.generator.config, self.settings.predicted_on)
        if segments is None:
            if self.segment is None:
                raise ConfigError("nothing finds segments: name a segmenter, or take segments that are found already")
            segments = torch.cat([self.segment(image) for image in view.split(1)])
        columns = [self.predictor.spaces.index(name) for name in self._names]
        errors = torch.cat([self.predictor(image) for image in view.split(1)])[:, columns]
        return choose_spaces(errors, segments.to(errors.device), threshold=self.settings.threshold)

    def everywhere(self, space: str, num_images: int) -> Tensor:
        """One space for whole images, [N, h, w]: what a predictor learns from are inversions in each alone.

        Raises:
            ConfigError: no space of the settings and the generator.
        """
        if space not in self._names:
            raise ConfigError(f'space is "{space}"; wanted one of {", ".join(self._names)}')
        return torch.full((num_images, *self.generator.config.content_size), self._names.index(space))

    def advance(
        self,
        state: SamState,
        target: Tensor,
        *,
        until: int | None = None,
        after_step: Callable[[SamState], None] | None = None,
    ) -> None:
        """Take steps up to step `until` (all of them by default), in place, on the images of `start`.

        Raises:
            ShapeError: the images do not fit the generator or the state.
        """
        self._check_target(target, len(state.codes))
        seen = self.loss.target(target.to(state.codes))
        last = self.settings.num_steps if until is None else min(until, self.settings.num_steps)
        while state.step < last:
            self._step(state, seen)
            if after_step is not None:
                after_step(state)

    def finish(self, state: SamState) -> Refinement:
        """The result."""
        refined = RefinedBySam(
            self.generator,
            Embedded(state.codes.detach().clone(), state.noise),
            spaces=self.spaces,
            masks=[mask.clone() for mask in state.masks],
            offsets=[offset.detach().clone() for offset in state.offsets],
        )
        return Refinement(
            refined,
            num_steps=torch.where(state.stopped_at == NOT_STOPPED, state.step, state.stopped_at),
            stopped_at=state.stopped_at.clone(),
            trace=state.trace.clone(),
            trace_steps=self.settings.trace_steps,
            trace_terms=TRACE_TERMS,
        )

    def restore(self, embedded: Embedded, arrays: Mapping[str, Tensor]) -> RefinedBySam:
        """The refined images whose codes and arrays these are; nothing is computed again.

        Raises:
            ShapeError: an array is missing, or does not fit this refiner.
        """
        return restored(self.generator, embedded, self.spaces, arrays)

    def _step(self, state: SamState, target: SamTarget) -> None:
        for group in state.optimizer.param_groups:
            group["lr"] = learning_rate(state.step / self.settings.num_steps, self.settings.learning_rate)
        image, _ = synthesize_with_offsets(
            self.generator, state.codes, self.spaces, state.masks, state.offsets, noise=state.noise
        )
        terms = self.loss(image, state.codes, state.start_codes, state.offsets, target)
        state.optimizer.zero_grad(set_to_none=True)
        terms["loss"].sum().backward()
        gradients = [parameter.grad for parameter in state.parameters if parameter.grad is not None]
        state.stop(terms["loss"].detach().isfinite() & all_finite(gradients))
        if state.step in self.settings.trace_steps:
            row = self.settings.trace_steps.index(state.step)
            for column, name in enumerate(TRACE_TERMS):
                if name in terms:
                    state.trace[:, row, column] = torch.where(state.is_active, terms[name].detach(), torch.nan)
        state.move()

    def _check_target(self, target: Tensor, num_images: int) -> None:
        config = self.generator.config
        wanted = [num_images, *config.image_shape]
        if list(target.shape) != wanted:
            raise ShapeError(f"target images are {list(target.shape)}; wanted {wanted}")
