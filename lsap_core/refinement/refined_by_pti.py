"""Images of a generator that was tuned to each of them: pivots, and how far the weights moved."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from lsap_core.generators.config import GeneratorConfig
from lsap_core.generators.generator import Noise, StyleShift
from lsap_core.refinement.tuned_weights import TunedGenerator, synthesis_shapes

WEIGHTS = "weights"
"""The one array that is kept of an image."""


@dataclass(frozen=True)
class RefinedByPti:
    """Images of a generator that was tuned to each of them.

    Attributes:
        tuned: the generator.
        w_plus: the pivots, [N, K, w_dim].
        noise: of the embedding.
        differences: to the generator's weights, [N, parameters], in the order of `synthesis_shapes`.
    """

    tuned: TunedGenerator
    w_plus: Tensor
    noise: Noise
    differences: Tensor

    def synthesize(self, w_plus: Tensor | None = None, style_shift: StyleShift | None = None) -> Tensor:
        """Images [N, C, R, R], unclamped, of the pivots, or of edits of them in W+ and S, with the same weights."""
        codes = self.w_plus if w_plus is None else w_plus
        weights = tuned_weights(self.tuned, self.differences)
        return self.tuned.synthesize(codes, weights, noise=self.noise, style_shift=style_shift)

    def arrays(self) -> dict[str, Tensor]:
        """Differences of weights, float32 [N, parameters]."""
        return {WEIGHTS: self.differences.float()}


def num_parameters(config: GeneratorConfig) -> int:
    """Numbers in all parameters of synthesis."""
    return sum(math.prod(shape) for shape in synthesis_shapes(config).values())


def tuned_weights(tuned: TunedGenerator, differences: Tensor) -> dict[str, Tensor]:
    """Every parameter of synthesis from the differences to it, with gradients to them.

    Args:
        tuned: the generator.
        differences: of each image, [N, parameters], or of all images alike, [parameters].

    Returns:
        By name, [N, ...], or of the parameter's own shape.
    """
    parts = differences.split([math.prod(shape) for shape in tuned.shapes.values()], dim=-1)
    return {
        name: tuned.parameter(name) + part.reshape((*differences.shape[:-1], *shape))
        for (name, shape), part in zip(tuned.shapes.items(), parts, strict=True)
    }
