"""Image embedding: a code for every image."""

from lsap_core.inversion.by_optimization import OptimizationEmbedder, OptimizationSettings, OptimizationState
from lsap_core.inversion.inversion import Embedder, Inversion, PerceptualDistance

__all__ = [
    "Embedder",
    "Inversion",
    "OptimizationEmbedder",
    "OptimizationSettings",
    "OptimizationState",
    "PerceptualDistance",
]
