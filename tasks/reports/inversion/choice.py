"""Which images a report shows: the worst, the best, some at random, and some that methods failed at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import duckdb
import pyarrow as pa

from lsap_archive import FAILED, OK
from tasks.reports.inversion.data import GROUPS, Choice, MethodInfo
from tasks.reports.inversion.headline import headline_method

_BY_MOST = "methods = (select max(methods) from images)"
_COLUMNS = ("image_id", "uri", "digest", "status", "method", "run_id", "row", "lpips")


@dataclass(frozen=True)
class ChosenImage:
    """An image to show.

    Attributes:
        image_id: of it.
        group: why it is shown, a name of `GROUPS`.
        results: its good rows, one for each method that inverted it.
    """

    image_id: str
    group: str
    results: tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class Chosen:
    """The images to show.

    Attributes:
        choice: what they were chosen by.
        images: group by group.
        spare: others in the place of those whose originals are gone: the ones that were inverted last come first.
    """

    choice: Choice
    images: tuple[ChosenImage, ...]
    spare: tuple[ChosenImage, ...]


def choose_images(rows: pa.Table, runs: Sequence[str], num_images: int, methods: Sequence[MethodInfo]) -> Chosen:
    """The images to show, the same for the same rows.

    Up to a quarter are images that one method inverted and another failed at. Then come those that as many methods as
    possible have inverted. Where these are too many, a third are the worst by LPIPS of the headline's method, a third
    the best, the others random: those whose ids have the lowest MD5 digests.

    Args:
        rows: table in ROW_SCHEMA; of several rows of an image and a method the last one counts.
        runs: ids of the runs, from old to new.
        num_images: how many at most.
        methods: of the report.
    """
    with duckdb.connect() as connection:
        connection.register("shown_rows", rows.select(_COLUMNS))
        connection.execute(
            "create temp table newest as with placed as (select *, row_number() over () as place from shown_rows) "
            "select *, list_position(?, run_id) as age from placed "
            "qualify row_number() over (partition by image_id, method order by place desc) = 1",
            [list(runs)],
        )
        inverted = {name for (name,) in _fetch(connection, "select distinct method from newest where status = ?", OK)}
        judged = headline_method(methods, inverted)
        connection.execute(
            "create temp table images as select image_id, "
            'count(*) filter (status = ?) as methods, max(age) filter (status = ?) as age, min("row") as first, '
            "max(lpips) filter (status = ? and method = ? and isfinite(lpips)) as distance, "
            "bool_or(status = ?) as has_failed from newest group by image_id having methods > 0",
            [OK, OK, OK, judged.name if judged else None, FAILED],
        )
        groups = _groups(connection, num_images)
        spare = _take(connection, list(groups), num_images, "true", "methods desc, age desc, first, image_id")
        results = connection.sql(
            "select * exclude (place, age, status, lpips) from newest "
            "where status = ? and list_contains(?::varchar[], image_id) order by place",
            params=[OK, [*groups, *spare]],
        ).to_arrow_table()
        ((num_candidates,),) = _fetch(connection, f"select count(*) from images where {_BY_MOST}")
    found: dict[str, list[dict[str, Any]]] = {image_id: [] for image_id in (*groups, *spare)}
    for row in results.to_pylist():
        found[row["image_id"]].append(row)
    return Chosen(
        Choice(judged.title if judged else "", num_candidates),
        tuple(ChosenImage(name, group, tuple(found[name])) for name, group in groups.items()),
        tuple(ChosenImage(name, "other", tuple(found[name])) for name in spare),
    )


def _groups(connection: duckdb.DuckDBPyConnection, num_images: int) -> dict[str, str]:
    """The group of each image to show, by id, in the order of the page."""
    taken: dict[str, str] = {}

    def take(group: str, count: int, condition: str, order: str) -> None:
        taken.update(dict.fromkeys(_take(connection, list(taken), count, condition, order), group))

    take("failed", num_images // 4, "has_failed", "methods desc, age desc, first, image_id")
    left = num_images - len(taken)
    if len(_take(connection, list(taken), left + 1, _BY_MOST, "image_id")) > left:
        measured = f"{_BY_MOST} and distance is not null"
        take("worst", -(-left // 3), measured, "distance desc, first, image_id")
        take("best", (left + 1) // 3, measured, "distance, first, image_id")
        take("random", num_images - len(taken), _BY_MOST, "md5(image_id), image_id")
    else:
        take("other", left, "true", "methods desc, age desc, first, image_id")
    return {name: group for shown in GROUPS for name, group in taken.items() if group == shown}


def _take(
    connection: duckdb.DuckDBPyConnection, taken: Sequence[str], count: int, condition: str, order: str
) -> list[str]:
    """Ids of the first images in an order that meet a condition and are not taken yet."""
    query = (
        f"select image_id from images where {condition} and not list_contains(?::varchar[], image_id) order by {order}"
    )
    return [image_id for (image_id,) in _fetch(connection, f"{query} limit ?", list(taken), count)]


def _fetch(connection: duckdb.DuckDBPyConnection, query: str, *values: Any) -> list[tuple[Any, ...]]:
    return connection.execute(query, list(values)).fetchall()
