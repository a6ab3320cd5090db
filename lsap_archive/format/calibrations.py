"""Kept calibrations: how strong an edit of equal effect has to be, and how far an attribute spreads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lsap_archive.errors import HOW_TO_REPAIR, CorruptArchiveError
from lsap_archive.format.documents import Number, decode_document, typed


@dataclass(frozen=True)
class _Strength:
    """What there has to be of an edit: its strength, or why it has none."""

    strength: Number | None
    refused: str | None = None


@dataclass(frozen=True)
class _Spread:
    """What there has to be of an attribute: its standard deviation over synthetic images."""

    deviation: Number


def decode_calibration(data: bytes, name: str) -> dict[str, Any]:
    """What was kept, JSON values.

    Raises:
        CorruptArchiveError: it is damaged, or makes no sense.
    """
    values = decode_document(data, name)
    found = typed(_Strength if "strength" in values else _Spread, values, name)
    if isinstance(found, _Strength) and found.strength is None and not found.refused:
        raise CorruptArchiveError(f"{name} makes no sense: neither a strength nor why there is none: {HOW_TO_REPAIR}")
    if isinstance(found, _Spread) and found.deviation <= 0:
        raise CorruptArchiveError(f"{name} makes no sense: a deviation of {found.deviation}: {HOW_TO_REPAIR}")
    return values
