"""The latent spaces of SAM, and synthesis with masked offsets of features (Parmar et al. 2022, section 3)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from torch import Tensor

from lsap_core.errors import ConfigError
from lsap_core.generators.config import GeneratorConfig
from lsap_core.generators.generator import FeatureState, Generator, Noise, StyleShift

Placement = Literal["block", "up_conv"]

W_PLUS = "W+"
SMALLEST_SIDE = 8
LARGEST_SIDE = 128
MOST_FEATURE_SPACES = 4


@dataclass(frozen=True)
class FeatureSpace:
    """A feature map of a generator that offsets are added to.

    Spaces bear the published names: F4, F6, F8 and F10 are the features at sides 16, 32, 64 and 128, and F2 those at
    side 8, where the constant is 4 x 4. The number is that of the block's second convolution, 2 log2(side) - 4 there.

    Attributes:
        name: "F2", "F4", ...
        conv: the convolution whose output is changed: with placement "block" the block's second one, whose ToRGB has
            read the features unchanged (the method's own program); with "up_conv" its first one, so that the second
            convolution and the ToRGB read what was changed (GANInverter).
        channels: of the features.
        size: height and width of the features.
    """

    name: str
    conv: int
    channels: int
    size: tuple[int, int]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of one image's features: channels, rows, columns."""
        return self.channels, *self.size


def feature_spaces(
    config: GeneratorConfig, placement: Placement = "block", names: Collection[str] | None = None
) -> tuple[FeatureSpace, ...]:
    """The feature spaces of a generator, from the most editable to the least.

    The four largest longer sides from 8 to 128 at which an offset changes the image. From 256 pixels on these are the
    published 16, 32, 64 and 128. In a smaller image nothing reads the last block's features once its ToRGB has, so
    that with placement "block" that side is left out, and F2 stands in where there are fewer than four.

    Args:
        config: of the generator.
        placement: of the offsets.
        names: of latent spaces, W+ among them, to take only those; all by default.

    Raises:
        ConfigError: another placement, or a name of none of these spaces.

    Example:
        >>> [space.name for space in feature_spaces(GeneratorConfig.config_f(1024))]
        ['F4', 'F6', 'F8', 'F10']
        >>> [space.name for space in feature_spaces(GeneratorConfig.config_f(32))]
        ['F2', 'F4']
    """
    if placement not in get_args(Placement):
        raise ConfigError(f'placement is "{placement}"; wanted "block" or "up_conv"')
    last = config.num_convs - (2 if placement == "block" else 0)
    fitting = [conv for conv in range(2, last, 2) if SMALLEST_SIDE <= max(config.noise_sizes[conv]) <= LARGEST_SIDE]
    spaces = tuple(feature_space(config, second, placement) for second in fitting[-MOST_FEATURE_SPACES:])
    if names is None:
        return spaces
    known = (W_PLUS, *(space.name for space in spaces))
    if missing := [name for name in names if name not in known]:
        raise ConfigError(
            f"spaces name {missing[0]}; a generator of {config.shown_size} pixels has {', '.join(known)} with "
            f'placement "{placement}": leave it out'
        )
    return tuple(space for space in spaces if space.name in names)


def feature_space(config: GeneratorConfig, second: int, placement: Placement = "block") -> FeatureSpace:
    """The features of a block, by its second convolution."""
    conv = second if placement == "block" else second - 1
    return FeatureSpace(f"F{second}", conv, config.conv_out_channels(conv), config.noise_sizes[conv])


def space_names(config: GeneratorConfig, placement: Placement = "block") -> tuple[str, ...]:
    """The names of all latent spaces of a generator, W+ first, from the most editable to the least."""
    return (W_PLUS, *(space.name for space in feature_spaces(config, placement)))


def file_part(space: str) -> str:
    """A space's name in names of files and runs.

    Example:
        >>> file_part("W+"), file_part("F4")
        ('w_plus', 'f4')
    """
    return "w_plus" if space == W_PLUS else space.lower()


def synthesize_with_offsets(
    generator: Generator,
    w_plus: Tensor,
    spaces: Sequence[FeatureSpace],
    masks: Sequence[Tensor],
    offsets: Sequence[Tensor],
    *,
    noise: Noise = "constant",
) -> tuple[Tensor, list[Tensor]]:
    """Images of codes and offsets: in every space f <- f + m dF.

    Args:
        generator: of the images.
        w_plus: codes [N, K, w_dim].
        spaces: of the generator, from the first to the last.
        masks: for each space [N, 1, h, w].
        offsets: for each space [N, channels, h, w].
        noise: as in `Generator.synthesize`.

    Returns:
        Images [N, C, H, W], unclamped, and the features of every space after its offset was added.
    """
    return _synthesize(
        generator, w_plus, spaces, lambda index, features: features + masks[index] * offsets[index], noise
    )


def synthesize_edited(
    generator: Generator,
    w_plus: Tensor,
    spaces: Sequence[FeatureSpace],
    masks: Sequence[Tensor],
    contents: Sequence[Tensor],
    *,
    noise: Noise = "constant",
    style_shift: StyleShift | None = None,
) -> Tensor:
    """Images of edited codes, with the features of the inversion in the masks: in every space f <- f (1 - m) + G m.

    What belongs to a space is that of the inversion up to there and is edited by later layers alone. On soft borders
    of masks this is not quite the inversion where nothing was edited: G has m dF in it already.

    Args:
        generator: of the images.
        w_plus: edited codes [N, K, w_dim].
        spaces: of the generator, from the first to the last.
        masks: for each space [N, 1, h, w].
        contents: for each space the features of the inversion that `synthesize_with_offsets` gave.
        noise: as in `Generator.synthesize`.
        style_shift: likewise.

    Returns:
        Images [N, C, H, W], unclamped.
    """
    image, _ = _synthesize(
        generator,
        w_plus,
        spaces,
        lambda index, features: features * (1 - masks[index]) + contents[index] * masks[index],
        noise,
        style_shift,
    )
    return image


def _synthesize(
    generator: Generator,
    w_plus: Tensor,
    spaces: Sequence[FeatureSpace],
    change: Callable[[int, Tensor], Tensor],
    noise: Noise,
    style_shift: StyleShift | None = None,
) -> tuple[Tensor, list[Tensor]]:
    """Synthesis that stops in every space, has the features changed there, and goes on with them."""
    styles = generator.styles(w_plus, style_shift)
    start: FeatureState | None = None
    changed: list[Tensor] = []
    for index, space in enumerate(spaces):
        part = generator.synthesize_styles(styles, noise=noise, start=start, until=space.conv, collect=(space.conv,))
        reached = part.block_end(space.conv) if space.conv % 2 == 0 else part.states[space.conv]
        changed.append(change(index, reached.features))
        start = replace(reached, features=changed[-1])
    if start is not None and start.is_in_rgb and start.conv == generator.config.num_convs - 1:
        assert start.rgb is not None
        return start.rgb, changed
    return generator.synthesize_styles(styles, noise=noise, start=start).image, changed
