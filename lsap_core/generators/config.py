"""The sizes of a StyleGAN2 generator, all derived from what its checkpoint says."""

from __future__ import annotations

import math
import operator
from dataclasses import asdict, dataclass
from typing import Any

from lsap_core.errors import ConfigError

MAX_CHANNELS = 512
PUBLISHED_CONSTANT = (4, 4)
"""Height and width of what synthesis starts from, in every published model."""


@dataclass(frozen=True)
class GeneratorConfig:
    """Sizes of one StyleGAN2 generator with skip connections (Karras et al. 2020, fig. 7).

    Attributes:
        resolution: side of the output, the longer one where it is not square: the constant's, doubled at least once.
        channels: feature channels of the constant, and after each doubling of it.
        z_dim: width of Z.
        w_dim: width of W.
        num_mapping_layers: depth of the mapping network, 8 in the classic models.
        image_channels: 3, or 1 for a grayscale generator.
        mapping_lr_multiplier: learning-rate multiplier that the stored mapping weights are divided by.
        conv_clamp: bound on activations (256 in models trained with mixed precision), or None.
        content_box: (top, bottom, left, right) rows and columns that carry the picture, or None for all.
        constant: height and width of the constant that synthesis starts from; 4 x 4 as published. Another shape makes
            images of that shape: 8 x 4, doubled seven times, 1024 x 512.

    Raises:
        ConfigError: a size is impossible.

    Example:
        >>> GeneratorConfig(32, (8, 8, 4, 4), constant=(4, 2)).size
        (32, 16)
    """

    resolution: int
    channels: tuple[int, ...]
    z_dim: int = 512
    w_dim: int = 512
    num_mapping_layers: int = 8
    image_channels: int = 3
    mapping_lr_multiplier: float = 0.01
    conv_clamp: float | None = None
    content_box: tuple[int, int, int, int] | None = None
    constant: tuple[int, int] = PUBLISHED_CONSTANT

    def __post_init__(self) -> None:
        """Refuse sizes that no StyleGAN2 can have."""
        is_size = len(self.constant) == 2 and all(isinstance(side, int) and side >= 1 for side in self.constant)
        if not is_size or self.constant == (1, 1):  # a noise map of one number has no deviation
            raise ConfigError(f"constant is {self.constant}; wanted height and width, whole numbers, not both 1")
        first = max(self.constant)
        wanted = (operator.index(self.resolution) // first).bit_length()
        if wanted < 2 or self.resolution != first << (wanted - 1):
            raise ConfigError(
                f"resolution is {self.resolution}; wanted {2 * first}, {4 * first}, {8 * first}, ...: "
                f"StyleGAN2 doubles its constant of {_shown(self.constant)}"
            )
        if len(self.channels) != wanted:
            raise ConfigError(
                f"{len(self.channels)} channel counts for resolution {self.resolution}; "
                f"wanted {wanted}, one for each size {_shown(self.constant)}, ..., {_shown(self.size)}"
            )
        if min(*self.channels, self.z_dim, self.w_dim, self.num_mapping_layers, self.image_channels) < 1:
            raise ConfigError(f"every size must be at least 1: {self}")
        if self.content_box is not None:
            top, bottom, left, right = self.content_box
            height, width = self.size
            if not (0 <= top < bottom <= height and 0 <= left < right <= width):
                raise ConfigError(f"content box {self.content_box} lies outside {self.shown_size} pixels")

    @classmethod
    def config_f(cls, resolution: int, **sizes: Any) -> GeneratorConfig:
        """The channel table of the published models ("config-f"): min(32768 / side, 512)."""
        return cls(resolution, _channel_table(resolution, 32768), **sizes)

    @classmethod
    def config_e(cls, resolution: int, **sizes: Any) -> GeneratorConfig:
        """The half-width channel table ("config-e", `paper256`): min(16384 / side, 512)."""
        return cls(resolution, _channel_table(resolution, 16384), **sizes)

    @property
    def num_ws(self) -> int:
        """Rows K of a W+ code: 2 log2(R) - 2 from the published constant, two for each channel count from any."""
        return 2 * len(self.channels)

    @property
    def size(self) -> tuple[int, int]:
        """Height H and width W of the output: the constant's, doubled with every channel count after the first."""
        height, width = self.constant
        doublings = len(self.channels) - 1
        return height << doublings, width << doublings

    @property
    def shown_size(self) -> str:
        """Of the output, for people: "1024", or height and width of one that is not square, "1024 x 512"."""
        return str(self.resolution) if self.is_square else _shown(self.size)

    @property
    def is_square(self) -> bool:
        """Whether the output is as high as wide."""
        return self.constant[0] == self.constant[1]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of one image."""
        return self.image_channels, *self.size

    @property
    def content_size(self) -> tuple[int, int]:
        """Height and width of what carries the picture: the content box, or the whole image."""
        if self.content_box is None:
            return self.size
        top, bottom, left, right = self.content_box
        return bottom - top, right - left

    @property
    def num_convs(self) -> int:
        """Style convolutions, each with a noise map: K - 1."""
        return self.num_ws - 1

    @property
    def num_to_rgbs(self) -> int:
        """ToRGB layers, one for each side."""
        return len(self.channels)

    @property
    def noise_sizes(self) -> tuple[tuple[int, int], ...]:
        """Height and width of each convolution's noise map: of sides 4, 8, 8, 16, 16, ..., R, R as published."""
        height, width = self.constant
        return tuple((height << (index + 1) // 2, width << (index + 1) // 2) for index in range(self.num_convs))

    @property
    def conv_sizes(self) -> tuple[int, ...]:
        """Values that each style convolution gives of one image."""
        return tuple(math.prod(size) * self.conv_out_channels(conv) for conv, size in enumerate(self.noise_sizes))

    def conv_in_channels(self, conv: int) -> int:
        """Input channels of a style convolution, which is also the width of its style vector."""
        return self.channels[conv // 2]

    def conv_out_channels(self, conv: int) -> int:
        """Output channels of a style convolution."""
        return self.channels[(conv + 1) // 2]

    def to_rgb_channels(self, to_rgb: int) -> int:
        """Input channels of a ToRGB layer, which is also the width of its style vector."""
        return self.channels[to_rgb]

    def to_dict(self) -> dict[str, Any]:
        """The sizes as plain values, for JSON; without a constant that is the published one."""
        values = asdict(self)
        if self.constant == PUBLISHED_CONSTANT:
            del values["constant"]  # digests are taken of this, of networks that were kept before there were others
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> GeneratorConfig:
        """The inverse of `to_dict`, also after a round through JSON."""
        values = dict(values)
        values["channels"] = tuple(values["channels"])
        if values.get("content_box") is not None:
            values["content_box"] = tuple(values["content_box"])
        if "constant" in values:
            values["constant"] = tuple(values["constant"])
        return cls(**values)


def _shown(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"


def _channel_table(resolution: int, base: int) -> tuple[int, ...]:
    return tuple(min(base >> power, MAX_CHANNELS) for power in range(2, resolution.bit_length()))
