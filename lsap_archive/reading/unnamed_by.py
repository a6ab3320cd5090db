"""Queries that would take values of several networks for values of one: they use `value` of a measure and name no `by`.

What a query does is read from DuckDB's own parse of it (`json_serialize_sql`), select by select: where one groups, or
shows numbers, each measure that it can reach has to have a single `by`, or it has to say which, or keep them apart.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lsap_archive.errors import QueryError
from lsap_archive.format.measurements import MEASUREMENT_SCHEMA

MEASURED = ("measurements", "all_measurements")
Networks = Mapping[str, Mapping[str, Sequence[str]]]
"""By table and measure, what measured it, sorted; "" for nothing but the formula."""

_SELECT, _NODE = "SELECT_NODE", "_NODE"
_NEGATIONS = ("COMPARE_NOTEQUAL", "COMPARE_NOT_IN", "COMPARE_DISTINCT_FROM", "OPERATOR_NOT")
_PATTERNS: dict[
    str, Callable[[str], str]
] = {  # functions that choose texts: their second argument as a regular expression
    "~~": lambda text: "".join({"%": ".*", "_": "."}.get(one, re.escape(one)) for one in text),
    **{name: lambda text: re.escape(text) + ".*" for name in ("starts_with", "prefix", "^@")},
}


class UnnamedByError(QueryError):
    """A query would mix what several networks measured.

    Attributes:
        measure: the measure.
        by: what measured it, at least two.
    """

    def __init__(self, measure: str, by: Sequence[str]) -> None:
        self.measure = measure
        self.by = tuple(by)
        networks = ", ".join(one or "null" for one in by)
        example = next(one for one in by if one).replace("'", "''")
        super().__init__(
            f"{measure} was measured by {networks}, and the query uses value without naming by, so that it would mix "
            f"""them: add where "by" = '{example}' to choose one, or select "by" and group by it to keep them apart"""
        )


@dataclass(frozen=True)
class _Source:
    """What of a select's tables has values that are still of several networks.

    Attributes:
        alias: what the query calls it.
        table: of MEASURED, where it comes from.
        values, by: its columns that have values, or say by what they are.
        limit: measures that it can have; None for all.
        columns: all its columns in order, where they are known.
    """

    alias: str
    table: str
    values: frozenset[str]
    by: frozenset[str]
    limit: frozenset[str] | None = None
    columns: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Scope:
    """What a select sees.

    Attributes:
        queries: named queries around it, each with the names of its columns and what it sees itself.
        limit: measures that those who read its answer keep; None for all.
    """

    queries: Mapping[str, tuple[Any, Sequence[str], _Scope]]
    limit: frozenset[str] | None = None


class ByCheck:
    """Refuses what `UnnamedByError` tells of."""

    def __init__(self, networks: Networks, aggregates: frozenset[str], params: Mapping[str, Any]) -> None:
        """What is known.

        Args:
            networks: of each table of MEASURED that the query may read.
            aggregates: names of DuckDB's aggregate functions.
            params: values of the query's parameters.
        """
        self._networks = networks
        self._measures = frozenset(measure for of_table in networks.values() for measure in of_table)
        self._aggregates = aggregates
        self._params = params

    def check(self, parsed: Mapping[str, Any]) -> None:
        """Look at a query.

        Args:
            parsed: what json_serialize_sql gives.

        Raises:
            UnnamedByError: it mixes networks.
        """
        for statement in parsed["statements"]:
            self._shown(statement["node"], _Scope({}))

    def _shown(self, node: Any, scope: _Scope) -> None:
        """A query whose answer is shown, or compared with: values have to stand beside what they are by."""
        for source in self._answer(node, scope):
            if source.values and not source.by:
                self._refuse(source, scope.limit)

    def _answer(self, node: Any, scope: _Scope) -> list[_Source]:
        """What the answer of a query still has of several networks."""
        scope = _with_queries(node, scope)
        if node["type"] == _SELECT:
            return self._of_select(node, scope)
        found = [source for one in _nodes(node) for source in self._answer(one, scope)]
        values = frozenset(name for one in found for name in one.values)  # of a union, by the names of the first
        by = frozenset(name for one in found for name in one.by)
        return [
            replace(one, values=values if one.values else frozenset(), by=by if one.by else frozenset())
            for one in found
        ]

    def _of_select(self, node: Any, scope: _Scope) -> list[_Source]:
        selected = node.get("select_list") or []
        joins = list(_join_conditions(node.get("from_table")))
        deciding = [*(node.get(name) for name in ("where_clause", "group_expressions", "having", "qualify")), *joins]
        everything = [selected, deciding, _without_order_by_all(node.get("modifiers"))]
        limit = self._limit(everything)
        scope = replace(scope, limit=scope.limit if limit is None else limit)
        for subquery in _of_class(everything, "SUBQUERY"):
            self._shown(subquery["subquery"]["node"], scope)
        windows = list(_of_class([selected, node.get("qualify")], "WINDOW"))
        distinct = [one for one in node.get("modifiers") or [] if one.get("type") == "DISTINCT_MODIFIER"]
        apart = [deciding, distinct, *(one.get("partitions") for one in windows), *_filters(selected)]
        groups = bool(node.get("group_expressions")) or node.get("aggregate_handling") == "FORCE_AGGREGATES"
        groups = groups or any(True for one in _calls([selected, node.get("having")]) if one in self._aggregates)
        answer = []
        for source in self._sources(node.get("from_table"), scope):
            if not self._mixed(source, scope.limit) or _names(apart, source, source.by):
                continue
            is_used = _names(everything, source, source.values)
            if groups or any(_names([one], source, source.values) for one in windows):
                if is_used and not (groups and _names(selected, source, source.by)):
                    self._refuse(source, scope.limit)
                continue
            shown = _selected_of(selected, source)
            if is_used and not shown.values and not shown.by:
                self._refuse(source, scope.limit)
            answer.append(replace(shown, limit=_both(source.limit, limit)))
        return answer

    def _sources(self, table: Any, scope: _Scope) -> Iterator[_Source]:
        """What of the tables after `from` has values of several networks."""
        kind = (table or {}).get("type")
        alias, renamed = (table or {}).get("alias") or "", (table or {}).get("column_name_alias") or []
        if kind == "BASE_TABLE":
            name = table["table_name"].lower()
            if name in scope.queries:
                query, columns, around = scope.queries[name]
                found = [_called(one, name, columns) for one in self._answer(query, replace(around, limit=scope.limit))]
                yield from (_called(one, alias or name, renamed) for one in found)
            elif name in self._networks:
                columns = tuple(MEASUREMENT_SCHEMA.names)
                raw = _Source("", name, frozenset({"value"}), frozenset({"by"}), columns=columns)
                yield _called(raw, alias or name, renamed)
        elif kind == "JOIN":
            yield from self._sources(table["left"], scope)
            yield from self._sources(table["right"], scope)
        elif kind == "SUBQUERY":
            found = self._answer(table["subquery"]["node"], scope)
            yield from (_called(one, alias, renamed) for one in found)
        elif kind == "PIVOT":
            yield from self._of_pivot(table, scope)
        elif kind == "SHOW_REF" and "SUMMARY" in str(table.get("show_type")) and table.get("query"):
            for source in self._answer(table["query"], scope):
                self._refuse(source, scope.limit)

    def _of_pivot(self, table: Any, scope: _Scope) -> Iterator[_Source]:
        """A pivot groups by all columns that it does not name, unless it says by which."""
        aggregates, apart = table.get("aggregates"), [table.get("pivots"), table.get("groups")]
        limit = _both(scope.limit, self._limit(apart))
        for source in self._sources(table["source"], scope):
            names_by = _names(apart, source, source.by) or not source.by.isdisjoint(table.get("groups") or [])
            if not aggregates:
                yield source
            elif table.get("groups") and _names(aggregates, source, source.values) and not names_by:
                self._refuse(source, limit)

    def _mixed(self, source: _Source, limit: frozenset[str] | None) -> list[str]:
        """Measures that the source can have, and that several networks measured."""
        limit = _both(source.limit, limit)
        of_table = self._networks[source.table]
        return [one for one, by in of_table.items() if len(by) > 1 and (limit is None or one in limit)]

    def _refuse(self, source: _Source, limit: frozenset[str] | None) -> None:
        if mixed := self._mixed(source, limit):
            raise UnnamedByError(mixed[0], self._networks[source.table][mixed[0]])

    def _limit(self, parts: Any) -> frozenset[str] | None:
        """Measures that parts of a query name, or all but those that it excludes; None where it names none."""
        named, excluded = set[str](), set[str]()
        for text, is_pattern, is_negated in self._texts(parts):
            found = (
                {one for one in self._measures if re.fullmatch(text, one)} if is_pattern else {text} & self._measures
            )
            (excluded if is_negated else named).update(found)
        if named:
            return frozenset(named)
        return self._measures - excluded if excluded else None

    def _texts(self, part: Any, negated: bool = False) -> Iterator[tuple[str, bool, bool]]:
        """Texts in an expression: each, whether it is a regular expression, and whether it is excluded."""
        if isinstance(part, list):
            for one in part:
                yield from self._texts(one, negated)
        if not isinstance(part, dict) or part.get("class") == "SUBQUERY":
            return
        negated = negated != (part.get("type") in _NEGATIONS)
        pattern = _PATTERNS.get(part.get("function_name", ""))
        for text in self._own_texts(part):
            yield text, False, negated
        for name, one in part.items():
            if pattern is not None and name in ("arguments", "children"):
                yield from ((pattern(text), True, negated) for text, _, _ in self._texts(one))
            else:
                yield from self._texts(one, negated)

    def _own_texts(self, part: Any) -> Iterator[str]:
        if part.get("class") == "CONSTANT":
            value = part.get("literal") or part.get("value") or {}
            text = value.get("text", value.get("value")) if isinstance(value, dict) else None
            if isinstance(text, str):
                yield text
        if part.get("class") == "PARAMETER":
            given = self._params.get(part.get("identifier", ""))
            yield from (one for one in (given if isinstance(given, list | tuple) else [given]) if isinstance(one, str))


def _with_queries(node: Any, scope: _Scope) -> _Scope:
    """The scope with the named queries of a node; of a recursive one the name stands for nothing inside."""
    queries = dict(scope.queries)
    for one in (node.get("cte_map") or {}).get("map") or []:
        value = one["value"]
        query = value.get("query_node") or value["query"]["node"]
        inside = {name: of for name, of in queries.items() if name != one["key"].lower()}
        queries[one["key"].lower()] = (query, value.get("aliases") or [], _Scope(inside))
    return _Scope(queries, scope.limit)


def _nodes(part: Any) -> Iterator[Any]:
    """Queries right below a node that is no select, such as the sides of a union."""
    for name, one in part.items():
        for inner in one if isinstance(one, list) else [one]:
            if name != "cte_map" and isinstance(inner, dict) and str(inner.get("type", "")).endswith(_NODE):
                yield inner


def _inside(part: Any) -> Iterator[dict[str, Any]]:
    """All expressions in a part, but for those of queries inside it."""
    if isinstance(part, list | tuple):
        for one in part:
            yield from _inside(one)
    elif isinstance(part, dict):
        yield part
        for name, one in part.items():
            if name != "subquery":
                yield from _inside(one)


def _of_class(part: Any, name: str) -> Iterator[dict[str, Any]]:
    return (one for one in _inside(part) if one.get("class") == name)


def _calls(part: Any) -> Iterator[str]:
    return (one["function_name"].lower() for one in _of_class(part, "FUNCTION"))


def _without_order_by_all(modifiers: Any) -> list[Any]:
    """What orders, limits and makes distinct; `order by all` is a star that names nothing."""
    orders = [one for modifier in modifiers or [] for one in modifier.get("orders") or []]
    others = [modifier for modifier in modifiers or [] if not modifier.get("orders")]
    return [*others, *(one for one in orders if one["expression"].get("class") != "STAR")]


def _filters(part: Any) -> list[Any]:
    return [one["filter"] for one in _inside(part) if one.get("filter")]


def _join_conditions(table: Any) -> Iterator[Any]:
    if isinstance(table, dict) and table.get("type") == "JOIN":
        yield table.get("condition")
        names = table.get("using_columns") or []
        if table.get("ref_type") == "NATURAL":  # two tables of measurements agree in by
            sides = [set(_base_tables(table[side])) & set(MEASURED) for side in ("left", "right")]
            names = ["by"] if all(sides) else []
        yield [{"class": "COLUMN_REF", "column_names": [name]} for name in names]
        yield from _join_conditions(table["left"])
        yield from _join_conditions(table["right"])


def _base_tables(table: Any) -> Iterator[str]:
    return (one["table_name"].lower() for one in _inside(table) if one.get("type") == "BASE_TABLE")


def _names(part: Any, source: _Source, columns: frozenset[str]) -> bool:
    """Whether an expression names one of some columns of a source, the whole of it, or all columns by a star."""
    for one in _inside(part):
        if one.get("class") == "COLUMN_REF":
            *table, name = [name.lower() for name in one["column_names"]]
            if (name in columns and (not table or table[-1] == source.alias)) or name == source.alias:
                return True
        elif one.get("class") == "STAR" and any(_in_star(one, source, name) for name in columns):
            return True
    return False


def _in_star(star: Any, source: _Source, name: str) -> bool:
    """Whether a star, or COLUMNS(pattern), has a column of a source."""
    table = (star.get("relation_name") or "").lower()
    if table not in ("", source.alias):
        return False
    if isinstance(star.get("expr"), dict):
        patterns = [_text_of(one) for one in _of_class(star["expr"], "CONSTANT")]
        return not patterns or any(re.search(one, name) for one in patterns)
    return name not in _all_texts([star.get("exclude_list"), star.get("qualified_exclude_list")])


def _text_of(constant: Any) -> str:
    value = constant.get("literal") or constant.get("value") or {}
    return str(value.get("text", value.get("value", ""))) if isinstance(value, dict) else ""


def _all_texts(part: Any) -> set[str]:
    if isinstance(part, str):
        return {part.lower()}
    values = part.values() if isinstance(part, dict) else part if isinstance(part, list) else []
    return {text for one in values for text in _all_texts(one)}


def _selected_of(selected: Sequence[Any], source: _Source) -> _Source:
    """What a select that groups nothing shows of a source."""
    values, by, columns = set[str](), set[str](), list[str]()
    for number, one in enumerate(selected):
        if one.get("class") == "STAR":
            values |= {name for name in source.values if _in_star(one, source, name)}
            by |= {name for name in source.by if _in_star(one, source, name)}
            columns += source.columns
            continue
        name = (one.get("alias") or (one.get("column_names") or [f"column {number}"])[-1]).lower()
        columns.append(name)
        values |= {name} if _names(one, source, source.values) else set()
        by |= {name} if _names(one, source, source.by) else set()
    return replace(source, values=frozenset(values), by=frozenset(by), columns=tuple(columns))


def _called(source: _Source, alias: str, renamed: Sequence[str]) -> _Source:
    """The source under the names that a query gives it and, in their order, its columns."""
    new = {old: name.lower() for old, name in zip(source.columns, renamed, strict=False)}
    values, by = (frozenset(new.get(name, name) for name in names) for names in (source.values, source.by))
    columns = tuple(new.get(name, name) for name in source.columns)
    return replace(source, alias=alias.lower(), values=values, by=by, columns=columns)


def _both(first: frozenset[str] | None, second: frozenset[str] | None) -> frozenset[str] | None:
    if first is None or second is None:
        return second if first is None else first
    return first & second
