"""A text's direction in S, from what each channel does to images in CLIP.

StyleCLIP (Patashnik et al. 2021), section 6: global directions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from lsap_core.editing.style_directions import StyleDirection
from lsap_core.errors import ConfigError, ShapeError
from lsap_core.generators.config import GeneratorConfig
from lsap_core.generators.generator import Generator, style_widths
from lsap_core.spaces.styles import select, style_positions


def direction_of_text(
    effects: Tensor,
    text: Tensor,
    *,
    beta: float,
    deviations: Tensor,
    name: str,
    config: GeneratorConfig,
    generator: str | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> StyleDirection:
    """The global direction of a text: R_c = di_c . dt / |dt| where |R_c| >= beta, else 0; d_c = std_c R_c / max |R|.

    The division by the largest and the factor std_c are those of the authors' program: a strength is one in standard
    deviations of the channel that is most relevant. ToRGB layers stay as they are.

    Args:
        effects: di, [C, E]: how each channel moves images in CLIP's space, StyleCLIP's fs3.npy. Channels are those of
            the convolutions in execution order, 6048 at 1024 pixels.
        text: dt, [E]: the text's embedding less that of the neutral text, of any length.
        beta: least relevance of a channel that moves, at least 0; the authors' examples have 0.08 to 0.3.
        deviations: standard deviation of each of these channels over synthetic codes, [C]; see `channel_deviations`.
        name: what people call it.
        config: sizes of the generator.
        generator: its digest.
        provenance: how it was found.

    Raises:
        ShapeError: sizes that do not go together, or those of another generator.
        ConfigError: no channel is as relevant, or values that are not finite.
    """
    positions = style_positions(config, "conv")
    widths = [style_widths(config)[at] for at in positions]
    if effects.ndim != 2 or len(effects) != sum(widths):
        raise ShapeError(
            f"effects are {list(effects.shape)}; this generator has {sum(widths)} channels in its {len(widths)} "
            f"convolutions and wants [{sum(widths)}, width of CLIP]"
        )
    if text.numel() != effects.shape[1]:
        raise ShapeError(f"the text is {list(text.shape)}; wanted [{effects.shape[1]}], as wide as the effects")
    if deviations.shape != (len(effects),):
        raise ShapeError(f"deviations are {list(deviations.shape)}; wanted [{len(effects)}]")
    length = text.double().norm()
    if not bool(torch.isfinite(effects).all()) or not bool(torch.isfinite(text).all()) or not bool(length > 0):
        raise ConfigError("the effects or the text hold values that are not finite, or the text is all 0")
    relevance = effects.double() @ (text.double().flatten() / length)
    highest = relevance.abs().max().item()
    if not 0 <= beta <= highest or highest == 0:
        raise ConfigError(f"beta is {beta}, and the most relevant channel has {highest:.4g}: choose one from 0 to that")
    kept = torch.where(relevance.abs() >= beta, relevance, 0.0) / highest
    vectors = (kept * deviations.double()).float().split(widths)
    return StyleDirection(name, dict(zip(positions, vectors, strict=True)), generator, dict(provenance or {}))


@torch.no_grad()
def channel_deviations(generator: Generator, codes: Iterable[Tensor]) -> Tensor:
    """Standard deviation of every channel of the convolutions over W codes, [C], float32, on the CPU.

    Args:
        generator: whose styles they are.
        codes: W codes [n, w_dim] in pieces; at least two in all.

    Raises:
        ShapeError: codes of another width.
        ConfigError: fewer than two codes.
    """
    count, mean, squares = 0, torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for w in codes:
        styles = torch.cat(select(generator.styles(w), generator.config, "conv"), dim=1).cpu().double()
        new_mean = styles.mean(dim=0)
        new_squares = (styles - new_mean).square().sum(dim=0)
        total = count + len(styles)
        squares = squares + new_squares + (new_mean - mean).square() * (count * len(styles) / total)
        mean = mean + (new_mean - mean) * (len(styles) / total)
        count = total
    if count < 2:
        raise ConfigError(f"{count} codes were given; a deviation needs at least 2")
    return (squares / count).sqrt().float()
