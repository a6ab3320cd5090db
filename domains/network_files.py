"""Small networks as files: safetensors with the sizes in the metadata."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from lsap_core.errors import CheckpointError
from lsap_core.generators.generator import Generator
from lsap_core.perceptual.features import FeatureNet, FeatureNetConfig
from lsap_core.perceptual.judge import JudgeNet

KINDS: dict[str, type[FeatureNet] | type[JudgeNet]] = {"FeatureNet": FeatureNet, "JudgeNet": JudgeNet}


def save_network(path: Path, network: nn.Module) -> None:
    """Write a `FeatureNet` or `JudgeNet` with its sizes."""
    state = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    metadata = {"kind": type(network).__name__, "config": json.dumps(network.config.to_dict())}
    save_file(state, path, metadata=metadata)


def load_network(path: Path, kind: type[FeatureNet] | type[JudgeNet]) -> nn.Module:
    """Read a network of the given kind, frozen, in eval mode.

    Raises:
        CheckpointError: the file is another kind of network, or not a network at all.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except Exception as error:
        raise CheckpointError(f"{path} is not a readable safetensors file: {error}") from error
    if metadata.get("kind") != kind.__name__:
        raise CheckpointError(f"{path} holds a {metadata.get('kind', 'file without a kind')}; wanted a {kind.__name__}")
    network = kind(FeatureNetConfig.from_dict(json.loads(metadata["config"])))
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise CheckpointError(f"{path} does not fit the sizes it names: {error}") from error
    return network.requires_grad_(False).eval().to(memory_format=torch.channels_last)


def save_generator(path: Path, generator: Generator) -> None:
    """Write a generator in the canonical layout."""
    state = {name: tensor.contiguous() for name, tensor in generator.state_dict().items()}
    metadata = {"kind": "Generator", "config": json.dumps(generator.config.to_dict()), "format_version": "1"}
    save_file(state, path, metadata=metadata)
