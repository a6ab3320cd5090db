"""Files of predictors, released and our own, translated to and from one set of names. Opens no file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lsap_core.errors import CheckpointError
from lsap_core.generators.checkpoints.canonical import Shape
from lsap_core.generators.checkpoints.networks import (
    FORMAT_VERSION,
    canonical_network,
    check_digest,
    check_kind,
    config_of,
    from_json,
    network_digest,
    network_shapes,
    to_json,
)
from lsap_core.perceptual.published_weights import describe_document, named_tensors, with_weights
from lsap_core.refinement.sam_networks import InvertibilityPredictor, PredictorConfig
from lsap_core.refinement.sam_spaces import W_PLUS

KIND = "invertibility_predictor"
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
        options: what is known of the training, as plain values for JSON.
    """

    config: PredictorConfig
    state: dict[str, Tensor]
    layout: str
    generator_digest: str | None = None
    title: str = ""
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """`predictor_digest` of this network."""
        return predictor_digest(self.config, self.state)


def predictor_shapes(config: PredictorConfig) -> dict[str, Shape]:
    """Name and shape of every tensor of `InvertibilityPredictor(config)` but the counters of batches."""
    return network_shapes(lambda: InvertibilityPredictor(config))


def canonical_predictor_state(config: PredictorConfig, state: Mapping[str, Any], *, what: str) -> dict[str, Tensor]:
    """The tensors of `config`, as `canonical_network` gives them.

    Raises:
        CheckpointError: a tensor is missing, unexpected, of another shape, or not a number somewhere.
    """
    return canonical_network(state, predictor_shapes(config), what=what)


def build_predictor(checkpoint: PredictorCheckpoint) -> InvertibilityPredictor:
    """The network of a checkpoint: on the CPU, in eval mode, not frozen. Takes no random numbers."""
    with torch.device("meta"):
        predictor = InvertibilityPredictor(checkpoint.config)
    return with_weights(predictor, checkpoint.state, "the predictor").eval()


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
    check_kind(metadata, KIND, what="an invertibility predictor")
    config = config_of(metadata, PredictorConfig.from_dict, what="a predictor")
    checkpoint = PredictorCheckpoint(
        config,
        canonical_predictor_state(config, state, what="the file"),
        layout="safetensors",
        generator_digest=metadata.get("generator_digest") or None,
        title=metadata.get("title", ""),
        options=from_json(metadata.get("options", "{}"), dict, "options"),
    )
    check_digest(metadata, checkpoint.digest, what="the predictor")
    return checkpoint


def to_predictor_metadata(checkpoint: PredictorCheckpoint) -> dict[str, str]:
    """What travels beside canonical tensors, as text: kind, version, sizes, options, title, digests."""
    return {
        "kind": KIND,
        "format_version": FORMAT_VERSION,
        "config": to_json(checkpoint.config.to_dict()),
        "options": to_json(checkpoint.options),
        "title": checkpoint.title,
        "generator_digest": checkpoint.generator_digest or "",
        "digest": checkpoint.digest,
    }


def predictor_digest(config: PredictorConfig, state: Mapping[str, Tensor]) -> str:
    """`network_digest` with the first line `lsap invertibility predictor 1`.

    Raises:
        CheckpointError: the state is not that of `config` in float32.
    """
    return network_digest(
        "lsap invertibility predictor 1", config.to_dict(), state, predictor_shapes(config), what="the predictor"
    )
