"""The project's own files of directions and components: .safetensors whose metadata say what the numbers are."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import Any, TypeVar

import safetensors.torch
from torch import Tensor

from lsap_core.editing import Components, Direction, StyleDirection
from lsap_core.errors import CheckpointError
from tasks.weights.foreign_directions import KINDS

DIRECTION, STYLE_DIRECTION, COMPONENTS = "direction", "style_direction", "components"
FORMAT_VERSION = "1"
TENSORS = ("vectors", "deviations", "eigenvalues", "mean")

Subject = TypeVar("Subject", Direction, StyleDirection, Components)


def encode_direction(direction: Direction | StyleDirection) -> bytes:
    """The file of a direction in W or W+ ("vectors"), or of one in S (a tensor "layer_N" for each of its layers)."""
    if isinstance(direction, StyleDirection):
        layers = {f"layer_{at}": vector for at, vector in direction.vectors.items()}
        return _encode(STYLE_DIRECTION, direction, {"name": direction.name, "space": "s"}, layers)
    about = {"name": direction.name, "space": direction.space}
    return _encode(DIRECTION, direction, about, {"vectors": direction.vectors})


def encode_components(components: Components) -> bytes:
    """The file of components."""
    about = {"components": components.kind, "layers": json.dumps(components.layers)}
    tensors = {name: getattr(components, name) for name in TENSORS}
    given = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    return _encode(COMPONENTS, components, about, given)


def decode(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Direction | StyleDirection | Components:
    """What such a file holds.

    Raises:
        CheckpointError: it is another safetensors file, one of a later version, or damaged.
    """
    kind = metadata.get("kind", "none")
    version = metadata.get("format_version")
    if kind not in (DIRECTION, STYLE_DIRECTION, COMPONENTS):
        raise CheckpointError(f'it is a safetensors file of kind "{kind}"; wanted {KINDS}')
    if version != FORMAT_VERSION:
        raise CheckpointError(f"its format version is {version}; this library reads {FORMAT_VERSION}: update it")
    if kind == DIRECTION:
        return _direction(tensors, metadata)
    return _style_direction(tensors, metadata) if kind == STYLE_DIRECTION else _components(tensors, metadata)


def _direction(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Direction:
    if set(tensors) != {"vectors"} or metadata.get("space") not in ("w", "w_plus"):
        raise CheckpointError(f"it is damaged: a direction with {', '.join(tensors) or 'no tensor'}")
    direction = Direction(
        metadata.get("name", ""),
        tensors["vectors"],
        metadata.get("generator") or None,
        metadata["space"],  # type: ignore[arg-type]
        _json(metadata.get("provenance", "{}")),
    )
    return _undamaged(direction, metadata)


def _style_direction(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> StyleDirection:
    layers = {name.removeprefix("layer_"): vector for name, vector in tensors.items() if name.startswith("layer_")}
    if not layers or len(layers) != len(tensors) or not all(number.isdecimal() for number in layers):
        raise CheckpointError(f"it is damaged: a direction in S with {', '.join(tensors) or 'no tensor'}")
    direction = StyleDirection(
        metadata.get("name", ""),
        {int(number): vector for number, vector in layers.items()},
        metadata.get("generator") or None,
        _json(metadata.get("provenance", "{}")),
    )
    return _undamaged(direction, metadata)


def _components(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Components:
    if set(tensors) - set(TENSORS) or "vectors" not in tensors or metadata.get("components") not in ("pca", "sefa"):
        raise CheckpointError(f"it is damaged: components with {', '.join(tensors) or 'no tensor'}")
    layers = _json(metadata.get("layers", "null"))
    components = Components(
        metadata["components"],  # type: ignore[arg-type]
        **tensors,
        layers=layers and tuple(layers),
        generator=metadata.get("generator") or None,
        provenance=_json(metadata.get("provenance", "{}")),
    )
    return _undamaged(components, metadata)


def _undamaged(subject: Subject, metadata: Mapping[str, str]) -> Subject:
    if metadata.get("digest") != subject.digest:
        raise CheckpointError(
            f"it is damaged: its numbers have digest {subject.digest}, {metadata.get('digest')} was written; "
            "make it again"
        )
    return subject


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise CheckpointError(f"its metadata {text[:80]!r} are no JSON") from error


def _encode(
    kind: str,
    subject: Direction | StyleDirection | Components,
    about: Mapping[str, str],
    tensors: Mapping[str, Tensor],
) -> bytes:
    metadata = {
        "kind": kind,
        "format_version": FORMAT_VERSION,
        "generator": subject.generator or "",
        "digest": subject.digest,
        "provenance": json.dumps(dict(subject.provenance), sort_keys=True),
        **about,
    }
    given = {name: tensor.cpu().float().contiguous() for name, tensor in tensors.items()}
    return _with_sorted_header(safetensors.torch.save(given, metadata))


def _with_sorted_header(data: bytes) -> bytes:
    """The same safetensors file with its header in order: the library shuffles it, so equal content gets one hash."""
    (length,) = struct.unpack("<Q", data[:8])
    header = json.dumps(json.loads(data[8 : 8 + length]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return struct.pack("<Q", len(header)) + header + data[8 + length :]
