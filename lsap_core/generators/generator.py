"""The StyleGAN2 generator: Z -> W -> S -> image, with entries and exits at every level."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, cast

import torch
from torch import Tensor, nn

from lsap_core.errors import ConfigError, ShapeError
from lsap_core.generators.config import GeneratorConfig
from lsap_core.generators.layers import MappingNetwork, Modulation, StyleConv, ToRGB
from lsap_core.generators.resample import fir_kernel, upsample_rgb

Noise = Literal["constant", "none"] | Sequence[Tensor]

StyleShift = Mapping[int, Tensor]
"""What an edit in S adds to style vectors, by their position in execution order: [1 or N, width]."""


@dataclass(frozen=True)
class FeatureState:
    """Where synthesis stands after a style convolution (F-space).

    Attributes:
        conv: index of the convolution whose output this is.
        features: its output after noise, bias and activation, [N, C, h, w].
        rgb: the RGB sum so far, [N, image_channels, h', w'] at its size; None after convolution 0, whose ToRGB is the
            first.
        is_in_rgb: whether the ToRGB that reads these features is in `rgb` already, as at the end of a block: what
            replaces the features then is seen by later layers alone.
    """

    conv: int
    features: Tensor
    rgb: Tensor | None
    is_in_rgb: bool = False


@dataclass(frozen=True)
class SynthesisResult:
    """An image, and what was asked for on the way to it.

    Attributes:
        image: [N, image_channels, H, W], about [-1, 1], unclamped; of a synthesis that was stopped before its end the
            RGB sum so far, at its size.
        states: for each collected convolution, where synthesis stood after it.
        rgbs: the RGB sum after each ToRGB layer, [N, image_channels, h, w], when `states` were collected.
    """

    image: Tensor
    states: dict[int, FeatureState] = field(default_factory=dict)
    rgbs: tuple[Tensor, ...] = ()

    def block_end(self, conv: int) -> FeatureState:
        """Where a synthesis that was stopped after an even convolution stood: its ToRGB, the block's last, is added."""
        return FeatureState(conv, self.states[conv].features, self.image, is_in_rgb=True)


class SynthesisNetwork(nn.Module):
    """Style vectors -> image: a constant, K - 1 style convolutions, and a running RGB sum."""

    kernel: Tensor

    def __init__(self, config: GeneratorConfig):
        super().__init__()
        self.config = config
        self.const = nn.Parameter(torch.randn(config.channels[0], *config.constant))
        self.convs = nn.ModuleList(
            StyleConv(
                config.conv_in_channels(conv),
                config.conv_out_channels(conv),
                config.w_dim,
                output_size=size,
                upsample=conv % 2 == 1,
                conv_clamp=config.conv_clamp,
            )
            for conv, size in enumerate(config.noise_sizes)
        )
        self.to_rgbs = nn.ModuleList(
            ToRGB(channels, config.image_channels, config.w_dim, conv_clamp=config.conv_clamp)
            for channels in config.channels
        )
        self.register_buffer("kernel", fir_kernel(), persistent=False)

    def forward(
        self,
        styles: Sequence[Tensor],
        noise: Sequence[Tensor | None],
        *,
        modulation: Modulation,
        start: FeatureState | None = None,
        collect: Collection[int] = (),
        until: int | None = None,
    ) -> SynthesisResult:
        """Run the layers in execution order: conv 0, ToRGB 0, conv 1, conv 2, ToRGB 1, conv 3, ..."""
        states: dict[int, FeatureState] = {}
        rgbs: list[Tensor] = []
        features, rgb, first = self.const[None], None, 0
        if start is not None:
            features, rgb, first = start.features, start.rgb, start.conv + 1
            if start.conv % 2 == 0 and not start.is_in_rgb:
                rgb = self._add_rgb(start.conv // 2, rgb, features, styles)
                rgbs.append(rgb)
        for conv in range(first, self.config.num_convs if until is None else until + 1):
            style = styles[conv_position(conv)]
            layer = self.convs[conv]
            features = layer(features, style, noise[conv], self.kernel, modulation)
            if conv in collect:
                states[conv] = FeatureState(conv, features, rgb)
            if conv % 2 == 0:
                rgb = self._add_rgb(conv // 2, rgb, features, styles)
                rgbs.append(rgb)
        assert rgb is not None
        return SynthesisResult(rgb, states, tuple(rgbs) if collect else ())

    def conv_layers(self) -> list[StyleConv]:
        """The style convolutions in order."""
        return [cast(StyleConv, layer) for layer in self.convs]

    def to_rgb_layers(self) -> list[ToRGB]:
        """The ToRGB layers in order."""
        return [cast(ToRGB, layer) for layer in self.to_rgbs]

    def _add_rgb(self, to_rgb: int, rgb: Tensor | None, features: Tensor, styles: Sequence[Tensor]) -> Tensor:
        contribution: Tensor = self.to_rgbs[to_rgb](features, styles[to_rgb_position(to_rgb)])
        return contribution if rgb is None else contribution + upsample_rgb(rgb, self.kernel)


class Generator(nn.Module):
    """One StyleGAN2 for every size, channel table and checkpoint format.

    `modulation` chooses between two forms of the same function: "activations" (shared convolution, for frozen
    weights) and "weights" (per-image weights in a grouped convolution, as published).

    Example:
        >>> generator = Generator(GeneratorConfig(8, (4, 4), z_dim=3, w_dim=5, num_mapping_layers=2))
        >>> w = generator.map(torch.zeros(2, 3))
        >>> tuple(generator.synthesize(w).shape)
        (2, 3, 8, 8)
    """

    def __init__(self, config: GeneratorConfig, *, modulation: Modulation = "activations"):
        super().__init__()
        self.config = config
        self.modulation: Modulation = modulation
        self.mapping = MappingNetwork(
            config.z_dim, config.w_dim, config.num_mapping_layers, lr_multiplier=config.mapping_lr_multiplier
        )
        self.synthesis = SynthesisNetwork(config)

    def freeze(self) -> Generator:
        """Stop gradients to all weights and do their constant work once; returns itself, in eval mode."""
        self.requires_grad_(False)
        for layer in (*self.synthesis.conv_layers(), *self.synthesis.to_rgb_layers()):
            layer.freeze()
        return self.eval()

    @property
    def has_w_avg(self) -> bool:
        """Whether the checkpoint carried the mean of W."""
        return bool(torch.isfinite(self.mapping.w_avg).all())

    def map(self, z: Tensor) -> Tensor:
        """W codes [N, w_dim] of Z codes [N, z_dim].

        Raises:
            ShapeError: z has another shape.
        """
        if z.ndim != 2 or z.shape[1] != self.config.z_dim:
            raise ShapeError(f"z is {list(z.shape)}; this generator wants [N, {self.config.z_dim}]")
        w: Tensor = self.mapping(z)
        return w

    def styles(self, codes: Tensor, shift: StyleShift | None = None) -> tuple[Tensor, ...]:
        """All style vectors of W or W+ codes in execution order: conv 0, ToRGB 0, conv 1, conv 2, ToRGB 1, ...

        s_l = A_l w_l / sqrt(w_dim) + b_l; convolution k reads row k of W+, ToRGB j reads row 2j + 1.

        Args:
            codes: W codes [N, w_dim] or W+ codes [N, K, w_dim].
            shift: added to the vectors at some positions, each [1 or N, width]: an edit in S.

        Returns:
            One [N, width] tensor for each layer; widths are the layers' input channels.

        Raises:
            ShapeError: the codes fit neither W nor W+ of this generator, or the shift not its styles.
        """
        rows = self.expand(codes).unbind(1)
        vectors: list[Tensor] = []
        to_rgbs = self.synthesis.to_rgb_layers()
        for conv, layer in enumerate(self.synthesis.conv_layers()):
            vectors.append(layer.affine(rows[conv]))
            if conv % 2 == 0:
                vectors.append(to_rgbs[conv // 2].affine(rows[conv + 1]))
        for at, added in (shift or {}).items():
            if not 0 <= at < len(vectors) or added.shape[1:] != vectors[at].shape[1:]:
                raise ShapeError(
                    f"a shift of style {at} is {list(added.shape)}; wanted widths {list(style_widths(self.config))} in "
                    "execution order: it is of another generator"
                )
            vectors[at] = vectors[at] + added.to(vectors[at])
        return tuple(vectors)

    def expand(self, codes: Tensor) -> Tensor:
        """W codes [N, w_dim] repeated over the K layers; W+ codes [N, K, w_dim] pass unchanged."""
        num_ws, w_dim = self.config.num_ws, self.config.w_dim
        if codes.ndim == 2 and codes.shape[1] == w_dim:
            return codes[:, None].expand(-1, num_ws, -1)
        if codes.ndim == 3 and codes.shape[1:] == (num_ws, w_dim):
            return codes
        raise ShapeError(
            f"codes are {list(codes.shape)}; this generator wants W [N, {w_dim}] or W+ [N, {num_ws}, {w_dim}]"
        )

    def synthesize(self, codes: Tensor, *, noise: Noise = "constant", style_shift: StyleShift | None = None) -> Tensor:
        """Images of W or W+ codes, [N, image_channels, H, W], about [-1, 1], unclamped.

        Args:
            codes: [N, w_dim] or [N, K, w_dim].
            noise: "constant" (the checkpoint's own maps), "none", or K - 1 maps [N or 1, 1, h, w].
            style_shift: added to their styles, as in `styles`.

        Raises:
            ShapeError: codes or noise maps of another shape.
        """
        return self.synthesize_styles(self.styles(codes, style_shift), noise=noise).image

    def synthesize_styles(
        self,
        styles: Sequence[Tensor],
        *,
        noise: Noise = "constant",
        start: FeatureState | None = None,
        collect: Collection[int] = (),
        until: int | None = None,
    ) -> SynthesisResult:
        """Images of style vectors (S), from the constant or from a feature map in the middle (F-space).

        Args:
            styles: all style vectors in execution order, as `styles` returns them.
            noise: as in `synthesize`.
            start: go on after this convolution with these features, or None to start from the constant.
            collect: convolutions after which to keep the state of synthesis.
            until: stop after this convolution and the ToRGB that reads it, where one does; None for all.

        Raises:
            ShapeError: styles, noise maps or the starting features have another shape, or there is nothing to run.
        """
        self._check_styles(styles)
        if not isinstance(noise, str):
            self.check_noise(noise, len(styles[0]))
        if start is not None:
            self._check_start(start)
        if until is not None:
            self._check_until(until, start)
        return self.synthesis(  # type: ignore[no-any-return]
            styles,
            self.noise_maps(noise),
            modulation=self.modulation,
            start=start,
            collect=collect,
            until=until,
        )

    def noise_maps(self, noise: Noise) -> list[Tensor | None]:
        """The maps that a noise mode stands for, one for each convolution."""
        if isinstance(noise, str):
            if noise == "none":
                return [None] * self.config.num_convs
            if noise == "constant":
                return [layer.noise_const for layer in self.synthesis.conv_layers()]
            raise ConfigError(f'noise is "{noise}"; wanted "constant", "none" or a list of maps')
        return list(noise)

    def check_noise(self, noise: Sequence[Tensor], num_images: int) -> None:
        """Make sure that noise maps fit the convolutions and the images.

        Raises:
            ShapeError: another number of maps, or a map of another shape than [N or 1, 1, h, w].
        """
        if len(noise) != self.config.num_convs:
            raise ShapeError(f"{len(noise)} noise maps; this generator wants {self.config.num_convs}")
        for index, (given, (height, width)) in enumerate(zip(noise, self.config.noise_sizes, strict=True)):
            if given.ndim != 4 or given.shape[1:] != (1, height, width) or given.shape[0] not in (1, num_images):
                raise ShapeError(
                    f"noise map {index} is {list(given.shape)}; "
                    f"wanted [N, 1, {height}, {width}] with N = {num_images} or 1"
                )

    def _check_styles(self, styles: Sequence[Tensor]) -> None:
        widths = style_widths(self.config)
        found = [style.shape[-1] for style in styles]
        if found != list(widths):
            raise ShapeError(f"style vectors have widths {found}; wanted {list(widths)} in execution order")

    def _check_start(self, start: FeatureState) -> None:
        if not 0 <= start.conv < self.config.num_convs:
            raise ShapeError(f"features of convolution {start.conv}; wanted 0 to {self.config.num_convs - 1}")
        wanted = (self.config.conv_out_channels(start.conv), *self.config.noise_sizes[start.conv])
        if start.features.shape[1:] != wanted:
            raise ShapeError(
                f"features of convolution {start.conv} are {list(start.features.shape)}; wanted {['N', *wanted]}"
            )
        if start.is_in_rgb and start.conv % 2:
            raise ShapeError(f"no ToRGB reads the features of convolution {start.conv}: they can be in no RGB sum")
        if (start.rgb is None) != (start.conv == 0 and not start.is_in_rgb):
            raise ShapeError("an RGB sum belongs to every start but that after convolution 0")

    def _check_until(self, until: int, start: FeatureState | None) -> None:
        first = 0 if start is None else start.conv + 1
        if not first <= until < self.config.num_convs:
            raise ShapeError(f"until is {until}; wanted a convolution from {first} to {self.config.num_convs - 1}")


def conv_position(conv: int) -> int:
    """Where convolution k stands in execution order over convolutions and ToRGB layers."""
    return conv + (conv + 1) // 2


def to_rgb_position(to_rgb: int) -> int:
    """Where ToRGB j stands in execution order over convolutions and ToRGB layers."""
    return 3 * to_rgb + 1


def style_widths(config: GeneratorConfig) -> tuple[int, ...]:
    """Width of each style vector in execution order."""
    widths: list[int] = []
    for conv in range(config.num_convs):
        widths.append(config.conv_in_channels(conv))
        if conv % 2 == 0:
            widths.append(config.to_rgb_channels(conv // 2))
    return tuple(widths)
