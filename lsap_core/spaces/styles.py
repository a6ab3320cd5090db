"""The style space S: which style vectors belong to it, in which order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from lsap_core.errors import ConfigError
from lsap_core.generators.config import GeneratorConfig
from lsap_core.generators.generator import conv_position, style_widths, to_rgb_position

StyleSet = Literal["authors", "conv", "full"]

NORM_FLOOR = 1e-12


def style_positions(config: GeneratorConfig, style_set: StyleSet) -> tuple[int, ...]:
    """Positions of a set's vectors within the execution order that `Generator.styles` returns.

    * "authors": every style convolution, then the last ToRGB; K vectors, vector i reads row i of W+.
    * "conv": style convolutions only, K - 1 vectors, all demodulated.
    * "full": convolutions and every ToRGB, in execution order.

    Raises:
        ConfigError: another name.
    """
    convs = tuple(conv_position(conv) for conv in range(config.num_convs))
    if style_set == "conv":
        return convs
    if style_set == "authors":
        return (*convs, to_rgb_position(config.num_to_rgbs - 1))
    if style_set == "full":
        return tuple(range(len(style_widths(config))))
    raise ConfigError(f'style set is "{style_set}"; wanted "authors", "conv" or "full"')


def select(styles: Sequence[Tensor], config: GeneratorConfig, style_set: StyleSet) -> list[Tensor]:
    """The vectors of one style set out of all, each [N, width]."""
    return [styles[position] for position in style_positions(config, style_set)]


def normalize(styles: Sequence[Tensor]) -> list[Tensor]:
    """S^N: every style vector divided by its length (LSAP, eq. 4); lengths below 1e-12 count as 1e-12."""
    return [style / torch.linalg.vector_norm(style, dim=-1, keepdim=True).clamp_min(NORM_FLOOR) for style in styles]
