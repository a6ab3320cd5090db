"""What a file of directions or components holds, ours or anybody's, before it is fitted to a generator."""

from __future__ import annotations

import re
from collections.abc import Mapping

from lsap_core.editing import Components, Direction, StyleDirection
from lsap_core.errors import CheckpointError
from tasks.weights.foreign_directions import (
    KINDS,
    Foreign,
    Several,
    entries_of,
    foreign_components,
    row_of,
)
from tasks.weights.own_directions import decode
from tasks.weights.plain_arrays import file_digest, read_document

_PLACE = re.compile(r"(?P<file>.+\.(?:pt|pth|npy|npz|pkl|safetensors))#(?P<entry>.+)", re.IGNORECASE | re.DOTALL)


def split_place(asked: str) -> tuple[str, str | None]:
    """The file, and the entry of it that is meant: "directions.pt#smile" is ("directions.pt", "smile")."""
    match = _PLACE.fullmatch(asked)
    return (match["file"], match["entry"]) if match else (asked, None)


def read_subject(
    data: bytes, *, name: str, entry: str | None = None
) -> Direction | StyleDirection | Components | Foreign | Several:
    """What a file holds, or one entry of it.

    Args:
        data: the file.
        name: of a direction that has none of its own.
        entry: which of many, or None for all that there is.

    Raises:
        CheckpointError: neither directions nor components, or no such entry.
        ShapeError, ConfigError: they cannot be right.
    """
    document = read_document(data, wanted=KINDS)
    if isinstance(document, tuple):  # of ours
        if entry is not None:
            raise CheckpointError(f'it holds one thing, none is named "{entry}": leave #{entry} out')
        return decode(*document)
    if isinstance(document, Mapping) and entry is None:
        components = foreign_components(document, file_digest(data))
        if components is not None:
            return components
    found = entries_of(document, name, file_digest(data))
    if isinstance(found, Foreign):
        return found if entry is None else row_of(found, entry)
    return found if entry is None else found.choose(entry)


def read_components(data: bytes) -> Components:
    """The components of a file.

    Raises:
        CheckpointError: there are none.
    """
    found = read_subject(data, name="")
    if not isinstance(found, Components):
        what = "several directions" if isinstance(found, Several) else "one direction"
        raise CheckpointError(f"it holds {what}, not components: name it as `direction`")
    return found


def read_direction(data: bytes, *, name: str, entry: str | None = None) -> Direction | StyleDirection | Foreign:
    """The direction of a file.

    Raises:
        CheckpointError: there is none, or one has to be chosen.
    """
    found = read_subject(data, name=name, entry=entry)
    if isinstance(found, Components):
        raise CheckpointError("it holds components, not one direction: name it as `components`, with a component")
    return found.choose(None) if isinstance(found, Several) else found
