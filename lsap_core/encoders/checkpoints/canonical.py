"""The names that every encoder file is translated to, and what makes two files the same encoder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lsap_core.encoders.config import EncoderConfig
from lsap_core.encoders.encoder import Encoder
from lsap_core.errors import CheckpointError
from lsap_core.generators.checkpoints.canonical import CanonicalCheckpoint, Shape, check_tensors

KIND = "encoder"
FORMAT_VERSION = "1"
COUNTER = "num_batches_tracked"
"""Batch normalization counts its batches, which changes nothing here: counters are no part of a checkpoint."""


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

    @property
    def digest(self) -> str:
        """`encoder_digest` of this network."""
        return encoder_digest(self.config, self.state)


def encoder_shapes(config: EncoderConfig) -> dict[str, Shape]:
    """Name and shape of every tensor of `Encoder(config)` but the counters of batches."""
    with torch.device("meta"):  # shapes without memory
        state = Encoder(config).state_dict()
    return {name: tuple(tensor.shape) for name, tensor in state.items() if not name.endswith(COUNTER)}


def canonical_encoder_state(config: EncoderConfig, state: Mapping[str, Any], *, what: str) -> dict[str, Tensor]:
    """The tensors of `config`, checked one by one, float32, contiguous, on the CPU; counters are dropped.

    Raises:
        CheckpointError: a tensor is missing, unexpected, of another shape, or not a number somewhere.
    """
    found = {name: tensor for name, tensor in state.items() if not name.endswith(COUNTER)}
    shapes = encoder_shapes(config)
    check_tensors(found, shapes, what=what)
    result = {name: found[name].detach().to(device="cpu", dtype=torch.float32).contiguous() for name in shapes}
    for name, tensor in result.items():
        if not bool(torch.isfinite(torch.stack(torch.aminmax(tensor))).all()):  # one pass, without a copy
            raise CheckpointError(f"{what}: {name} holds values that are not finite; the network is damaged")
    return result


def build_encoder(checkpoint: EncoderCheckpoint) -> Encoder:
    """The network of a checkpoint: on the CPU, in eval mode, not frozen. Takes no random numbers."""
    with torch.device("meta"):
        encoder = Encoder(checkpoint.config)
        counters = [name for name in encoder.state_dict() if name.endswith(COUNTER)]
    state = {name: tensor.clone() for name, tensor in checkpoint.state.items()}
    state |= {name: torch.zeros((), dtype=torch.long) for name in counters}
    encoder.load_state_dict(state, assign=True)
    return encoder.eval()


def from_canonical_encoder(state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> EncoderCheckpoint:
    """A checkpoint from canonical tensors and the metadata that `to_encoder_metadata` wrote beside them.

    Raises:
        CheckpointError: the metadata describe something else, a tensor is missing, unexpected or of another
            shape, or the tensors are not those that the recorded digest was taken of.
    """
    if metadata.get("kind") != KIND:
        found = metadata.get("kind", "no kind")
        raise CheckpointError(f"the metadata name {found}; wanted an {KIND} saved by this library")
    if metadata.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"the format version is {metadata.get('format_version')}; this library reads {FORMAT_VERSION}: update it"
        )
    config = _config_from_json(metadata.get("config", ""))
    notes = _from_json(metadata.get("notes", "[]"), list, "notes")
    options = _from_json(metadata.get("options", "{}"), dict, "options")
    checkpoint = EncoderCheckpoint(
        config,
        canonical_encoder_state(config, state, what="the file"),
        layout="safetensors",
        options=options,
        notes=tuple(map(str, notes)),
        generator_digest=metadata.get("generator_digest") or None,
        title=metadata.get("title", ""),
    )
    if metadata.get("digest") != checkpoint.digest:
        raise CheckpointError(
            f"the encoder has digest {checkpoint.digest}, its file was written with {metadata.get('digest')}: "
            "it was changed or damaged; copy or convert the original file again"
        )
    return checkpoint


def to_encoder_metadata(checkpoint: EncoderCheckpoint) -> dict[str, str]:
    """What travels beside canonical tensors, as text: kind, version, sizes, options, notes, title, digests."""
    return {
        "kind": KIND,
        "format_version": FORMAT_VERSION,
        "config": _to_json(checkpoint.config.to_dict()),
        "options": _to_json(checkpoint.options),
        "notes": _to_json(list(checkpoint.notes)),
        "title": checkpoint.title,
        "generator_digest": checkpoint.generator_digest or "",
        "digest": checkpoint.digest,
    }


def encoder_digest(config: EncoderConfig, state: Mapping[str, Tensor]) -> str:
    """SHA-256 of an encoder, the same for every file format that holds it, as 64 hexadecimal digits.

    Hashed in this order: `lsap encoder 1`, the configuration as JSON with sorted keys and no spaces, then for
    each tensor by sorted name `<name> float32 <shape as JSON>` and its values (little-endian, row-major). A
    newline ends each line of text. Counters of batches do not count.

    Raises:
        CheckpointError: the state is not that of `config` in float32.
    """
    tensors = {name: tensor for name, tensor in state.items() if not name.endswith(COUNTER)}
    check_tensors(tensors, encoder_shapes(config), what="the encoder")
    sha256 = hashlib.sha256(f"lsap encoder 1\n{_to_json(config.to_dict())}\n".encode())
    for name in sorted(tensors):
        values = tensors[name].detach().cpu()
        if values.dtype != torch.float32:
            raise CheckpointError(f"{name} is {values.dtype}; a digest is taken of float32 weights")
        sha256.update(f"{name} float32 {json.dumps(list(values.shape))}\n".encode())
        sha256.update(np.ascontiguousarray(values.numpy(), dtype="<f4").data)
    return sha256.hexdigest()


def _to_json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _from_json(text: str, kind: type, what: str) -> Any:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise CheckpointError(f"the {what} {text[:200]!r} are no JSON: {error}") from error
    if not isinstance(value, kind):
        raise CheckpointError(f"the {what} {text[:200]!r} are a {type(value).__name__}; wanted a {kind.__name__}")
    return value


def _config_from_json(text: str) -> EncoderConfig:
    try:
        return EncoderConfig.from_dict(json.loads(text))
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{text[:200]!r} is no configuration of an encoder: {error}") from error
