"""Image embedding: a code for every image."""

from lsap_core.inversion.by_encoder import EncoderEmbedder, EncoderSettings, EncoderState
from lsap_core.inversion.by_optimization import OptimizationEmbedder, OptimizationSettings
from lsap_core.inversion.continuous import RefilledBatch
from lsap_core.inversion.inversion import (
    Embedder,
    EmbedderState,
    EmbeddingSettings,
    Inversion,
    Parts,
    PerceptualDistance,
)
from lsap_core.inversion.kept_noise import KEEP_NOISE, KeepNoise, as_kept
from lsap_core.inversion.optimization_state import OptimizationState

__all__ = [
    "KEEP_NOISE",
    "Embedder",
    "EmbedderState",
    "EmbeddingSettings",
    "EncoderEmbedder",
    "EncoderSettings",
    "EncoderState",
    "Inversion",
    "KeepNoise",
    "OptimizationEmbedder",
    "OptimizationSettings",
    "OptimizationState",
    "Parts",
    "PerceptualDistance",
    "RefilledBatch",
    "as_kept",
]
