"""3x3 convolutions by frozen weights, on a CPU by Winograd's minimal filtering where that is faster.

Winograd's algorithm (Lavin and Gray 2015) computes 6x6 outputs of a 3x3 filter by 64 products instead of 324. Torch
ships it in NNPACK and hardly ever takes it. From 64 channels and 32 pixels on it needs a third to all of the time of
the direct form (one thread, AVX2); below it loses. Its results differ from exact ones by about 5e-6, relatively, those
of the direct form by 1e-6.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEAST_CHANNELS, LEAST_SIDE = 64, 32
"""Of convolutions that Winograd's form is taken for."""

_HAS_NNPACK = bool(torch._nnpack_available())  # which also makes it ready: without having asked, its operator fails


def convolve_3x3(features: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A convolution of stride 1 and padding 1.

    Winograd's form is taken for weights without gradients, in float32 on a CPU. It sees one image at a time, so that
    what an image gets does not depend on its neighbours.

    Args:
        features: [N, in, H, W].
        weight: [out, in, 3, 3].
        bias: [out].

    Returns:
        [N, out, H, W].
    """
    if not _takes_winograd(features, weight, bias):
        return F.conv2d(features, weight, bias, padding=1)
    return _winograd(features, weight, bias)  # type: ignore[no-any-return]


def is_for_winograd(in_channels: int, out_channels: int, side: int) -> bool:
    """Whether Winograd's form is at hand, and the faster one for convolutions of such sizes on a CPU."""
    return _HAS_NNPACK and min(in_channels, out_channels) >= LEAST_CHANNELS and side >= LEAST_SIDE


class Convolution3x3(nn.Conv2d):
    """`nn.Conv2d` of side 3, stride 1 and padding 1 by `convolve_3x3`.

    Attributes:
        has_winograd: whether Winograd's form is for its channels; `fastest_layout` asks every layer that has one.
    """

    def __init__(self, in_channels: int, out_channels: int, *, bias: bool = True):
        super().__init__(in_channels, out_channels, 3, padding=1, bias=bias)
        self.has_winograd = is_for_winograd(in_channels, out_channels, LEAST_SIDE)

    def forward(self, input: Tensor) -> Tensor:
        """[N, in, H, W] -> [N, out, H, W]."""
        return convolve_3x3(input, self.weight, self.bias)


def with_winograd(network: nn.Module) -> nn.Module:
    """The network, whose 3x3 convolutions of stride 1 are those of `convolve_3x3` from now on; parameters stay."""
    for parent in list(network.modules()):
        for name, layer in parent.named_children():
            if type(layer) is nn.Conv2d and _is_plain_3x3(layer):
                other = Convolution3x3(layer.in_channels, layer.out_channels, bias=layer.bias is not None)
                other.weight, other.bias = layer.weight, layer.bias
                setattr(parent, name, other.train(layer.training))
    return network


def fastest_layout(network: nn.Module, device: torch.device) -> torch.memory_format:
    """How a network's weights, and with them its features, are to lie in memory.

    Channels last for convolutions in general; channels first on a CPU where Winograd's form has a part, which reads
    and writes them so.
    """
    has_part = device.type == "cpu" and any(getattr(layer, "has_winograd", False) for layer in network.modules())
    return torch.contiguous_format if has_part else torch.channels_last


def _is_plain_3x3(layer: nn.Conv2d) -> bool:
    found = layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.groups, layer.padding_mode
    return found == ((3, 3), (1, 1), (1, 1), (1, 1), 1, "zeros")


def _takes_winograd(features: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    return (
        is_for_winograd(weight.shape[1], weight.shape[0], min(features.shape[2:]))
        and features.device.type == "cpu"
        and features.dtype == weight.dtype == torch.float32
        and not weight.requires_grad
        and not (bias is not None and bias.requires_grad)
        and not torch.is_autocast_enabled("cpu")
    )


@torch.library.custom_op("lsap::winograd_3x3", mutates_args=())
def _winograd(features: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    images, weight = features.contiguous().split(1), weight.contiguous()
    convolved = [torch._nnpack_spatial_convolution(image, weight, bias, padding=(1, 1)) for image in images]
    return convolved[0] if len(convolved) == 1 else torch.cat(convolved)


@_winograd.register_fake
def _(features: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return features.new_empty(features.shape[0], weight.shape[0], *features.shape[2:])


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None], output: Tensor) -> None:
    ctx.save_for_backward(inputs[1])


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
    (weight,) = ctx.saved_tensors
    return convolve_3x3(gradient, weight.flip(2, 3).transpose(0, 1)), None, None


_winograd.register_autograd(_backward, setup_context=_keep)


@_winograd.register_vmap
def _(
    info: Any, in_dims: tuple[int | None, ...], features: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, int]:
    """Images of one more dimension; where each has weights of its own, the direct form, which has groups for that."""
    if in_dims[1] is None and in_dims[2] is None:
        images = features.movedim(cast(int, in_dims[0]), 0)
        return _winograd(images.flatten(0, 1), weight, bias).unflatten(0, images.shape[:2]), 0
    count = info.batch_size
    features, weight = _first(features, in_dims[0], count), _first(weight, in_dims[1], count)
    biases = None if bias is None else _first(bias, in_dims[2], count).flatten()
    joined = features.transpose(0, 1).flatten(1, 2)  # [N, count in, H, W]
    convolved = F.conv2d(joined, weight.flatten(0, 1), biases, padding=1, groups=count)
    return convolved.unflatten(1, (count, -1)), 1


def _first(values: Tensor, dim: int | None, count: int) -> Tensor:
    """Values with the mapped dimension first, repeated where they are the same for all."""
    return values.expand(count, *values.shape) if dim is None else values.movedim(dim, 0)
