"""Embedding by optimization: StyleGAN2-W, StyleGAN2-W+, LSAP_O-W, LSAP_O-W+ (LSAP, eq. 13)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from lsap_core.alignment.anchor import Anchor
from lsap_core.alignment.sncd import SncdLoss
from lsap_core.errors import ConfigError, ShapeError
from lsap_core.generators.generator import Generator
from lsap_core.images import Downsampling, comparison_view
from lsap_core.inversion.by_encoder import EncoderEmbedder, EncoderSettings
from lsap_core.inversion.inversion import NOT_STOPPED, Inversion, Parts, PerceptualDistance
from lsap_core.inversion.noise_maps import (
    NoiseNormalization,
    draw,
    draw_noise,
    normalize_noise_,
    random_streams,
)
from lsap_core.inversion.schedule import exploration_strength, learning_rate
from lsap_core.objectives.terms import mean_code_distance, noise_regularization, pixel_error

Space = Literal["w", "w_plus"]

MOST_STEPS = 10**9
MOST_RECORDED = 100_000
"""Of an image's trace, which is kept in memory step by step."""
TRACE_TERMS = ("loss", "lpips", "sncd", "mse", "mean_code_distance", "noise_regularization")


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
        downsampling: how outputs above 256 pixels are brought to 256.
        record_every: steps between recorded loss terms; the last step is always recorded.
        start: where codes start, at the "mean" of W or at the codes of an "encoder".

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
        for name, allowed in (
            ("sncd_on", ("clean", "explored")),
            ("noise_normalization", ("unbiased", "biased")),
            ("downsampling", ("area", "bilinear", "bilinear_noaa")),
            ("start", ("mean", "encoder")),
        ):
            if getattr(self, name) not in allowed:
                raise ConfigError(f'{name} is "{getattr(self, name)}"; wanted one of {", ".join(allowed)}')

    @property
    def trace_steps(self) -> tuple[int, ...]:
        """The steps whose loss terms are recorded."""
        return tuple(sorted({*range(0, self.num_steps, self.record_every), self.num_steps - 1}))

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
        return OptimizationEmbedder(parts.generator, parts.anchor, parts.perceptual, self, encoder)

    def why_stopped(self, step: int) -> tuple[str, str]:
        """Reason and message of an image whose loss was no longer finite at a step."""
        return "non_finite_loss", (
            f"the loss was no longer finite at step {step} of {self.num_steps}: lower learning_rate or the weights of "
            "the terms"
        )


class OptimizationState:
    """Where the optimization of a batch stands; everything that the next step depends on.

    Attributes:
        step: steps taken.
        codes: the clean codes p, [N, w_dim] or [N, K, w_dim].
        noise: maps of the convolutions that add noise, [N, 1, side, side].
        is_active: which images still move, [N] bool.
        stopped_at: [N] int64, -1 while active.
        trace: [N, recorded steps, terms].
    """

    def __init__(
        self,
        codes: Tensor,
        noise: list[Tensor],
        streams: list[torch.Generator],
        settings: OptimizationSettings,
    ):
        self.codes = codes.requires_grad_(True)
        self.noise = [maps.requires_grad_(True) for maps in noise]
        self.streams = streams
        self.optimizer = torch.optim.Adam([self.codes, *self.noise], lr=settings.learning_rate)
        self.step = 0
        self.is_active = torch.ones(len(codes), dtype=torch.bool, device=codes.device)
        self.stopped_at = torch.full((len(codes),), NOT_STOPPED, device=codes.device)
        self.trace = codes.new_full((len(codes), len(settings.trace_steps), len(TRACE_TERMS)), torch.nan)

    @property
    def parameters(self) -> list[Tensor]:
        """Codes, then noise maps: what Adam moves."""
        return [self.codes, *self.noise]

    def to_tensors(self) -> dict[str, Tensor]:
        """The whole state as named tensors on the CPU, for storage."""
        tensors = {
            "step": torch.tensor(self.step),
            "is_active": self.is_active,
            "stopped_at": self.stopped_at,
            "trace": self.trace,
            "streams": torch.stack([stream.get_state() for stream in self.streams]),
        }
        for index, parameter in enumerate(self.parameters):
            tensors[f"parameter.{index:02d}"] = parameter.detach()
            for name, value in self.optimizer.state[parameter].items():
                tensors[f"adam.{index:02d}.{name}"] = value
        return {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}

    @torch.no_grad()
    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over a state that `to_tensors` returned; the next step then goes on bit for bit.

        Raises:
            ShapeError: the state belongs to another batch, space or generator.
        """
        self._check_tensors(tensors)
        for index, parameter in enumerate(self.parameters):
            parameter.copy_(tensors[f"parameter.{index:02d}"])
            prefix = f"adam.{index:02d}."
            self.optimizer.state[parameter] = {
                name.removeprefix(prefix): (value.to(parameter.device) if value.ndim else value).clone()
                for name, value in tensors.items()
                if name.startswith(prefix)
            }
        self.step = int(tensors["step"])
        self.is_active.copy_(tensors["is_active"])
        self.stopped_at.copy_(tensors["stopped_at"])
        self.trace.copy_(tensors["trace"])
        for stream, saved in zip(self.streams, tensors["streams"], strict=True):
            stream.set_state(saved.clone())  # a row of a larger tensor makes torch 2.15 crash

    def _check_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        wanted = {f"parameter.{index:02d}": parameter.shape for index, parameter in enumerate(self.parameters)}
        for name, shape in {**wanted, "trace": self.trace.shape}.items():
            saved = tensors.get(name)
            if saved is None or saved.shape != shape:
                raise ShapeError(
                    f"saved {name} is {None if saved is None else list(saved.shape)}; this optimization has "
                    f"{list(shape)}: the state is of another batch, generator or settings"
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
    ):
        self.generator = generator
        self.anchor = anchor
        self.perceptual = perceptual
        self.settings = settings
        self.encoder = encoder  # asked where codes start at one
        self.sncd = SncdLoss(generator, anchor, reduction="mean")
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
                        'start is "encoder" and no codes were given: pass those of `EncoderEmbedder.codes` to `start`, '
                        "or an encoder to the embedder and the target to `start`"
                    )
                codes = self.encoder.codes(target)
            if self.settings.space == "w" and codes.shape == (len(seeds), config.num_ws, config.w_dim):
                codes = codes.mean(dim=1)
        if codes is None:
            codes = self.anchor.w_avg.to(reference).expand(len(seeds), *w_shape)
        if codes.shape != (len(seeds), *w_shape):
            raise ShapeError(f"first codes are {list(codes.shape)}; wanted {[len(seeds), *w_shape]}")
        return OptimizationState(
            codes.detach().to(reference).clone(),
            [first_noise[index].detach().to(reference).clone() for index in self.noisy_convs],
            streams,
            self.settings,
        )

    def advance(
        self,
        state: OptimizationState,
        target: Tensor,
        *,
        until: int | None = None,
        after_step: Callable[[OptimizationState], None] | None = None,
    ) -> None:
        """Take steps up to step `until` (all of them by default), in place.

        Args:
            state: from `start`, or loaded.
            target: the images, [N, C, R, R] in [-1, 1]; the same ones at every call.
            until: stop before this step.
            after_step: called with the state after every step, to show progress or to save.

        Raises:
            ShapeError: the images do not fit the generator or the state.
        """
        config = self.generator.config
        wanted = [len(state.codes), config.image_channels, config.resolution, config.resolution]
        if list(target.shape) != wanted:
            raise ShapeError(f"target images are {list(target.shape)}; wanted {wanted}")
        view = self._view(target.to(state.codes))
        with torch.no_grad():
            target_features = self.perceptual.features(view)
        last = self.settings.num_steps if until is None else min(until, self.settings.num_steps)
        while state.step < last:
            self._step(state, view, target_features)
            if after_step is not None:
                after_step(state)

    @torch.no_grad()
    def finish(self, state: OptimizationState) -> Inversion:
        """The result of the clean codes and their noise maps."""
        codes = state.codes.detach()
        noise = [maps.detach().clone() for maps in self._all_maps(state)]
        image = self.generator.synthesize(codes, noise=noise)
        return Inversion(
            w_plus=self.generator.expand(codes).clone(),
            noise=tuple(noise),
            reconstruction=image,
            trace=state.trace.clone(),
            trace_steps=self.settings.trace_steps,
            trace_terms=TRACE_TERMS,
            stopped_at=state.stopped_at.clone(),
            num_steps=self.settings.num_steps,
        )

    def _step(self, state: OptimizationState, view: Tensor, target_features: list[Tensor]) -> None:
        settings = self.settings
        time = state.step / settings.num_steps
        for group in state.optimizer.param_groups:
            group["lr"] = learning_rate(time, settings.learning_rate)
        explored = self._explore(state, time)
        terms = self._terms(state, explored, view, target_features)
        state.optimizer.zero_grad(set_to_none=True)
        terms["loss"].sum().backward()
        self._stop_non_finite(state, terms["loss"].detach())
        if state.step in settings.trace_steps:
            self._record(state, terms)
        before = [parameter.detach().clone() for parameter in state.parameters]
        state.optimizer.step()
        normalize_noise_(state.noise, settings.noise_normalization)
        with torch.no_grad():
            for parameter, old in zip(state.parameters, before, strict=True):
                parameter.copy_(torch.where(_per_image(state.is_active, parameter), parameter, old))
        state.step += 1

    def _explore(self, state: OptimizationState, time: float) -> Tensor:
        strength = exploration_strength(time, self.anchor.code_deviation, factor=self.settings.exploration)
        if strength == 0.0:
            return state.codes
        return state.codes + strength * draw(state.streams, state.codes.shape[1:]).to(state.codes)

    def _terms(
        self, state: OptimizationState, explored: Tensor, view: Tensor, target_features: list[Tensor]
    ) -> dict[str, Tensor]:
        """The loss of each image, [N], and its terms (LSAP, eq. 13; R is the base method's).

        L(p, n) = LPIPS(G(p~, n), x) + lambda SNCD(p) + noise_weight R(n), with p~ the explored codes.
        """
        settings = self.settings
        styles = self.generator.styles(explored)  # [N, width] of every layer
        image = self.generator.synthesize_styles(styles, noise=self._all_maps(state)).image  # [N, C, R, R]
        seen = self._view(image)  # [N, C, h, w], as `view`
        terms: dict[str, Tensor] = {}  # [N] each
        loss = seen.new_zeros(len(seen))  # [N]
        if settings.lpips_weight > 0:
            terms["lpips"] = self.perceptual.distance(self.perceptual.features(seen), target_features)
            loss = loss + settings.lpips_weight * terms["lpips"]
        if settings.mse_weight > 0:
            terms["mse"] = pixel_error(seen, view)
            loss = loss + settings.mse_weight * terms["mse"]
        if settings.sncd_weight > 0:
            on_clean = settings.sncd_on == "clean" and explored is not state.codes
            terms["sncd"] = self.sncd(state.codes) if on_clean else self.sncd.of_styles(styles)  # mean of [N, L]
            loss = loss + settings.sncd_weight * terms["sncd"]
        if settings.mean_code_weight > 0:
            terms["mean_code_distance"] = self._mean_code_distance(state.codes)
            loss = loss + settings.mean_code_weight * terms["mean_code_distance"]
        if settings.noise_weight > 0 and state.noise:
            terms["noise_regularization"] = noise_regularization(state.noise)
            loss = loss + settings.noise_weight * terms["noise_regularization"]
        if state.step in settings.trace_steps:
            with torch.no_grad():
                terms.setdefault("mse", pixel_error(seen.detach(), view))
                if "sncd" not in terms:
                    terms["sncd"] = self.sncd(state.codes)
                if "mean_code_distance" not in terms:
                    terms["mean_code_distance"] = self._mean_code_distance(state.codes)
        return {"loss": loss, **terms}

    def _mean_code_distance(self, codes: Tensor) -> Tensor:
        return mean_code_distance(codes, self.anchor.w_avg.to(codes), self.anchor.code_deviation)

    @torch.no_grad()
    def _stop_non_finite(self, state: OptimizationState, loss: Tensor) -> None:
        """Stop images whose loss or gradient is not finite; no branch, so that a GPU need not wait."""
        is_finite = loss.isfinite()
        for parameter in state.parameters:
            if parameter.grad is not None:
                is_finite = is_finite & parameter.grad.flatten(1).isfinite().all(dim=1)
        stops = state.is_active & ~is_finite
        state.stopped_at.copy_(torch.where(stops, state.step, state.stopped_at))
        state.is_active &= is_finite
        for parameter in state.parameters:
            if parameter.grad is not None:
                keep = _per_image(state.is_active, parameter)
                parameter.grad = torch.where(keep, parameter.grad, torch.zeros_like(parameter.grad))

    def _record(self, state: OptimizationState, terms: dict[str, Tensor]) -> None:
        row = self.settings.trace_steps.index(state.step)
        for column, name in enumerate(TRACE_TERMS):
            if name in terms:
                state.trace[:, row, column] = torch.where(state.is_active, terms[name].detach(), torch.nan)

    def _all_maps(self, state: OptimizationState) -> list[Tensor]:
        maps: list[Tensor] = [
            state.codes.new_zeros(len(state.codes), 1, side, side) for side in self.generator.config.noise_sides
        ]
        for index, given in zip(self.noisy_convs, state.noise, strict=True):
            maps[index] = given
        return maps

    def _view(self, images: Tensor) -> Tensor:
        return comparison_view(
            images, content_box=self.generator.config.content_box, downsampling=self.settings.downsampling
        )


def _per_image(mask: Tensor, like: Tensor) -> Tensor:
    return mask.view(-1, *[1] * (like.ndim - 1))
