"""The networks of StyleFeatureEditor: Inverter (backbone, heads, content layer, Fuser) and Feature Editor.

Bobkov et al., "The Devil is in the Details: StyleFeatureEditor for Detail-Rich StyleGAN Inversion and High Quality
Image Editing", CVPR 2024. Layers carry the names of the released weights.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lsap_core.errors import ConfigError, ShapeError
from lsap_core.generators.config import PUBLISHED_CONSTANT, GeneratorConfig
from lsap_core.images import COMPARISON_SIDE

SfeBackbone = Literal["iresnet_50", "small"]

REDUCTION = 4
"""The feature map has a quarter of the side of the image that the backbone reads: 64 of 256."""
SMALLEST_SIDE = 4
MOST_ROWS = 64


@dataclass(frozen=True)
class SfeSizes:
    """What the name of a backbone stands for.

    Attributes:
        stem: channels after the first convolution.
        widths: channels of the four stages.
        units: residual units of each.
        pooled_side: side to which every stage is pooled for the heads.
        hidden: channels between the two convolutions of content layer, Fuser and Feature Editor; None for those of the
            feature map.
        num_layers: the first convolution and the residual blocks of Fuser and Feature Editor.
    """

    stem: int
    widths: tuple[int, int, int, int]
    units: tuple[int, int, int, int]
    pooled_side: int
    hidden: int | None
    num_layers: int


SIZES: dict[SfeBackbone, SfeSizes] = {
    "iresnet_50": SfeSizes(64, (64, 128, 256, 512), (3, 4, 14, 3), pooled_side=3, hidden=None, num_layers=6),
    "small": SfeSizes(8, (8, 8, 16, 16), (1, 1, 2, 1), pooled_side=2, hidden=16, num_layers=2),
}
STRIDES = (2, 2, 1, 2)


@dataclass(frozen=True)
class SfeConfig:
    """Sizes of Inverter and Feature Editor, most of them their generator's.

    Attributes:
        backbone: "iresnet_50" (published) or "small" (small domains).
        num_ws: rows K of a W+ code.
        w_dim: width of W.
        image_channels: 1, 3 or 4.
        input_side: side of the images it reads.
        feature_channels: channels of the generator at a quarter of that side.
        has_editor: whether there is a Feature Editor; the first phase of training makes none.
        shift_channels: channels at half of that side, where Delta is taken there (the paper's cars), or None.

    Raises:
        ConfigError: a name is not known or a size is impossible.
    """

    backbone: SfeBackbone
    num_ws: int
    w_dim: int
    image_channels: int
    input_side: int
    feature_channels: int
    has_editor: bool = True
    shift_channels: int | None = None

    def __post_init__(self) -> None:
        """Refuse what no network can have."""
        if self.backbone not in get_args(SfeBackbone):
            wanted = ", ".join(f'"{known}"' for known in get_args(SfeBackbone))
            raise ConfigError(f'backbone is "{self.backbone}"; wanted one of {wanted}')
        finer = 1 if self.shift_channels is None else self.shift_channels
        sizes = (self.num_ws, self.w_dim, self.image_channels, self.input_side, self.feature_channels, finer)
        if not all(isinstance(size, int) and size >= 1 for size in sizes) or self.num_ws > MOST_ROWS:
            raise ConfigError(f"every size must be a whole number, at least 1, and num_ws at most {MOST_ROWS}: {self}")
        if self.input_side % REDUCTION or self.feature_side & (self.feature_side - 1) or self.feature_side < 4:
            raise ConfigError(
                f"input_side is {self.input_side}; wanted a power of two, at least {REDUCTION * SMALLEST_SIDE}: "
                "a quarter of it is a side of the generator's feature maps"
            )

    @classmethod
    def for_generator(
        cls, config: GeneratorConfig, *, backbone: SfeBackbone, has_editor: bool = True, has_finer_shift: bool = False
    ) -> SfeConfig:
        """Networks for the images of a generator: the whole square, at most 256 pixels.

        The square is read also where the picture fills a part of it, so that the map lies over the generator's.

        Raises:
            ConfigError: the generator has no such feature map, or no block that reads it.

        Example:
            >>> SfeConfig.for_generator(GeneratorConfig.config_f(1024), backbone="iresnet_50").feature_side
            64
        """
        side, channels = feature_size(config)
        return cls(
            backbone=backbone,
            num_ws=config.num_ws,
            w_dim=config.w_dim,
            image_channels=config.image_channels,
            input_side=REDUCTION * side,
            feature_channels=channels,
            has_editor=has_editor,
            shift_channels=config.channels[(side // SMALLEST_SIDE).bit_length()] if has_finer_shift else None,
        )

    @property
    def feature_side(self) -> int:
        """Side of the feature map."""
        return self.input_side // REDUCTION

    @property
    def sizes(self) -> SfeSizes:
        """What the name of the backbone stands for."""
        return SIZES[self.backbone]

    def to_dict(self) -> dict[str, Any]:
        """The sizes as plain values, for JSON."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> SfeConfig:
        """The inverse of `to_dict`, also after a round through JSON."""
        return cls(**values)


def feature_size(config: GeneratorConfig) -> tuple[int, int]:
    """Side and channels of the feature map that is edited in a generator: a quarter of the side that is looked at.

    Raises:
        ConfigError: the generator is too small to have it, or does not make squares from a constant of 4 x 4.
    """
    if config.constant != PUBLISHED_CONSTANT:
        raise ConfigError(
            f"StyleFeatureEditor is for generators that make squares from a constant of 4 x 4; this one makes "
            f"{config.shown_size} pixels from one of {config.constant[0]} x {config.constant[1]}: take another refiner"
        )
    side = min(config.resolution, COMPARISON_SIDE) // REDUCTION
    if side < SMALLEST_SIDE:
        raise ConfigError(
            f"a generator of {config.resolution} pixels has no feature map of side {side}: StyleFeatureEditor needs at "
            f"least {REDUCTION * SMALLEST_SIDE} pixels"
        )
    return side, config.channels[(side // SMALLEST_SIDE).bit_length() - 1]


def sfe_misfit(found: SfeConfig, generator: GeneratorConfig) -> str | None:
    """Why networks cannot be those of a generator, in a sentence; None where they can."""
    has_finer_shift = found.shift_channels is not None
    wanted = SfeConfig.for_generator(generator, backbone=found.backbone, has_finer_shift=has_finer_shift)
    for name in ("num_ws", "w_dim", "image_channels", "input_side", "feature_channels", "shift_channels"):
        if getattr(found, name) != getattr(wanted, name):
            return (
                f"{name} of the networks of StyleFeatureEditor is {getattr(found, name)}; their generator wants "
                f"{getattr(wanted, name)}: pass the generator that they were trained with, or other networks"
            )
    return None


class IResNetUnit(nn.Module):
    """y = BN conv PReLU BN conv BN x + shortcut(x), without an activation after the sum (ArcFace, Deng et al. 2019)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, *, is_first: bool):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.prelu = nn.PReLU(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.downsample = (
            nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False), nn.BatchNorm2d(out_channels)
            )
            if is_first
            else None
        )

    def forward(self, features: Tensor) -> Tensor:
        """[N, in, H, W] -> [N, out, H / stride, W / stride]."""
        shortcut: Tensor = features if self.downsample is None else self.downsample(features)
        main: Tensor = self.conv1(self.bn1(features))
        main = self.bn3(self.conv2(self.prelu(self.bn2(main))))
        return main + shortcut


class SfeBackboneNetwork(nn.Module):
    """Images -> what is added to the mean code, and a feature map: IResNet whose third stage keeps the side.

    Every stage is pooled; all of them together are read by one linear head for each row of W+. The content layer reads
    the third stage.
    """

    def __init__(self, config: SfeConfig):
        super().__init__()
        sizes = config.sizes
        self.pooled_side = sizes.pooled_side
        self.conv = nn.Sequential(
            nn.Conv2d(config.image_channels, sizes.stem, 3, padding=1, bias=False),
            nn.BatchNorm2d(sizes.stem),
            nn.PReLU(sizes.stem),
        )
        befores = (sizes.stem, *sizes.widths)
        stages = [
            nn.Sequential(
                *(
                    IResNetUnit(
                        befores[stage] if unit == 0 else width, width, stride if unit == 0 else 1, is_first=not unit
                    )
                    for unit in range(sizes.units[stage])
                )
            )
            for stage, (width, stride) in enumerate(zip(sizes.widths, STRIDES, strict=True))
        ]
        self.block_1, self.block_2, self.block_3, self.block_4 = stages
        width, channels = sizes.widths[2], config.feature_channels
        hidden = sizes.hidden or channels
        self.content_layer = nn.Sequential(*_two_convolutions(width, hidden, channels))
        pooled = sum(sizes.widths) * sizes.pooled_side**2
        self.styles = nn.ModuleList(nn.Linear(pooled, config.w_dim) for _ in range(config.num_ws))

    def stages(self, images: Tensor) -> list[Tensor]:
        """Maps of the four stages, at 1/2, 1/4, 1/4 and 1/8 of the images' side."""
        features, maps = self.conv(images), []
        for block in (self.block_1, self.block_2, self.block_3, self.block_4):
            features = block(features)
            maps.append(features)
        return maps

    def pooled(self, maps: list[Tensor]) -> Tensor:
        """What every head reads, [N, channels of all stages * positions], channel by channel."""
        return torch.cat([F.adaptive_avg_pool2d(one, self.pooled_side) for one in maps], dim=1).flatten(1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Offsets [N, K, w_dim], features [N, channels, side / 4, side / 4] of images [N, C, side, side] in [-1, 1]."""
        maps = self.stages(images)
        pooled = self.pooled(maps)
        return torch.stack([head(pooled) for head in self.styles], dim=1), self.content_layer(maps[2])


class FeatureEncoderBlock(nn.Module):
    """x + BN conv PReLU BN conv BN x."""

    def __init__(self, channels: int, *, hidden: int | None = None):
        super().__init__()
        self.body = nn.Sequential(*_two_convolutions(channels, hidden or channels, channels))

    def forward(self, features: Tensor) -> Tensor:
        """[N, C, H, W] -> the same shape."""
        output: Tensor = features + self.body(features)
        return output


class ContentLayerDeepFast(nn.Module):
    """Two feature maps, one after the other along channels -> one: the class of Fuser and Feature Editor.

    A 1 x 1 convolution, then `num_layers` - 1 residual blocks.

    Example:
        >>> tuple(ContentLayerDeepFast(2, 8, 4).eval()(torch.zeros(1, 8, 3, 3)).shape)
        (1, 4, 3, 3)
    """

    def __init__(self, num_layers: int, in_channels: int, out_channels: int, *, hidden: int | None = None):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 1)
        self.body = nn.Sequential(*(FeatureEncoderBlock(out_channels, hidden=hidden) for _ in range(num_layers - 1)))

    def forward(self, features: Tensor) -> Tensor:
        """[N, in, H, W] -> [N, out, H, W]."""
        output: Tensor = self.body(self.conv(features))
        return output


class Inverter(nn.Module):
    """The first stage of StyleFeatureEditor: backbone and Fuser; `sfe_features.invert` runs it with a generator."""

    def __init__(self, config: SfeConfig):
        super().__init__()
        self.fs_backbone: nn.Module = SfeBackboneNetwork(config)
        self.fuser = fusing_layers(config)


class SfeNetworks(nn.Module):
    """Inverter and Feature Editor of one generator.

    Attributes:
        config: their sizes.
        inverter: finds code and features of an image.
        editor: moves features when the code is edited, or None.
        reducer: brings Delta to the side of the map, where it is taken at twice the side, or None.
    """

    def __init__(self, config: SfeConfig):
        super().__init__()
        self.config = config
        self.inverter = Inverter(config)
        self.editor = fusing_layers(config) if config.has_editor else None
        finer, channels = config.shift_channels if config.has_editor else None, config.feature_channels
        self.reducer = None if finer is None else IResNetUnit(finer, channels, stride=2, is_first=True)

    def view(self, images: Tensor) -> Tensor:
        """What the backbone reads of images [N, C, R, R]: [N, C, side, side], bilinear without antialiasing.

        Of 1024 pixels that is the mean of the central 2 x 2 pixels of each 4 x 4: what the networks were trained on.

        Raises:
            ShapeError: the images have another number of channels, or are not square.
        """
        channels = self.config.image_channels
        if images.ndim != 4 or images.shape[1] != channels or images.shape[2] != images.shape[3]:
            raise ShapeError(f"images are {list(images.shape)}; these networks read [N, {channels}, R, R]")
        return reduced(images, self.config.input_side)


def reduced(images: Tensor, side: int) -> Tensor:
    """Square images at another side, bilinear without antialiasing; images of that side pass unchanged."""
    if images.shape[-1] == side:
        return images
    return F.interpolate(images, (side, side), mode="bilinear", align_corners=False)


def fusing_layers(config: SfeConfig) -> ContentLayerDeepFast:
    """A Fuser or a Feature Editor, with random weights."""
    channels = config.feature_channels
    return ContentLayerDeepFast(config.sizes.num_layers, 2 * channels, channels, hidden=config.sizes.hidden)


def _two_convolutions(in_channels: int, hidden: int, out_channels: int) -> list[nn.Module]:
    return [
        nn.BatchNorm2d(in_channels),
        nn.Conv2d(in_channels, hidden, 3, padding=1, bias=False),
        nn.BatchNorm2d(hidden),
        nn.PReLU(hidden),
        nn.Conv2d(hidden, out_channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
    ]
