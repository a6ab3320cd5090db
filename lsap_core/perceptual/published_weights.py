"""Weights of published networks: entries of a file by name, put into a network of ours, or told apart in words."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from lsap_core.generators.checkpoints.canonical import check_tensors
from lsap_core.generators.checkpoints.networks import COUNTER

Network = TypeVar("Network", bound=nn.Module)


def named_tensors(state: object) -> dict[str, object]:
    """Entries by name, without the `module.` of distributed training and without counters of batches."""
    if not isinstance(state, Mapping):
        return {}
    names = {str(name).removeprefix("module."): value for name, value in state.items()}
    return {name: value for name, value in names.items() if not name.endswith(COUNTER)}


def with_weights(network: Network, tensors: Mapping[str, object], what: str, *, copy: bool = True) -> Network:
    """A network that was made without memory, with these weights.

    Args:
        network: on the device "meta".
        tensors: by name.
        what: the network, for errors.
        copy: whether it gets memory of its own; else it has that of the tensors, as far as nothing else lies in it.

    Raises:
        CheckpointError: a tensor is missing, unexpected or of another shape.
    """
    own = network.state_dict()
    check_tensors(tensors, {n: tuple(t.shape) for n, t in own.items() if not n.endswith(COUNTER)}, what=what)
    state = {name: torch.zeros((), dtype=torch.long) for name in own if name.endswith(COUNTER)}
    for name, tensor in tensors.items():
        assert isinstance(tensor, Tensor)
        is_part = tensor.untyped_storage().nbytes() > tensor.numel() * tensor.element_size()
        state[name] = tensor.detach().to(device="cpu", dtype=torch.float32, copy=copy or is_part)
    network.load_state_dict(state, assign=True)
    return network


def describe_document(document: object) -> str:
    """What a file holds, in words, for whoever put it in the place of another."""
    if not isinstance(document, Mapping):
        return f"a single {type(document).__name__}"
    state = document.get("state_dict")
    names = [re.sub(r"^module\.", "", str(name))[:100] for name in (state if isinstance(state, Mapping) else document)]
    modules = set(name.split(".")[0] for name in names)
    if {"encoder", "decoder"} <= modules:
        return "the checkpoint of an encoder of images"
    if {"encoder_q"} <= modules:
        return "a MoCo checkpoint"
    if {"conv1", "layer1", "fc"} <= modules:
        return "the weights of a ResNet trained to classify"
    if {"input_layer", "body", "output_layer"} <= modules:
        return "a face recognition network (ArcFace, CurricularFace)"
    if {"input_layer", "body"} <= modules:
        return "a backbone without the head that makes embeddings"
    return f"{len(names)} entries ({', '.join(names[:4]) or 'nothing'}{', ...' if len(names) > 4 else ''})"
