"""Where HFGI's conditions enter a generator, and how its images are looked at for them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch.nn.functional as F
from torch import Tensor

from lsap_core.errors import ConfigError
from lsap_core.generators.config import GeneratorConfig
from lsap_core.generators.generator import FeatureState
from lsap_core.images import ContentBox, comparison_size, crop

CONDITION_STRIDE = 4
"""The consultation encoder halves twice."""
LARGEST_VIEW = 1024


@dataclass(frozen=True)
class Fusion:
    """The convolution whose output f becomes f (1 + scale) + shift, and the part of it that carries the picture.

    A generator of longer side R whose picture has the longer side L is looked at with v pixels there: v = L up to 256,
    and 256 above. The conditions have v / 4, so that they belong to the features of longer side s = R v / (4 L): in the
    published setting of 256-pixel views the convolution that doubles to 64, for every R from 64 on; s = 8 for whole
    images of 32 pixels. The features whose longer side is nearest to this s, as a ratio, are taken.

    Outside the content box features stay as they are; within it (rounded outward to whole features) lie the conditions,
    interpolated where they have another size.

    Attributes:
        conv: index of the convolution, the first one of its side.
        channels: of its output.
        box: (top, bottom, left, right) of the features that carry the picture.
        size: height and width of its output.
        view_size: height and width in which images are looked at.
        content_box: of the images.
    """

    conv: int
    channels: int
    box: ContentBox
    size: tuple[int, int]
    view_size: tuple[int, int]
    content_box: ContentBox | None = None

    @classmethod
    def of(cls, config: GeneratorConfig, *, view_side: int | None = None) -> Fusion:
        """The fusion in a generator.

        Args:
            config: of the generator.
            view_side: longer side v of the view, or None for min(L, 256). Published networks want 256 also for
                smaller images, which are then enlarged.

        Raises:
            ConfigError: no view has such a side.

        Example:
            >>> faces = Fusion.of(GeneratorConfig.config_f(1024))
            >>> faces.conv, faces.size, faces.channels
            (7, (64, 64), 512)
            >>> cars = Fusion.of(GeneratorConfig.config_f(512, content_box=(64, 448, 0, 512)))
            >>> cars.view_size, cars.size, cars.box
            ((192, 256), (64, 64), (8, 56, 0, 64))
        """
        check_view_side(view_side)
        height, width = config.content_size
        longest = max(height, width)
        view_size = comparison_size(height, width)
        if view_side is not None:
            view_size = (max(height * view_side // longest, 1), max(width * view_side // longest, 1))
        exact = config.resolution * max(view_size) / (CONDITION_STRIDE * longest)
        sizes = config.noise_sizes
        conv = min(range(len(sizes)), key=lambda conv: abs(math.log2(max(sizes[conv]) / exact)))
        size = sizes[conv]
        shrunk = config.resolution // max(size)
        top, bottom, left, right = config.content_box or (0, config.size[0], 0, config.size[1])
        box = (top // shrunk, -(-bottom // shrunk), left // shrunk, -(-right // shrunk))
        return cls(conv, config.conv_out_channels(conv), box, size, view_size, config.content_box)

    def view(self, images: Tensor, *, antialias: bool = False) -> Tensor:
        """The content of images [N, C, H, W], clamped to [-1, 1], bilinearly at the view's size: [N, C, h, w].

        Published code does not antialias when it reduces what the generator made. It reads photos from files that were
        reduced with antialiasing.
        """
        content = crop(images, self.content_box).clamp(-1, 1)
        if content.shape[-2:] == self.view_size:
            return content
        return F.interpolate(content, self.view_size, mode="bilinear", align_corners=False, antialias=antialias)

    def pooled(self, images: Tensor) -> Tensor:
        """The content of images [N, C, H, W], averaged to the view's size, unclamped: what losses look at."""
        content = crop(images, self.content_box)
        return content if content.shape[-2:] == self.view_size else F.interpolate(content, self.view_size, mode="area")

    def enter(self, state: FeatureState, scale: Tensor, shift: Tensor) -> FeatureState:
        """Where synthesis stands with conditions [N, channels, h, w], of a state after `conv`."""
        features = state.features * (1 + self._placed(scale)) + self._placed(shift)
        return replace(state, features=features)

    def _placed(self, condition: Tensor) -> Tensor:
        """A condition over all features, [N, channels, *size], 0 outside the box."""
        top, bottom, left, right = self.box
        inside, (height, width) = (bottom - top, right - left), self.size
        if condition.shape[-2:] != inside:
            condition = F.interpolate(condition, inside, mode="bilinear", align_corners=False)
        return F.pad(condition, (left, width - right, top, height - bottom))


def check_view_side(view_side: int | None) -> None:
    """Refuse views that nobody can want.

    Raises:
        ConfigError: another side than 4 to 1024 pixels.
    """
    if view_side is not None and not CONDITION_STRIDE <= view_side <= LARGEST_VIEW:
        raise ConfigError(
            f"view_side is {view_side}; wanted {CONDITION_STRIDE} to {LARGEST_VIEW} pixels, or none for the picture's"
        )
