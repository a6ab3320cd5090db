"""HFGI's networks in files: the released layouts, our own names and sizes, and what makes two files the same."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lsap_core.errors import CheckpointError, ConfigError
from lsap_core.generators.checkpoints.canonical import Shape, check_tensors, first_size
from lsap_core.refinement.hfgi_networks import HfgiConfig, HfgiNetworks

KIND = "hfgi"
FORMAT_VERSION = "1"
COUNTER = "num_batches_tracked"
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
    with torch.device("meta"):  # shapes without memory
        state = HfgiNetworks(config).state_dict()
    return {name: tuple(tensor.shape) for name, tensor in state.items() if not name.endswith(COUNTER)}


def canonical_hfgi_state(config: HfgiConfig, state: Mapping[str, Any], *, what: str) -> dict[str, Tensor]:
    """The tensors of `config`, checked one by one, float32, contiguous, on the CPU; counters are dropped.

    Raises:
        CheckpointError: a tensor is missing, unexpected, of another shape, or not a number somewhere.
    """
    found = {name: tensor for name, tensor in state.items() if not name.endswith(COUNTER)}
    shapes = hfgi_shapes(config)
    check_tensors(found, shapes, what=what)
    result = {name: found[name].detach().to(device="cpu", dtype=torch.float32).contiguous() for name in shapes}
    for name, tensor in result.items():
        if not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(f"{what}: {name} holds values that are not finite; the network is damaged")
    return result


def build_hfgi(checkpoint: HfgiCheckpoint) -> HfgiNetworks:
    """The networks of a checkpoint: on the CPU, in eval mode, not frozen. Takes no random numbers."""
    with torch.device("meta"):
        networks = HfgiNetworks(checkpoint.config)
        counters = [name for name in networks.state_dict() if name.endswith(COUNTER)]
    state = {name: tensor.clone() for name, tensor in checkpoint.state.items()}
    state |= {name: torch.zeros((), dtype=torch.long) for name in counters}
    networks.load_state_dict(state, assign=True)
    return networks.eval()


def from_canonical_hfgi(state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> HfgiCheckpoint:
    """A checkpoint from canonical tensors and the metadata that `to_hfgi_metadata` wrote beside them.

    Raises:
        CheckpointError: the metadata describe something else, a tensor is missing, unexpected or of another shape, or
            the tensors are not those that the recorded digest was taken of.
    """
    if metadata.get("kind") != KIND:
        raise CheckpointError(
            f"the metadata name {metadata.get('kind', 'no kind')}; wanted {WHAT} ({KIND}) saved by this library"
        )
    if metadata.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"the format version is {metadata.get('format_version')}; this library reads {FORMAT_VERSION}: update it"
        )
    config = _config_from_json(metadata.get("config", ""))
    checkpoint = HfgiCheckpoint(
        config,
        canonical_hfgi_state(config, state, what="the file"),
        layout="safetensors",
        options=_from_json(metadata.get("options", "{}"), dict, "options"),
        notes=tuple(map(str, _from_json(metadata.get("notes", "[]"), list, "notes"))),
        generator_digest=metadata.get("generator_digest") or None,
        encoder_digest=metadata.get("encoder_digest") or None,
        title=metadata.get("title", ""),
    )
    if metadata.get("digest") != checkpoint.digest:
        raise CheckpointError(
            f"{WHAT} have digest {checkpoint.digest}, their file was written with {metadata.get('digest')}: "
            "it was changed or damaged; copy or convert the original file again"
        )
    return checkpoint


def to_hfgi_metadata(checkpoint: HfgiCheckpoint) -> dict[str, str]:
    """What travels beside canonical tensors, as text: kind, version, sizes, options, notes, title, digests."""
    return {
        "kind": KIND,
        "format_version": FORMAT_VERSION,
        "config": _to_json(checkpoint.config.to_dict()),
        "options": _to_json(checkpoint.options),
        "notes": _to_json(list(checkpoint.notes)),
        "title": checkpoint.title,
        "generator_digest": checkpoint.generator_digest or "",
        "encoder_digest": checkpoint.encoder_digest or "",
        "digest": checkpoint.digest,
    }


def hfgi_digest(config: HfgiConfig, state: Mapping[str, Tensor]) -> str:
    """SHA-256 of the networks, the same for every file format that holds them, as 64 hexadecimal digits.

    Hashed as `encoder_digest` does it, with the first line `lsap hfgi 1`. Counters of batches do not count.

    Raises:
        CheckpointError: the state is not that of `config` in float32.
    """
    tensors = {name: tensor for name, tensor in state.items() if not name.endswith(COUNTER)}
    check_tensors(tensors, hfgi_shapes(config), what=WHAT)
    sha256 = hashlib.sha256(f"lsap hfgi 1\n{_to_json(config.to_dict())}\n".encode())
    for name in sorted(tensors):
        values = tensors[name].detach().cpu()
        if values.dtype != torch.float32:
            raise CheckpointError(f"{name} is {values.dtype}; a digest is taken of float32 weights")
        sha256.update(f"{name} float32 {json.dumps(list(values.shape))}\n".encode())
        sha256.update(np.ascontiguousarray(values.numpy(), dtype="<f4").data)
    return sha256.hexdigest()


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


def _config_from_json(text: str) -> HfgiConfig:
    try:
        return HfgiConfig.from_dict(json.loads(text))
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{text[:200]!r} is no configuration of {WHAT}: {error}") from error
