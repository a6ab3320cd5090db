"""What is shown of a selection: some rows of it, where an image stands in it, how a column is distributed."""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lsap_archive.errors import QueryError
from lsap_archive.explorer.columns import literal, quoted
from lsap_archive.explorer.selection import Selection
from lsap_archive.explorer.tables import Tables

_KEPT_BYTES = 128 * 2**20  # of places: 8 bytes for each image of a selection
_BINS = 48
_ROW = ("place", "image_id", "method", "status", "reason", "run_id", "row", "digest")

Places = NDArray[np.int64]


class Chosen:
    """Selections by their SQL, those that were used last kept."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, Future[Places]] = OrderedDict()

    def places(self, of: Selection) -> Places:
        """Places in `images` of all rows of a selection, in its order; asked for once, however many ask at once.

        Raises:
            QueryError: see `Tables.ask`.
        """
        query = of.to_sql()
        with self._lock:
            known = self._kept.get(query)
            if is_first := known is None:
                known = self._kept[query] = Future()
            self._kept.move_to_end(query)
        if is_first:
            try:
                # No more than there are, of a condition that closes its bracket and joins what it likes.
                found = self._tables.ask(f"{query}\nlimit {self._tables.num_rows}").column("place")
                known.set_result(np.asarray(found.to_numpy(), dtype=np.int64))
            except BaseException as error:
                with self._lock:
                    del self._kept[query]
                known.set_exception(error)
        places = known.result()
        if is_first:
            self._forget()
        return places

    def _forget(self) -> None:
        with self._lock:
            sizes = {query: one.result().nbytes for query, one in self._kept.items() if one.done()}
            total = sum(sizes.values())
            for query in list(sizes)[:-1]:
                if total <= _KEPT_BYTES:
                    return
                total -= sizes[query]
                del self._kept[query]

    def rows(self, places: Places, values: Sequence[str]) -> list[dict[str, Any]]:
        """Rows of `images` by their places, in this order, with values of some columns.

        Args:
            places: in `images`.
            values: names of columns.
        """
        names = ", ".join(f"images.{quoted(name)}" for name in dict.fromkeys((*_ROW, *values)))
        query = f"select {names} from images join chosen on chosen.place = images.place order by chosen.at"
        return list(self._tables.ask(query, places=places).to_pylist()) if len(places) else []

    def of_methods(
        self, image_ids: Sequence[str], methods: Sequence[str], values: Sequence[str]
    ) -> dict[tuple[str, str], dict[str, Any]]:
        """Rows of images by other methods, by image and method; those that there are."""
        if not image_ids or not methods:
            return {}
        names = ", ".join(map(quoted, dict.fromkeys((*_ROW, *values))))
        ids, ways = (", ".join(map(literal, dict.fromkeys(some))) for some in (image_ids, methods))
        query = f"select {names} from images where method in ({ways}) and image_id in ({ids})"
        return {(row["image_id"], row["method"]): row for row in self._tables.ask(query).to_pylist()}

    def whole_rows(self, image_id: str) -> list[dict[str, Any]]:
        """Every column of an image's row of each method and edit."""
        query = f"select * exclude (place) from images where image_id = {literal(image_id)} order by method"
        return list(self._tables.ask(query).to_pylist())

    def histogram(self, of: Selection, column: str) -> dict[str, Any]:
        """How a column of numbers is distributed in a selection, its own range left out.

        Returns:
            low, high: of what is finite, None where nothing is; counts: of equal bins between them; missing: number of
            rows without a finite value.

        Raises:
            QueryError: the column has no numbers, or see `Tables.ask`.
        """
        if column not in self._tables.columns or not self._tables.columns[column].is_number:
            raise QueryError(f"{column} has no histogram: a column of numbers is wanted")
        value = f"shown.{quoted(column)}::double as value"
        every = (
            f"select case when isfinite(value) then value end as value from (\n{of.to_sql(value, without=column)}\n)"
        )
        bins = _BINS
        query = (
            f"with every as materialized ({every}), ends as (select min(value) as low, max(value) as high, "
            "count(*) - count(value) as missing from every)\n"
            f"select low, high, missing, case when high > low then least(floor((value - low) / (high - low) * {bins}), "
            f"{bins - 1})::int else 0 end as bin, count(value) as number from ends left join every on true group by all"
        )
        rows = self._tables.ask(query).to_pylist()
        counts = [0] * bins
        for row in rows:
            if row["bin"] is not None and row["number"]:
                counts[row["bin"]] += row["number"]
        first = rows[0]
        return {"low": first["low"], "high": first["high"], "missing": first["missing"], "counts": counts}


def finite(value: Any) -> Any:
    """A value for JSON: what is not finite as a text, what JSON has not as a text."""
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    return value if isinstance(value, str | int | bool | None) else str(value)
