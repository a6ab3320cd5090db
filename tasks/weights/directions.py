"""Directions and components as files: ours, and those in circulation, told apart by content."""

from __future__ import annotations

import hashlib
import io
import json
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any, TypeVar

import safetensors.torch
import torch
from torch import Tensor

from lsap_core.editing import Components, Direction
from lsap_core.errors import CheckpointError, LsapError, ShapeError
from lsap_core.generators.checkpoints import read_torch
from lsap_core.generators.config import GeneratorConfig
from tasks.array_files import ArrayFileError, read_npy, read_npz
from tasks.weights.files import (
    check_torch_zip,
    describe_other,
    is_safetensors,
    is_torch_file,
    read_bytes,
    read_safetensors,
    write_verified,
)

KINDS = "a .safetensors of this project, or an array in a .pt, .npy or .npz file"
DIRECTION, COMPONENTS = "direction", "components"
FORMAT_VERSION = "1"
UNKNOWN_GENERATOR = "generator unknown: the file does not say on which it was found"

Subject = TypeVar("Subject", Direction, Components)

_GANSPACE = ("mean", "comp", "std")
_NUMPY = b"\x93NUMPY"
_TENSORS = ("vectors", "deviations", "eigenvalues", "mean")


def load_direction(
    path_or_url: str, *, config: GeneratorConfig, generator_digest: str, any_generator: bool = False
) -> Direction:
    """The direction of a file, for one generator.

    Args:
        path_or_url: a file of ours, or one array [D], [1, D], [K, D] or [1, K, D] in a .pt, .npy or .npz file.
        config: sizes of the generator that it is wanted for.
        generator_digest: digest of that generator.
        any_generator: also take a direction that names another generator.

    Raises:
        CheckpointError: no such file, no direction in it, or one of another generator.
        ShapeError: it does not fit the sizes.
    """
    data = read_bytes(path_or_url, None, wanted=KINDS)
    try:
        found = _read_direction(data, name=PurePosixPath(path_or_url).stem)
        _check_generator(found.generator, generator_digest, any_generator=any_generator)
        return Direction.from_array(
            found.vectors,
            name=found.name,
            num_ws=config.num_ws,
            w_dim=config.w_dim,
            generator=found.generator,
            provenance={**found.provenance, **_notes(found.generator, generator_digest)},
        )
    except LsapError as error:
        raise type(error)(f"{path_or_url}: {error}") from error


def load_components(
    path_or_url: str, *, config: GeneratorConfig, generator_digest: str, any_generator: bool = False
) -> Components:
    """The components of a file, for one generator.

    Args:
        path_or_url: a file of ours, or GANSpace's {"mean", "comp", "std"} in a .pt or .npz file.
        config: sizes of the generator that they are wanted for.
        generator_digest: digest of that generator.
        any_generator: also take components that name another generator.

    Raises:
        CheckpointError: no such file, no components in it, or those of another generator.
        ShapeError: they do not fit the sizes.
    """
    data = read_bytes(path_or_url, None, wanted=KINDS)
    try:
        found = _read_components(data)
        _check_generator(found.generator, generator_digest, any_generator=any_generator)
        if found.vectors.shape[1] != config.w_dim:
            raise ShapeError(f"the components have width {found.vectors.shape[1]}; this generator wants {config.w_dim}")
        return replace(found, provenance={**found.provenance, **_notes(found.generator, generator_digest)})
    except LsapError as error:
        raise type(error)(f"{path_or_url}: {error}") from error


def save_direction(path_or_url: str, direction: Direction) -> Direction:
    """Write a direction as .safetensors; the file appears under its name only after it was read back.

    Raises:
        CheckpointError: another suffix, or an existing file.
    """
    about = {"name": direction.name, "space": direction.space}
    data = _encode(path_or_url, DIRECTION, direction, about, {"vectors": direction.vectors})
    return write_verified(path_or_url, data, lambda found: _read_direction(found, name=direction.name), None)


def save_components(path_or_url: str, components: Components) -> Components:
    """Write components as .safetensors; the file appears under its name only after it was read back.

    Raises:
        CheckpointError: another suffix, or an existing file.
    """
    about = {"components": components.kind, "layers": json.dumps(components.layers)}
    tensors = {name: getattr(components, name) for name in _TENSORS}
    given = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    return write_verified(
        path_or_url, _encode(path_or_url, COMPONENTS, components, about, given), _read_components, None
    )


def describe_direction(path_or_url: str) -> dict[str, Any]:
    """What a file holds, as plain values for a table or JSON.

    Raises:
        CheckpointError: no such file, or neither a direction nor components in it.
    """
    data = read_bytes(path_or_url, None, wanted=KINDS)
    common = {"location": path_or_url, "file_sha256": file_digest(data)}
    try:
        document = _read_document(data)
        if _kind_of(document) == COMPONENTS:
            return {**common, **_about_components(_read_components(data))}
        return {**common, **_about_direction(_read_direction(data, name=PurePosixPath(path_or_url).stem))}
    except LsapError as error:
        raise type(error)(f"{path_or_url}: {error}") from error


def file_digest(data: bytes) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(data).hexdigest()


def _about_direction(direction: Direction) -> dict[str, Any]:
    return {
        "kind": DIRECTION,
        "name": direction.name,
        "shape": list(direction.vectors.shape),
        "space": direction.space,
        "norms": [round(norm, 6) for norm in direction.vectors.norm(dim=1).tolist()],
        "digest": direction.digest,
        "generator": direction.generator,
        "provenance": {**direction.provenance, **_notes(direction.generator, None)},
    }


def _about_components(components: Components) -> dict[str, Any]:
    spectrum = components.eigenvalues if components.deviations is None else components.deviations
    assert spectrum is not None  # one or the other, by kind
    return {
        "kind": COMPONENTS,
        "components": components.kind,
        "shape": list(components.vectors.shape),
        "layers": components.layers and list(components.layers),
        "eigenvalues" if components.deviations is None else "deviations": [
            round(value, 4) for value in spectrum[:8].tolist()
        ],
        "digest": components.digest,
        "generator": components.generator,
        "provenance": {**components.provenance, **_notes(components.generator, None)},
    }


def _check_generator(found: str | None, wanted: str, *, any_generator: bool) -> None:
    if found not in (None, wanted) and not any_generator:
        raise CheckpointError(
            f"it was found on generator {found[:16]}, and this is {wanted[:16]}: fit one on this generator "
            "(lsap direction fit), or ask for any generator to try it all the same"
        )


def _notes(found: str | None, wanted: str | None) -> dict[str, Any]:
    """What has to be told of a direction whose generator is not the one it is used on."""
    if found is None:
        return {"warning": UNKNOWN_GENERATOR}
    if wanted is not None and found != wanted:
        return {"warning": f"found on generator {found[:16]}, used on {wanted[:16]}"}
    return {}


# --- reading ------------------------------------------------------------------------------------------


def _read_document(data: bytes) -> Any:
    """What a file holds: (tensors, metadata) of ours, else an array or a mapping of names to arrays."""
    if data.startswith(_NUMPY):
        return _read_numpy(data)
    if _is_npz(data):
        return dict(_read_numpy(data))
    if is_torch_file(data):
        check_torch_zip(data, wanted=KINDS)
        return read_torch(data)
    if is_safetensors(data):
        return read_safetensors(data)
    raise CheckpointError(f"it is {describe_other(data)}; wanted {KINDS}")


def _read_direction(data: bytes, *, name: str) -> Direction:
    document = _read_document(data)
    if _kind_of(document) == COMPONENTS:
        raise CheckpointError("it holds components, not one direction: name it as `components`, with a component")
    if isinstance(document, tuple):
        return _direction_of_ours(*document)
    if isinstance(document, Mapping):
        if len(document) != 1:
            names = ", ".join(map(str, list(document)[:4])) or "nothing"
            raise CheckpointError(f"it holds {names}; wanted one array, or GANSpace's mean, comp and std")
        (document,) = document.values()
    rows = _numbers(document)
    rows = rows.squeeze(0) if rows.ndim == 3 and len(rows) == 1 else torch.atleast_2d(rows)
    if rows.ndim != 2:
        raise ShapeError(f"the array is {list(rows.shape)}; wanted [D], [1, D], [K, D] or [1, K, D]")
    return Direction(name, rows, None, "w" if len(rows) == 1 else "w_plus", {"file_sha256": file_digest(data)})


def _direction_of_ours(tensors: dict[str, Tensor], metadata: dict[str, str]) -> Direction:
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


def _read_components(data: bytes) -> Components:
    document = _read_document(data)
    if _kind_of(document) != COMPONENTS:
        raise CheckpointError("it holds one direction, not components: name it as `direction`")
    if isinstance(document, tuple):
        tensors, metadata = document
        if (
            set(tensors) - set(_TENSORS)
            or "vectors" not in tensors
            or metadata.get("components") not in ("pca", "sefa")
        ):
            raise CheckpointError(f"it is damaged: components with {', '.join(tensors) or 'no tensor'}")
        layers = _json(metadata.get("layers", "null"))
        components = Components(
            metadata["components"],
            **tensors,
            layers=layers and tuple(layers),
            generator=metadata.get("generator") or None,
            provenance=_json(metadata.get("provenance", "{}")),
        )
        return _undamaged(components, metadata)
    mean, vectors, deviations = (_numbers(document[name]) for name in _GANSPACE)
    return Components(
        "pca",
        vectors.flatten(1),  # [M, 1, D]
        deviations=deviations.flatten(),
        mean=mean.flatten(),
        provenance={"file_sha256": file_digest(data)},
    )


def _undamaged(subject: Subject, metadata: Mapping[str, str]) -> Subject:
    if metadata.get("digest") != subject.digest:
        raise CheckpointError(
            f"it is damaged: its numbers have digest {subject.digest}, {metadata.get('digest')} was written; "
            "make it again"
        )
    return subject


def _kind_of(document: Any) -> str:
    if isinstance(document, tuple):
        kind = str(document[1].get("kind", "none"))
        version = document[1].get("format_version")
        if kind not in (DIRECTION, COMPONENTS):
            raise CheckpointError(f'it is a safetensors file of kind "{kind}"; wanted {KINDS}')
        if version != FORMAT_VERSION:
            raise CheckpointError(f"its format version is {version}; this library reads {FORMAT_VERSION}: update it")
        return kind
    return COMPONENTS if isinstance(document, Mapping) and set(_GANSPACE) <= set(document) else DIRECTION


def _is_npz(data: bytes) -> bool:
    if not zipfile.is_zipfile(io.BytesIO(data)):
        return False
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        names = archive.namelist()
    return bool(names) and all(name.endswith(".npy") for name in names)


def _read_numpy(data: bytes) -> Any:
    """The array of a .npy file, or the arrays of a .npz file by name; never an object."""
    try:
        return read_npz(data) if _is_npz(data) else read_npy(data)
    except ArrayFileError as error:
        raise CheckpointError(f"NumPy cannot read it as plain numbers: it {error}") from error


def _numbers(values: Any) -> Tensor:
    try:
        tensor = torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"it holds a {type(values).__name__}; wanted an array of numbers") from error
    if tensor.is_complex() or tensor.is_meta or tensor.layout is not torch.strided:
        raise CheckpointError(f"it holds numbers of type {tensor.dtype}; wanted plain real ones")
    return tensor.detach().to("cpu", torch.float32)


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise CheckpointError(f"its metadata {text[:80]!r} are no JSON") from error


# --- writing ------------------------------------------------------------------------------------------


def _encode(
    location: str,
    kind: str,
    subject: Direction | Components,
    about: Mapping[str, str],
    tensors: Mapping[str, Tensor],
) -> bytes:
    if not location.endswith(".safetensors"):
        raise CheckpointError(f"{location} does not end in .safetensors, as which {kind} are written")
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
