"""StyleGAN2 generators of every released size."""

from lsap_core.generators.config import GeneratorConfig
from lsap_core.generators.generator import FeatureState, Generator, Noise, SynthesisResult
from lsap_core.generators.layers import Modulation

__all__ = ["FeatureState", "Generator", "GeneratorConfig", "Modulation", "Noise", "SynthesisResult"]
