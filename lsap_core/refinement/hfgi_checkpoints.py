"""HFGI's networks in files: the released layouts, our own names and sizes, and what makes two files the same."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lsap_core.errors import CheckpointError, ConfigError
from lsap_core.generators.checkpoints.canonical import Shape, first_size
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
from lsap_core.refinement.hfgi_networks import HfgiConfig, HfgiNetworks

KIND = "hfgi"
WHAT = "HFGI's networks"

IN_STATE_DICT = {"grid_align": "aligner", "residue": "encoder"}
"""Modules in the `state_dict` of released files -> ours."""
AS_ENTRIES = {"align": "aligner", "res": "encoder"}
"""Entries of files that GANInverter converted -> our modules."""

ENCODER_NOTE = (
    "the encoder in this file is not the one it was trained from: the published training left the frozen encoder in "
    "training mode, so that its batch statistics drifted; to refine codes of the original encoder take its own file"
)


@dataclass(frozen=True)
class HfgiCheckpoint:
    """HFGI's two networks, whatever file they came from.

    Attributes:
        config: their sizes.
        state: the tensors of `HfgiNetworks(config)`, counters of batches left out; float32, on the CPU.
        layout: "hfgi", "ganinverter", or "safetensors" for our own.
        options: what is known of the training, as plain values for JSON.
        notes: sentences about what else is in the file.
        generator_digest: digest of the generator that they were trained with; None when nobody recorded it.
        encoder_digest: digest of the encoder whose codes they were trained on; None when nobody recorded it.
        title: what to call them in reports, or "".
    """

    config: HfgiConfig
    state: dict[str, Tensor]
    layout: str
    options: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    generator_digest: str | None = None
    encoder_digest: str | None = None
    title: str = ""

    @property
    def digest(self) -> str:
        """`hfgi_digest` of these networks."""
        return hfgi_digest(self.config, self.state)


def is_hfgi_document(document: object) -> bool:
    """Whether what was found in a file looks like one of the released layouts."""
    return isinstance(document, Mapping) and _layout(document) is not None


def from_hfgi_document(document: object) -> HfgiCheckpoint:
    """The networks of a released file.

    Args:
        document: `state_dict` with `residue.*` and `grid_align.*` among others (HFGI), this state dict itself, or
            entries `res` and `align` (GANInverter). Names may carry the `module.` of distributed training.

    Raises:
        CheckpointError: the file is another kind of checkpoint, or its tensors do not fit; missing and unexpected ones
            are named.
    """
    layout = _layout(document) if isinstance(document, Mapping) else None
    if not isinstance(document, Mapping) or layout is None:
        found = ", ".join(sorted(str(name)[:40] for name in document)[:6]) if isinstance(document, Mapping) else ""
        raise CheckpointError(
            "wanted HFGI's networks (state_dict with residue.* and grid_align.*, or entries res and align); found "
            f"{found or type(document).__name__}"
        )
    state, has_encoder = _sort(document, layout)
    config = _config_of(state)
    return HfgiCheckpoint(
        config,
        canonical_hfgi_state(config, state, what=WHAT),
        layout=layout,
        notes=(ENCODER_NOTE,) if has_encoder else (),
    )


def hfgi_shapes(config: HfgiConfig) -> dict[str, Shape]:
    """Name and shape of every tensor of `HfgiNetworks(config)` but the counters of batches."""
    return network_shapes(lambda: HfgiNetworks(config))


def canonical_hfgi_state(config: HfgiConfig, state: Mapping[str, Any], *, what: str) -> dict[str, Tensor]:
    """The tensors of `config`, as `canonical_network` gives them.

    Raises:
        CheckpointError: a tensor is missing, unexpected, of another shape, or not a number somewhere.
    """
    return canonical_network(state, hfgi_shapes(config), what=what)


def build_hfgi(checkpoint: HfgiCheckpoint) -> HfgiNetworks:
    """The network of a checkpoint: on the CPU, in eval mode, not frozen. Takes no random numbers."""
    with torch.device("meta"):
        networks = HfgiNetworks(checkpoint.config)
    return with_weights(networks, checkpoint.state, WHAT).eval()


def from_canonical_hfgi(state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> HfgiCheckpoint:
    """A checkpoint from canonical tensors and the metadata that `to_hfgi_metadata` wrote beside them.

    Raises:
        CheckpointError: the metadata describe something else, a tensor is missing, unexpected or of another shape, or
            the tensors are not those that the recorded digest was taken of.
    """
    check_kind(metadata, KIND, what=WHAT)
    config = config_of(metadata, HfgiConfig.from_dict, what=WHAT)
    checkpoint = HfgiCheckpoint(
        config,
        canonical_hfgi_state(config, state, what="the file"),
        layout="safetensors",
        options=from_json(metadata.get("options", "{}"), dict, "options"),
        notes=notes_of(metadata),
        generator_digest=metadata.get("generator_digest") or None,
        encoder_digest=metadata.get("encoder_digest") or None,
        title=metadata.get("title", ""),
    )
    check_digest(metadata, checkpoint.digest, what=WHAT)
    return checkpoint


def to_hfgi_metadata(checkpoint: HfgiCheckpoint) -> dict[str, str]:
    """What travels beside canonical tensors, as text: kind, version, sizes, options, notes, title, digests."""
    return {
        "kind": KIND,
        "format_version": FORMAT_VERSION,
        "config": to_json(checkpoint.config.to_dict()),
        "options": to_json(checkpoint.options),
        "notes": to_json(list(checkpoint.notes)),
        "title": checkpoint.title,
        "generator_digest": checkpoint.generator_digest or "",
        "encoder_digest": checkpoint.encoder_digest or "",
        "digest": checkpoint.digest,
    }


def hfgi_digest(config: HfgiConfig, state: Mapping[str, Tensor]) -> str:
    """`network_digest` with the first line `lsap hfgi 1`.

    Raises:
        CheckpointError: the state is not that of `config` in float32.
    """
    return network_digest("lsap hfgi 1", config.to_dict(), state, hfgi_shapes(config), what=WHAT)


def _layout(document: Mapping[Any, Any]) -> str | None:
    if all(isinstance(document.get(entry), Mapping) for entry in AS_ENTRIES):
        return "ganinverter"
    modules = {_plain_name(name).partition(".")[0] for name in _state_dict(document)}
    return "hfgi" if modules >= set(IN_STATE_DICT) else None


def _sort(document: Mapping[Any, Any], layout: str) -> tuple[dict[str, Any], bool]:
    """The tensors of both networks under our names, and whether the file has an encoder too.

    Raises:
        CheckpointError: a tensor is there twice.
    """
    if layout == "ganinverter":
        has_encoder = isinstance(document.get("encoder"), Mapping)
        named = [
            (f"{module}.{_plain_name(name)}", tensor)
            for entry, module in AS_ENTRIES.items()
            for name, tensor in document[entry].items()
        ]
    else:
        published = [(*_plain_name(name).partition("."), tensor) for name, tensor in _state_dict(document).items()]
        has_encoder = any(module == "encoder" for module, _, _, _ in published)
        named = [
            (f"{IN_STATE_DICT[module]}.{rest}", tensor)
            for module, _, rest, tensor in published
            if module in IN_STATE_DICT
        ]
    state: dict[str, Any] = {}
    for name, tensor in named:
        if name in state:
            raise CheckpointError(f"{WHAT}: {name} is there twice, with and without module.")
        state[name] = tensor
    return state, has_encoder


def _state_dict(document: Mapping[Any, Any]) -> Mapping[Any, Any]:
    state = document.get("state_dict")
    return state if isinstance(state, Mapping) else document


def _plain_name(name: object) -> str:
    """A name without the `module.` of distributed training, wherever it stands."""
    return re.sub(r"(?:^|(?<=\.))module\.", "", str(name)[:500])


def _config_of(state: Mapping[str, Any]) -> HfgiConfig:
    """The sizes of released networks, which all have the published widths."""
    try:
        return HfgiConfig(
            image_channels=first_size(state, ("encoder.conv_layer1.0.weight", 1)),
            condition_channels=first_size(state, ("encoder.condition_scale3.2.weight", 0)),
        )
    except ConfigError as error:
        raise CheckpointError(f"{WHAT}: {error}") from error
