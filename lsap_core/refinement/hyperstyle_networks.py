"""The hypernetwork of HyperStyle: an image and its reconstruction -> relative offsets of the generator's weights.

Alaluf et al. 2022 (HyperStyle), section 3.3. Layers of the generator are counted in execution order over
convolutions and ToRGB layers: convolution 0, ToRGB 0, convolutions 1 and 2, ToRGB 1, ...
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from lsap_core.encoders.backbone import ResNet34Trunk
from lsap_core.errors import ConfigError, ShapeError
from lsap_core.generators.config import GeneratorConfig
from lsap_core.generators.generator import conv_position, to_rgb_position
from lsap_core.generators.layers import EqualizedLinear
from lsap_core.images import comparison_size
from lsap_core.perceptual.ir_se import IrSeSizes, IrSeTrunk

HyperBackbone = Literal["resnet_34", "resnet_34_separable", "small"]

LEAKY_SLOPE = 0.01
SHARED_DEVIATION = 1 / 40
FIRST_MEDIUM_CONV = 3
KERNEL_SIDE = 3
SHARED_STRIDES = (1, 2, 2, 2, 2)
CONV_STRIDES = (2, 2, 2)
LONG_STRIDES = (2, 2, 2, 2)
"""Of heads of ToRGB layers, and of separable ones."""


@dataclass(frozen=True)
class HyperSizes:
    """Widths of a hypernetwork.

    Attributes:
        features: channels of the map that all heads read.
        shared_inner: channels inside a head of a layer that shares its last step with others.
        own_inner: channels inside a head with a last step of its own.
        code: of a layer, from which its offsets are made.
        kernel_side: 3 where shared layers have an offset for each of the nine kernel positions, 1 where one serves all.
        is_separable: whether the other convolutions have nine offsets too, as outer products of two vectors each.
        starts_at_zero: whether a new network changes nothing, so that its training begins at the embedding's images.
    """

    features: int
    shared_inner: int
    own_inner: int
    code: int
    kernel_side: int
    is_separable: bool = False
    starts_at_zero: bool = False


_RESNET_34 = HyperSizes(512, shared_inner=128, own_inner=256, code=512, kernel_side=3)
SIZES: dict[HyperBackbone, HyperSizes] = {
    "resnet_34": _RESNET_34,
    "resnet_34_separable": replace(_RESNET_34, is_separable=True),
    "small": HyperSizes(24, shared_inner=12, own_inner=12, code=16, kernel_side=1, starts_at_zero=True),
}
SMALL_TRUNK = IrSeSizes(8, (12, 16, 24), (1, 1, 1))


@dataclass(frozen=True)
class TunedLayer:
    """A layer of the generator whose weights are changed.

    Attributes:
        index: in execution order.
        name: of its weight among the parameters of synthesis.
        out_channels: of the weight, [out, in, k, k].
        in_channels: of the weight.
        is_to_rgb: whether it is a ToRGB layer, with k = 1.
    """

    index: int
    name: str
    out_channels: int
    in_channels: int
    is_to_rgb: bool


@dataclass(frozen=True)
class HyperStyleConfig:
    """Sizes of one hypernetwork.

    Attributes:
        generator: whose weights it changes.
        layers: which of them, in execution order.
        backbone: "resnet_34" (published), "resnet_34_separable" (its ablation) or "small" (small domains).
        input_size: height and width of the images that it reads.

    Raises:
        ConfigError: a name is not known, or the generator has no such layer.
    """

    generator: GeneratorConfig
    layers: tuple[int, ...]
    backbone: HyperBackbone
    input_size: tuple[int, int]

    def __post_init__(self) -> None:
        """Refuse what no hypernetwork can have."""
        if self.backbone not in get_args(HyperBackbone):
            raise ConfigError(f'backbone is "{self.backbone}"; wanted one of {", ".join(get_args(HyperBackbone))}')
        last = self.generator.num_convs + self.generator.num_to_rgbs - 1
        if not self.layers or list(self.layers) != sorted(set(self.layers) & set(range(last + 1))):
            raise ConfigError(f"layers are {self.layers}; wanted some of 0 to {last}, in order, each once")
        if len(self.input_size) != 2 or min(self.input_size) < 1:
            raise ConfigError(f"input_size is {self.input_size}; wanted height and width")

    @classmethod
    def for_generator(
        cls, config: GeneratorConfig, *, backbone: HyperBackbone = "resnet_34", layers: Sequence[int] | None = None
    ) -> HyperStyleConfig:
        """A hypernetwork for the images of a generator, as `comparison_view` shows them.

        Args:
            config: of the generator.
            backbone: "resnet_34", "resnet_34_separable" or "small".
            layers: which it changes; by default the medium and fine convolutions, those from the second of side 8 on.

        Example:
            >>> HyperStyleConfig.for_generator(GeneratorConfig.config_f(64)).layers
            (5, 6, 8, 9, 11, 12)
        """
        if layers is None:
            layers = [conv_position(conv) for conv in range(FIRST_MEDIUM_CONV, config.num_convs)]
        return cls(config, tuple(layers), backbone, comparison_size(*config.content_size))

    @property
    def tuned_layers(self) -> tuple[TunedLayer, ...]:
        """What is known of each layer that it changes."""
        generator = self.generator
        found = {
            conv_position(conv): TunedLayer(
                conv_position(conv),
                f"convs.{conv}.weight",
                generator.conv_out_channels(conv),
                generator.conv_in_channels(conv),
                is_to_rgb=False,
            )
            for conv in range(generator.num_convs)
        }
        for to_rgb in range(generator.num_to_rgbs):
            index, width = to_rgb_position(to_rgb), generator.to_rgb_channels(to_rgb)
            name = f"to_rgbs.{to_rgb}.weight"
            found[index] = TunedLayer(index, name, generator.image_channels, width, is_to_rgb=True)
        return tuple(found[index] for index in self.layers)

    @property
    def shared_layers(self) -> tuple[TunedLayer, ...]:
        """Those whose offsets come from shared matrices: square convolutions of the generator's first width."""
        width = self.generator.channels[0]
        return tuple(
            layer
            for layer in self.tuned_layers
            if not layer.is_to_rgb and layer.in_channels == layer.out_channels == width
        )

    def offset_shape(self, layer: TunedLayer) -> tuple[int, int, int, int]:
        """Shape of a layer's offsets, [out, in, k, k]; k is 1 where one number serves the whole kernel."""
        sizes, side = SIZES[self.backbone], 1
        if layer in self.shared_layers:
            side = sizes.kernel_side
        elif sizes.is_separable and not layer.is_to_rgb:
            side = KERNEL_SIDE
        return (layer.out_channels, layer.in_channels, side, side)

    def to_dict(self) -> dict[str, Any]:
        """The sizes as plain values, for JSON."""
        return {**asdict(self), "generator": self.generator.to_dict()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> HyperStyleConfig:
        """The inverse of `to_dict`, also after a round through JSON."""
        generator = GeneratorConfig.from_dict(values["generator"])
        return cls(generator, tuple(values["layers"]), values["backbone"], tuple(values["input_size"]))


class SharedMatrices(nn.Module):
    """Two matrices that make a layer's offsets of its code c: M = c W2 + b2 as [in, code], then M W1 + b1.

    The result is read as [out, in, k, k] without transposing, as published; only square layers use it.
    """

    def __init__(self, code: int, *, in_channels: int, out_channels: int, kernel_side: int):
        super().__init__()
        self.shape = (out_channels, in_channels, kernel_side, kernel_side)
        self.w1 = nn.Parameter(torch.randn(code, out_channels * kernel_side**2) * SHARED_DEVIATION)
        self.b1 = nn.Parameter(torch.randn(out_channels * kernel_side**2) * SHARED_DEVIATION)
        self.w2 = nn.Parameter(torch.randn(code, in_channels * code) * SHARED_DEVIATION)
        self.b2 = nn.Parameter(torch.randn(in_channels * code) * SHARED_DEVIATION)

    def forward(self, codes: Tensor) -> Tensor:
        """Codes [N, code] -> offsets [N, out, in, k, k]."""
        middle = (codes @ self.w2 + self.b2).unflatten(1, (self.shape[1], -1))  # [N, in, code]
        offsets: Tensor = (middle @ self.w1 + self.b1).reshape(len(codes), *self.shape)
        return offsets


class CodeHead(nn.Module):
    """Features -> the code of a layer whose offsets come from the shared matrices."""

    def __init__(self, sizes: HyperSizes):
        super().__init__()
        self.convs = _convs((sizes.features, sizes.shared_inner, sizes.code), SHARED_STRIDES)
        self.linear = EqualizedLinear(sizes.code, sizes.code)

    def forward(self, features: Tensor) -> Tensor:
        """[N, C, h, w] -> [N, code]."""
        code: Tensor = self.linear(self.convs(features).mean(dim=(2, 3)))
        return code


class SeparableOffsets(nn.Module):
    """The code of a layer -> offsets that are outer products of two vectors for each position of the kernel, mixed.

    With u and v made of the code, [N, 3, 3, in] and [N, 3, 3, out], the offsets are A_out (v u^T) A_in^T + biases at
    each position, where A_in and A_out are the same for all positions.
    """

    def __init__(self, layer: TunedLayer, code: int):
        super().__init__()
        self.kernel = (KERNEL_SIDE, KERNEL_SIDE)
        self.make_kernel_in = nn.Linear(code, KERNEL_SIDE**2 * layer.in_channels)
        self.make_kernel_out = nn.Linear(code, KERNEL_SIDE**2 * layer.out_channels)
        self.kernel_linear_in = nn.Linear(layer.in_channels, layer.in_channels)
        self.kernel_linear_out = nn.Linear(layer.out_channels, layer.out_channels)

    def forward(self, codes: Tensor) -> Tensor:
        """[N, code, 1, 1] -> [N, out, in, 3, 3]."""
        codes = codes.flatten(1)
        of_in = self.make_kernel_in(codes).unflatten(1, (*self.kernel, 1, -1))  # [N, 3, 3, 1, in]
        of_out = self.make_kernel_out(codes).unflatten(1, (*self.kernel, -1, 1))  # [N, 3, 3, out, 1]
        mixed = self.kernel_linear_in(of_out * of_in)  # [N, 3, 3, out, in]
        offsets: Tensor = self.kernel_linear_out(mixed.transpose(3, 4))  # [N, 3, 3, in, out]
        return offsets.permute(0, 4, 3, 1, 2)


class OffsetHead(nn.Module):
    """Features -> the offsets of a layer: one number for each pair of channels, or nine where they are separable."""

    def __init__(self, layer: TunedLayer, sizes: HyperSizes):
        super().__init__()
        is_separable = sizes.is_separable and not layer.is_to_rgb
        strides = LONG_STRIDES if layer.is_to_rgb or is_separable else CONV_STRIDES
        side = KERNEL_SIDE if is_separable else 1
        self.shape = (layer.out_channels, layer.in_channels, side, side)
        self.convs = _convs((sizes.features, sizes.own_inner, sizes.code), strides)
        self.output: nn.Module
        if is_separable:
            self.output = SeparableOffsets(layer, sizes.code)
        else:
            self.output = nn.Conv2d(sizes.code, layer.out_channels * layer.in_channels, 1)

    def forward(self, features: Tensor) -> Tensor:
        """[N, C, h, w] -> [N, out, in, k, k], k = 1 or 3."""
        offsets: Tensor = self.output(self.convs(features).mean(dim=(2, 3), keepdim=True))
        return offsets.reshape(-1, *self.shape)


class HyperNetwork(nn.Module):
    """An image and its reconstruction -> relative offsets of the weights of chosen layers.

    Example:
        >>> config = GeneratorConfig(32, (16, 16, 8, 8), image_channels=1)
        >>> network = HyperNetwork(HyperStyleConfig.for_generator(config, backbone="small")).eval()
        >>> {index: tuple(offsets.shape) for index, offsets in network(torch.zeros(2, 2, 32, 32)).items()}
        {5: (2, 8, 16, 1, 1), 6: (2, 8, 8, 1, 1), 8: (2, 8, 8, 1, 1), 9: (2, 8, 8, 1, 1)}
    """

    def __init__(self, config: HyperStyleConfig):
        super().__init__()
        self.config = config
        sizes, in_channels = SIZES[config.backbone], 2 * config.generator.image_channels
        self.backbone: ResNet34Trunk | IrSeTrunk
        if config.backbone == "small":
            self.backbone = IrSeTrunk(SMALL_TRUNK, in_channels=in_channels)
        else:
            self.backbone = ResNet34Trunk(in_channels=in_channels)
        self.heads = nn.ModuleDict(
            {
                str(layer.index): CodeHead(sizes) if layer in config.shared_layers else OffsetHead(layer, sizes)
                for layer in config.tuned_layers
            }
        )
        self.shared: SharedMatrices | None = None
        if config.shared_layers:
            width = config.generator.channels[0]
            self.shared = SharedMatrices(
                sizes.code, in_channels=width, out_channels=width, kernel_side=sizes.kernel_side
            )

        if sizes.starts_at_zero:
            last_steps = [head.output for head in self.heads.values() if isinstance(head, OffsetHead)]
            for parameter in (parameter for layer in last_steps for parameter in layer.parameters()):
                nn.init.zeros_(parameter)
            if self.shared is not None:
                nn.init.zeros_(self.shared.w1)
                nn.init.zeros_(self.shared.b1)

    def features(self, images: Tensor) -> Tensor:
        """The map that all heads read, [N, C, h / 16, w / 16] (small: / 8), of images as in `forward`.

        Raises:
            ShapeError: the images have another size or number of channels.
        """
        wanted = (2 * self.config.generator.image_channels, *self.config.input_size)
        if images.ndim != 4 or tuple(images.shape[1:]) != wanted:
            raise ShapeError(
                f"images are {list(images.shape)}; this hypernetwork reads [N, {', '.join(map(str, wanted))}], an "
                "image and its reconstruction"
            )
        maps: list[Tensor] = self.backbone(images)
        return maps[-1]

    def forward(self, images: Tensor) -> dict[int, Tensor]:
        """Offsets of each layer by its index, [N, out, in, k, k], of pairs of images [N, 2C, h, w] in about [-1, 1].

        Raises:
            ShapeError: the images have another size or number of channels.
        """
        features = self.features(images)
        found: dict[int, Tensor] = {int(index): head(features) for index, head in self.heads.items()}
        if self.shared is not None:  # one product for all layers: the matrices are what costs
            indices = [layer.index for layer in self.config.shared_layers]
            codes = torch.cat([found[index] for index in indices])
            offsets = self.shared(codes).unflatten(0, (len(indices), -1))
            found |= dict(zip(indices, offsets.unbind(0), strict=True))
        return found


def _convs(widths: tuple[int, int, int], strides: Sequence[int]) -> nn.Sequential:
    """3x3 convolutions, each with leaky ReLU, from the first width over the second to the third."""
    first, inner, last = widths
    channels = [first, *[inner] * (len(strides) - 1), last]
    layers: list[nn.Module] = []
    for index, stride in enumerate(strides):
        conv = nn.Conv2d(channels[index], channels[index + 1], 3, stride=stride, padding=1)
        layers += [conv, nn.LeakyReLU(LEAKY_SLOPE)]
    return nn.Sequential(*layers)
