"""The sizes of a StyleGAN2 generator, all derived from what its checkpoint says."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from lsap_core.errors import ConfigError

MAX_CHANNELS = 512


@dataclass(frozen=True)
class GeneratorConfig:
    """Sizes of one StyleGAN2 generator with skip connections (Karras et al. 2020, fig. 7).

    Attributes:
        resolution: side of the output, a power of two, at least 8.
        channels: feature channels at sides 4, 8, ..., resolution.
        z_dim: width of Z.
        w_dim: width of W.
        num_mapping_layers: depth of the mapping network, 8 in the classic models.
        image_channels: 3, or 1 for a grayscale generator.
        mapping_lr_multiplier: learning-rate multiplier that the stored mapping weights are divided by.
        conv_clamp: bound on activations (256 in models trained with mixed precision), or None.
        content_box: (top, bottom, left, right) rows and columns that carry the picture, or None for all.

    Raises:
        ConfigError: a size is impossible.
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

    def __post_init__(self) -> None:
        """Refuse sizes that no StyleGAN2 can have."""
        if self.resolution < 8 or self.resolution & (self.resolution - 1):
            raise ConfigError(f"resolution is {self.resolution}; StyleGAN2 needs a power of two, at least 8")
        wanted = self.resolution.bit_length() - 2
        if len(self.channels) != wanted:
            raise ConfigError(
                f"{len(self.channels)} channel counts for resolution {self.resolution}; "
                f"wanted {wanted}, one for each side 4, 8, ..., {self.resolution}"
            )
        if min(*self.channels, self.z_dim, self.w_dim, self.num_mapping_layers, self.image_channels) < 1:
            raise ConfigError(f"every size must be at least 1: {self}")
        if self.content_box is not None:
            top, bottom, left, right = self.content_box
            if not (0 <= top < bottom <= self.resolution and 0 <= left < right <= self.resolution):
                raise ConfigError(f"content box {self.content_box} lies outside {self.resolution} pixels")

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
        """Rows K of a W+ code: 2 log2(R) - 2."""
        return 2 * len(self.channels)

    @property
    def content_size(self) -> tuple[int, int]:
        """Height and width of what carries the picture: the content box, or the whole image."""
        if self.content_box is None:
            return self.resolution, self.resolution
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
    def noise_sides(self) -> tuple[int, ...]:
        """Side of each convolution's noise map: 4, 8, 8, 16, 16, ..., R, R."""
        return tuple(2 ** ((index + 5) // 2) for index in range(self.num_convs))

    @property
    def conv_sizes(self) -> tuple[int, ...]:
        """Values that each style convolution gives of one image."""
        return tuple(side * side * self.conv_out_channels(conv) for conv, side in enumerate(self.noise_sides))

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
        """The sizes as plain values, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> GeneratorConfig:
        """The inverse of `to_dict`, also after a round through JSON."""
        values = dict(values)
        values["channels"] = tuple(values["channels"])
        if values.get("content_box") is not None:
            values["content_box"] = tuple(values["content_box"])
        return cls(**values)


def _channel_table(resolution: int, base: int) -> tuple[int, ...]:
    return tuple(min(base >> power, MAX_CHANNELS) for power in range(2, resolution.bit_length()))
