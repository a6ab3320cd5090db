"""A generator with other weights, each image's own or one set for all: what PTI and HyperStyle render with."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lsap_core.errors import ShapeError
from lsap_core.generators.checkpoints.canonical import canonical_shapes
from lsap_core.generators.config import GeneratorConfig
from lsap_core.generators.generator import Generator, Noise, StyleShift

SYNTHESIS = "synthesis."
"""Of the generator, before the names of its parameters here."""


class TunedGenerator:
    """Synthesis with other weights: such as differ from image to image in one batch, or one set for all of it.

    Parameters have the names that `Generator.synthesis.named_parameters` gives them, affine layers among them. Layers
    whose weights are an image's own run as grouped convolutions; the others share their weights as ever. The layers
    that compute hold no weights: each is handed in at every call, so none can be an older one.

    Attributes:
        shapes: of each parameter of synthesis, by its name.

    Example:
        >>> generator = Generator(GeneratorConfig(8, (4, 4), z_dim=3, w_dim=5, num_mapping_layers=2)).freeze()
        >>> codes = torch.zeros(2, 4, 5)
        >>> tuned = TunedGenerator(generator)
        >>> weights = {"const": torch.stack([generator.synthesis.const, 2 * generator.synthesis.const])}
        >>> images = tuned.synthesize(codes, weights)
        >>> torch.allclose(images[:1], generator.synthesize(codes)[:1], atol=1e-5)
        True
    """

    def __init__(self, generator: Generator):
        self.generator = generator
        self.shapes = synthesis_shapes(generator.config)
        with torch.device("meta"):
            self._layers = _Synthesis(Generator(generator.config))

    def parameter(self, name: str) -> Tensor:
        """The generator's own value of a parameter of synthesis, without gradient."""
        return self.generator.synthesis.get_parameter(name).detach()

    def synthesize(
        self,
        w_plus: Tensor,
        weights: Mapping[str, Tensor],
        *,
        noise: Noise = "constant",
        style_shift: StyleShift | None = None,
    ) -> Tensor:
        """Images [N, C, R, R], about [-1, 1], unclamped, with gradients to codes and weights.

        Args:
            w_plus: [N, K, w_dim].
            weights: by parameter of synthesis the values of each image, [N, ...]; the generator's own for all others.
            noise: as `Generator.synthesize` takes it.
            style_shift: likewise.

        Raises:
            ShapeError: a weight is no parameter of synthesis, or has another shape; codes or noise maps do not fit.
        """
        self._check(w_plus, weights, of_each=(len(w_plus),))
        own = {name: value for name, value in self._shared().items() if name not in weights}
        self._layers.generator.modulation = self.generator.modulation
        maps: tuple[Tensor, ...] = ()
        if not isinstance(noise, str):
            self.generator.check_noise(noise, len(w_plus))
            maps = tuple(noise)

        shift = dict(style_shift or {})

        def render(
            code: Tensor, tuned: dict[str, Tensor], each: tuple[Tensor, ...], shifted: dict[int, Tensor]
        ) -> Tensor:
            one_image: Noise = noise if isinstance(noise, str) else [map_.view(1, *map_.shape[-3:]) for map_ in each]
            one_shift = {at: added.view(1, -1) for at, added in shifted.items()}
            return self._call(own | tuned, code[None], one_image, one_shift)[0]

        # A map that all images share is [1, 1, side, side], and stays whole.
        of_maps = tuple(0 if len(map_) == len(w_plus) else None for map_ in maps)
        of_shift = {at: 0 if len(added) == len(w_plus) else None for at, added in shift.items()}
        in_dims = (0, 0 if weights else None, of_maps if maps else None, of_shift if shift else None)
        images: Tensor = torch.func.vmap(render, in_dims=in_dims)(w_plus, dict(weights), maps, shift)
        return images

    def synthesize_alike(
        self,
        w_plus: Tensor,
        weights: Mapping[str, Tensor],
        *,
        noise: Noise = "constant",
        style_shift: StyleShift | None = None,
    ) -> Tensor:
        """Images [N, C, R, R] of one set of weights that all share: as `synthesize`, with ordinary convolutions.

        Args:
            w_plus: [N, K, w_dim].
            weights: by parameter of synthesis its value, of its own shape; the generator's own for all others.
            noise: as `Generator.synthesize` takes it.
            style_shift: likewise.

        Raises:
            ShapeError: a weight is no parameter of synthesis, or has another shape; codes or noise maps do not fit.
        """
        self._check(w_plus, weights, of_each=())
        self._layers.generator.modulation = self.generator.modulation
        return self._call(self._shared() | dict(weights), w_plus, noise, style_shift)

    def _call(
        self, weights: Mapping[str, Tensor], w_plus: Tensor, noise: Noise, style_shift: StyleShift | None
    ) -> Tensor:
        state = {f"generator.{SYNTHESIS}{name}": value for name, value in weights.items()}
        images: Tensor = torch.func.functional_call(self._layers, state, (w_plus, noise, style_shift))
        return images

    def _shared(self) -> dict[str, Tensor]:
        synthesis = self.generator.synthesis
        values = (*synthesis.named_parameters(), *synthesis.named_buffers())
        return {name: value.detach() for name, value in values}

    def _check(self, w_plus: Tensor, weights: Mapping[str, Tensor], *, of_each: tuple[int, ...]) -> None:
        config = self.generator.config
        if w_plus.ndim != 3 or tuple(w_plus.shape[1:]) != (config.num_ws, config.w_dim):
            raise ShapeError(
                f"codes are {list(w_plus.shape)}; this generator wants W+ [N, {config.num_ws}, {config.w_dim}]"
            )
        for name, value in weights.items():
            if name not in self.shapes:
                raise ShapeError(
                    f"{name} is no parameter of synthesis; wanted some of {', '.join(list(self.shapes)[:4])}, ..."
                )
            if tuple(value.shape) != (*of_each, *self.shapes[name]):
                whose = "of each image" if of_each else "of all images"
                raise ShapeError(f"{name} is {list(value.shape)}; wanted {[*of_each, *self.shapes[name]]} {whose}")


class _Synthesis(nn.Module):
    """Codes to images as a module's call, the form in which weights can be handed in."""

    def __init__(self, generator: Generator):
        super().__init__()
        self.generator = generator

    def forward(self, codes: Tensor, noise: Noise, style_shift: StyleShift | None) -> Tensor:
        return self.generator.synthesize(codes, noise=noise, style_shift=style_shift)


def synthesis_shapes(config: GeneratorConfig) -> dict[str, tuple[int, ...]]:
    """Shape of each parameter of synthesis by name, in the order of `named_parameters`: convolutions, then ToRGB.

    Example:
        >>> list(synthesis_shapes(GeneratorConfig(8, (4, 4))))[:4]
        ['const', 'convs.0.weight', 'convs.0.bias', 'convs.0.noise_strength']
    """
    every = canonical_shapes(config).items()
    return {
        name.removeprefix(SYNTHESIS): shape
        for name, shape in every
        if name.startswith(SYNTHESIS) and not name.endswith(".noise_const")
    }


def noise_of(noise: Noise, rows: Tensor, num_images: int) -> Noise:
    """The noise of some of the images, by their indices; maps that all images share stay as they are."""
    if isinstance(noise, str):
        return noise
    return [maps[rows] if len(maps) == num_images else maps for maps in noise]


def noise_like(noise: Noise, like: Tensor) -> Noise:
    """The noise in the type and on the device of a tensor."""
    return noise if isinstance(noise, str) else [maps.detach().to(like) for maps in noise]
