"""The encoders of pSp, e4e, LSAP_E, ReStyle and the W encoder: one class, told apart by its heads."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lsap_core.encoders.backbone import build_backbone, map_sizes, map_widths
from lsap_core.encoders.config import EncoderConfig
from lsap_core.encoders.pyramid import MapToStyle, PooledToStyle, Pyramid, map_of_head
from lsap_core.errors import ConfigError, ShapeError


class Encoder(nn.Module):
    """Images -> W+ codes, in one pass.

    w_i = w_avg + f_i(image) with "direct" heads (Richardson et al. 2021), w_i = w_avg + f_0(image) + f_i(image),
    f_i only from the second row on, with "offsets" (Tov et al. 2021), and w_i = w_avg + f_0(image) with a
    "single" head.

    Attributes:
        config: its sizes.
        w_avg: where codes start, [K, w_dim]; zeros when they do not start from the mean of W.

    Example:
        >>> config = EncoderConfig("offsets", "small", 8, 64, input_size=(32, 32), image_channels=1)
        >>> tuple(Encoder(config).eval()(torch.zeros(2, 1, 32, 32)).shape)
        (2, 8, 64)
    """

    w_avg: Tensor

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.config = config
        self.register_buffer("w_avg", torch.zeros(config.num_ws, config.w_dim))
        self.backbone = build_backbone(config.backbone, in_channels=config.in_channels)
        widths = map_widths(config.backbone)
        width = widths[-1]
        self.pyramid = Pyramid(widths) if config.has_pyramid else None
        if config.heads == "single":
            self.heads = nn.ModuleList([PooledToStyle(width, config.w_dim)])
        else:
            sizes = map_sizes(config.backbone, config.input_size)[::-1]
            self.heads = nn.ModuleList(
                MapToStyle(width, config.w_dim, sizes[self._map_of(head)]) for head in range(config.num_heads)
            )

    def offsets(self, images: Tensor, *, stage: int | None = None) -> Tensor:
        """W+ codes without `w_avg`, [N, K, w_dim]; what ReStyle adds to the code before.

        Args:
            images: [N, C, h, w] in [-1, 1], h x w the configured input size; of an iterative encoder
                [N, 2C, h, w], the image and then the reconstruction.
            stage: how many heads after the first add their offsets, 0 to K - 1; None for all. Only "offsets"
                heads have stages; others ignore it.

        Raises:
            ShapeError: the images have another size or number of channels.
            ConfigError: the stage is negative.
        """
        self._check(images)
        if stage is not None and stage < 0:
            raise ConfigError(f"stage is {stage}; wanted 0 (all rows equal) to {self.config.num_ws - 1}, or None")
        maps = self.backbone(images)[-3:]
        if self.config.heads == "single":
            w: Tensor = self.heads[0](maps[-1])
            return w[:, None].expand(-1, self.config.num_ws, -1)
        last = self.config.num_ws - 1
        if self.config.heads == "offsets" and stage is not None:
            last = min(stage, last)
        # Only what the active heads read is computed.
        maps = [maps[-1]] if self.pyramid is None else self.pyramid(*maps, num_maps=self._map_of(last) + 1)
        rows = [self.heads[head](maps[self._map_of(head)]) for head in range(last + 1)]
        if self.config.heads == "offsets":
            rows = [rows[0], *(rows[0] + row for row in rows[1:])]
            rows += [rows[0]] * (self.config.num_ws - len(rows))
        return torch.stack(rows, dim=1)

    def forward(self, images: Tensor, *, stage: int | None = None) -> Tensor:
        """W+ codes [N, K, w_dim] of images: `w_avg` plus the offsets; see `offsets`."""
        return self.w_avg + self.offsets(images, stage=stage)

    def _map_of(self, head: int) -> int:
        return map_of_head(head) if self.config.has_pyramid else 0

    def _check(self, images: Tensor) -> None:
        wanted = (self.config.in_channels, *self.config.input_size)
        if images.ndim != 4 or tuple(images.shape[1:]) != wanted:
            pair = " (an image and its reconstruction)" if self.config.is_iterative else ""
            raise ShapeError(
                f"images are {list(images.shape)}; this encoder reads [N, {', '.join(map(str, wanted))}]{pair}: "
                "bring them to that size with `comparison_view`, or choose the encoder of their generator"
            )
