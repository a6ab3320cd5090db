"""Directions and components for one generator, from files: ours, and those in circulation, told apart by content."""

from __future__ import annotations

from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any

import torch

from lsap_core.editing import Components, Direction, StyleDirection
from lsap_core.editing.style_directions import style_layouts
from lsap_core.errors import CheckpointError, LsapError, ShapeError
from lsap_core.generators.config import GeneratorConfig
from lsap_core.generators.generator import style_widths
from tasks.weights.direction_files import read_components, read_direction, read_subject, split_place
from tasks.weights.files import read_bytes, write_verified
from tasks.weights.foreign_directions import KINDS, Foreign, check_no_clip_effects
from tasks.weights.own_directions import encode_components, encode_direction

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
            return fitted(found, config, generator_digest)
        _check_generator(found.generator, generator_digest, any_generator=any_generator)
        if isinstance(found, StyleDirection):
            check_style_layers(found, config)
            told = {**found.provenance, **notes_on(found.generator, generator_digest)}
            return replace(found, provenance=told)
        return Direction.from_array(
            found.vectors,
            name=found.name,
            num_ws=config.num_ws,
            w_dim=config.w_dim,
            generator=found.generator,
            provenance={**found.provenance, **notes_on(found.generator, generator_digest)},
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
        check_width(found, config)
        return replace(found, provenance={**found.provenance, **notes_on(found.generator, generator_digest)})
    except LsapError as error:
        raise type(error)(f"{path_or_url}: {error}") from error


def load_subject(
    path_or_url: str, *, config: GeneratorConfig, generator_digest: str, any_generator: bool = False
) -> Direction | StyleDirection | Components:
    """The direction or the components of a file, for one generator.

    Args:
        path_or_url: as for `load_any_direction` or `load_components`.
        config: sizes of the generator that they are wanted for.
        generator_digest: digest of that generator.
        any_generator: also take what names another generator.

    Raises:
        CheckpointError: no such file, neither in it, or of another generator.
        ShapeError: they do not fit the sizes.
    """
    place, entry = split_place(path_or_url)
    try:
        found = read_subject(read_bytes(place, None, wanted=KINDS), name=PurePosixPath(place).stem, entry=entry)
    except LsapError as error:
        raise type(error)(f"{path_or_url}: {error}") from error
    load = load_components if isinstance(found, Components) else load_any_direction
    return load(path_or_url, config=config, generator_digest=generator_digest, any_generator=any_generator)


def save_direction(path_or_url: str, direction: Direction | StyleDirection) -> Direction | StyleDirection:
    """Write a direction as .safetensors; the file appears under its name only after it was read back.

    Raises:
        CheckpointError: another suffix, or an existing file.
    """
    _check_suffix(path_or_url, "directions")
    return write_verified(path_or_url, encode_direction(direction), _read_ours, None)


def save_components(path_or_url: str, components: Components) -> Components:
    """Write components as .safetensors; the file appears under its name only after it was read back.

    Raises:
        CheckpointError: another suffix, or an existing file.
    """
    _check_suffix(path_or_url, "components")
    return write_verified(path_or_url, encode_components(components), read_components, None)


def _check_suffix(location: str, what: str) -> None:
    if not location.endswith(".safetensors"):
        raise CheckpointError(f"{location} does not end in .safetensors, as which {what} are written")


def _read_ours(data: bytes) -> Direction | StyleDirection:
    found = read_direction(data, name="")
    assert not isinstance(found, Foreign), "it was written as one of ours"
    return found


def fitted(found: Foreign, config: GeneratorConfig, generator_digest: str | None) -> Direction | StyleDirection:
    """A direction as another program wrote it, in the space of this generator whose sizes it has.

    Raises:
        CheckpointError, ShapeError: it has the sizes of none.
    """
    provenance: dict[str, Any] = {"file_sha256": found.file_sha256, **notes_on(None, generator_digest)}
    if found.array is None:
        if [vector.numel() for vector in found.vectors] != [config.w_dim] * config.num_ws:
            return StyleDirection.from_vectors(found.vectors, name=found.name, config=config, provenance=provenance)
        provenance["note"] = f"a list of {config.num_ws} rows"  # also where style vectors are as wide as W
        rows = torch.stack([vector.flatten() for vector in found.vectors])
    else:
        rows = found.rows
        check_no_clip_effects(found, num_channels=sum(style_layouts(config)[-1][1]))
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


def check_style_layers(direction: StyleDirection, config: GeneratorConfig) -> None:
    """Refuse a direction in S with layers that a generator does not have.

    Raises:
        ShapeError: it has no such layer, or one of another width.
    """
    widths = style_widths(config)
    for at, vector in direction.vectors.items():
        if at >= len(widths) or len(vector) != widths[at]:
            wanted = f"{widths[at]} channels there" if at < len(widths) else f"layers 0 to {len(widths) - 1}"
            raise ShapeError(
                f'direction "{direction.name}" has {len(vector)} channels at layer {at} of S; this generator has '
                f"{wanted}: it was found on a generator of another size, take one for this one"
            )


def check_width(components: Components, config: GeneratorConfig) -> None:
    """Refuse components of codes of another width.

    Raises:
        ShapeError: they are.
    """
    width = components.vectors.shape[1]
    if width != config.w_dim:
        raise ShapeError(f"the components have width {width}; this generator wants {config.w_dim}")


def _check_generator(found: str | None, wanted: str, *, any_generator: bool) -> None:
    if found not in (None, wanted) and not any_generator:
        raise CheckpointError(
            f"it was found on generator {found[:16]}, and this is {wanted[:16]}: fit one on this generator "
            "(lsap direction fit), or try it all the same: any_generator: true of an edit, or --any-generator of "
            "lsap direction"
        )


def notes_on(found: str | None, wanted: str | None) -> dict[str, Any]:
    """What has to be told of a direction whose generator is not the one it is used on."""
    if found is None:
        return {"warning": UNKNOWN_GENERATOR}
    if wanted is not None and found != wanted:
        return {"warning": f"found on generator {found[:16]}, used on {wanted[:16]}"}
    return {}
