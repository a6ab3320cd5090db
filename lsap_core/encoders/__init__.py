"""Encoders: image -> W+ in one pass, as published and for small domains."""

from lsap_core.encoders.config import Backbone, EncoderConfig, Heads
from lsap_core.encoders.encoder import Encoder
from lsap_core.encoders.latent_discriminator import LatentDiscriminator

__all__ = ["Backbone", "Encoder", "EncoderConfig", "Heads", "LatentDiscriminator"]
