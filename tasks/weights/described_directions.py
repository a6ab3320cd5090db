"""What files of directions and components hold, told in plain values."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any

import torch
from torch import Tensor

from lsap_core.editing import Components, Direction, StyleDirection
from lsap_core.editing.edits import tensor_digest
from lsap_core.errors import LsapError, ShapeError
from lsap_core.generators.config import GeneratorConfig
from tasks.weights.direction_files import read_subject, split_place
from tasks.weights.directions import check_style_layers, check_width, fitted, notes_on
from tasks.weights.files import read_bytes
from tasks.weights.foreign_directions import KINDS, Foreign, Several, check_no_clip_effects
from tasks.weights.own_directions import COMPONENTS, DIRECTION
from tasks.weights.plain_arrays import file_digest

MOST_ROWS = 2 * 16  # rows of W+ of generators that anybody has: 18 at 1024 pixels

_MOST_CHANNELS = 8


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
            if config is not None:
                check_width(found, config)
            return {**common, **_about_components(found)}
        if isinstance(found, Several):
            about = {name: _about_one_of_many(one, config) for name, one in found.entries.items()}
            return {**common, "kind": "directions", "choose_by": "FILE#NAME", "directions": about}
        return {**common, **_about_one(found, config)}
    except LsapError as error:
        raise type(error)(f"{path_or_url}: {error}") from error


def _about_one(found: Direction | StyleDirection | Foreign, config: GeneratorConfig | None) -> dict[str, Any]:
    if isinstance(found, Foreign):
        if config is None:
            return _about_unfitted(found)
        found = fitted(found, config, None)
    elif config is not None:
        if isinstance(found, StyleDirection):
            check_style_layers(found, config)
        else:
            Direction.from_array(found.vectors, name=found.name, num_ws=config.num_ws, w_dim=config.w_dim)
    return _about_styles(found) if isinstance(found, StyleDirection) else _about_direction(found)


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
        "channels": {f"{at} ({_layer_name(at)})": _moved(vector) for at, vector in direction.vectors.items()},
        "norms": [round(vector.norm().item(), 6) for vector in direction.vectors.values()],
        "digest": direction.digest,
        "generator": direction.generator,
        "provenance": {**direction.provenance, **notes_on(direction.generator, None)},
    }


def _layer_name(at: int) -> str:
    """The layer at a position of S: conv 0, ToRGB 0, then two convolutions and a ToRGB for each side."""
    kind = "ToRGB" if at % 3 == 1 else f"conv {at - (at + 1) // 3}"
    return f"{kind}, {4 * 2 ** ((at + 1) // 3)} px"


def _moved(vector: Tensor) -> list[int] | str:
    """The channels that a style vector moves, or how many where they are many."""
    moved = vector.nonzero().flatten().tolist()
    return moved if len(moved) <= _MOST_CHANNELS else f"{len(moved)} of {len(vector)}"


def _about_unfitted(found: Foreign) -> dict[str, Any]:
    """What can be said of a foreign direction without its generator: often that it may belong to several spaces."""
    told: dict[str, Any] = {"kind": DIRECTION, "name": found.name}
    provenance: dict[str, Any] = {"file_sha256": found.file_sha256, **notes_on(None, None)}
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
    check_no_clip_effects(found)
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
        "provenance": {**direction.provenance, **notes_on(direction.generator, None)},
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
        "provenance": {**components.provenance, **notes_on(components.generator, None)},
    }
