"""Small networks as files: safetensors with the sizes in the metadata."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from lsap_core.errors import CheckpointError
from lsap_core.generators.checkpoints import CanonicalCheckpoint, build_generator, from_canonical, to_metadata
from lsap_core.generators.generator import Generator
from lsap_core.perceptual.features import FeatureNet, FeatureNetConfig
from lsap_core.perceptual.judge import JudgeNet

Network = TypeVar("Network", bound=nn.Module)


def save_network(path: Path, network: FeatureNet | JudgeNet) -> None:
    """Write a network with its sizes."""
    state = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    metadata = {"kind": type(network).__name__, "config": json.dumps(network.config.to_dict())}
    save_file(state, path, metadata=metadata)


def load_network(path: Path, kind: type[Network]) -> Network:
    """Read a network of the given kind, frozen, in eval mode.

    Raises:
        CheckpointError: the file is another kind of network, or not a network at all.
    """
    state, metadata = _read(path)
    if metadata.get("kind") != kind.__name__:
        raise CheckpointError(f"{path} holds a {metadata.get('kind', 'file without a kind')}; wanted a {kind.__name__}")
    try:
        network = kind(FeatureNetConfig.from_dict(json.loads(metadata.get("config", "{}"))))
        network.load_state_dict(state)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path} does not fit the sizes it names: {error}") from error
    return network.requires_grad_(False).eval().to(memory_format=torch.channels_last)


def save_generator(path: Path, generator: Generator) -> None:
    """Write a generator in the canonical layout that `lsap generator describe` reads."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in generator.state_dict().items()}
    save_file(state, path, metadata=to_metadata(CanonicalCheckpoint(generator.config, state)))


def load_generator_file(path: Path) -> Generator:
    """Read a generator in the canonical layout, in eval mode, not frozen.

    Raises:
        CheckpointError: the file holds something else.
    """
    state, metadata = _read(path)
    return build_generator(from_canonical(state, metadata))


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} is not a readable safetensors file: {error}") from error
