"""Which rows have the code of an image that was inverted as the duplicate of another."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from lsap_archive.format.rows import DUPLICATE
from lsap_archive.reading.row_table import RowPlace, RowTable


def last_originals(rows: RowTable, asked: Iterable[RowPlace], runs: Sequence[int]) -> dict[int, RowPlace]:
    """The row that each of some rows stands for: itself, or that of its original, and of what that duplicates.

    An original is in the same run if it is there, else it is the newest of the same content, else the newest.

    Args:
        rows: the table that they are rows of.
        asked: the rows.
        runs: where originals are looked for.

    Returns:
        By the place of each row, the one it stands for. Its status is DUPLICATE where there is no more to follow: no
        row of the original is in these runs, or the next one is of an image that was passed already.
    """
    found = {one.place: one for one in asked}
    passed = {place: {one.image_id} for place, one in found.items()}
    copies = {place: one for place, one in found.items() if one.status == DUPLICATE}
    while copies:
        originals = _originals(rows, list(copies.values()), runs)
        followed = {}
        for place, copy in copies.items():
            original = originals.get(copy.place)
            if original is not None and original.image_id not in passed[place]:
                passed[place].add(original.image_id)
                followed[place] = original
        found |= followed
        copies = {place: one for place, one in followed.items() if one.status == DUPLICATE}
    return found


def _originals(rows: RowTable, copies: Sequence[RowPlace], runs: Sequence[int]) -> dict[int, RowPlace]:
    """Of duplicates, by their places, the rows of what they duplicate; those without one are left out."""
    by_image = rows.of_images({str(one.duplicate_of) for one in copies}, runs)
    candidates = {one.place: by_image[str(one.duplicate_of)] for one in copies if str(one.duplicate_of) in by_image}
    elsewhere = [
        one
        for one in copies
        if one.place in candidates and all(other.run != one.run for other in candidates[one.place])
    ]
    compared = [*elsewhere, *(other for one in elsewhere for other in candidates[one.place])]
    digests = rows.digests(compared) if compared else {}
    return {one.place: _original(one, candidates[one.place], digests) for one in copies if one.place in candidates}


def _original(copy: RowPlace, candidates: Sequence[RowPlace], digests: Mapping[int, str]) -> RowPlace:
    in_run = [one for one in candidates if one.run == copy.run]
    if in_run:
        return in_run[-1]
    same_content = [one for one in candidates if digests[one.place] == digests[copy.place]]
    return (same_content or candidates)[-1]
