"""Encoder checkpoints, published and our own, translated to and from one set of names. Opens no file."""

from lsap_core.encoders.checkpoints.backbones import load_backbone, load_trunk
from lsap_core.encoders.checkpoints.canonical import (
    EncoderCheckpoint,
    build_encoder,
    canonical_encoder_state,
    encoder_digest,
    encoder_shapes,
    from_canonical_encoder,
    to_encoder_metadata,
)
from lsap_core.encoders.checkpoints.published import from_encoder_document, is_encoder_document

__all__ = [
    "EncoderCheckpoint",
    "build_encoder",
    "canonical_encoder_state",
    "encoder_digest",
    "encoder_shapes",
    "from_canonical_encoder",
    "from_encoder_document",
    "is_encoder_document",
    "load_backbone",
    "load_trunk",
    "to_encoder_metadata",
]
