"""Networks of StyleFeatureEditor in files: the released ones, the classifier they start from, and our own form."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lsap_core.errors import CheckpointError, ConfigError
from lsap_core.generators.checkpoints.canonical import Shape, check_tensors, first_size, largest_index
from lsap_core.generators.checkpoints.networks import (
    COUNTER,
    FORMAT_VERSION,
    canonical_network,
    check_digest,
    check_kind,
    config_of,
    network_digest,
    network_shapes,
    notes_of,
    to_json,
)
from lsap_core.perceptual.published_weights import describe_document, named_tensors, with_weights
from lsap_core.refinement.sfe_networks import SfeBackboneNetwork, SfeConfig, SfeNetworks

KIND = "sfe"
WHAT = "StyleFeatureEditor"
INPUT_SIDE = 256
CLASSIFIER = "iresnet50-7f187506.pth (ArcFace)"
CLASSIFIER_NAMES = {"conv1.": "conv.0.", "bn1.": "conv.1.", "prelu.": "conv.2."}
CLASSIFIER_HEAD = ("bn2.", "fc.", "features.")


@dataclass(frozen=True)
class SfeCheckpoint:
    """Inverter and Feature Editor, whatever file they came from.

    Attributes:
        config: every size.
        state: the tensors of `SfeNetworks(config)`, counters of batches left out; float32, on the CPU.
        layout: "released", or "safetensors" for our own.
        notes: sentences about what the file held besides.
        discriminator: tensors of the discriminator in the file under their published names, or None.
        generator_digest: digest of the generator that the networks were trained with, or None when nobody recorded it.
        title: what to call them in reports, or "".
    """

    config: SfeConfig
    state: dict[str, Tensor]
    layout: str
    notes: tuple[str, ...] = ()
    discriminator: dict[str, Tensor] | None = None
    generator_digest: str | None = None
    title: str = ""

    @property
    def digest(self) -> str:
        """`sfe_digest` of these networks."""
        return sfe_digest(self.config, self.state)


def sfe_shapes(config: SfeConfig) -> dict[str, Shape]:
    """Name and shape of every tensor of `SfeNetworks(config)` but the counters of batches."""
    return network_shapes(lambda: SfeNetworks(config))


def canonical_sfe_state(config: SfeConfig, state: Mapping[str, Any], *, what: str) -> dict[str, Tensor]:
    """The tensors of `config`, as `canonical_network` gives them.

    Raises:
        CheckpointError: a tensor is missing, unexpected, of another shape, or not a number somewhere.
    """
    return canonical_network(state, sfe_shapes(config), what=what)


def is_sfe_document(document: object) -> bool:
    """Whether what `read_torch` found in a file looks like a released one of StyleFeatureEditor."""
    state = document.get("state_dict") if isinstance(document, Mapping) else None
    return any(name.startswith(("encoder.fs_backbone.", "inverter.fs_backbone.")) for name in named_tensors(state))


def from_sfe_document(document: object) -> SfeCheckpoint:
    """The networks of a released file: full or light, of the first phase of training or of the second.

    `encoder.` is the Feature Editor in files of the second phase, and the Inverter in those of the first; they are told
    apart by the names below it. The generator, its mean code and the encoder that guides edits are left alone: like the
    published program this one takes them from files of their own. The Inverter of the second phase need not equal that
    of the first, whose batch statistics went on moving.

    Args:
        document: what `read_torch` found in the file.

    Raises:
        CheckpointError: the file is another kind of checkpoint, or its tensors do not fit; missing and unexpected ones
            are named.
    """
    tables: dict[str, dict[str, object]] = {}
    for name, tensor in named_tensors(document.get("state_dict") if isinstance(document, Mapping) else None).items():
        module, _, rest = name.partition(".")
        tables.setdefault(module, {})[rest] = tensor
    encoder, inverter = tables.get("encoder", {}), tables.get("inverter", {})
    is_first_phase = any(name.startswith("fs_backbone.") for name in encoder)
    if is_first_phase:
        parts = {"inverter": encoder}
    elif inverter and "conv.weight" in encoder:
        parts = {"inverter": inverter, "editor": encoder}
    else:
        raise CheckpointError(
            "wanted a checkpoint of StyleFeatureEditor (state_dict with encoder.fs_backbone.*, or with "
            f"inverter.fs_backbone.* and encoder.conv.*); found {describe_document(document)}"
        )
    config = _read_config(parts["inverter"], has_editor="editor" in parts)
    state = {f"{part}.{name}": tensor for part, tensors in parts.items() for name, tensor in tensors.items()}
    others = sorted(tables.keys() - {"encoder", "inverter", "discriminator"})
    discriminator = {
        name: value for name, value in tables.get("discriminator", {}).items() if isinstance(value, Tensor)
    }
    return SfeCheckpoint(
        config,
        canonical_sfe_state(config, state, what=WHAT),
        layout="released",
        notes=tuple(f"{name} is in the file too and was left alone" for name in others),
        discriminator=discriminator or None,
    )


def build_sfe(checkpoint: SfeCheckpoint) -> SfeNetworks:
    """The networks of a checkpoint: on the CPU, in eval mode, not frozen. Takes no random numbers."""
    with torch.device("meta"):
        networks = SfeNetworks(checkpoint.config)
    return with_weights(networks, checkpoint.state, WHAT).eval()


def load_sfe_backbone(networks: SfeNetworks, state: object) -> None:
    """Start the backbone from a face recognition network, ArcFace's `iresnet50-7f187506.pth`, in place.

    The classifier's last layers are ignored; everything else has to fit. Heads, content layer and Fuser stay.

    Raises:
        CheckpointError: the weights are another network's, or a "small" backbone's are wanted.
    """
    if networks.config.backbone != "iresnet_50":
        raise CheckpointError(f'a "{networks.config.backbone}" backbone has no trained weights to start from')
    found = named_tensors(state)
    if "conv1.weight" not in found or "layer1.0.bn1.weight" not in found:
        raise CheckpointError(f"the backbone starts from {CLASSIFIER}; found {describe_document(state)}")
    ours = {_our_name(name): value for name, value in found.items() if not name.startswith(CLASSIFIER_HEAD)}
    backbone = networks.inverter.fs_backbone
    assert isinstance(backbone, SfeBackboneNetwork)
    own = {
        name: tensor
        for name, tensor in backbone.state_dict().items()
        if name.startswith(("conv.", "block_")) and not name.endswith(COUNTER)
    }
    check_tensors(ours, {name: tuple(tensor.shape) for name, tensor in own.items()}, what="the iresnet_50 backbone")
    with torch.no_grad():
        for name, tensor in own.items():
            source = ours[name]
            assert isinstance(source, Tensor)
            tensor.copy_(source)


def from_canonical_sfe(state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> SfeCheckpoint:
    """A checkpoint from canonical tensors and the metadata that `to_sfe_metadata` wrote beside them.

    Raises:
        CheckpointError: the metadata describe something else, a tensor is missing, unexpected or of another
            shape, or the tensors are not those that the recorded digest was taken of.
    """
    check_kind(metadata, KIND, what=WHAT)
    config = config_of(metadata, SfeConfig.from_dict, what=WHAT)
    checkpoint = SfeCheckpoint(
        config,
        canonical_sfe_state(config, state, what="the file"),
        layout="safetensors",
        notes=notes_of(metadata),
        generator_digest=metadata.get("generator_digest") or None,
        title=metadata.get("title", ""),
    )
    check_digest(metadata, checkpoint.digest, what=WHAT)
    return checkpoint


def to_sfe_metadata(checkpoint: SfeCheckpoint) -> dict[str, str]:
    """What travels beside canonical tensors, as text: kind, version, sizes, notes, title, digests."""
    return {
        "kind": KIND,
        "format_version": FORMAT_VERSION,
        "config": to_json(checkpoint.config.to_dict()),
        "notes": to_json(list(checkpoint.notes)),
        "title": checkpoint.title,
        "generator_digest": checkpoint.generator_digest or "",
        "digest": checkpoint.digest,
    }


def sfe_digest(config: SfeConfig, state: Mapping[str, Tensor]) -> str:
    """`network_digest` with the first line `lsap sfe 1`.

    Raises:
        CheckpointError: the state is not that of `config` in float32.
    """
    return network_digest("lsap sfe 1", config.to_dict(), state, sfe_shapes(config), what=WHAT)


def _read_config(inverter: Mapping[str, Any], *, has_editor: bool) -> SfeConfig:
    heads = 1 + largest_index(r"fs_backbone\.styles\.(\d+)\.", list(inverter), default=-1)
    try:
        return SfeConfig(
            "iresnet_50",
            num_ws=heads,
            w_dim=first_size(inverter, ("fs_backbone.styles.0.weight", 0)),
            image_channels=first_size(inverter, ("fs_backbone.conv.0.weight", 1)),
            input_side=INPUT_SIDE,
            feature_channels=first_size(inverter, ("fs_backbone.content_layer.4.weight", 0)),
            has_editor=has_editor,
        )
    except ConfigError as error:
        raise CheckpointError(f"{WHAT}: {error}") from error


def _our_name(name: str) -> str:
    for published, ours in CLASSIFIER_NAMES.items():
        if name.startswith(published):
            return ours + name.removeprefix(published)
    return re.sub(r"^layer([1-4])\.", r"block_\1.", name)
