"""Which errors a latent space would leave in an image: the predictor of SAM, and what is handed over with it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lsap_core.errors import ConfigError, ShapeError
from lsap_core.generators.config import GeneratorConfig
from lsap_core.images import IMAGE_CHANNELS, as_rgb
from lsap_core.refinement.sam_deeplab import DeepLab
from lsap_core.refinement.sam_spaces import W_PLUS, Placement, space_names

BaseName = Literal["deeplab", "small"]
Segment = Callable[[Tensor], Tensor]
"""Labels [N, h, w], integers, of the segments of images [N, C, h, w] in [-1, 1]."""

NUM_FEATURES = 8
FIRST_ERROR = 0.5
MOST_SPACES = 16
SMALL_WIDTHS = (16, 32, 48)


class ErrorPredictor(Protocol):
    """A network that foretells how well each latent space can invert each part of an image."""

    @property
    def spaces(self) -> tuple[str, ...]:
        """The names of the latent spaces that it knows."""
        ...

    def __call__(self, images: Tensor) -> Tensor:
        """Predicted errors [N, spaces, h, w] of images [N, C, h, w] in [-1, 1]."""
        ...


@dataclass(frozen=True)
class PredictorConfig:
    """Sizes of one predictor.

    Attributes:
        base: "deeplab" (published) or "small" (small domains).
        spaces: names of the latent spaces, a head for each.
        image_channels: of the images it reads, 1, 3 or 4; "deeplab" sees them as colours.

    Raises:
        ConfigError: a name is not known, or images have other channels.
    """

    base: BaseName
    spaces: tuple[str, ...]
    image_channels: int = 3

    def __post_init__(self) -> None:
        """Refuse what no predictor can have."""
        if self.base not in get_args(BaseName):
            raise ConfigError(f'base is "{self.base}"; wanted "deeplab" or "small"')
        is_known = all(isinstance(name, str) and re.fullmatch(r"W\+|F[1-9]\d?", name) for name in self.spaces)
        if not is_known or not 1 <= len(self.spaces) == len(set(self.spaces)) <= MOST_SPACES:
            raise ConfigError(
                f"spaces are {list(self.spaces)[:MOST_SPACES]}; wanted names as {W_PLUS} or F4, each once"
            )
        if self.image_channels not in IMAGE_CHANNELS:
            raise ConfigError(f"image_channels is {self.image_channels}; wanted 1, 3 or 4")

    @classmethod
    def for_generator(
        cls, config: GeneratorConfig, *, base: BaseName, placement: Placement = "block"
    ) -> PredictorConfig:
        """A predictor for all latent spaces of a generator.

        Example:
            >>> PredictorConfig.for_generator(GeneratorConfig.config_f(1024), base="deeplab").spaces
            ('W+', 'F4', 'F6', 'F8', 'F10')
        """
        return cls(base, space_names(config, placement), config.image_channels)

    def to_dict(self) -> dict[str, Any]:
        """The sizes as plain values, for JSON."""
        return {**asdict(self), "spaces": list(self.spaces)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> PredictorConfig:
        """The inverse of `to_dict`, also after a round through JSON."""
        return cls(**{**values, "spaces": tuple(values["spaces"])})


class LayerHead(nn.Module):
    """Features [N, 8, h, w] -> the errors of one latent space, [N, 1, h, w], at least 0.

    A new head starts at errors of about 0.5: one that started below 0 everywhere would have no gradient.
    """

    def __init__(self) -> None:
        super().__init__()
        self.m = nn.Sequential(
            nn.ConvTranspose2d(NUM_FEATURES, NUM_FEATURES // 2, 3, padding=1),
            nn.BatchNorm2d(NUM_FEATURES // 2),
            nn.LeakyReLU(0.2),
            nn.ConvTranspose2d(NUM_FEATURES // 2, 1, 1),
        )
        nn.init.constant_(self.get_parameter("m.3.bias"), FIRST_ERROR)

    def forward(self, features: Tensor) -> Tensor:
        """Predicted errors, in units of LPIPS."""
        return F.relu(self.m(features))


class SmallBase(nn.Module):
    """Images [N, C, h, w] of any size -> features [N, 8, h, w]: convolutions at full, half and quarter size."""

    def __init__(self, image_channels: int):
        super().__init__()
        widths = (image_channels, *SMALL_WIDTHS)
        self.convs = nn.ModuleList(
            nn.Conv2d(widths[i], width, 3, stride=1 if i == 0 else 2, padding=1, bias=False)
            for i, width in enumerate(SMALL_WIDTHS)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in SMALL_WIDTHS)
        self.mix = nn.Conv2d(sum(SMALL_WIDTHS), SMALL_WIDTHS[1], 3, padding=1, bias=False)
        self.mix_norm = nn.BatchNorm2d(SMALL_WIDTHS[1])
        self.last = nn.Conv2d(SMALL_WIDTHS[1], NUM_FEATURES, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Features of every pixel."""
        hidden, maps = images, []
        for conv, norm in zip(self.convs, self.norms, strict=True):
            hidden = F.relu(norm(conv(hidden)))
            maps.append(hidden)
        size = images.shape[2:]
        raised = [F.interpolate(each, size, mode="bilinear", align_corners=False) for each in maps[1:]]
        features: Tensor = self.last(F.relu(self.mix_norm(self.mix(torch.cat([maps[0], *raised], dim=1)))))
        return features


class InvertibilityPredictor(nn.Module):
    """The error map that an inversion in each latent space alone would leave (Parmar et al. 2022, section 3).

    The error is LPIPS (VGG) at every pixel. Trained on images of 256 pixels, it is asked at full size.

    Example:
        >>> predictor = InvertibilityPredictor(PredictorConfig("small", ("W+", "F2", "F4"), image_channels=1))
        >>> tuple(predictor(torch.zeros(2, 1, 24, 32)).shape)
        (2, 3, 24, 32)
    """

    def __init__(self, config: PredictorConfig):
        super().__init__()
        self.config = config
        self.base: nn.Module = DeepLab(NUM_FEATURES) if config.base == "deeplab" else SmallBase(config.image_channels)
        self.heads = nn.ModuleDict({name: LayerHead() for name in config.spaces})

    @property
    def spaces(self) -> tuple[str, ...]:
        """The names of the latent spaces, in the order of its errors."""
        return self.config.spaces

    def forward(self, images: Tensor) -> Tensor:
        """Predicted errors [N, spaces, h, w], at least 0, of images [N, C, h, w] in [-1, 1].

        Raises:
            ShapeError: the images have other channels.
        """
        if images.ndim != 4 or images.shape[1] != self.config.image_channels:
            raise ShapeError(f"images are {list(images.shape)}; wanted [N, {self.config.image_channels}, h, w]")
        features = self.base(as_rgb(images) if self.config.base == "deeplab" else images)
        return torch.cat([self.heads[name](features) for name in self.spaces], dim=1)


class SamNetworks(nn.Module):
    """What SAM asks about images: how well spaces invert them, and what their segments are; frozen, in eval mode."""

    def __init__(self, predictor: InvertibilityPredictor, segmenter: Segment | None = None):
        """Takes a network or any function as segmenter, or none, where segments are given to the refiner's `start`."""
        super().__init__()
        self.predictor = predictor
        self.segmenter = segmenter
        self.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> SamNetworks:
        """The networks stay in eval mode: in training mode what an image gets depends on its neighbours."""
        super().train(False)
        return self
