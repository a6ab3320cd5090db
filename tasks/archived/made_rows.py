"""Rows of what is made of a run, an edit or a refinement: what has no code there has none here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lsap_archive import DUPLICATE, OK

NOT_INVERTED = "not_inverted"
CARRIED_COLUMNS = ("status", "reason", "message", "duplicate_of", "width", "height", "altered", "noise")


def record_made_of(record: Mapping[str, Any], method: str) -> dict[str, Any]:
    """The row of an image before anything is made of it.

    Args:
        record: its row in the run that something is made of.
        method: of that run.
    """
    kept = {name: record[name] for name in ("status", "width", "height", "altered", "noise", "duplicate_of")}
    if record["status"] in (OK, DUPLICATE):
        return kept
    why = f"{record['reason']}: {record['message']}" if record["message"] else record["reason"]
    message = f"{method} has no code of this image ({why}): mend the image and invert it again"
    return {**kept, "reason": NOT_INVERTED, "message": message}
