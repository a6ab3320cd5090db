"""Files of predictors, released and our own, translated to and from one set of names. Opens no file."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lsap_core.errors import CheckpointError
from lsap_core.generators.checkpoints.canonical import Shape, check_tensors
from lsap_core.perceptual.published_weights import COUNTER, describe_document, named_tensors
from lsap_core.refinement.sam_networks import InvertibilityPredictor, PredictorConfig
from lsap_core.refinement.sam_spaces import W_PLUS

KIND = "invertibility_predictor"
FORMAT_VERSION = "1"
RELEASED_BASE = "sd_base"
"""In a released file the tensors of the base are in this entry, those of each head in one called as its space."""


@dataclass(frozen=True)
class PredictorCheckpoint:
    """One predictor, whatever file it came from.

    Attributes:
        config: every size.
        state: the tensors of `InvertibilityPredictor(config)` but counters of batches; float32, on the CPU.
        layout: "sam" for a released file, "safetensors" for our own.
        generator_digest: of the generator whose spaces it knows; None where nobody recorded it, as in released files.
        title: what to call it in reports, or "".
    """

    config: PredictorConfig
    state: dict[str, Tensor]
    layout: str
    generator_digest: str | None = None
    title: str = ""

    @property
    def digest(self) -> str:
        """`predictor_digest` of this network."""
        return predictor_digest(self.config, self.state)


def predictor_shapes(config: PredictorConfig) -> dict[str, Shape]:
    """Name and shape of every tensor of `InvertibilityPredictor(config)` but the counters of batches."""
    with torch.device("meta"):  # shapes without memory
        state = InvertibilityPredictor(config).state_dict()
    return {name: tuple(tensor.shape) for name, tensor in state.items() if not name.endswith(COUNTER)}


def canonical_predictor_state(config: PredictorConfig, state: Mapping[str, Any], *, what: str) -> dict[str, Tensor]:
    """The tensors of `config`, checked one by one, float32, contiguous, on the CPU; counters are dropped.

    Raises:
        CheckpointError: a tensor is missing, unexpected, of another shape, or not a number somewhere.
    """
    found = {name: tensor for name, tensor in state.items() if not name.endswith(COUNTER)}
    shapes = predictor_shapes(config)
    check_tensors(found, shapes, what=what)
    result = {name: found[name].detach().to(device="cpu", dtype=torch.float32).contiguous() for name in shapes}
    for name, tensor in result.items():
        if not bool(torch.isfinite(torch.stack(torch.aminmax(tensor))).all()):
            raise CheckpointError(f"{what}: {name} holds values that are not finite; the network is damaged")
    return result


def build_predictor(checkpoint: PredictorCheckpoint) -> InvertibilityPredictor:
    """The network of a checkpoint: on the CPU, in eval mode, not frozen. Takes no random numbers."""
    with torch.device("meta"):
        predictor = InvertibilityPredictor(checkpoint.config)
        counters = [name for name in predictor.state_dict() if name.endswith(COUNTER)]
    state = {name: tensor.clone() for name, tensor in checkpoint.state.items()}
    state |= {name: torch.zeros((), dtype=torch.long) for name in counters}
    predictor.load_state_dict(state, assign=True)
    return predictor.eval()


def is_released_predictor(document: object) -> bool:
    """Whether what was read from a file is a released predictor."""
    return isinstance(document, Mapping) and isinstance(document.get(RELEASED_BASE), Mapping)


def from_released_predictor(document: object) -> PredictorCheckpoint:
    """A checkpoint from a released file: the base, and a head for each latent space.

    Args:
        document: what was read from the file: `sd_base`, `W+`, `F4`, ..., tensors by name in each.

    Raises:
        CheckpointError: the file is another kind of checkpoint, or a tensor is missing or does not fit.
    """
    if not isinstance(document, Mapping) or not is_released_predictor(document):
        raise CheckpointError(
            f"wanted a predictor of SAM ({RELEASED_BASE}, {W_PLUS}, F4, ...); found {describe_document(document)}: "
            "put the released file of invertibility in its place"
        )
    names = [str(name)[:100] for name in document if name != RELEASED_BASE]
    if unknown := [name for name in names if not re.fullmatch(r"W\+|F[1-9]\d?", name)]:
        raise CheckpointError(
            f"a predictor of SAM has an entry {unknown[0]}; wanted names of spaces: {W_PLUS}, F4, ..."
        )
    if not names:
        raise CheckpointError(f"a predictor of SAM has {RELEASED_BASE} and no space; wanted {W_PLUS}, F4, ... too")
    spaces = sorted(names, key=lambda name: 0 if name == W_PLUS else int(name[1:]))
    state = {f"base.{name}": tensor for name, tensor in named_tensors(document[RELEASED_BASE]).items()}
    for space in spaces:
        state |= {f"heads.{space}.{name}": tensor for name, tensor in named_tensors(document[space]).items()}
    config = PredictorConfig("deeplab", tuple(spaces))
    return PredictorCheckpoint(config, canonical_predictor_state(config, state, what="the predictor"), layout="sam")


def from_canonical_predictor(state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> PredictorCheckpoint:
    """A checkpoint from canonical tensors and the metadata that `to_predictor_metadata` wrote beside them.

    Raises:
        CheckpointError: the metadata describe something else, a tensor is missing, unexpected or of another shape,
            or the tensors are not those that the recorded digest was taken of.
    """
    if metadata.get("kind") != KIND:
        raise CheckpointError(f"the metadata name {metadata.get('kind', 'no kind')}; wanted an {KIND} saved by us")
    if metadata.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"the format version is {metadata.get('format_version')}; this library reads {FORMAT_VERSION}: update it"
        )
    text = metadata.get("config", "")
    try:
        config = PredictorConfig.from_dict(json.loads(text))
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{text[:200]!r} is no configuration of a predictor: {error}") from error
    checkpoint = PredictorCheckpoint(
        config,
        canonical_predictor_state(config, state, what="the file"),
        layout="safetensors",
        generator_digest=metadata.get("generator_digest") or None,
        title=metadata.get("title", ""),
    )
    if metadata.get("digest") != checkpoint.digest:
        raise CheckpointError(
            f"the predictor has digest {checkpoint.digest}, its file was written with {metadata.get('digest')}: "
            "it was changed or damaged; copy or convert the original file again"
        )
    return checkpoint


def to_predictor_metadata(checkpoint: PredictorCheckpoint) -> dict[str, str]:
    """What travels beside canonical tensors, as text: kind, version, sizes, title, digests."""
    return {
        "kind": KIND,
        "format_version": FORMAT_VERSION,
        "config": _to_json(checkpoint.config.to_dict()),
        "title": checkpoint.title,
        "generator_digest": checkpoint.generator_digest or "",
        "digest": checkpoint.digest,
    }


def predictor_digest(config: PredictorConfig, state: Mapping[str, Tensor]) -> str:
    """SHA-256 of a predictor, the same for every file format that holds it, as 64 hexadecimal digits.

    Hashed in this order: `lsap invertibility predictor 1`, the configuration as JSON with sorted keys and no spaces,
    then for each tensor by sorted name `<name> float32 <shape as JSON>` and its values (little-endian, row-major). A
    newline ends each line of text. Counters of batches do not count.

    Raises:
        CheckpointError: the state is not that of `config` in float32.
    """
    tensors = {name: tensor for name, tensor in state.items() if not name.endswith(COUNTER)}
    check_tensors(tensors, predictor_shapes(config), what="the predictor")
    sha256 = hashlib.sha256(f"lsap invertibility predictor 1\n{_to_json(config.to_dict())}\n".encode())
    for name in sorted(tensors):
        values = tensors[name].detach().cpu()
        if values.dtype != torch.float32:
            raise CheckpointError(f"{name} is {values.dtype}; a digest is taken of float32 weights")
        sha256.update(f"{name} float32 {json.dumps(list(values.shape))}\n".encode())
        sha256.update(np.ascontiguousarray(values.numpy(), dtype="<f4").data)
    return sha256.hexdigest()


def _to_json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))
