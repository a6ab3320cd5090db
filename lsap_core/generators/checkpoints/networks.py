"""What files of our own hold of any network: tensors by name, checked one by one, a digest, and metadata as text."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from lsap_core.errors import CheckpointError
from lsap_core.generators.checkpoints.canonical import Shape, check_tensors

FORMAT_VERSION = "1"
COUNTER = "num_batches_tracked"
"""Batch normalization counts its batches, which changes nothing here: counters are no part of a checkpoint."""

Config = TypeVar("Config")


def network_shapes(make: Callable[[], nn.Module]) -> dict[str, Shape]:
    """Name and shape of every tensor of the network that a function makes, but the counters of batches."""
    with torch.device("meta"):  # shapes without memory
        state = make().state_dict()
    return {name: tuple(tensor.shape) for name, tensor in _without_counters(state).items()}


def canonical_network(state: Mapping[str, Any], shapes: Mapping[str, Shape], *, what: str) -> dict[str, Tensor]:
    """The tensors of a network, checked one by one, float32, contiguous, on the CPU; counters are dropped.

    Raises:
        CheckpointError: a tensor is missing, unexpected, of another shape, or not a number somewhere.
    """
    found = _without_counters(state)
    check_tensors(found, shapes, what=what)
    result = {name: found[name].detach().to(device="cpu", dtype=torch.float32).contiguous() for name in shapes}
    for name, tensor in result.items():
        if not bool(torch.isfinite(torch.stack(torch.aminmax(tensor))).all()):  # one pass, without a copy
            raise CheckpointError(f"{what}: {name} holds values that are not finite; the network is damaged")
    return result


def network_digest(
    first_line: str, config: Mapping[str, Any], state: Mapping[str, Any], shapes: Mapping[str, Shape], *, what: str
) -> str:
    """SHA-256 of a network, the same for every file format that holds it, as 64 hexadecimal digits.

    Hashed in this order: the first line, the configuration as JSON with sorted keys and no spaces, then for each tensor
    by sorted name `<name> float32 <shape as JSON>` and its values (little-endian, row-major). A newline ends each line
    of text. Counters of batches do not count.

    Raises:
        CheckpointError: the state has other shapes, or is not float32.
    """
    tensors = _without_counters(state)
    check_tensors(tensors, shapes, what=what)
    sha256 = hashlib.sha256(f"{first_line}\n{to_json(config)}\n".encode())
    for name in sorted(tensors):
        values = tensors[name].detach().cpu()
        if values.dtype != torch.float32:
            raise CheckpointError(f"{name} is {values.dtype}; a digest is taken of float32 weights")
        sha256.update(f"{name} float32 {json.dumps(list(values.shape))}\n".encode())
        sha256.update(np.ascontiguousarray(values.numpy(), dtype="<f4").data)
    return sha256.hexdigest()


def check_kind(metadata: Mapping[str, str], kind: str, *, what: str) -> None:
    """Make sure that metadata are of our own files of a kind, in the version that is read here.

    Raises:
        CheckpointError: they are not.
    """
    if metadata.get("kind") != kind:
        found = metadata.get("kind", "no kind")
        raise CheckpointError(f"the metadata name {found}; wanted {what} saved by this library")
    if metadata.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"the format version is {metadata.get('format_version')}; this library reads {FORMAT_VERSION}: update it"
        )


def check_digest(metadata: Mapping[str, str], found: str, *, what: str) -> None:
    """Make sure that a network is the one that its file was written with.

    Raises:
        CheckpointError: it is another one.
    """
    if metadata.get("digest") != found:
        raise CheckpointError(
            f"the digest of {what} is {found}, its file was written with {metadata.get('digest')}: "
            "it was changed or damaged; copy or convert the original file again"
        )


def to_json(value: Any) -> str:
    """Text for metadata, always the same for the same value."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def from_json(text: str, kind: type, what: str) -> Any:
    """The value of metadata that `to_json` wrote.

    Raises:
        CheckpointError: it is no JSON, or another kind of value.
    """
    try:
        value = json.loads(text)
    except ValueError as error:
        raise CheckpointError(f"the {what} {text[:200]!r} are no JSON: {error}") from error
    if not isinstance(value, kind):
        raise CheckpointError(f"the {what} {text[:200]!r} are a {type(value).__name__}; wanted a {kind.__name__}")
    return value


def notes_of(metadata: Mapping[str, str]) -> tuple[str, ...]:
    """The sentences that travel with a network.

    Raises:
        CheckpointError: they are none.
    """
    text = metadata.get("notes", "[]")
    notes = from_json(text, list, "notes")
    if not all(isinstance(note, str) for note in notes):
        raise CheckpointError(f"the notes {text[:200]!r} are no JSON list of sentences")
    return tuple(notes)


def config_of(metadata: Mapping[str, str], build: Callable[[Any], Config], *, what: str) -> Config:
    """The configuration of metadata, built from its values.

    Raises:
        CheckpointError: it is none.
    """
    text = metadata.get("config", "")
    try:
        return build(json.loads(text))
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{text[:200]!r} is no configuration of {what}: {error}") from error


def _without_counters(state: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tensor for name, tensor in state.items() if not name.endswith(COUNTER)}
