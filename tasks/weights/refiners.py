"""Networks of refiners: released files and our own, told apart by content, and whom they were trained for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import safetensors.torch
from torch import Tensor, nn

from lsap_core.errors import CheckpointError
from lsap_core.generators.checkpoints import read_torch
from lsap_core.generators.config import GeneratorConfig
from lsap_core.refinement.hfgi_checkpoints import HFGI, from_hfgi_document, is_hfgi_document
from lsap_core.refinement.hyperstyle_checkpoint import HYPERSTYLE, from_hyperstyle_document, is_hyperstyle_document
from lsap_core.refinement.hyperstyle_networks import HyperNetwork
from lsap_core.refinement.network_files import Config, Network, NetworkCheckpoint, NetworkForm
from lsap_core.refinement.pti_checkpoint import SHARED_WEIGHTS, Group
from lsap_core.refinement.sam_checkpoints import PREDICTOR, from_released_predictor, is_released_predictor
from lsap_core.refinement.sam_networks import InvertibilityPredictor, PredictorConfig, SamNetworks
from lsap_core.refinement.sfe_checkpoints import SFE, from_sfe_document, is_sfe_document
from tasks.weights.files import (
    check_torch_zip,
    describe_other,
    is_safetensors,
    is_torch_file,
    read_bytes,
    read_safetensors,
)

KINDS = (
    "released networks of a refiner (of HFGI, HyperStyle, SAM or StyleFeatureEditor) or a .safetensors of this project"
)


@dataclass(frozen=True)
class LoadedNetworks:
    """Networks of a refiner and where they came from.

    Attributes:
        networks: on the CPU, in eval mode, frozen.
        kind: of the refiner that they are of.
        digest: SHA-256 of weights and configuration, the same for every file format that holds these networks.
        generator_digest: digest of the generator that they were trained with, or None when the file does not say.
        encoder_digest: digest of the encoder whose codes they were trained on, or None likewise.
        notes: sentences about what else is in the file; to be shown.
        group: the inversions that they were tuned to, of weights that a group shares; else None.
    """

    networks: nn.Module
    kind: str
    digest: str
    generator_digest: str | None
    encoder_digest: str | None
    notes: tuple[str, ...]
    group: Group | None = None


def name_of_networks(name: str, files: Mapping[str, str]) -> str | None:
    """The name that somebody gives a file for: of one embedding, "e4e/hfgi", before that of all of them, "hfgi".

    Networks may belong to the encoder whose codes they were trained on.

    Args:
        name: of the networks, with or without an embedding before it.
        files: paths or URLs of the networks of refiners, by name.

    Returns:
        A name that `files` has; None where it has neither.

    Example:
        >>> name_of_networks("e4e/hfgi", {"hfgi": "a.safetensors", "e4e/hfgi": "b.safetensors"})
        'e4e/hfgi'
        >>> name_of_networks("psp/hfgi", {"hfgi": "a.safetensors"})
        'hfgi'
    """
    return next((one for one in (name, name.partition("/")[2]) if one in files), None)


def load_refiner_networks(
    path_or_url: str, generator: GeneratorConfig, *, storage_options: Mapping[str, Any] | None = None
) -> LoadedNetworks:
    """The networks of a refiner, without running any code that the file holds.

    Args:
        path_or_url: a path, or a URL that fsspec knows (s3://, https://, memory://, ...).
        generator: that they are wanted for: released files do not say all of their sizes.
        storage_options: passed to fsspec.

    Raises:
        CheckpointError: there is no such file, or it holds no networks of a refiner that can be read.
    """
    data = read_bytes(path_or_url, storage_options, wanted=KINDS)
    try:
        if is_torch_file(data):
            check_torch_zip(data, wanted=KINDS)
            return _of_document(read_torch(data), generator)
        if is_safetensors(data):
            return _of_state(*read_safetensors(data))
        raise CheckpointError(f"it is {describe_other(data)}; wanted {KINDS}")
    except CheckpointError as error:
        raise CheckpointError(f"{path_or_url}: {error}") from error


def encode_networks(
    form: NetworkForm[Config, Network],
    config: Config,
    state: Mapping[str, Any],
    *,
    generator_digest: str,
    encoder_digest: str | None = None,
    title: str = "",
    options: Mapping[str, Any] | None = None,
) -> bytes:
    """The .safetensors file of a refiner's networks.

    Args:
        form: of what kind they are.
        config: their sizes.
        state: every tensor by name.
        generator_digest: of the generator that they were trained with.
        encoder_digest: of the encoder whose codes they were trained on; None where there is none.
        title: what to call them in reports.
        options: what else is worth knowing of their training, plain values for JSON.

    Raises:
        CheckpointError: a weight is not finite.
    """
    checkpoint = NetworkCheckpoint(
        config,
        form.canonical(config, state, what=form.what),
        layout="safetensors",
        options=dict(options or {}),
        generator_digest=generator_digest,
        encoder_digest=encoder_digest,
        title=title,
    )
    return safetensors.torch.save(checkpoint.state, form.metadata(checkpoint))


def _of_document(document: object, generator: GeneratorConfig) -> LoadedNetworks:
    if is_hfgi_document(document):
        return _of_checkpoint(HFGI, from_hfgi_document(document))
    if is_sfe_document(document):
        return _of_checkpoint(SFE, from_sfe_document(document))
    if is_released_predictor(document):
        return _of_predictor(from_released_predictor(document))
    if is_hyperstyle_document(document):
        found = from_hyperstyle_document(document, generator_config=generator)
        trained_with = None if found.decoder is None else found.decoder.digest
        network = found.network.requires_grad_(False).eval()
        return LoadedNetworks(network, HYPERSTYLE.kind, _digest_of(network), trained_with, None, found.notes)
    raise CheckpointError(f"it holds no networks of a refiner; wanted {KINDS}")


def _of_state(state: dict[str, Tensor], metadata: Mapping[str, str]) -> LoadedNetworks:
    kind = metadata.get("kind", "")
    if kind not in _CANONICAL:
        told = f'networks of kind "{kind[:40]}"' if kind else "no networks of a refiner"
        raise CheckpointError(f"it holds {told}; wanted one of {', '.join(_CANONICAL)}")
    return _CANONICAL[kind](state, metadata)


def _of_checkpoint(form: NetworkForm[Config, Network], checkpoint: NetworkCheckpoint[Config]) -> LoadedNetworks:
    return LoadedNetworks(
        form.build(checkpoint).requires_grad_(False).eval(),
        form.kind,
        form.digest(checkpoint),
        checkpoint.generator_digest,
        checkpoint.encoder_digest,
        checkpoint.notes,
    )


def _of_predictor(checkpoint: NetworkCheckpoint[PredictorConfig]) -> LoadedNetworks:
    """SAM's networks without a segmenter, which is chosen by name."""
    found = _of_checkpoint(PREDICTOR, checkpoint)
    assert isinstance(found.networks, InvertibilityPredictor)
    return replace(found, networks=SamNetworks(found.networks), kind="sam")


def _of_shared_weights(checkpoint: NetworkCheckpoint[GeneratorConfig]) -> LoadedNetworks:
    """Weights that a group shares, and whose they are."""
    return replace(_of_checkpoint(SHARED_WEIGHTS, checkpoint), group=Group.of(checkpoint))


def _digest_of(network: HyperNetwork) -> str:
    """As of our own file of the same numbers."""
    return HYPERSTYLE.digest(NetworkCheckpoint(network.config, network.state_dict(), layout="hyperstyle"))


_CANONICAL: dict[str, Callable[[dict[str, Tensor], Mapping[str, str]], LoadedNetworks]] = {
    HFGI.kind: lambda state, metadata: _of_checkpoint(HFGI, HFGI.read(state, metadata)),
    HYPERSTYLE.kind: lambda state, metadata: _of_checkpoint(HYPERSTYLE, HYPERSTYLE.read(state, metadata)),
    SHARED_WEIGHTS.kind: lambda state, metadata: _of_shared_weights(SHARED_WEIGHTS.read(state, metadata)),
    PREDICTOR.kind: lambda state, metadata: _of_predictor(PREDICTOR.read(state, metadata)),
    SFE.kind: lambda state, metadata: _of_checkpoint(SFE, SFE.read(state, metadata)),
}
