"""Image embedding: a code for every image."""

from lsap_core.inversion.by_encoder import EncoderEmbedder, EncoderSettings
from lsap_core.inversion.by_optimization import OptimizationEmbedder, OptimizationSettings, OptimizationState
from lsap_core.inversion.inversion import Embedder, Inversion, PerceptualDistance

__all__ = [
    "Embedder",
    "EncoderEmbedder",
    "EncoderSettings",
    "Inversion",
    "OptimizationEmbedder",
    "OptimizationSettings",
    "OptimizationState",
    "PerceptualDistance",
]
