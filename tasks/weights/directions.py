"""Directions and components for one generator, from files: ours, and those in circulation, told apart by content."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from lsap_core.editing import Components, Direction, StyleDirection
from lsap_core.editing.edits import tensor_digest
from lsap_core.editing.style_directions import style_layouts
from lsap_core.errors import CheckpointError, LsapError, ShapeError
from lsap_core.generators.config import GeneratorConfig
from tasks.weights.direction_files import (
    COMPONENTS,
    DIRECTION,
    FORMAT_VERSION,
    KINDS,
    MOST_ROWS,
    TENSORS,
    Foreign,
    Several,
    file_digest,
    read_components,
    read_direction,
    read_subject,
    split_place,
)
from tasks.weights.files import read_bytes, write_verified

UNKNOWN_GENERATOR = "generator unknown: the file does not say on which it was found"


def load_direction(
    path_or_url: str, *, config: GeneratorConfig, generator_digest: str, any_generator: bool = False
) -> Direction:
    """The direction of a file in W or W+, for one generator.

    Args:
        path_or_url: as for `load_any_direction`.
        config: sizes of the generator that it is wanted for.
        generator_digest: digest of that generator.
        any_generator: also take a direction that names another generator.

    Raises:
        CheckpointError: no such file, no direction in it, one in S, or one of another generator.
        ShapeError: it does not fit the sizes.
    """
    found = load_any_direction(
        path_or_url, config=config, generator_digest=generator_digest, any_generator=any_generator
    )
    if isinstance(found, StyleDirection):
        raise CheckpointError(f"{path_or_url}: it holds a direction in S, and one in W or W+ is wanted here")
    return found


def load_any_direction(
    path_or_url: str, *, config: GeneratorConfig, generator_digest: str, any_generator: bool = False
) -> Direction | StyleDirection:
    """The direction of a file in W, W+ or S, for one generator.

    Args:
        path_or_url: a file of ours; or a .pt, .npy or .npz file with one array [D], [1, D], [K, D], [1, K, D], or
            flattened, [K * D] or [1, K * D]; or with a list of style vectors, or all of them in one array, as
            `StyleDirection.from_vectors` takes them. Of many directions one is named: FILE#NAME, or FILE#INDEX.
        config: sizes of the generator that it is wanted for.
        generator_digest: digest of that generator.
        any_generator: also take a direction that names another generator.

    Raises:
        CheckpointError: no such file, no direction in it, or one of another generator.
        ShapeError: it does not fit the sizes.
    """
    place, entry = split_place(path_or_url)
    data = read_bytes(place, None, wanted=KINDS)
    try:
        found = read_direction(data, name=PurePosixPath(place).stem, entry=entry)
        if isinstance(found, Foreign):
            return _fitted(found, config, generator_digest)
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
        path_or_url: a file of ours, or a .pt or .npz file in one of `COMPONENTS_LAYOUTS`.
        config: sizes of the generator that they are wanted for.
        generator_digest: digest of that generator.
        any_generator: also take components that name another generator.

    Raises:
        CheckpointError: no such file, no components in it, or those of another generator.
        ShapeError: they do not fit the sizes.
    """
    data = read_bytes(path_or_url, None, wanted=KINDS)
    try:
        found = read_components(data)
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
    return write_verified(path_or_url, data, _read_ours, None)


def save_components(path_or_url: str, components: Components) -> Components:
    """Write components as .safetensors; the file appears under its name only after it was read back.

    Raises:
        CheckpointError: another suffix, or an existing file.
    """
    about = {"components": components.kind, "layers": json.dumps(components.layers)}
    tensors = {name: getattr(components, name) for name in TENSORS}
    given = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    return write_verified(
        path_or_url, _encode(path_or_url, COMPONENTS, components, about, given), read_components, None
    )


def describe_direction(path_or_url: str, config: GeneratorConfig | None = None) -> dict[str, Any]:
    """What a file holds, as plain values for a table or JSON.

    Args:
        path_or_url: as for `load_any_direction`; of many directions all are told where none is named.
        config: sizes of the generator that it is wanted for, which tell the spaces of W, W+ and S apart.

    Raises:
        CheckpointError: no such file, or neither a direction nor components in it.
        ShapeError: no direction of this generator.
    """
    place, entry = split_place(path_or_url)
    data = read_bytes(place, None, wanted=KINDS)
    common = {"location": path_or_url, "file_sha256": file_digest(data)}
    try:
        found = read_subject(data, name=PurePosixPath(place).stem, entry=entry)
        if isinstance(found, Components):
            return {**common, **_about_components(found)}
        if isinstance(found, Several):
            about = {name: _about_one_of_many(one, config) for name, one in found.entries.items()}
            return {**common, "kind": "directions", "choose_by": "FILE#NAME", "directions": about}
        return {**common, **_about_one(found, config)}
    except LsapError as error:
        raise type(error)(f"{path_or_url}: {error}") from error


def _read_ours(data: bytes) -> Direction:
    found = read_direction(data, name="")
    assert isinstance(found, Direction), "it was written as one of ours"
    return found


def _fitted(found: Foreign, config: GeneratorConfig, generator_digest: str | None) -> Direction | StyleDirection:
    """A direction as another program wrote it, in the space of this generator whose sizes it has."""
    provenance: dict[str, Any] = {"file_sha256": found.file_sha256, **_notes(None, generator_digest)}
    if found.array is None:
        if [vector.numel() for vector in found.vectors] != [config.w_dim] * config.num_ws:
            return StyleDirection.from_vectors(found.vectors, name=found.name, config=config, provenance=provenance)
        provenance["note"] = f"a list of {config.num_ws} rows"  # also where style vectors are as wide as W
        rows = torch.stack([vector.flatten() for vector in found.vectors])
    else:
        rows = found.rows
    if len(rows) == 1 and rows.shape[1] not in (config.w_dim, config.num_ws * config.w_dim):
        for _, widths in style_layouts(config):
            if rows.shape[1] == sum(widths):
                note = f"{len(widths)} style vectors stood one after the other"
                vectors = rows[0].split(widths)
                told = {**provenance, "note": note}
                return StyleDirection.from_vectors(vectors, name=found.name, config=config, provenance=told)
    if found.array is not None and len(rows) == 1 and rows.shape[1] == config.num_ws * config.w_dim:
        rows = rows.reshape(config.num_ws, config.w_dim)
        provenance["note"] = f"flattened: its {config.num_ws} rows of {config.w_dim} stood one after the other"
    return Direction.from_array(rows, name=found.name, num_ws=config.num_ws, w_dim=config.w_dim, provenance=provenance)


def _about_one(found: Direction | Foreign, config: GeneratorConfig | None) -> dict[str, Any]:
    if isinstance(found, Foreign):
        if config is None:
            return _about_unfitted(found)
        found_in_space = _fitted(found, config, None)
        if isinstance(found_in_space, StyleDirection):
            return _about_styles(found_in_space)
        found = found_in_space
    return _about_direction(found)


def _about_one_of_many(found: Foreign, config: GeneratorConfig | None) -> dict[str, Any]:
    """What one entry of a file is, or why it is no direction, which the others may be."""
    try:
        return _about_one(found, config)
    except LsapError as error:
        return {"problem": str(error)}


def _about_styles(direction: StyleDirection) -> dict[str, Any]:
    return {
        "kind": DIRECTION,
        "name": direction.name,
        "space": "s",
        "style_layers": {str(at): len(vector) for at, vector in direction.vectors.items()},
        "norms": [round(vector.norm().item(), 6) for vector in direction.vectors.values()],
        "digest": direction.digest,
        "generator": direction.generator,
        "provenance": dict(direction.provenance),
    }


def _about_unfitted(found: Foreign) -> dict[str, Any]:
    """What can be said of a foreign direction without its generator: often that it may belong to several spaces."""
    told: dict[str, Any] = {"kind": DIRECTION, "name": found.name}
    provenance: dict[str, Any] = {"file_sha256": found.file_sha256, **_notes(None, None)}
    if found.array is None:
        widths = [vector.numel() for vector in found.vectors]
        may_be_code = len(set(widths)) == 1 and _may_be_num_ws(len(widths))
        space = "w_plus or s" if may_be_code else "s"
        note = f"{len(widths)} style vectors" + (f", or {len(widths)} rows of a code" if may_be_code else "")
        flat = torch.cat([vector.flatten() for vector in found.vectors])
        about = {"shape": [len(widths)], "widths": widths, "space": space, "norms": [round(flat.norm().item(), 6)]}
        return {
            **told,
            **about,
            "digest": tensor_digest(flat),
            "generator": None,
            "provenance": {**provenance, "note": note},
        }
    rows = found.rows
    if len(rows) > 1 and bool((rows == rows[:1]).all()):
        rows = rows[:1].clone()
        space = "w"
        provenance["note"] = "its rows are all the same"
    elif len(rows) == 1:
        space = "w, w_plus or s"
        provenance["note"] = (
            f"a direction in w if the generator's width is {rows.shape[1]}; else it may be K rows of w_plus "
            f"(K * D = {rows.shape[1]}) or all style vectors one after the other: --generator or --domain tells"
        )
    elif _may_be_num_ws(len(rows)):
        space = "w_plus"
    else:
        raise ShapeError(
            f'"{found.name}" is {list(rows.shape)}, and no generator has {len(rows)} rows: of many directions that '
            f"lie one under the other name one, FILE#0 to FILE#{len(rows) - 1}"
        )
    direction = Direction(found.name, rows, None, "w" if len(rows) == 1 else "w_plus", provenance)
    return {**_about_direction(direction), "space": space}


def _may_be_num_ws(count: int) -> bool:
    """Whether some generator has so many rows: 2 for each side from 4 to the resolution."""
    return count % 2 == 0 and 4 <= count <= MOST_ROWS


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
    return {
        "kind": COMPONENTS,
        "components": components.kind,
        "shape": list(components.vectors.shape),
        "layers": components.layers and list(components.layers),
        "eigenvalues" if components.deviations is None else "deviations": (
            None if spectrum is None else [round(value, 4) for value in spectrum[:8].tolist()]
        ),
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
