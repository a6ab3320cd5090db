"""The sizes of an encoder, most of them its generator's."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import torch

from lsap_core.errors import ConfigError
from lsap_core.generators.config import GeneratorConfig
from lsap_core.images import comparison_view

Heads = Literal["direct", "offsets", "single"]
Backbone = Literal["ir_se_50", "resnet_34", "small"]

MAX_ROWS = 64  # far more than any StyleGAN2 has; a file must not ask for a million heads


@dataclass(frozen=True)
class EncoderConfig:
    """Sizes of one encoder.

    Attributes:
        heads: "direct": each head gives a row of W+ (pSp). "offsets": head 0 gives w_0, the others what is added
            to it in their rows (e4e, LSAP_E). "single": one w for all rows (W encoder).
        backbone: "ir_se_50" (published, faces), "resnet_34" (ReStyle, other domains) or "small" (small domains).
        num_ws: rows K of a W+ code.
        w_dim: width of W.
        input_size: height and width of the images it reads.
        image_channels: of one image, 1, 3 or 4.
        is_iterative: whether it reads the image and the current reconstruction, twice `image_channels` (ReStyle).
        has_pyramid: whether heads read maps of three sizes. Otherwise all read the last map (ReStyle). A "single"
            head always reads the last map, so this is False there.

    Raises:
        ConfigError: a name is not known or a size is impossible.
    """

    heads: Heads
    backbone: Backbone
    num_ws: int
    w_dim: int
    input_size: tuple[int, int]
    image_channels: int
    is_iterative: bool = False
    has_pyramid: bool = True

    def __post_init__(self) -> None:
        """Refuse what no encoder can have."""
        for name, names in (("heads", get_args(Heads)), ("backbone", get_args(Backbone))):
            if getattr(self, name) not in names:
                wanted = ", ".join(f'"{known}"' for known in names)
                raise ConfigError(f'{name} is "{getattr(self, name)}"; wanted one of {wanted}')
        if len(self.input_size) != 2:
            raise ConfigError(f"input_size is {self.input_size}; wanted height and width")
        sizes = (self.num_ws, self.w_dim, self.image_channels, *self.input_size)
        if not all(isinstance(size, int) and size >= 1 for size in sizes) or self.num_ws > MAX_ROWS:
            raise ConfigError(f"every size must be a whole number, at least 1, and num_ws at most {MAX_ROWS}: {self}")
        if self.heads == "single":
            object.__setattr__(self, "has_pyramid", False)

    @classmethod
    def for_generator(
        cls,
        config: GeneratorConfig,
        *,
        heads: Heads,
        backbone: Backbone,
        is_iterative: bool = False,
        has_pyramid: bool = True,
    ) -> EncoderConfig:
        """An encoder for the images of a generator, as `comparison_view` shows them.

        Example:
            >>> cars = GeneratorConfig.config_f(512, content_box=(64, 448, 0, 512))
            >>> EncoderConfig.for_generator(cars, heads="offsets", backbone="ir_se_50").input_size
            (192, 256)
        """
        image = torch.empty(1, 1, *config.size, device="meta")  # a shape without memory
        height, width = comparison_view(image, content_box=config.content_box).shape[-2:]
        return cls(
            heads=heads,
            backbone=backbone,
            num_ws=config.num_ws,
            w_dim=config.w_dim,
            input_size=(height, width),
            image_channels=config.image_channels,
            is_iterative=is_iterative,
            has_pyramid=has_pyramid,
        )

    @property
    def in_channels(self) -> int:
        """Channels of what it reads: one image, or the image and its reconstruction."""
        return self.image_channels * (2 if self.is_iterative else 1)

    @property
    def num_heads(self) -> int:
        """Heads: one for each row of W+, or a single one."""
        return 1 if self.heads == "single" else self.num_ws

    def to_dict(self) -> dict[str, Any]:
        """The sizes as plain values, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> EncoderConfig:
        """The inverse of `to_dict`, also after a round through JSON."""
        return cls(**{**values, "input_size": tuple(values["input_size"])})
