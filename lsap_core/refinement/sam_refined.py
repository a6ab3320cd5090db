"""Images refined by SAM: codes, masks and offsets of features, and how edits of them are rendered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

import torch
from torch import Tensor

from lsap_core.errors import ShapeError
from lsap_core.generators.config import GeneratorConfig
from lsap_core.generators.generator import Generator, StyleShift
from lsap_core.refinement.refinement import Embedded, StateArray
from lsap_core.refinement.sam_spaces import FeatureSpace, synthesize_edited, synthesize_with_offsets
from lsap_core.refinement.sam_state import per_image


class RefinedBySam:
    """The inversion G(w, F + m dF), and edits of it that keep the inversion's features inside the masks.

    What belongs to a feature space is edited by the layers after it alone (Parmar et al. 2022, section 3). Image and
    features of the inversion are computed once, when they are first needed, and kept: about 30 MB an image with
    the published spaces.

    Args:
        generator: of the images; frozen.
        embedded: the refined codes, and the noise of the embedding.
        spaces: of the generator, from the first to the last.
        masks: for each space [N, 1, side, side].
        offsets: for each space [N, channels, side, side].
    """

    def __init__(
        self,
        generator: Generator,
        embedded: Embedded,
        *,
        spaces: Sequence[FeatureSpace],
        masks: Sequence[Tensor],
        offsets: Sequence[Tensor],
    ):
        self.generator = generator
        self.embedded = embedded
        self.spaces = tuple(spaces)
        self.masks = tuple(masks)
        self.offsets = tuple(offsets)

    @property
    def w_plus(self) -> Tensor:
        """Codes [N, K, w_dim] of the refined inversion."""
        return self.embedded.w_plus

    def synthesize(self, w_plus: Tensor | None = None, style_shift: StyleShift | None = None) -> Tensor:
        """Images [N, C, R, R], unclamped, of the refined inversion, or of an edit of it.

        Args:
            w_plus: edited codes [N, K, w_dim]; the images whose codes are those of the inversion are it, bit for bit.
            style_shift: added to the styles of the edited codes, as `Generator.styles` takes it: an edit in S.

        Raises:
            ShapeError: the codes are of another number of images, or of another generator.
        """
        image, contents = self._inversion
        if w_plus is None and not style_shift:
            return image.clone()
        w_plus = self.w_plus if w_plus is None else w_plus
        if w_plus.shape != self.w_plus.shape:
            raise ShapeError(f"edited codes are {list(w_plus.shape)}; wanted {list(self.w_plus.shape)}")
        is_inversion = (w_plus == self.w_plus).flatten(1).all(dim=1) & (not style_shift)  # [N]
        if bool(is_inversion.all()):
            return image.clone()
        edited = synthesize_edited(
            self.generator,
            w_plus,
            self.spaces,
            self.masks,
            contents,
            noise=self.embedded.noise,
            style_shift=style_shift,
        )
        return torch.where(per_image(is_inversion, image), image, edited)

    def arrays(self) -> dict[str, Tensor]:
        """For every feature space the offset [N, channels, side, side] and the mask [N, side, side], float32."""
        arrays: dict[str, Tensor] = {}
        for space, offset, mask in zip(self.spaces, self.offsets, self.masks, strict=True):
            arrays[_offset_name(space)] = offset.float()
            arrays[_mask_name(space)] = mask[:, 0].float()
        return arrays

    @cached_property
    def _inversion(self) -> tuple[Tensor, list[Tensor]]:
        """The image, and the features of every space with their offset."""
        with torch.no_grad():
            return synthesize_with_offsets(
                self.generator, self.w_plus, self.spaces, self.masks, self.offsets, noise=self.embedded.noise
            )


def state_arrays(spaces: Sequence[FeatureSpace]) -> tuple[StateArray, ...]:
    """The arrays that are kept of every image with these spaces."""
    arrays: list[StateArray] = []
    for space in spaces:
        arrays.append(StateArray(_offset_name(space), space.shape, ("channel", "row", "column")))
        arrays.append(StateArray(_mask_name(space), space.shape[1:], ("row", "column")))
    return tuple(arrays)


def restored(
    generator: Generator, embedded: Embedded, spaces: Sequence[FeatureSpace], arrays: Mapping[str, Tensor]
) -> RefinedBySam:
    """The refined images whose codes and arrays these are.

    Raises:
        ShapeError: an array is missing or of another shape, or codes or noise do not fit the generator.
    """
    check_embedded(embedded, generator)
    num_images = len(embedded.w_plus)
    for array in state_arrays(spaces):
        found = arrays.get(array.name)
        if found is None or found.shape != (num_images, *array.shape):
            raise ShapeError(
                f"{array.name} is {None if found is None else list(found.shape)}; wanted "
                f"{[num_images, *array.shape]}: pass the arrays that were kept of these images by a refiner with "
                "these settings"
            )
    return RefinedBySam(
        generator,
        embedded,
        spaces=spaces,
        masks=[arrays[_mask_name(space)].to(embedded.w_plus)[:, None] for space in spaces],
        offsets=[arrays[_offset_name(space)].to(embedded.w_plus) for space in spaces],
    )


def check_embedded(embedded: Embedded, generator: Generator) -> None:
    """Make sure that codes and noise are W+ codes and maps of a generator.

    Raises:
        ShapeError: they are not.
    """
    config: GeneratorConfig = generator.config
    if embedded.w_plus.shape[1:] != (config.num_ws, config.w_dim):
        raise ShapeError(f"codes are {list(embedded.w_plus.shape)}; wanted [N, {config.num_ws}, {config.w_dim}]")
    if not isinstance(embedded.noise, str):
        generator.check_noise(embedded.noise, len(embedded.w_plus))


def _offset_name(space: FeatureSpace) -> str:
    return f"offset_{space.name.lower()}"


def _mask_name(space: FeatureSpace) -> str:
    return f"mask_{space.name.lower()}"
