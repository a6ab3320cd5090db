"""What an archive is asked, and what is asked of others with the same rows and codes: questions by name.

A side of the comparison gives a callable for each question. It takes how many times it was asked before, so that nobody
answers from what it remembers of the last time, and returns ids and numbers, which are the same of all sides.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from plausible_archive import GEOMETRY, METHOD, SHARD_ROWS, asked_for, image_id
from starlette.testclient import TestClient

from lsap_archive import open_archive
from lsap_archive.explorer.app import explorer_app

Ask = Callable[[int], Any]
Questions = dict[str, Ask]

AGGREGATE = "select method, status, count(*) as n, avg(lpips) as lpips, avg(sncd) as sncd from latest group by all"
WORST = "select image_id, lpips from latest where status = 'ok' order by lpips desc limit 10"
NEAREST = 10
SORTED_BY = [(column, order) for order in ("desc", "asc") for column in ("lpips", "sncd", "mse", "seconds")]
PAGE = 200
BINS = 48
TEXT, HIGH = "7", 0.25
APPROXIMATE = {"nearest 10 by index": "nearest 10"}
"""Questions that are answered nearly, and those with the right answers."""


def target(number: int) -> np.ndarray:
    """A code that is not in the archive, [K, D]."""
    shape = (GEOMETRY.num_ws, GEOMETRY.w_dim)
    return np.random.default_rng(10**6 + number).standard_normal(shape).astype(np.float32)


def low(number: int) -> float:
    """The lowest LPIPS that is asked for."""
    return 0.2 + number / 1000


def middle(num_rows: int, number: int) -> int:
    """Where a page in the middle begins."""
    return max(num_rows // 2 - PAGE * number, 0)


def aggregated(table: pa.Table) -> list[tuple[Any, ...]]:
    """Rows of the answer to AGGREGATE, in one order."""
    return sorted(zip(*(column.to_pylist() for column in table.columns), strict=True), key=lambda row: row[:2])


def listed(table: pa.Table) -> list[tuple[Any, ...]]:
    """Rows of an answer that has an order."""
    return list(zip(*(column.to_pylist() for column in table.columns), strict=True))


# --- the archive ---------------------------------------------------------------------------------------


def sql(url: str, num_rows: int) -> Questions:
    """Questions over all rows, by SQL."""
    archive = open_archive(url)
    return {
        "aggregate": lambda number: aggregated(archive.sql(AGGREGATE)),
        "worst 10": lambda number: listed(archive.sql(WORST)),
    }


def codes_by_id(url: str, num_rows: int) -> Questions:
    """Codes of 64 images."""
    archive = open_archive(url)
    return {"codes of 64": lambda number: archive.codes(asked_for(num_rows, number), METHOD)}


def nearest(url: str, num_rows: int) -> Questions:
    """The nearest codes to one: exactly, which reads the codes at first, and by the index."""
    archive = open_archive(url)

    def ids(number: int, **options: bool) -> list[str]:
        found: list[str] = archive.nearest(target(number), NEAREST, METHOD, **options).column("image_id").to_pylist()
        return found

    return {"nearest 10": ids, "nearest 10 by index": lambda number: ids(number, approximate=True)}


def explorer(url: str, num_rows: int) -> Questions:
    """What a browser asks the explorer for; the network alone is missing."""
    archive = open_archive(url)
    clients: list[TestClient] = []

    def get(path: str, *asked: tuple[str, Any]) -> Any:
        answer = clients[-1].get(path, params=[(name, str(value)) for name, value in asked])
        assert answer.status_code == 200, answer.text
        return answer

    def start(number: int) -> None:
        clients[:] = [TestClient(explorer_app(archive), base_url="http://localhost")]

    def first_page(number: int) -> int:
        get("/")
        get("/api/archive")
        return len(get("/api/selection", ("method", METHOD), ("limit", PAGE)).json()["rows"])

    def selected(*asked: tuple[str, Any]) -> dict[str, Any]:
        answer = get("/api/selection", ("method", METHOD), ("limit", PAGE), *asked).json()
        rows = [(row["image"], *row["values"].values()) for row in answer["rows"]]
        return {"total": answer["total"], "rows": rows}

    def all_sorted(number: int) -> dict[str, Any]:
        column, order = SORTED_BY[number % len(SORTED_BY)]
        return selected(("sort", column), ("order", order), ("value", column))

    def page(number: int) -> dict[str, Any]:
        columns = [("value", name) for name in ("lpips", "sncd")]
        return selected(("sort", "lpips"), ("order", "desc"), ("offset", middle(num_rows, number)), *columns)

    def histogram(number: int) -> dict[str, Any]:
        column, _ = SORTED_BY[number % len(SORTED_BY)]
        answer: dict[str, Any] = get("/api/histogram", ("method", METHOD), ("column", column)).json()
        return answer

    def filtered(number: int) -> dict[str, Any]:
        between = ("range", f"lpips~{low(number)}~{HIGH}")
        return selected(("text", TEXT), between, ("sort", "lpips"), ("order", "desc"), ("value", "lpips"))

    def neighbours(number: int) -> list[str]:
        answer = get("/api/neighbours", ("image", image_id(0)), ("method", METHOD)).json()
        return [row["image"] for row in answer["rows"]]

    def pictures(number: int) -> int:
        """How many of 100 there are; 1.5 % of images have failed."""
        some = np.random.default_rng(number).permutation(min(SHARD_ROWS, num_rows))[:100].tolist()
        asked = [{"image": image_id(row), "method": METHOD} for row in some]
        found = [clients[-1].get("/picture", params=one).status_code for one in asked]
        assert set(found) <= {200, 404}, found
        return found.count(200)

    return {
        "start": start,
        "first page": first_page,
        "all, worst first": all_sorted,
        "200 in the middle": page,
        "histogram": histogram,
        "filter": filtered,
        "neighbours": neighbours,
        "100 previews": pictures,
    }


# --- answers -------------------------------------------------------------------------------------------


def same(one: Any, other: Any) -> bool:
    """Whether two answers are the same: means may differ in their last digits, what is missing is None or NaN."""
    if isinstance(one, np.ndarray):
        return isinstance(other, np.ndarray) and np.array_equal(one, other)
    if isinstance(one, Mapping):
        return isinstance(other, Mapping) and one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return isinstance(other, list | tuple) and len(one) == len(other) and all(map(same, one, other))
    one, other = (math.nan if value is None else value for value in (one, other))
    if isinstance(one, float) or isinstance(other, float):
        both = isinstance(one, float | int) and isinstance(other, float | int)
        return both and ((math.isnan(one) and math.isnan(other)) or math.isclose(one, other, rel_tol=1e-9))
    return bool(one == other)


def recall(found: list[list[str]], right: list[list[str]]) -> float:
    """Which share of the right ids was found."""
    shares = [len(set(some) & set(all_of)) / len(all_of) for some, all_of in zip(found, right, strict=True)]
    return sum(shares) / len(shares)
