"""Answers about nearest codes as tables."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lsap_archive.reading.nearest.search import Answer
from lsap_archive.reading.row_table import RowTable

ABOUT = b"nearest"
"""Key of the table's metadata that says how an answer was found, in JSON."""
_COLUMNS = ["image_id", "uri", "run_id", "row"]


def answer_table(answer: Answer, k: int, rows: RowTable, asked: Sequence[int | str] | None) -> pa.Table:
    """An answer with the images' ids, nearest first, equal distances in the order of the ids.

    Args:
        answer: places and distances.
        k: how many of each.
        rows: whose places they are.
        asked: what each code that was asked about is called in the column `query`; None for no such column.
    """
    places = np.unique(np.concatenate([np.empty(0, np.int64), *(places for places, _ in answer.found)]))
    known = rows.at(places.tolist(), _COLUMNS).sort_by("place")
    tables = [
        _of_one(known.take(np.searchsorted(places, found)), distances, k, None if asked is None else asked[number])
        for number, (found, distances) in enumerate(answer.found)
    ]
    told: dict[bytes, bytes] = {ABOUT: json.dumps(answer.about).encode()}
    return pa.concat_tables(tables).replace_schema_metadata(told)


def _of_one(rows: pa.Table, distances: NDArray[np.float64], k: int, query: int | str | None) -> pa.Table:
    table = rows.drop_columns("place").add_column(1, "distance", pa.array(distances, pa.float64()))
    nearest = table.sort_by([("distance", "ascending"), ("image_id", "ascending")]).slice(0, k)
    if query is None:
        return nearest
    return nearest.add_column(0, "query", pa.array([query] * nearest.num_rows))


def about_answer(table: pa.Table) -> dict[str, Any]:
    """How an answer of `Archive.nearest` was found: space, metric, `answer`; `recall` or `note` where they apply."""
    found: dict[str, Any] = json.loads(table.schema.metadata[ABOUT])
    return found
