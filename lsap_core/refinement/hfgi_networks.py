"""The two networks of HFGI (Wang et al. 2022, section 3): distortion alignment and the consultation encoder.

Layers carry the names of the published weights (`conv_layer1`, `dconv_layer1`, `condition_scale3`, ...). Published code
resizes to fixed sides of 64, 128 and 256; here every size follows the map that it is joined to, which is the same for
images of 256 pixels and makes every other size possible.
"""

from __future__ import annotations

import itertools
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lsap_core.errors import ConfigError, ShapeError
from lsap_core.generators.config import GeneratorConfig
from lsap_core.generators.discriminator import EqualizedConv, activate
from lsap_core.perceptual.ir_se import IrSeUnit
from lsap_core.refinement.hfgi_fusion import Fusion

Widths = Literal["published", "small"]

UNITS = 3
"""Residual units of every stage."""
MAX_CHANNELS = 1 << 14  # far more than any StyleGAN2 has; a file must not ask for more


@dataclass(frozen=True)
class HfgiWidths:
    """Channels of both networks.

    Attributes:
        aligner: of the alignment network at sides R, R / 2, R / 4 and R / 8.
        encoder: of the consultation encoder at sides R, R / 2 and R / 4.
        condition: between the two convolutions that give a condition, or None for as many as the condition has.
    """

    aligner: tuple[int, int, int, int]
    encoder: tuple[int, int, int]
    condition: int | None = None


WIDTHS: dict[Widths, HfgiWidths] = {
    "published": HfgiWidths((16, 32, 48, 64), (32, 48, 64)),
    "small": HfgiWidths((4, 8, 12, 16), (8, 12, 16), 16),
}


@dataclass(frozen=True)
class HfgiConfig:
    """Sizes of HFGI's networks.

    Attributes:
        image_channels: of one image, 1, 3 or 4.
        condition_channels: of the generator's features that the conditions act on (`Fusion.channels`).
        widths: "published", or "small" for small domains.

    Raises:
        ConfigError: a name is not known or a size is impossible.
    """

    image_channels: int = 3
    condition_channels: int = 512
    widths: Widths = "published"

    def __post_init__(self) -> None:
        """Refuse what no network can have."""
        if self.widths not in get_args(Widths):
            raise ConfigError(f'widths is "{self.widths}"; wanted one of {", ".join(get_args(Widths))}')
        sizes = (self.image_channels, self.condition_channels)
        if not all(isinstance(size, int) and 1 <= size <= MAX_CHANNELS for size in sizes):
            raise ConfigError(f"every size must be a whole number from 1 to {MAX_CHANNELS}: {self}")

    @classmethod
    def for_generator(
        cls, config: GeneratorConfig, *, widths: Widths = "published", view_side: int | None = None
    ) -> HfgiConfig:
        """Networks for a generator, whose images they see with `view_side` pixels (`Fusion.of`)."""
        return cls(config.image_channels, Fusion.of(config, view_side=view_side).channels, widths)

    def to_dict(self) -> dict[str, Any]:
        """The sizes as plain values, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> HfgiConfig:
        """The inverse of `to_dict`, also after a round through JSON."""
        return cls(**values)


class ResidualAligner(nn.Module):
    """Adaptive distortion alignment (ADA): what is lost, moved to where the image that is to get it back has it.

    Three halvings and three doublings; each doubled map is joined to the one of its size before the halving.
    """

    def __init__(self, widths: tuple[int, int, int, int], *, image_channels: int):
        super().__init__()
        first, second, third, fourth = widths
        self.image_channels = image_channels
        self.conv_layer1 = _stem(2 * image_channels, first)
        self.conv_layer2 = _stage(first, second)
        self.conv_layer3 = _stage(second, third)
        self.conv_layer4 = _stage(third, fourth)
        self.dconv_layer1 = _units(fourth + third, fourth, second, second)
        self.dconv_layer2 = _units(second + second, second, first, first)
        self.dconv_layer3 = _units(first + first, first, image_channels, image_channels)

    def forward(self, residual_and_image: Tensor) -> Tensor:
        """The aligned residual, [N, C, H, W].

        Args:
            residual_and_image: what is lost, in [-2, 2], and the image in [-1, 1] that it is aligned to, [N, 2C, H, W].

        Raises:
            ShapeError: another number of channels.
        """
        if residual_and_image.ndim != 4 or residual_and_image.shape[1] != 2 * self.image_channels:
            raise ShapeError(
                f"residual and image are {list(residual_and_image.shape)}; wanted [N, {2 * self.image_channels}, H, W]"
            )
        first = self.conv_layer1(residual_and_image)
        second = self.conv_layer2(first)
        third = self.conv_layer3(second)
        fourth = self.conv_layer4(third)
        joined = self.dconv_layer1(_join(fourth, third))
        joined = self.dconv_layer2(_join(joined, second))
        aligned: Tensor = self.dconv_layer3(_join(joined, first))
        return aligned


class ResidualEncoder(nn.Module):
    """The consultation encoder: an aligned residual -> scale and shift of features of the generator."""

    def __init__(
        self,
        widths: tuple[int, int, int],
        *,
        image_channels: int,
        condition_channels: int,
        hidden_channels: int | None = None,
    ):
        super().__init__()
        hidden = condition_channels if hidden_channels is None else hidden_channels
        self.conv_layer1 = _stem(image_channels, widths[0])
        self.conv_layer2 = _stage(widths[0], widths[1])
        self.conv_layer3 = _stage(widths[1], widths[2])
        self.condition_scale3 = _condition(widths[2], hidden, condition_channels)
        self.condition_shift3 = _condition(widths[2], hidden, condition_channels)

    def forward(self, aligned: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and shift, [N, condition_channels, H / 4, W / 4] each, rounded up, of residuals [N, C, H, W]."""
        features = self.conv_layer3(self.conv_layer2(self.conv_layer1(aligned)))
        return self.condition_scale3(features), self.condition_shift3(features)


class Conditions(NamedTuple):
    """What HFGI's networks make of a residual.

    Attributes:
        aligned: the residual as the image has it, [N, C, H, W].
        scale: [N, condition_channels, H / 4, W / 4], rounded up.
        shift: the same shape.
    """

    aligned: Tensor
    scale: Tensor
    shift: Tensor


class HfgiNetworks(nn.Module):
    """Alignment network and consultation encoder, which are trained together.

    Example:
        >>> networks = HfgiNetworks(HfgiConfig(image_channels=1, condition_channels=6, widths="small")).eval()
        >>> images = torch.zeros(2, 1, 24, 32)
        >>> [tuple(tensor.shape) for tensor in networks(images, images)]
        [(2, 1, 24, 32), (2, 6, 6, 8), (2, 6, 6, 8)]
    """

    def __init__(self, config: HfgiConfig):
        super().__init__()
        widths = WIDTHS[config.widths]
        self.config = config
        self.aligner = ResidualAligner(widths.aligner, image_channels=config.image_channels)
        self.encoder = ResidualEncoder(
            widths.encoder,
            image_channels=config.image_channels,
            condition_channels=config.condition_channels,
            hidden_channels=widths.condition,
        )

    @torch.no_grad()
    def start_without_effect(self) -> HfgiNetworks:
        """Let new networks begin with scale 0 and shift 0, so that training starts at the plain image; returns itself.

        The last convolution of each condition becomes 0, and learns first. Published trainings are long, and start at
        random conditions instead.
        """
        for branch in (self.encoder.condition_scale3, self.encoder.condition_shift3):
            for parameter in branch[-1].parameters():
                parameter.zero_()
        return self

    def forward(self, residual: Tensor, images: Tensor) -> Conditions:
        """What brings a residual [N, C, H, W] back into images of the same shape, in [-1, 1].

        Raises:
            ShapeError: another shape, or two.
        """
        wanted = (self.config.image_channels, *images.shape[-2:])
        if residual.shape != images.shape or images.ndim != 4 or images.shape[1:] != wanted:
            raise ShapeError(
                f"residual is {list(residual.shape)}, images are {list(images.shape)}; wanted {['N', *wanted]} for both"
            )
        aligned = self.aligner(torch.cat([residual, images], dim=1))
        return Conditions(aligned, *self.encoder(aligned))


class _ScaledLeakyReLU(nn.Module):
    def forward(self, features: Tensor) -> Tensor:
        return activate(features)


def _stem(in_channels: int, width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.PReLU(width)
    )


def _stage(in_channels: int, width: int) -> nn.Sequential:
    """Units of which the first halves the side."""
    return nn.Sequential(
        *(IrSeUnit(width if unit else in_channels, width, 1 if unit else 2, has_squeeze=False) for unit in range(UNITS))
    )


def _units(*channels: int) -> nn.Sequential:
    """Units from each width to the next one."""
    return nn.Sequential(
        *(IrSeUnit(before, after, 1, has_squeeze=False) for before, after in itertools.pairwise(channels))
    )


def _condition(in_channels: int, hidden_channels: int, condition_channels: int) -> nn.Sequential:
    return nn.Sequential(
        EqualizedConv(in_channels, hidden_channels, 3),
        _ScaledLeakyReLU(),
        EqualizedConv(hidden_channels, condition_channels, 3),
    )


def _join(small: Tensor, large: Tensor) -> Tensor:
    """Both maps, the first brought to the size of the second."""
    doubled = F.interpolate(small, large.shape[-2:], mode="bilinear", align_corners=False)
    return torch.cat([doubled, large], dim=1)
