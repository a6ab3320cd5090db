"""SAM's predictor in files: the released layout, and our own form."""

from __future__ import annotations

import re
from collections.abc import Mapping

from lsap_core.errors import CheckpointError
from lsap_core.perceptual.published_weights import describe_document, named_tensors
from lsap_core.refinement.network_files import NetworkCheckpoint, NetworkForm
from lsap_core.refinement.sam_networks import InvertibilityPredictor, PredictorConfig
from lsap_core.refinement.sam_spaces import W_PLUS

WHAT = "SAM's predictor"
PREDICTOR = NetworkForm("invertibility_predictor", WHAT, InvertibilityPredictor, PredictorConfig.from_dict)
RELEASED_BASE = "sd_base"
"""In a released file the tensors of the base are in this entry, those of each head in one called as its space."""


def is_released_predictor(document: object) -> bool:
    """Whether what was read from a file is a released predictor."""
    return isinstance(document, Mapping) and isinstance(document.get(RELEASED_BASE), Mapping)


def from_released_predictor(document: object) -> NetworkCheckpoint[PredictorConfig]:
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
    return NetworkCheckpoint(config, PREDICTOR.canonical(config, state, what=WHAT), layout="sam")
