"""Embedding by an encoder: pSp, e4e, LSAP_E in one pass, ReStyle in several (Alaluf et al. 2021)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from lsap_core.encoders.config import EncoderConfig
from lsap_core.encoders.encoder import Encoder
from lsap_core.errors import ConfigError, ShapeError
from lsap_core.generators.config import GeneratorConfig
from lsap_core.generators.generator import Generator
from lsap_core.images import comparison_view
from lsap_core.inversion.inversion import NOT_STOPPED, Inversion


@dataclass(frozen=True)
class EncoderSettings:
    """How an encoder is asked for codes.

    Attributes:
        num_refinements: passes through the encoder. 1 for an encoder that reads the image alone; ReStyle, which reads
            the image and the reconstruction so far, is published with 5.

    Raises:
        ConfigError: a value lies outside its range.
    """

    num_refinements: int = 1

    def __post_init__(self) -> None:
        """Refuse what cannot run."""
        if self.num_refinements < 1:
            raise ConfigError(f"num_refinements is {self.num_refinements}; wanted at least 1")

    @property
    def trace_steps(self) -> tuple[int, ...]:
        """None: an encoder minimizes nothing."""
        return ()


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
        if settings.num_refinements > 1 and not encoder.config.is_iterative:
            raise ConfigError(
                f"num_refinements is {settings.num_refinements}, and this encoder reads the image alone: wanted 1, "
                "or a ReStyle encoder"
            )
        self.generator = generator.eval()
        self.encoder = encoder.eval()
        self.settings = settings

    @torch.no_grad()
    def __call__(self, target: Tensor, seeds: Sequence[int]) -> Inversion:
        """Embed images [N, C, R, R] in [-1, 1]; the seeds are not used.

        Raises:
            ShapeError: the images do not fit the generator.
        """
        codes, stopped_at = self._refine(target)
        noise = [cast(Tensor, maps).expand(len(codes), 1, -1, -1) for maps in self.generator.noise_maps("constant")]
        return Inversion(
            w_plus=codes,
            noise=tuple(noise),
            reconstruction=self.generator.synthesize(codes),
            trace=codes.new_zeros(len(codes), 0, 0),
            trace_steps=(),
            trace_terms=(),
            stopped_at=stopped_at,
            num_steps=self.settings.num_refinements,
        )

    @torch.no_grad()
    def codes(self, target: Tensor) -> Tensor:
        """The codes alone, [N, K, w_dim], of images [N, C, R, R] in [-1, 1]: where an optimization may start.

        Raises:
            ShapeError: the images do not fit the generator.
        """
        return self._refine(target)[0]

    @torch.no_grad()
    def codes_of_view(self, view: Tensor) -> Tensor:
        """The codes [N, K, w_dim] of images [N, C, h, w] in about [-1, 1] that have the encoder's input size already.

        Raises:
            ShapeError: they have another size.
        """
        return self._refine_view(view)[0]

    def _refine(self, target: Tensor) -> tuple[Tensor, Tensor]:
        """Codes, and the pass in which they were no longer finite (then the last finite ones are kept)."""
        config = self.generator.config
        wanted = (config.image_channels, config.resolution, config.resolution)
        if target.ndim != 4 or target.shape[1:] != wanted:
            raise ShapeError(f"target images are {list(target.shape)}; wanted {[len(target), *wanted]}")
        # Files are read antialiased, as in the published training; reconstructions are averaged, as there.
        return self._refine_view(
            comparison_view(target.to(self.encoder.w_avg), content_box=config.content_box, downsampling="bilinear")
        )

    def _refine_view(self, view: Tensor) -> tuple[Tensor, Tensor]:
        codes = self.encoder.w_avg.expand(len(view), -1, -1)
        stopped_at = torch.full((len(view),), NOT_STOPPED, device=codes.device)
        for step in range(self.settings.num_refinements):
            moved = codes + self.encoder.offsets(self._seen(view, codes))
            is_finite = moved.isfinite().flatten(1).all(dim=1)
            stopped_at = torch.where(~is_finite & (stopped_at == NOT_STOPPED), step, stopped_at)
            codes = torch.where((stopped_at == NOT_STOPPED)[:, None, None], moved, codes)
        return codes, stopped_at

    def _seen(self, view: Tensor, codes: Tensor) -> Tensor:
        if not self.encoder.config.is_iterative:
            return view
        reconstruction = self.generator.synthesize(codes)
        return torch.cat([view, comparison_view(reconstruction, content_box=self.generator.config.content_box)], dim=1)


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
