"""The layers of StyleGAN2 (Karras et al. 2020), in plain PyTorch operators.

Modulation has two forms of the same function:

* *activations*: y = d * conv(s * x, g W). One convolution with shared weights for the whole batch, and the
  demodulation d_o = (sum_i (g s_i)^2 Q_oi + 1e-8)^(-1/2) from Q_oi = sum_k W_oik^2. The form for frozen weights.
* *weights*: W'' = d * (g s * W), one set of weights for each image, as a grouped convolution. The published form.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lsap_core.convolution import convolve_3x3, is_for_winograd
from lsap_core.generators.resample import smooth_upsampled

Modulation = Literal["activations", "weights"]

DEMODULATION_EPSILON = 1e-8
PIXEL_NORM_EPSILON = 1e-8
LEAKY_SLOPE = 0.2
ACTIVATION_GAIN = math.sqrt(2.0)


class EqualizedLinear(nn.Module):
    """y = x W^T (m / sqrt(in)) + m b, with m the learning-rate multiplier (equalized learning rate)."""

    def __init__(self, in_features: int, out_features: int, *, lr_multiplier: float = 1.0, bias: float = 0.0):
        super().__init__()
        weight = torch.randn(out_features, in_features)
        # Dividing by 1 is left out for shapes alone: on the meta device torch would load its compiler for it.
        self.weight = nn.Parameter(weight if lr_multiplier == 1 else weight / lr_multiplier)
        self.bias = nn.Parameter(torch.full((out_features,), float(bias)))
        self.lr_multiplier = lr_multiplier
        self.weight_gain = lr_multiplier / math.sqrt(in_features)

    def forward(self, features: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        return F.linear(features, self.weight * self.weight_gain, self.bias * self.lr_multiplier)


class MappingNetwork(nn.Module):
    """Z -> W: normalize z, then fully connected layers with leaky ReLU; the last layer is activated too."""

    w_avg: Tensor

    def __init__(self, z_dim: int, w_dim: int, num_layers: int, *, lr_multiplier: float):
        super().__init__()
        widths = [z_dim] + [w_dim] * num_layers
        self.layers = nn.ModuleList(
            EqualizedLinear(a, b, lr_multiplier=lr_multiplier) for a, b in itertools.pairwise(widths)
        )
        self.register_buffer("w_avg", torch.full((w_dim,), torch.nan))

    def forward(self, z: Tensor) -> Tensor:
        """Z codes [N, z_dim] -> W codes [N, w_dim]."""
        w = z * (z.square().mean(dim=1, keepdim=True) + PIXEL_NORM_EPSILON).rsqrt()
        for layer in self.layers:
            w = F.leaky_relu(layer(w), LEAKY_SLOPE) * ACTIVATION_GAIN
        return w


class ModulatedConv(nn.Module):
    """What a style convolution and a ToRGB layer share: weights, an affine map from w to styles, modulation.

    `freeze` keeps what depends on the weights alone: the scaled weight g W in the layout that the convolution wants,
    and Q = sum_k W^2 [out, in].
    """

    def __init__(self, in_channels: int, out_channels: int, side: int, w_dim: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, side, side))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.affine = EqualizedLinear(w_dim, in_channels, bias=1.0)
        self.weight_gain = 1.0 / math.sqrt(in_channels * side * side)
        self._kept: tuple[Tensor, Tensor] | None = None

    def freeze(self) -> None:
        """Stop gradients to the weights and do their constant work once."""
        self.requires_grad_(False)
        self._kept = self._prepare()

    def prepared(self) -> tuple[Tensor, Tensor]:
        """Scaled weight and Q: kept ones when frozen, else computed with gradients to the weights."""
        if self._kept is None or self.weight.requires_grad:
            return self._prepare()
        return self._kept

    def demodulation(self, style: Tensor, energy: Tensor) -> Tensor:
        """d = (sum_i (g s_i)^2 Q_oi + 1e-8)^(-1/2) of styles [N, in] and Q [out, in]: [N, out]."""
        with torch.autocast(style.device.type, enabled=False):  # sums of squares need more than half precision
            return ((style * self.weight_gain).square() @ energy.t() + DEMODULATION_EPSILON).rsqrt()

    def _prepare(self) -> tuple[Tensor, Tensor]:
        return self.weight * self.weight_gain, self.weight.square().sum(dim=(2, 3))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ModulatedConv:
        """Moving or casting the layer also renews what `freeze` kept."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._renew_kept()
        return self

    def _load_from_state_dict(self, *arguments: Any) -> None:
        """Loading other weights also renews what `freeze` kept."""
        super()._load_from_state_dict(*arguments)
        self._renew_kept()

    def _renew_kept(self) -> None:
        if self._kept is not None:
            with torch.no_grad():
                self._kept = self._prepare()


class StyleConv(ModulatedConv):
    """Modulated 3x3 convolution, noise, bias, leaky ReLU times sqrt(2), and an optional clamp."""

    noise_const: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        w_dim: int,
        *,
        output_size: tuple[int, int],
        upsample: bool,
        conv_clamp: float | None,
    ):
        super().__init__(in_channels, out_channels, 3, w_dim)
        self.noise_strength = nn.Parameter(torch.zeros([]))
        self.register_buffer("noise_const", torch.randn(output_size))
        self.upsample = upsample
        self.conv_clamp = conv_clamp
        self.has_winograd = not upsample and is_for_winograd(in_channels, out_channels, min(output_size))

    def forward(
        self, features: Tensor, style: Tensor, noise: Tensor | None, kernel: Tensor, modulation: Modulation
    ) -> Tensor:
        """Features [N, in, H, W] (or [1, in, H, W], the constant) -> [N, out, H or 2H, W or 2W].

        Args:
            features: activations of the layer before.
            style: style vectors [N, in].
            noise: one map for each image, [N or 1, 1, h, w], or None.
            kernel: the FIR filter [4, 4].
            modulation: which of the two forms to compute.
        """
        if modulation == "activations":
            weight, energy = self.prepared()
            features = features * style[:, :, None, None]
            if self.upsample:
                features = smooth_upsampled(F.conv_transpose2d(features, weight, stride=2), kernel)
            else:
                features = convolve_3x3(features, weight)
            features = features * self.demodulation(style, energy)[:, :, None, None]
        else:
            features = self._convolve_per_image(features, style)
            if self.upsample:
                features = smooth_upsampled(features, kernel)
        if noise is not None:
            features = features + noise * self.noise_strength
        features = features + self.bias[:, None, None]
        features = F.leaky_relu(features, LEAKY_SLOPE) * ACTIVATION_GAIN
        return features if self.conv_clamp is None else features.clamp(-self.conv_clamp, self.conv_clamp)

    def _prepare(self) -> tuple[Tensor, Tensor]:
        weight, energy = super()._prepare()
        return (weight.transpose(0, 1).contiguous() if self.upsample else weight), energy

    def _convolve_per_image(self, features: Tensor, style: Tensor) -> Tensor:
        num_images = style.shape[0]
        features = features.expand(num_images, *features.shape[1:]).flatten(0, 1)[None]
        weight = self.weight_gain * self.weight * style[:, None, :, None, None]  # [N, out, in, 3, 3]
        weight = weight * (weight.square().sum(dim=(2, 3, 4), keepdim=True) + DEMODULATION_EPSILON).rsqrt()
        if self.upsample:
            in_first = weight.transpose(1, 2).flatten(0, 1)  # [N in, out, 3, 3]
            output = F.conv_transpose2d(features, in_first, stride=2, groups=num_images)
        else:
            output = F.conv2d(features, weight.flatten(0, 1), padding=1, groups=num_images)
        per_image: Tensor = output.unflatten(1, (num_images, -1))
        return per_image[0]


class ToRGB(ModulatedConv):
    """Modulated 1x1 convolution without demodulation, plus bias."""

    def __init__(self, in_channels: int, image_channels: int, w_dim: int, *, conv_clamp: float | None):
        super().__init__(in_channels, image_channels, 1, w_dim)
        self.conv_clamp = conv_clamp

    def forward(self, features: Tensor, style: Tensor) -> Tensor:
        """Features [N, in, H, W] and styles [N, in] -> RGB contribution [N, image_channels, H, W]."""
        # One output channel for each colour: modulating the few weights is cheaper than the many activations.
        weight = self.weight[None, :, :, 0, 0] * (style * self.weight_gain)[:, None, :]  # [N, out, in]
        image = torch.einsum("nchw,noc->nohw", features, weight) + self.bias[:, None, None]
        return image if self.conv_clamp is None else image.clamp(-self.conv_clamp, self.conv_clamp)
