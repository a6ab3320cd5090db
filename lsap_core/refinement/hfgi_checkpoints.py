"""HFGI's networks in files: the released layouts, and our own form."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from lsap_core.errors import CheckpointError, ConfigError
from lsap_core.generators.checkpoints.canonical import first_size
from lsap_core.refinement.hfgi_networks import HfgiConfig, HfgiNetworks
from lsap_core.refinement.network_files import NetworkCheckpoint, NetworkForm

WHAT = "HFGI's networks"
HFGI = NetworkForm("hfgi", WHAT, HfgiNetworks, HfgiConfig.from_dict)

IN_STATE_DICT = {"grid_align": "aligner", "residue": "encoder"}
"""Modules in the `state_dict` of released files -> ours."""
AS_ENTRIES = {"align": "aligner", "res": "encoder"}
"""Entries of files that GANInverter converted -> our modules."""

ENCODER_NOTE = (
    "the encoder in this file is not the one it was trained from: the published training left the frozen encoder in "
    "training mode, so that its batch statistics drifted; to refine codes of the original encoder take its own file"
)


def is_hfgi_document(document: object) -> bool:
    """Whether what was found in a file looks like one of the released layouts."""
    return isinstance(document, Mapping) and _layout(document) is not None


def from_hfgi_document(document: object) -> NetworkCheckpoint[HfgiConfig]:
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
    return NetworkCheckpoint(
        config,
        HFGI.canonical(config, state, what=WHAT),
        layout=layout,
        notes=(ENCODER_NOTE,) if has_encoder else (),
    )


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
