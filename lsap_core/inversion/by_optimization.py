"""Embedding by optimization: StyleGAN2-W, StyleGAN2-W+, LSAP_O-W, LSAP_O-W+ (LSAP, eq. 13)."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from lsap_core.alignment.anchor import Anchor
from lsap_core.errors import ConfigError, ShapeError
from lsap_core.generators.generator import Generator
from lsap_core.generators.style_matrices import StyleMatrices
from lsap_core.images import Downsampling
from lsap_core.inversion.adam import Decays, adam_
from lsap_core.inversion.by_encoder import EncoderEmbedder, EncoderSettings
from lsap_core.inversion.compilation import Compilation
from lsap_core.inversion.endings import near_enough, rest_, steps_taken, stop_non_finite_
from lsap_core.inversion.inversion import Inversion, Parts, PerceptualDistance
from lsap_core.inversion.loss_terms import LossArguments, LossTerms
from lsap_core.inversion.noise_maps import (
    NoiseNormalization,
    RandomStreams,
    draw_noise,
    normalize_noise_,
    random_streams,
)
from lsap_core.inversion.optimization_state import OptimizationState
from lsap_core.inversion.precision import Precision, tensor_cores
from lsap_core.inversion.schedule import exploration_strength, learning_rate
from lsap_core.inversion.steps_ahead import Schedule, StepNumbers, steps_ahead

Space = Literal["w", "w_plus"]

MOST_STEPS = 10**9
MOST_RECORDED = 100_000
"""Of an image's trace, which is kept in memory step by step."""
TRACE_TERMS = ("loss", "lpips", "sncd", "mse", "mean_code_distance", "noise_regularization")

RECORDED_ANYWAY = ("sncd", "mse", "mean_code_distance")
"""Terms that cost little, whatever their weight."""


@dataclass(frozen=True)
class OptimizationSettings:
    """How codes are searched for; the defaults are StyleGAN2-W+ as published.

    The loss of an image is lpips_weight LPIPS + sncd_weight SNCD (LSAP, eq. 13) + noise_weight R of the base method
    + mse_weight MSE + mean_code_weight ||w - w_avg||^2 / deviation^2, with SNCD averaged over style layers.

    Attributes:
        space: "w", one vector for all layers, or "w_plus", one for each.
        num_steps: Adam steps T.
        learning_rate: the largest rate, reached after the warm-up.
        lpips_weight: multiplier of the perceptual distance.
        sncd_weight: lambda of LSAP_O; the paper uses 5 in W and 20 in W+ with LPIPS-VGG. 0 is the base method.
        sncd_on: "clean" codes, or "explored" ones with the exploration noise.
        mse_weight: multiplier of the pixel error.
        mean_code_weight: multiplier of the plain L2 penalty toward the mean code.
        noise_weight: multiplier of the noise regularization.
        exploration: exploration noise in units of the deviation of W.
        noise_normalization: "unbiased" or "biased" deviation.
        downsampling: how outputs above 256 pixels are brought to 256; "bilinear_clamped", which is the LSAP authors',
            also clamps smaller ones to [-1, 1].
        record_every: steps between recorded loss terms; the last step is always recorded.
        precision: of the convolutions of generator and perceptual network: "float32", "tf32" on GPUs that have it, or
            "bfloat16". Codes, noise maps, moments and sums are float32 in any case, and so is the result's image.
        start: where codes start, at the "mean" of W or at the codes of an "encoder".
        first_decay: Adam's beta_1.
        second_decay: Adam's beta_2; the published 0.999 remembers a thousand steps, which shorter runs do not have.
        stop_at_lpips: an image moves no more once the perceptual distance that it records, every `record_every` steps
            and of the explored code, is not above this; None for never.

    Raises:
        ConfigError: a value lies outside its range.
    """

    kind: ClassVar[str] = "optimization"
    keeps_noise: ClassVar[bool] = True
    trace_terms: ClassVar[tuple[str, ...]] = TRACE_TERMS

    space: Space = "w_plus"
    num_steps: int = 1000
    learning_rate: float = 0.1
    lpips_weight: float = 1.0
    sncd_weight: float = 0.0
    sncd_on: Literal["clean", "explored"] = "clean"
    mse_weight: float = 0.0
    mean_code_weight: float = 0.0
    noise_weight: float = 1e5
    exploration: float = 0.05
    noise_normalization: NoiseNormalization = "unbiased"
    downsampling: Downsampling = "area"
    record_every: int = 10
    start: Literal["mean", "encoder"] = "mean"
    precision: Precision = "float32"
    first_decay: float = 0.9
    second_decay: float = 0.999
    stop_at_lpips: float | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot run."""
        if self.space not in ("w", "w_plus"):
            raise ConfigError(f'space is "{self.space}"; wanted "w" or "w_plus"')
        for name in ("num_steps", "record_every"):
            if not 1 <= getattr(self, name) <= MOST_STEPS:
                raise ConfigError(f"{name} is {getattr(self, name)}; wanted at least 1, and at most {MOST_STEPS:,}")
        recorded = -(-self.num_steps // self.record_every)
        if recorded > MOST_RECORDED:
            raise ConfigError(
                f"num_steps is {self.num_steps} and record_every is {self.record_every}: a trace of {recorded} steps "
                f"cannot be kept of every image; wanted at most {MOST_RECORDED:,}: raise record_every"
            )
        if not 0 < self.learning_rate < math.inf:
            raise ConfigError(f"learning_rate is {self.learning_rate}; wanted a positive number")
        weights = (
            "lpips_weight",
            "sncd_weight",
            "mse_weight",
            "mean_code_weight",
            "noise_weight",
            "exploration",
        )
        for name in weights:
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"{name} is {getattr(self, name)}; wanted a number that is not negative")
        if self.lpips_weight == self.mse_weight == 0:
            raise ConfigError("lpips_weight and mse_weight are both 0: nothing would pull toward the target")
        for name in ("first_decay", "second_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; wanted a number from 0 to below 1")
        for name, allowed in (
            ("sncd_on", ("clean", "explored")),
            ("noise_normalization", ("unbiased", "biased")),
            ("downsampling", get_args(Downsampling)),
            ("start", ("mean", "encoder")),
            ("precision", ("float32", "tf32", "bfloat16")),
        ):
            if getattr(self, name) not in allowed:
                raise ConfigError(f'{name} is "{getattr(self, name)}"; wanted one of {", ".join(allowed)}')
        if self.stop_at_lpips is not None and not 0 <= self.stop_at_lpips < math.inf:
            raise ConfigError(
                f"stop_at_lpips is {self.stop_at_lpips}; wanted a distance that is not negative, or null for never"
            )
        if self.stop_at_lpips is not None and self.lpips_weight == 0:
            raise ConfigError(
                f"stop_at_lpips is {self.stop_at_lpips} and lpips_weight is 0, so that no LPIPS is known: set "
                "lpips_weight, or stop_at_lpips to null"
            )

    @property
    def trace_steps(self) -> tuple[int, ...]:
        """The steps whose loss terms are recorded."""
        return tuple(sorted({*range(0, self.num_steps, self.record_every), self.num_steps - 1}))

    @property
    def loss_weights(self) -> dict[str, float]:
        """Multipliers of the terms that the loss has, by their names in the trace."""
        weights = {
            "lpips": self.lpips_weight,
            "mse": self.mse_weight,
            "sncd": self.sncd_weight,
            "mean_code_distance": self.mean_code_weight,
            "noise_regularization": self.noise_weight,
        }
        return {name: weight for name, weight in weights.items() if weight > 0}

    @property
    def needs_encoder(self) -> bool:
        """Whether codes start at an encoder's."""
        return self.start == "encoder"

    def embedder(self, parts: Parts) -> OptimizationEmbedder:
        """Searches with these parts."""
        encoder = None
        if self.needs_encoder:
            assert parts.encoder is not None
            encoder = EncoderEmbedder(parts.generator, parts.encoder, EncoderSettings(parts.num_passes))
        return OptimizationEmbedder(
            parts.generator, parts.anchor, parts.perceptual, self, encoder, compilation=parts.compilation
        )

    def why_stopped(self, step: int) -> tuple[str, str]:
        """Reason and message of an image whose loss was no longer finite at a step."""
        return "non_finite_loss", (
            f"the loss was no longer finite at step {step} of {self.num_steps}: lower learning_rate or the weights of "
            "the terms"
        )


class OptimizationEmbedder:
    """Searches codes and noise maps for a batch of images, each image for itself.

    Losses are summed over the batch, never averaged, noise maps are normalized for each image, and random numbers
    come from the image's own stream: what an image gets does not depend on its neighbours.
    """

    def __init__(
        self,
        generator: Generator,
        anchor: Anchor,
        perceptual: PerceptualDistance,
        settings: OptimizationSettings,
        encoder: EncoderEmbedder | None = None,
        *,
        compilation: Compilation | None = None,
    ):
        self.generator = generator
        self.anchor = anchor
        self.perceptual = perceptual
        self.settings = settings
        self.encoder = encoder  # asked where codes start at one
        self.compilation = compilation  # None: every step runs as it is written
        self.styles = StyleMatrices(generator)
        self.decays = Decays(settings.first_decay, settings.second_decay)
        self.schedule = Schedule(
            num_steps=settings.num_steps,
            rate=lambda time: learning_rate(time, settings.learning_rate),
            strength=lambda time: exploration_strength(time, anchor.code_deviation, factor=settings.exploration),
            place_of={step: place for place, step in enumerate(settings.trace_steps)},
            decays=self.decays,
        )
        self.weights = settings.loss_weights
        # A map that is multiplied by 0 influences neither the image nor any other variable.
        self.noisy_convs = [
            index for index, layer in enumerate(generator.synthesis.conv_layers()) if float(layer.noise_strength) != 0.0
        ]

    def __call__(self, target: Tensor, seeds: Sequence[int]) -> Inversion:
        """Embed images [N, C, R, R] in [-1, 1], each with the random state of its own seed.

        Raises:
            ShapeError: the images do not fit the generator, or there are not as many seeds.
            ConfigError: codes start at an encoder's, and there is none.
        """
        state = self.start(seeds, target=target)
        self.advance(state, target)
        return self.finish(state)

    def start(
        self,
        seeds: Sequence[int],
        *,
        target: Tensor | None = None,
        codes: Tensor | None = None,
        noise: Sequence[Tensor] | None = None,
    ) -> OptimizationState:
        """The state before the first step.

        Args:
            seeds: one for each image.
            target: the images, [N, C, R, R] in [-1, 1]; the encoder looks at them where codes start at its own.
            codes: where to start, [N, w_dim] or [N, K, w_dim] as the space wants; the mean code by default. When
                the settings start at an encoder, its codes [N, K, w_dim]; in W the mean of their rows is taken.
            noise: first noise maps, one [N, 1, side, side] for each convolution; drawn by default.

        Raises:
            ShapeError: codes or noise maps of another shape.
            ConfigError: the settings start at the codes of an encoder, and there are neither codes nor an encoder.
        """
        config, reference = self.generator.config, self.generator.mapping.w_avg
        streams = random_streams(seeds)
        drawn = draw_noise(config, streams)
        first_noise = drawn
        if noise is not None:
            self.generator.check_noise(noise, len(seeds))
            first_noise = [maps.expand(len(seeds), -1, -1, -1) for maps in noise]
        w_shape = (config.w_dim,) if self.settings.space == "w" else (config.num_ws, config.w_dim)
        if self.settings.start == "encoder":
            if codes is None:
                if self.encoder is None or target is None:
                    raise ConfigError(
                        'start is "encoder", and there are neither codes nor an encoder with the images: name the '
                        "encoder, or set start to mean"
                    )
                codes = self.encoder.codes(target)
            if self.settings.space == "w" and codes.shape == (len(seeds), config.num_ws, config.w_dim):
                codes = codes.mean(dim=1)
        if codes is None:
            codes = self.anchor.w_avg.to(reference).expand(len(seeds), *w_shape)
        if codes.shape != (len(seeds), *w_shape):
            raise ShapeError(f"first codes are {list(codes.shape)}; wanted {[len(seeds), *w_shape]}")
        return OptimizationState.begin(
            codes.to(reference),
            [first_noise[index] for index in self.noisy_convs],
            RandomStreams(streams),
            (len(self.settings.trace_steps), len(TRACE_TERMS)),
        )

    def advance(
        self,
        state: OptimizationState,
        target: Tensor,
        *,
        until: int | None = None,
        at_most: int | None = None,
        until_one_rests: bool = False,
        after_step: Callable[[OptimizationState], None] | None = None,
    ) -> None:
        """Take steps until every image has taken `until` (all of them by default), in place.

        Images that have come so far, or are near enough, rest, and stay as they are while the others go on.

        Args:
            state: from `start`, or loaded.
            target: the images, [N, C, R, R] in [-1, 1]; an image's own at every call.
            until: steps that an image takes at most.
            at_most: steps to take in this call at most.
            until_one_rests: stop after the first step with which an image has come so far.
            after_step: called with the state after every step, to show progress or to save.

        Raises:
            ShapeError: the images do not fit the generator or the state.
        """
        config = self.generator.config
        wanted = [len(state), *config.image_shape]
        if list(target.shape) != wanted:
            raise ShapeError(f"target images are {list(target.shape)}; wanted {wanted}")
        with tensor_cores(self.settings.precision):
            self._advance(state, target.to(state.values), until, at_most, until_one_rests, after_step)

    def _advance(
        self,
        state: OptimizationState,
        target: Tensor,
        until: int | None,
        at_most: int | None,
        until_one_rests: bool,
        after_step: Callable[[OptimizationState], None] | None,
    ) -> None:
        terms = self._loss_terms()
        view = terms.view(target)
        with torch.no_grad():
            target_features = terms.features(view)
        last = self.settings.num_steps if until is None else min(until, self.settings.num_steps)
        left = MOST_STEPS if at_most is None else at_most
        prepared = MOST_STEPS if self.settings.stop_at_lpips is None else self.settings.record_every
        num_resting = int((state.steps >= last).sum())
        ahead: Iterator[StepNumbers] = iter(())
        while state.step < last and left > 0:
            numbers = next(ahead, None) if state.streams.is_ahead else None
            if numbers is None:  # at the beginning, after some steps, and where rows were replaced meanwhile
                ahead = iter(
                    steps_ahead(
                        self.schedule,
                        state.steps.tolist(),
                        last=last,
                        at_most=min(left, prepared),
                        streams=state.streams,
                        codes=state.codes,
                    )
                )
                numbers = next(ahead)
            is_near = self._step(state, numbers, terms, view, target_features)
            state.steps += numbers.moved
            state.streams.use()
            if is_near is not None:
                rest_(state, is_near, self.settings.num_steps)
            left -= 1
            if after_step is not None:
                after_step(state)
            if until_one_rests and int((state.steps >= last).sum()) > num_resting:
                return

    @torch.no_grad()
    def finish(self, state: OptimizationState) -> Inversion:
        """The result of the clean codes and their noise maps."""
        codes = state.codes.clone()
        noise = self._all_maps(state)
        image = self.generator.synthesize(codes, noise=noise)
        return Inversion(
            w_plus=self.generator.expand(codes).clone(),
            noise=tuple(noise),
            reconstruction=image,
            trace=state.trace.clone(),
            trace_steps=self.settings.trace_steps,
            trace_terms=TRACE_TERMS,
            stopped_at=state.stopped_at.clone(),
            num_steps=steps_taken(
                state.trace[..., TRACE_TERMS.index("lpips")],
                self.settings.trace_steps,
                stop_at_lpips=self.settings.stop_at_lpips,
                num_steps=self.settings.num_steps,
            ),
        )

    def _step(
        self,
        state: OptimizationState,
        numbers: StepNumbers,
        terms: LossTerms,
        view: Tensor,
        target_features: list[Tensor],
    ) -> Tensor | None:
        """One step; which images are near enough and take it no more, [N] bool, or None where nobody asks."""
        values = state.values.detach().requires_grad_(True)
        codes, *noise = state.split(values)
        clean, explored = (self.generator.expand(each) for each in (codes, codes + numbers.exploration))
        wanted = {*self.weights, *RECORDED_ANYWAY} if numbers.is_recorded else self.weights
        found = self._evaluate(terms, (clean, explored, noise, view, target_features), wanted)
        loss = torch.stack([self.weights[name] * found[name] for name in self.weights if name in found]).sum(dim=0)
        (gradient,) = torch.autograd.grad(loss.sum(), values)
        stop_non_finite_(state, loss, gradient, numbers)
        if numbers.is_recorded:
            told = {"loss": loss, **{name: found[name] for name in wanted if name in found}}
            nothing = torch.full_like(loss, torch.nan)
            state.record(torch.stack([told.get(name, nothing) for name in TRACE_TERMS], dim=1), numbers.record_at)
        moves, is_near, limit = numbers.moves & state.is_active, None, self.settings.stop_at_lpips
        if numbers.is_recorded and limit is not None:
            is_near = near_enough(found["lpips"], numbers, state, limit)
            moves &= ~is_near
        moves = moves[:, None]
        adam_(
            state.values,
            state.first_moments,
            state.second_moments,
            gradient,
            decays=self.decays,
            rate=numbers.rate,
            root_correction=numbers.root_correction,
            moves=moves,
        )
        normalize_noise_(state.noise, self.settings.noise_normalization, moves=moves)
        return is_near

    def _evaluate(self, terms: LossTerms, arguments: LossArguments, wanted: Collection[str]) -> dict[str, Tensor]:
        """The wanted terms, and perhaps others: by the compiled form where there is one for such arguments."""
        if self.compilation is not None:
            clean, explored, noise, view, target_features = arguments
            # Whatever the space, and however many noise maps lie between two codes: one layout, one compiled form.
            maps = [each.contiguous() for each in noise]
            alike = clean.contiguous(), explored.contiguous(), maps, view.contiguous(), target_features
            form = self.compilation.of(terms, self.weights, alike)
            if form is not None:
                return form(*alike)
        return terms(*arguments, wanted)

    def _all_maps(self, state: OptimizationState) -> list[Tensor]:
        """Maps of all convolutions; 0 where they are multiplied by 0."""
        maps = [state.values.new_zeros(len(state), 1, *size) for size in self.generator.config.noise_sizes]
        for index, given in zip(self.noisy_convs, state.noise, strict=True):
            maps[index] = given.clone()
        return maps

    def _loss_terms(self) -> LossTerms:
        settings = self.settings
        is_weighed_where_explored = settings.sncd_on == "explored" and settings.sncd_weight > 0
        return LossTerms(
            generator=self.generator,
            styles=self.styles,
            anchor=self.anchor,
            perceptual=self.perceptual,
            noisy_convs=tuple(self.noisy_convs),
            downsampling=settings.downsampling,
            precision=settings.precision,
            sncd_is_of_explored=is_weighed_where_explored or settings.exploration == 0,
        )
