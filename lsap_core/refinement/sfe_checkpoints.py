"""Networks of StyleFeatureEditor in files: the released ones, the classifier they start from, and our own form."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lsap_core.errors import CheckpointError, ConfigError
from lsap_core.generators.checkpoints.canonical import check_tensors, first_size, largest_index
from lsap_core.generators.checkpoints.discriminators import from_nvlabs_discriminator
from lsap_core.generators.checkpoints.networks import COUNTER
from lsap_core.generators.discriminator import Discriminator
from lsap_core.perceptual.published_weights import describe_document, named_tensors
from lsap_core.refinement.network_files import NetworkCheckpoint, NetworkForm
from lsap_core.refinement.sfe_networks import SfeBackboneNetwork, SfeConfig, SfeNetworks

WHAT = "StyleFeatureEditor"
SFE = NetworkForm("sfe", WHAT, SfeNetworks, SfeConfig.from_dict)
INPUT_SIDE = 256
CLASSIFIER = "iresnet50-7f187506.pth (ArcFace)"
CLASSIFIER_NAMES = {"conv1.": "conv.0.", "bn1.": "conv.1.", "prelu.": "conv.2."}
CLASSIFIER_HEAD = ("bn2.", "fc.", "features.")


def is_sfe_document(document: object) -> bool:
    """Whether what `read_torch` found in a file looks like a released one of StyleFeatureEditor."""
    state = document.get("state_dict") if isinstance(document, Mapping) else None
    return any(name.startswith(("encoder.fs_backbone.", "inverter.fs_backbone.")) for name in named_tensors(state))


def from_sfe_document(document: object) -> NetworkCheckpoint[SfeConfig]:
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
    tables = _modules(document)
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
    return NetworkCheckpoint(
        config,
        SFE.canonical(config, state, what=WHAT),
        layout="released",
        notes=tuple(f"{name} is in the file too and was left alone" for name in others),
    )


def sfe_discriminator(document: object) -> Discriminator | None:
    """The discriminator in a full released file: on the CPU, in eval mode, not frozen; None where there is none.

    Raises:
        CheckpointError: it is of another architecture, or its tensors do not fit.
    """
    state = _modules(document).get("discriminator")
    return from_nvlabs_discriminator(state) if state else None


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


def _modules(document: object) -> dict[str, dict[str, object]]:
    """Tensors of a released file by module, under the names that follow it."""
    tables: dict[str, dict[str, object]] = {}
    for name, tensor in named_tensors(document.get("state_dict") if isinstance(document, Mapping) else None).items():
        module, _, rest = name.partition(".")
        tables.setdefault(module, {})[rest] = tensor
    return tables


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
