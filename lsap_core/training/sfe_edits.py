"""Edits that a Feature Editor is trained with: which ones, and how far."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lsap_core.editing.edits import Edit
from lsap_core.errors import ConfigError
from lsap_core.generators.generator import Generator

Styles = Sequence[Tensor]

STYLE_UNIT = 3.0
"""What a power of 1 adds to a channel of a style."""

PUBLISHED_POWERS: Mapping[str, tuple[float, ...]] = {
    "age": (-7, -5, 5, 7, 10),
    "fs_makeup": (5, 8, 12),
    "afro": (0.03, 0.07),
    "angry": (0.06, 0.1),
    "purple_hair": (0.07, 0.1, 0.12),
    "glasses": (-10, -7),
    "fs_smiling": (-6, -3, 3, 6, 9),
    "face_roundness": (-13, -7, 7, 13),
    "rotation": (-5, -3, -1, 1, 3, 5),
    "bobcut": (0.07, 0.12, 0.18),
    "bowlcut": (0.07, 0.14),
    "mohawk": (0.07, 0.10),
    "blond hair": (-8, -4, 4, 8),
}
"""The thirteen directions of the released Feature Editor of faces, and their powers."""

PUBLISHED_CHANNELS: Mapping[str, tuple[tuple[int, int], ...]] = {
    "glasses": ((3, 288), (2, 175), (3, 120), (2, 97)),
    "blond hair": ((12, 479), (12, 266)),
}
"""Those of them that move channels of styles: (position in execution order, channel)."""


@dataclass(frozen=True)
class TrainingEdit:
    """An edit with the powers that are drawn.

    Attributes:
        name: of the edit.
        powers: drawn uniformly.
        styles: codes [N, K, w_dim] and a power -> styles of the edited codes, in execution order.

    Raises:
        ConfigError: there are no powers.
    """

    name: str
    powers: tuple[float, ...]
    styles: Callable[[Tensor, float], Styles]

    def __post_init__(self) -> None:
        """Refuse an edit that could not be drawn."""
        if not self.powers:
            raise ConfigError(f'the edit "{self.name}" has no powers; wanted at least one')


def code_edit(
    name: str, powers: Sequence[float], generator: Generator, edit_of: Callable[[float], Edit]
) -> TrainingEdit:
    """An edit in W+; `edit_of` makes it of a power."""
    return TrainingEdit(name, tuple(powers), lambda w_plus, power: generator.styles(edit_of(power)(w_plus)))


def style_edit(
    name: str, powers: Sequence[float], generator: Generator, channels: Sequence[tuple[int, int]]
) -> TrainingEdit:
    """An edit in S: every channel, given as (position in execution order, channel), moves by three times the power."""
    return TrainingEdit(
        name, tuple(powers), lambda w_plus, power: move_channels(generator.styles(w_plus), channels, STYLE_UNIT * power)
    )


def move_channels(styles: Styles, channels: Sequence[tuple[int, int]], distance: float) -> tuple[Tensor, ...]:
    """Styles in which single channels are moved by a distance.

    Args:
        styles: one [N, width] for each layer, in execution order.
        channels: (position in execution order, channel).
        distance: what is added.
    """
    moved = [style.clone() for style in styles]
    for position, channel in channels:
        moved[position][:, channel] += distance
    return tuple(moved)


def draw_edit(edits: Sequence[TrainingEdit], stream: torch.Generator) -> tuple[TrainingEdit, float]:
    """An edit and one of its powers, both uniform."""
    edit = edits[_draw_index(len(edits), stream)]
    return edit, edit.powers[_draw_index(len(edit.powers), stream)]


def _draw_index(count: int, stream: torch.Generator) -> int:
    return int(torch.randint(count, (), generator=stream, device=stream.device))
