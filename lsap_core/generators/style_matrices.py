"""The affine layers of a frozen generator as few matrix products: those of equal width in one."""

from __future__ import annotations

import torch
from torch import Tensor

from lsap_core.generators.generator import Generator, conv_position, to_rgb_position
from lsap_core.generators.layers import ModulatedConv


class StyleMatrices:
    """All style vectors of W+ codes, as `Generator.styles` gives them; the layers' weights are scaled once.

    The generator's weights must stay as they are, and on their device.

    Attributes:
        groups: for each width the places of its layers in execution order, the rows of W+ that they read, their
            weights [layers, w_dim, width] and biases [layers, 1, width].
    """

    @torch.no_grad()
    def __init__(self, generator: Generator):
        synthesis = generator.synthesis
        layers: list[tuple[int, int, ModulatedConv]] = [
            (conv_position(conv), conv, layer) for conv, layer in enumerate(synthesis.conv_layers())
        ]
        layers += [(to_rgb_position(at), 2 * at + 1, layer) for at, layer in enumerate(synthesis.to_rgb_layers())]
        self.num_layers = len(layers)
        self.groups: list[tuple[list[int], list[int], Tensor, Tensor]] = []
        for width in sorted({layer.affine.bias.numel() for _, _, layer in layers}):
            places, rows, chosen = zip(*(each for each in layers if each[2].affine.bias.numel() == width), strict=True)
            affines = [layer.affine for layer in chosen]
            weight = torch.stack([(affine.weight * affine.weight_gain).t() for affine in affines])
            bias = torch.stack([(affine.bias * affine.lr_multiplier)[None] for affine in affines])
            self.groups.append((list(places), list(rows), weight.contiguous(), bias))

    def __call__(self, w_plus: Tensor) -> list[Tensor]:
        """Style vectors [N, width] of W+ codes [N, K, w_dim], in execution order."""
        rows = w_plus.unbind(1)
        styles: dict[int, Tensor] = {}
        for places, read, weight, bias in self.groups:
            found = torch.baddbmm(bias, torch.stack([rows[row] for row in read]), weight)  # [layers, N, width]
            styles |= zip(places, found.unbind(0), strict=True)
        return [styles[place] for place in range(self.num_layers)]
