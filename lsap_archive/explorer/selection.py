"""Which images are shown, and in which order: read from the address of the page, written as SQL."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from lsap_archive.errors import QueryError
from lsap_archive.explorer.columns import Column, images_sql, literal, quoted
from lsap_archive.format.rows import STATUSES

_WHOLE_QUERY = re.compile(r"\s*(select|with|from)\b", re.IGNORECASE)
_MOST_RANGES = 16
_LONGEST = 20_000  # characters of SQL


@dataclass(frozen=True)
class Range:
    """What a column may be; an end that is None is open."""

    column: str
    low: float | None
    high: float | None

    def to_sql(self) -> str:
        """The condition."""
        name = quoted(self.column)
        ends = [f"{name} {sign} {end!r}" for sign, end in ((">=", self.low), ("<=", self.high)) if end is not None]
        return " and ".join(ends) or "true"


@dataclass(frozen=True)
class Selection:
    """Rows of the table `images` in an order.

    Attributes:
        method: whose rows; a query that gives a column `method` chooses for itself.
        text: what the image's id contains, in any case.
        statuses: which ones; none for all.
        ranges: of numbers.
        condition: of SQL, over the columns of `images`; "" for none.
        query: a whole one that gives image_id and maybe method; "" for none.
        gives_method: whether the query gives method.
        sort: a column; None for the order of the query, or of the ids where there is none.
        is_descending: the highest first.
        minus: a method: not the column itself sorts but its difference to that of this method.
    """

    method: str
    text: str = ""
    statuses: tuple[str, ...] = ()
    ranges: tuple[Range, ...] = ()
    condition: str = ""
    query: str = ""
    gives_method: bool = False
    sort: str | None = None
    is_descending: bool = False
    minus: str | None = None

    def to_sql(self, what: str = "shown.place", *, without: str | None = None) -> str:
        """The query over `images`.

        Args:
            what: it gives, of `shown`, a row of `images`.
            without: a column whose range is left out.
        """
        source, conditions = "images", []
        if self.query:
            names, on = (
                ("image_id, method", " and asked.method = images.method") if self.gives_method else ("image_id", "")
            )
            source = (
                f"images join (\n    select {names}, min(position) as position from (\n"
                f"        select {names}, row_number() over () as position from (\n{self.query}\n        )\n"
                f"    ) group by {names}\n) as asked on asked.image_id = images.image_id{on}"
            )
        if not self.gives_method:
            conditions.append(f"images.method = {literal(self.method)}")
        if self.text:
            conditions.append(f"contains(lower(images.image_id), {literal(self.text.lower())})")
        if self.statuses:
            conditions.append(f"images.status in ({', '.join(map(literal, self.statuses))})")
        conditions += [f"images.{one.to_sql()}" for one in self.ranges if one.column != without]
        if self.condition:
            conditions.append(f"(\n{self.condition}\n)")
        given = "images.*, asked.position" if self.query else "images.*"
        shown = f"select {given} from {source}"
        if conditions:
            shown += " where " + " and ".join(conditions)
        if self.minus is not None and self.sort is not None:
            other = (
                f"select image_id, {quoted(self.sort)} as subtrahend from images where method = {literal(self.minus)}"
            )
            joined = f"(\n{shown}\n) as shown left join (\n{other}\n) as other on other.image_id = shown.image_id"
        else:
            joined = f"(\n{shown}\n) as shown"
        return f"select {what} from {joined}\norder by {self._order()}"

    def _order(self) -> str:
        last = "shown.image_id, shown.method"
        if self.sort is None:
            return f"shown.position, {last}" if self.query else last
        key = f"shown.{quoted(self.sort)}"
        if self.minus is not None:
            key += " - other.subtrahend"
        return f"{key} {'desc' if self.is_descending else 'asc'} nulls last, {last}"

    def to_file(self, columns: Collection[Column], what: str = "shown.image_id, shown.method") -> str:
        """The query over the archive's own tables, for `lsap-archive sql`."""
        query = self.to_sql().casefold()
        names = [(one, one.name.casefold()) for one in columns if one.measure is not None]
        named = [one for one, name in names if name in query or quoted(name) in query]
        return f"with images as (\n{images_sql(named)}\n)\n{self.to_sql(what)}\n"


def read_selection(
    asked: Mapping[str, Sequence[str]],
    *,
    columns: Mapping[str, Column],
    methods: Collection[str],
    columns_of: Callable[[str], Sequence[str]],
) -> Selection:
    """The selection that the address of a page asks for.

    Args:
        asked: values by name: method, text, status (several), range (several, "column~low~high"), sql, sort, order
            ("asc", "desc"), minus.
        columns: of `images`, by name.
        methods: of the archive.
        columns_of: tells which columns a query gives; refuses one that is none.

    Raises:
        QueryError: something is asked for that is not there.
    """

    def one(name: str) -> str:
        return asked[name][0] if asked.get(name) else ""

    method = one("method") or next(iter(methods), "")
    minus = one("minus") or None
    for name in (method, *filter(None, [minus])):
        if name not in methods:
            raise QueryError(f"no method {name}: there are {', '.join(methods) or 'none'}")
    text, sql = one("text"), one("sql").strip().rstrip(";").rstrip()
    if "\0" in text or "\0" in sql:
        raise QueryError("NUL is in no name")
    if len(sql) > _LONGEST:
        raise QueryError(f"the query has {len(sql)} characters: {_LONGEST} are allowed")
    statuses = tuple(status for status in STATUSES if status in asked.get("status", ()))
    ranges = tuple(_read_range(text, columns) for text in list(asked.get("range", ()))[:_MOST_RANGES])
    sort = one("sort") or None
    if sort is not None and sort not in columns:
        raise QueryError(f"no column {sort}: there are {', '.join(columns)}")
    if minus is not None and sort is not None and not columns[sort].is_number:
        raise QueryError(f"{sort} is no number: differences of it are none")
    query = sql if _WHOLE_QUERY.match(sql) else ""
    condition = "" if query else sql
    gives_method = False
    if query:
        given = columns_of(query)
        if "image_id" not in given:
            raise QueryError(f"the query gives {', '.join(given)}: a column image_id is wanted, and maybe method")
        gives_method = "method" in given
    elif condition:
        columns_of(f"select 1 from images where (\n{condition}\n)")
    return Selection(
        method=method,
        text=text,
        statuses=statuses,
        ranges=ranges,
        condition=condition,
        query=query,
        gives_method=gives_method,
        sort=sort,
        is_descending=one("order") == "desc",
        minus=minus if sort else None,
    )


def _read_range(text: str, columns: Mapping[str, Column]) -> Range:
    name, *ends = text.rsplit("~", 2)
    if len(ends) != 2 or name not in columns or not columns[name].is_number:
        raise QueryError(f"no range {text}: wanted a column of numbers, ~, its lowest, ~ and its highest value")
    try:
        low, high = (float(end) if end else None for end in ends)
    except ValueError:
        raise QueryError(f"the range {text} has an end that is no number") from None
    if any(end is not None and not math.isfinite(end) for end in (low, high)):
        raise QueryError(f"the range {text} has an end that is not finite: leave it out")
    return Range(name, low, high)
