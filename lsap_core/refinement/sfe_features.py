"""Features in the middle of a generator: taken out, put in, and how an edit moves them (StyleFeatureEditor).

The convolution k of this library writes what StyleFeatureEditor counts as feature k + 1: its F_9 is what convolution 8
gives, the second of side 64.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lsap_core.errors import ShapeError
from lsap_core.generators.generator import FeatureState, Generator
from lsap_core.refinement.sfe_networks import SMALLEST_SIDE, Inverter, IResNetUnit


@dataclass(frozen=True)
class Inverted:
    """What the Inverter finds of images.

    Attributes:
        w_plus: StyleFeatureEditor's own codes, [N, K, w_dim].
        at_layer: where synthesis of these codes stands at the edited layer; its features are F_w.
        features: the fused feature map F_k, [N, C, side, side].
    """

    w_plus: Tensor
    at_layer: FeatureState
    features: Tensor


def conv_of_side(side: int) -> int:
    """The second convolution of a side, whose output the next block reads.

    Example:
        >>> conv_of_side(64), conv_of_side(8), conv_of_side(4)
        (8, 2, 0)
    """
    return 2 * ((side // SMALLEST_SIDE).bit_length() - 1)


def state_at(
    generator: Generator, styles: Sequence[Tensor], conv: int, *, start: FeatureState | None = None
) -> FeatureState:
    """Where synthesis stands just before the layer that reads convolution `conv`, with the generator's own noise.

    After the second convolution of a side, the ToRGB of that side has then read its features already.
    """
    result = generator.synthesize_styles(styles, start=start, collect={conv}, until=conv)
    return result.states[conv] if conv % 2 else result.block_end(conv)


def image_from(
    generator: Generator,
    styles: Sequence[Tensor],
    state: FeatureState,
    features: Tensor | None = None,
    *,
    scale: float = 1.0,
) -> Tensor:
    """The image [N, C, R, R] of a synthesis that goes on with other features: f <- (1 - s) f + s F.

    Args:
        generator: adds its own noise.
        styles: of the codes, in execution order.
        state: of `state_at`.
        features: F, [N, channels, side, side]; None leaves those of the state.
        scale: s.
    """
    if features is not None:
        state = mixed(state, features, scale)
    return generator.synthesize_styles(styles, start=state).image


def image_with(
    generator: Generator, styles: Sequence[Tensor], features: Mapping[int, Tensor], *, scale: float = 1.0
) -> Tensor:
    """The image of styles where the outputs of some convolutions, by their index, are replaced; see `image_from`."""
    state: FeatureState | None = None
    for conv in sorted(features):
        state = mixed(state_at(generator, styles, conv, start=state), features[conv], scale)
    return generator.synthesize_styles(styles, start=state).image


def mixed(state: FeatureState, features: Tensor, scale: float) -> FeatureState:
    """The state with features (1 - s) f + s F.

    Raises:
        ShapeError: F is not of the shape of f.
    """
    if features.shape != state.features.shape:
        raise ShapeError(
            f"features for convolution {state.conv} are {list(features.shape)}; wanted {list(state.features.shape)}"
        )
    if scale == 1.0:
        return replace(state, features=features)
    return replace(state, features=(1.0 - scale) * state.features + scale * features)


def feature_shift(before: Tensor, after: Tensor, mask: Tensor | None = None) -> Tensor:
    """Delta = (F - F') (1 - m): features of a code less those of the edited one.

    Args:
        before: features [N, C, side, side] of the codes of the encoder that edits well.
        after: the same of the edited codes.
        mask: m, [N or 1, 1, h, w] in [0, 1]; where it is 1 nothing is to change. Brought to the features' size
            bilinearly, without antialiasing. None for 0 everywhere.
    """
    shift = before - after
    if mask is None:
        return shift
    return shift * (1 - F.interpolate(mask, shift.shape[-2:], mode="bilinear", align_corners=False))


@dataclass(frozen=True)
class FeatureEditing:
    """H(F_k, Delta), with Delta of features at the edited layer, or of finer ones that a block reduces (cars).

    Attributes:
        editor: the Feature Editor H, of maps one after the other along channels.
        reducer: brings Delta to the side of the map; None where it has that side.
    """

    editor: nn.Module
    reducer: IResNetUnit | None = None

    def shifting(self, generator: Generator, styles: Sequence[Tensor], state: FeatureState) -> Tensor:
        """F(w), which Delta is a difference of: features of styles whose synthesis stands at the edited layer."""
        if self.reducer is None:
            return state.features
        return state_at(generator, styles, state.conv + 2, start=state).features  # the same of twice the side

    def __call__(self, features: Tensor, shift: Tensor | None = None) -> Tensor:
        """Edited features [N, C, side, side] of F_k and Delta; None for no edit, which is a Delta of zeros."""
        if self.reducer is None:
            shift = torch.zeros_like(features) if shift is None else shift
        else:
            finer = (len(features), self.reducer.conv1.in_channels, 2 * features.shape[2], 2 * features.shape[3])
            shift = self.reducer(features.new_zeros(finer) if shift is None else shift)
        edited: Tensor = self.editor(torch.cat([features, shift], dim=1))
        return edited


def invert(inverter: Inverter, generator: Generator, view: Tensor) -> Inverted:
    """Codes and fused features of images as the backbone reads them, [N, C, side, side] in about [-1, 1].

    w = w_avg + heads, F_k = Fuser(F_pred, F_w), with F_w the generator's features at w.
    """
    offsets, predicted = inverter.fs_backbone(view)
    w_plus = offsets + generator.mapping.w_avg
    at_layer = state_at(generator, generator.styles(w_plus), conv_of_side(predicted.shape[-1]))
    fused = inverter.fuser(torch.cat([predicted, at_layer.features], dim=1))
    return Inverted(w_plus, at_layer, fused)
