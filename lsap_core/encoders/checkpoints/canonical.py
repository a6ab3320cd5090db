"""The names that every encoder file is translated to, and what makes two files the same encoder."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from lsap_core.encoders.config import EncoderConfig
from lsap_core.encoders.encoder import Encoder
from lsap_core.generators.checkpoints.canonical import CanonicalCheckpoint, Shape
from lsap_core.generators.checkpoints.networks import (
    FORMAT_VERSION,
    canonical_network,
    check_digest,
    check_kind,
    config_of,
    from_json,
    network_digest,
    network_shapes,
    notes_of,
    to_json,
)
from lsap_core.perceptual.published_weights import with_weights

KIND = "encoder"


@dataclass(frozen=True)
class EncoderCheckpoint:
    """One encoder, whatever file it came from.

    Attributes:
        config: every size.
        state: the tensors of `Encoder(config)`, `w_avg` among them and counters of batches left out; float32, on
            the CPU.
        layout: "psp", "e4e", "restyle", "w_encoder", "hfgi", "ganinverter", or "safetensors" for our own.
        options: what the file says about its training, as plain values for JSON.
        notes: sentences about what the file did not say and what was done instead.
        decoder: the generator in the same file, or None.
        discriminator: tensors of its `LatentDiscriminator`, or None.
        generator_digest: digest of the generator that it was trained with. None when nobody recorded it, as in
            published files, which may bring that generator itself.
        title: what to call it in reports, or "".
        knows_heads: whether anybody said how its heads make rows of W+; else `config` has "direct" in the place of it.
    """

    config: EncoderConfig
    state: dict[str, Tensor]
    layout: str
    options: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    decoder: CanonicalCheckpoint | None = None
    discriminator: dict[str, Tensor] | None = None
    generator_digest: str | None = None
    title: str = ""
    knows_heads: bool = True

    @property
    def digest(self) -> str:
        """`encoder_digest` of this network."""
        return encoder_digest(self.config, self.state)


@functools.lru_cache(maxsize=16)  # a file is checked and its digest taken; the network is made for it once
def encoder_shapes(config: EncoderConfig) -> Mapping[str, Shape]:
    """Name and shape of every tensor of `Encoder(config)` but the counters of batches."""
    return MappingProxyType(network_shapes(lambda: Encoder(config)))


def canonical_encoder_state(config: EncoderConfig, state: Mapping[str, Any], *, what: str) -> dict[str, Tensor]:
    """The tensors of `config`, as `canonical_network` gives them.

    Raises:
        CheckpointError: a tensor is missing, unexpected, of another shape, or not a number somewhere.
    """
    return canonical_network(state, encoder_shapes(config), what=what)


def build_encoder(checkpoint: EncoderCheckpoint, *, copy: bool = True) -> Encoder:
    """The network of a checkpoint: on the CPU, in eval mode, not frozen. Takes no random numbers.

    Args:
        checkpoint: of the network.
        copy: whether it gets memory of its own; else the checkpoint's tensors are its weights.
    """
    with torch.device("meta"):
        encoder = Encoder(checkpoint.config)
    return with_weights(encoder, checkpoint.state, "the encoder", copy=copy).eval()


def from_canonical_encoder(state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> EncoderCheckpoint:
    """A checkpoint from canonical tensors and the metadata that `to_encoder_metadata` wrote beside them.

    Raises:
        CheckpointError: the metadata describe something else, a tensor is missing, unexpected or of another
            shape, or the tensors are not those that the recorded digest was taken of.
    """
    check_kind(metadata, KIND, what="an encoder")
    config = config_of(metadata, EncoderConfig.from_dict, what="an encoder")
    options = from_json(metadata.get("options", "{}"), dict, "options")
    checkpoint = EncoderCheckpoint(
        config,
        canonical_encoder_state(config, state, what="the file"),
        layout="safetensors",
        options=options,
        notes=notes_of(metadata),
        generator_digest=metadata.get("generator_digest") or None,
        title=metadata.get("title", ""),
    )
    check_digest(metadata, checkpoint.digest, what="the encoder")
    return checkpoint


def to_encoder_metadata(checkpoint: EncoderCheckpoint) -> dict[str, str]:
    """What travels beside canonical tensors, as text: kind, version, sizes, options, notes, title, digests."""
    return {
        "kind": KIND,
        "format_version": FORMAT_VERSION,
        "config": to_json(checkpoint.config.to_dict()),
        "options": to_json(checkpoint.options),
        "notes": to_json(list(checkpoint.notes)),
        "title": checkpoint.title,
        "generator_digest": checkpoint.generator_digest or "",
        "digest": checkpoint.digest,
    }


def encoder_digest(config: EncoderConfig, state: Mapping[str, Tensor]) -> str:
    """`network_digest` with the first line `lsap encoder 1`.

    Raises:
        CheckpointError: the state is not that of `config` in float32.
    """
    return network_digest("lsap encoder 1", config.to_dict(), state, encoder_shapes(config), what="the encoder")
