"""Directions in S (StyleSpace, Wu et al. 2021; StyleCLIP, Patashnik et al. 2021), and edits along them.

A code has one style vector for each layer, s_l = A_l w_l + b_l; an edit in S adds to them what no code of W+ may reach:
s'_l = s_l + strength * d_l. The codes stay what they are, so edits in S and in W+ may follow one another in any order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from lsap_core.editing.edits import Composed, Edit, Strength, checked_strength, per_image, plain, tensor_digest
from lsap_core.errors import ConfigError, ShapeError
from lsap_core.generators.config import GeneratorConfig
from lsap_core.generators.generator import StyleShift, style_widths
from lsap_core.spaces.styles import StyleSet, style_positions

_SETS: tuple[StyleSet, ...] = ("full", "authors", "conv")


@dataclass(frozen=True, eq=False)
class StyleDirection:
    """Where an attribute grows in S, and for which generator that holds.

    Attributes:
        name: what people call it.
        vectors: by position in execution order (conv 0, ToRGB 0, conv 1, conv 2, ToRGB 1, ...) the style vector that is
            added, [width], float32; positions that are left out stay as they are.
        generator: digest of the generator that it was found on, None where nobody knows.
        provenance: how it was found, in values that JSON has.

    Raises:
        ShapeError: a vector of another shape.
        ConfigError: values that are not finite, or all 0.
    """

    name: str
    vectors: Mapping[int, Tensor]
    generator: str | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse what changes no image or breaks every one; vectors that are all 0 are left out."""
        vectors = {at: vector.detach().float() for at, vector in sorted(self.vectors.items())}
        for at, vector in vectors.items():
            if vector.ndim != 1:
                raise ShapeError(f'layer {at} of direction "{self.name}" is {list(vector.shape)}; wanted [width]')
            if not bool(torch.isfinite(vector).all()):
                raise ConfigError(f'direction "{self.name}" holds values that are not finite; make it again')
        kept = {at: vector for at, vector in vectors.items() if bool(vector.any())}
        if not kept:
            raise ConfigError(f'direction "{self.name}" is all 0 and leads nowhere; make it again')
        object.__setattr__(self, "vectors", kept)

    @property
    def digest(self) -> str:
        """Digest of the numbers and their layers, the same for every file that holds them."""
        layers = torch.tensor([[at, len(vector)] for at, vector in self.vectors.items()]).flatten()
        return tensor_digest(torch.cat([layers.float(), *(vector.cpu() for vector in self.vectors.values())]))

    @staticmethod
    def from_vectors(
        vectors: Sequence[Tensor],
        *,
        name: str,
        config: GeneratorConfig,
        generator: str | None = None,
        provenance: Mapping[str, Any] | None = None,
    ) -> StyleDirection:
        """A direction from style vectors in a list, as they circulate.

        Args:
            vectors: one for each convolution and ToRGB in execution order (26 at 1024 pixels, StyleCLIP), for each
                convolution and the last ToRGB (18), or for each convolution (17); each [width] or [1, ..., width].
            name: what people call it.
            config: sizes of the generator.
            generator: digest of the generator that it was found on, if known.
            provenance: how it was found.

        Raises:
            ShapeError: the widths are none of these.
            ConfigError: values that are not finite, or all 0.
        """
        flat = [vector.detach().to("cpu", torch.float32).flatten() for vector in vectors]
        found = [len(vector) for vector in flat]
        layouts = style_layouts(config)
        for positions, widths in layouts:
            if found == widths:
                by_position = dict(zip(positions, flat, strict=True))
                return StyleDirection(name, by_position, generator, dict(provenance or {}))
        raise ShapeError(
            f'direction "{name}" has {len(found)} style vectors of widths {_shown(found)}; this generator wants '
            + ", or ".join(f"{len(widths)} of {_shown(widths)}" for _, widths in layouts)
        )

    @staticmethod
    def of_channel(layer: int, channel: int, config: GeneratorConfig) -> StyleDirection:
        """The direction of one channel: 1 there, 0 elsewhere.

        Args:
            layer: position in execution order, 0 to 25 at 1024 pixels, as StyleSpace counts layers.
            channel: of this layer's style vector, from 0.
            config: sizes of the generator.

        Raises:
            ConfigError: the generator has no such layer or channel.
        """
        widths = style_widths(config)
        if not 0 <= layer < len(widths):
            raise ConfigError(f"layer {layer} of S was asked for; this generator has layers 0 to {len(widths) - 1}")
        if not 0 <= channel < widths[layer]:
            raise ConfigError(
                f"channel {channel} of layer {layer} was asked for; it has channels 0 to {widths[layer] - 1}"
            )
        vector = torch.zeros(widths[layer])
        vector[channel] = 1
        return StyleDirection(f"{layer}_{channel}", {layer: vector})


def style_layouts(config: GeneratorConfig) -> list[tuple[tuple[int, ...], list[int]]]:
    """Positions and widths of the lists of style vectors that circulate."""
    widths = style_widths(config)
    sets = [style_positions(config, style_set) for style_set in _SETS]
    return [(positions, [widths[at] for at in positions]) for positions in sets]


def along_styles(direction: StyleDirection, strength: Strength) -> Edit:
    """The edit s'_l = s_l + strength * d_l (Wu et al. 2021, section 4); it returns codes as they are.

    What it adds to the styles of a code `style_shift` tells, for `Generator.synthesize` and all that renders edits.

    Args:
        direction: d.
        strength: how far, in lengths of d; one number, or one for each image, [N].

    Raises:
        ConfigError: a strength that is not finite.

    Example:
        >>> config = GeneratorConfig(8, (4, 4), z_dim=3, w_dim=5, num_mapping_layers=2)
        >>> edit = along_styles(StyleDirection.of_channel(2, 1, config), 3.0)
        >>> style_shift(edit, torch.zeros(1, 4, 5))
        {2: tensor([[0., 3., 0., 0.]])}
    """
    return StyleOffset(direction, checked_strength(strength))


@dataclass(frozen=True, eq=False)
class StyleOffset:
    """s'_l = s_l + strength * d_l.

    Attributes:
        direction: d.
        strength: one number, or one for each image, [N].
    """

    direction: StyleDirection
    strength: Strength

    def __call__(self, w_plus: Tensor) -> Tensor:
        """The codes themselves, [N, K, D]: what changes is not in them."""
        return w_plus.clone()

    def inverse(self, w_plus: Tensor) -> StyleOffset:
        """The same with the strength's other sign, whatever the codes."""
        return replace(self, strength=-self.strength)

    def shift(self, w_plus: Tensor) -> dict[int, Tensor]:
        """By position what is added to the styles of codes [N, K, D]: [1 or N, width]."""
        far = per_image(self.strength, w_plus)[:, :, 0]
        return {at: far * vector.to(w_plus) for at, vector in self.direction.vectors.items()}

    def describe(self) -> dict[str, Any]:
        """Kind and provenance, strength."""
        return {
            "kind": "style_direction",
            "direction": self.direction.name,
            "digest": self.direction.digest,
            "generator": self.direction.generator,
            "space": "s",
            "style_layers": list(self.direction.vectors),
            "strength": plain(self.strength),
        }


def style_shift(edit: Edit, w_plus: Tensor) -> StyleShift:
    """What an edit adds to the styles of the codes that it returns: empty for one of W+.

    Args:
        edit: any, sequences included; their parts in S add up.
        w_plus: the codes that are edited, [N, K, D].
    """
    if isinstance(edit, StyleOffset):
        return add_shifts(edit.shift(w_plus))
    return add_shifts(*(style_shift(part, w_plus) for part in (edit.edits if isinstance(edit, Composed) else ())))


def add_shifts(*shifts: StyleShift) -> dict[int, Tensor]:
    """Several edits in S as one; what shifts nothing is left out, so that a strength of 0 is no edit at all."""
    total: dict[int, Tensor] = {}
    for shift in shifts:
        for at, vector in shift.items():
            total[at] = total[at] + vector if at in total else vector
    return {at: vector for at, vector in total.items() if bool(vector.any())}


def _shown(widths: Sequence[int]) -> str:
    first = ", ".join(map(str, widths[:6]))
    return f"{first}, ..., {widths[-1]}" if len(widths) > 6 else first
