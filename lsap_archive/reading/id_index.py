"""Where images stand among many rows, by their ids, without a look at all of them each time."""

from __future__ import annotations

import threading
from collections.abc import Collection
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

_FEW = 256  # values, which are had sooner one by one: to take them together, Arrow looks at every chunk


def values_at(column: pa.ChunkedArray, places: NDArray[np.int64]) -> list[Any]:
    """Values of a column at some places, in their order."""
    if len(places) > _FEW:
        return list(column.take(pa.array(places)).to_pylist())
    return [column[place].as_py() for place in places.tolist()]


class IdIndex:
    """Finds the places of ids; several threads may ask at once. It keeps 16 bytes for each row beside the ids.

    Hashes stand in order. Which ids have one is looked up, and those found are compared with what was asked for.

    Example:
        >>> IdIndex(pa.chunked_array([["anna", "bert"], ["anna"]])).places_of(["anna", "carl"]).tolist()
        [0, 2]
    """

    def __init__(self, image_ids: pa.ChunkedArray) -> None:
        """Put the hashes of all ids in order.

        Args:
            image_ids: of all rows, also several times.
        """
        self._image_ids = image_ids
        self._database = duckdb.connect(config={"python_enable_replacements": False})
        self._lock = threading.Lock()
        hashes = self._hashes_of(image_ids)
        self._order = np.argsort(hashes, kind="stable")
        self._hashes = hashes[self._order]

    def places_of(self, image_ids: Collection[str]) -> NDArray[np.int64]:
        """Numbers of the rows that have one of these ids, in order."""
        asked = pa.array(sorted(set(image_ids)), pa.string())
        hashes = self._hashes_of(pa.chunked_array([asked]))
        firsts, ends = (np.searchsorted(self._hashes, hashes, side=side) for side in ("left", "right"))
        ranges = [self._order[first:end] for first, end in zip(firsts.tolist(), ends.tolist(), strict=True)]
        places = np.unique(np.concatenate([np.empty(0, np.int64), *ranges]))
        names = set(image_ids)
        found: NDArray[np.int64] = places[np.array([one in names for one in values_at(self._image_ids, places)], bool)]
        return found

    def _hashes_of(self, texts: pa.ChunkedArray) -> NDArray[np.uint64]:
        with self._lock, self._database.cursor() as cursor:
            cursor.register("asked", pa.table({"text": texts}))
            found = cursor.sql("select hash(text) as hash from asked").fetchnumpy()["hash"]
        return np.asarray(found, dtype=np.uint64)
