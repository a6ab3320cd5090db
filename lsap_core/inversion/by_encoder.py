"""Embedding by an encoder: pSp, e4e, LSAP_E in one pass, ReStyle in several (Alaluf et al. 2021)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import Tensor

from lsap_core.encoders.config import EncoderConfig
from lsap_core.encoders.encoder import Encoder
from lsap_core.errors import ConfigError, ShapeError
from lsap_core.generators.config import GeneratorConfig
from lsap_core.generators.generator import Generator
from lsap_core.images import comparison_view
from lsap_core.inversion.inversion import NOT_STOPPED, Inversion, Parts

MOST_PASSES = 10_000
PIXELS_AT_ONCE = 2**20
"""Of images that are rendered together: one of 1024 px takes half a gigabyte on the way, and keeps a device busy."""


@dataclass(frozen=True)
class EncoderSettings:
    """How an encoder is asked for codes.

    Attributes:
        num_passes: through the encoder. 1 for an encoder that reads the image alone; ReStyle, which reads the image and
            the reconstruction so far, is published with 5.

    Raises:
        ConfigError: a value lies outside its range.
    """

    kind: ClassVar[str] = "encoder"
    keeps_noise: ClassVar[bool] = False
    needs_encoder: ClassVar[bool] = True
    trace_steps: ClassVar[tuple[int, ...]] = ()  # it minimizes nothing
    trace_terms: ClassVar[tuple[str, ...]] = ()

    num_passes: int = 1

    def __post_init__(self) -> None:
        """Refuse what cannot run."""
        if not 1 <= self.num_passes <= MOST_PASSES:
            raise ConfigError(f"num_passes is {self.num_passes}; wanted at least 1, and at most {MOST_PASSES}")

    @property
    def num_steps(self) -> int:
        """A step is a pass."""
        return self.num_passes

    def embedder(self, parts: Parts) -> EncoderEmbedder:
        """Asks the encoder of these parts."""
        assert parts.encoder is not None
        return EncoderEmbedder(parts.generator, parts.encoder, self)

    def why_stopped(self, step: int) -> tuple[str, str]:
        """Reason and message of an image whose code was no longer finite after a pass."""
        return "non_finite_code", (
            f"the encoder's code was no longer finite in pass {step + 1} of {self.num_passes}: take this image out, or "
            "another encoder"
        )


class EncoderState:
    """Codes on their way through the passes.

    Attributes:
        step: passes made.
        codes: [N, K, w_dim]; the last finite ones.
        stopped_at: [N] int64, the pass whose code was not finite, or -1.
    """

    def __init__(self, codes: Tensor):
        self.step = 0
        self.codes = codes
        self.stopped_at = torch.full((len(codes),), NOT_STOPPED, device=codes.device)

    def to_tensors(self) -> dict[str, Tensor]:
        """The whole state as named tensors on the CPU, for storage."""
        tensors = {"step": torch.tensor(self.step), "codes": self.codes, "stopped_at": self.stopped_at}
        return {name: tensor.cpu().clone() for name, tensor in tensors.items()}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over a state that `to_tensors` returned; the next pass then goes on bit for bit."""
        self.step = int(tensors["step"])
        self.codes = tensors["codes"].to(self.codes)
        self.stopped_at = tensors["stopped_at"].to(self.stopped_at)


class EncoderEmbedder:
    """Asks an encoder for the codes of a batch of images, each image for itself.

    w_plus = w_avg + E(x); ReStyle repeats w_plus <- w_plus + E(x, G(w_plus)), beginning with w_avg. The generator adds
    its constant noise, and no random number is drawn.

    Example:
        >>> config = GeneratorConfig(8, (4, 4), z_dim=3, w_dim=5, num_mapping_layers=2)
        >>> encoder = Encoder(EncoderConfig.for_generator(config, heads="direct", backbone="small"))
        >>> embedder = EncoderEmbedder(Generator(config), encoder, EncoderSettings())
        >>> tuple(embedder(torch.zeros(2, 3, 8, 8), seeds=(0, 1)).w_plus.shape)
        (2, 4, 5)
    """

    def __init__(self, generator: Generator, encoder: Encoder, settings: EncoderSettings):
        """Both networks are put into eval mode: in training mode an image's code depends on its neighbours.

        Raises:
            ConfigError: the encoder does not fit the generator, or reads no reconstruction that it could refine.
        """
        if problem := misfit(encoder.config, generator.config):
            raise ConfigError(problem)
        if settings.num_passes > 1 and not encoder.config.is_iterative:
            raise ConfigError(
                f"num_passes is {settings.num_passes}, and this encoder reads the image alone: wanted 1, "
                "or a ReStyle encoder"
            )
        self.generator = generator.eval()
        self.encoder = encoder.eval()
        self.settings = settings

    def __call__(self, target: Tensor, seeds: Sequence[int]) -> Inversion:
        """Embed images [N, C, R, R] in [-1, 1]; the seeds are not used.

        Raises:
            ShapeError: the images do not fit the generator, or there are not as many seeds.
        """
        state = self.start(seeds)
        self.advance(state, target)
        return self.finish(state)

    def start(self, seeds: Sequence[int], *, target: Tensor | None = None) -> EncoderState:
        """The state before the first pass: the mean code for every seed; neither seeds nor target are looked at."""
        return self._start(len(seeds))

    def advance(
        self,
        state: EncoderState,
        target: Tensor,
        *,
        until: int | None = None,
        after_step: Callable[[EncoderState], None] | None = None,
    ) -> None:
        """Make passes up to pass `until` (all of them by default), in place.

        Args:
            state: from `start`, or loaded.
            target: the images, [N, C, R, R] in [-1, 1]; the same ones at every call.
            until: stop before this pass.
            after_step: called with the state after every pass.

        Raises:
            ShapeError: the images do not fit the generator or the state.
        """
        config = self.generator.config
        wanted = [len(state.codes), *config.image_shape]
        if list(target.shape) != wanted:
            raise ShapeError(f"target images are {list(target.shape)}; wanted {wanted}")
        # Files are read antialiased, as in the published training; reconstructions are averaged, as there.
        view = comparison_view(target.to(state.codes), content_box=config.content_box, downsampling="bilinear")
        last = self.settings.num_passes if until is None else min(until, self.settings.num_passes)
        while state.step < last:
            self._pass(state, view)
            if after_step is not None:
                after_step(state)

    @torch.no_grad()
    def finish(self, state: EncoderState) -> Inversion:
        """The result of the codes and the generator's constant noise."""
        codes = state.codes
        noise = [cast(Tensor, maps).expand(len(codes), 1, -1, -1) for maps in self.generator.noise_maps("constant")]
        return Inversion(
            w_plus=codes,
            noise=tuple(noise),
            reconstruction=self._rendered(codes),
            trace=codes.new_zeros(len(codes), 0, 0),
            trace_steps=(),
            trace_terms=(),
            stopped_at=state.stopped_at,
            num_steps=torch.full((len(codes),), self.settings.num_passes),
        )

    def codes(self, target: Tensor) -> Tensor:
        """The codes alone, [N, K, w_dim], of images [N, C, R, R] in [-1, 1]: where an optimization may start.

        Raises:
            ShapeError: the images do not fit the generator.
        """
        state = self._start(len(target))
        self.advance(state, target)
        return state.codes

    def codes_of_view(self, view: Tensor) -> Tensor:
        """The codes [N, K, w_dim] of images [N, C, h, w] in about [-1, 1] that have the encoder's input size already.

        Raises:
            ShapeError: they have another size.
        """
        state = self._start(len(view))
        for _ in range(self.settings.num_passes):
            self._pass(state, view)
        return state.codes

    def _start(self, num_images: int) -> EncoderState:
        return EncoderState(self.encoder.w_avg.expand(num_images, -1, -1))  # [N, K, w_dim]

    @torch.no_grad()
    def _pass(self, state: EncoderState, view: Tensor) -> None:
        """w_plus + E(x) or w_plus + E(x, G(w_plus)), where that is finite."""
        moved = state.codes + self.encoder.offsets(self._seen(view, state.codes))  # [N, K, w_dim]
        is_finite = moved.isfinite().flatten(1).all(dim=1)  # [N]
        stops = ~is_finite & (state.stopped_at == NOT_STOPPED)
        state.stopped_at = torch.where(stops, state.step, state.stopped_at)
        state.codes = torch.where((state.stopped_at == NOT_STOPPED)[:, None, None], moved, state.codes)
        state.step += 1

    def _seen(self, view: Tensor, codes: Tensor) -> Tensor:
        if not self.encoder.config.is_iterative:
            return view
        reconstruction = self._rendered(codes)
        return torch.cat([view, comparison_view(reconstruction, content_box=self.generator.config.content_box)], dim=1)

    def _rendered(self, codes: Tensor) -> Tensor:
        """Images of codes with the generator's constant noise, [N, C, R, R]; of large ones a few at a time."""
        at_once = max(1, PIXELS_AT_ONCE // math.prod(self.generator.config.size))
        return torch.cat([self.generator.synthesize(part) for part in codes.split(at_once)])


def misfit(encoder: EncoderConfig, generator: GeneratorConfig) -> str | None:
    """Why an encoder cannot be one of this generator, in a sentence; None where it can."""
    wanted = EncoderConfig.for_generator(generator, heads=encoder.heads, backbone=encoder.backbone)
    for is_other, what in (
        (encoder.num_ws != wanted.num_ws, f"gives {encoder.num_ws} rows of W+, the generator has {wanted.num_ws}"),
        (encoder.w_dim != wanted.w_dim, f"gives rows of {encoder.w_dim} numbers, the generator's have {wanted.w_dim}"),
        (
            encoder.image_channels != wanted.image_channels,
            f"reads images of {encoder.image_channels} channels, the generator's have {wanted.image_channels}",
        ),
        (
            encoder.input_size != wanted.input_size,
            f"reads {encoder.input_size} pixels (height, width), the generator's images are looked at with "
            f"{wanted.input_size}",
        ),
    ):
        if is_other:
            return f"the encoder {what}: pass the generator and content box that it was trained for, or another encoder"
    return None
