"""Keeping what lies below `published/` as what is published: lists of files for readers that know only Parquet.

Whoever publishes or retires something looks afterwards at what there is, and writes the lists anew until they say that.
Two who do so at once may each write what the other's change made stale, but each looks again after it wrote: whoever
wrote last leaves lists that agree. Whoever is killed between is made up for by the next one who looks.

What a list says of a run never changes but for its retired shards, so manifests are read once, and not by every writer.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lsap_archive.errors import OBJECT_ERRORS, ArchiveNotFoundError, CorruptArchiveError, StoreUnavailableError
from lsap_archive.format.evaluations import EvaluationInfo
from lsap_archive.format.layout import (
    EVALUATIONS_PREFIX,
    PUBLISHED_PREFIX,
    RUNS_PREFIX,
    evaluation_prefix,
    measurements_name,
    rows_name,
    run_prefix,
)
from lsap_archive.format.manifest import Manifest
from lsap_archive.format.published_list import (
    EMPTY_SCHEMAS,
    LISTED_MEASUREMENTS,
    LISTED_ROWS,
    MEASUREMENTS_LIST,
    NO_MEASUREMENTS,
    NO_ROWS,
    ROWS_LIST,
    SQL_TEXTS,
    order_text,
)
from lsap_archive.format.rows import from_parquet, to_parquet
from lsap_archive.reading.archive import Archive
from lsap_archive.reading.checked import P, read_header
from lsap_archive.reading.retirement import hidden_of, is_retired, may_be_twice, retired_by_run, visible_manifest
from lsap_archive.stores.concurrency import in_threads
from lsap_archive.stores.store import Store

_TRIES = 50  # others write at the same time, and none of them for long


def keep_published_lists(store: Store, just: str | None = None, *, anew: bool = False) -> list[str]:
    """Write what lies below `published/`, as far as it is not what is published now.

    Args:
        store: the archive.
        just: id of what was just published, of which nothing is believed that the lists say: it may have been another
            one, whose folder somebody removed.
        anew: believe nothing that the lists say, and read every manifest.

    Returns:
        Keys of what was written.

    Raises:
        CorruptArchiveError: rows that may be there twice are damaged.
        StoreUnavailableError: the store does not answer or refuses.
    """
    written: set[str] = set()
    for _ in range(_TRIES):
        behind = stale_lists(store, just, anew=anew)
        if not behind:
            return sorted(written)
        in_threads(lambda item: store.put(*item), behind.items())
        written |= behind.keys()
    raise StoreUnavailableError(
        f"{store.url}/{PUBLISHED_PREFIX} was not what had been written there, {_TRIES} times: others write it, too; "
        "try again when they are done"
    )


def stale_lists(store: Store, just: str | None = None, *, anew: bool = False) -> dict[str, bytes]:
    """What should stand below `published/` and does not, by key; nothing in an archive that never published anything.

    Args:
        store: the archive.
        just: as in `keep_published_lists`.
        anew: likewise.

    Raises:
        CorruptArchiveError, StoreUnavailableError: as `keep_published_lists`.
    """
    before = {key: _get_or_none(store, key) for key in (ROWS_LIST, MEASUREMENTS_LIST)}
    lists = _lists(store, just, *((None, None) if anew else before.values()))
    behind = {key: to_parquet(table) for key, table in lists.items() if not _is_table(before[key], table)}
    if not behind and not anew:
        return {}
    beside = [*EMPTY_SCHEMAS, *SQL_TEXTS]  # always the same
    there = dict(zip(beside, in_threads(lambda key: _get_or_none(store, key), beside), strict=True))
    if not any((*before.values(), *there.values())) and all(table.num_rows == 1 for table in lists.values()):
        return {}
    empty = {key: schema.empty_table() for key, schema in EMPTY_SCHEMAS.items()}
    behind |= {key: to_parquet(table) for key, table in empty.items() if not _is_table(there[key], table)}
    return behind | {key: text for key, text in SQL_TEXTS.items() if there[key] != text}


@dataclass(frozen=True)
class _Run:
    """A run as the list has it: that of its manifest, with the shards that readers see or saw."""

    run_id: str
    method: str
    method_digest: str
    lineage: tuple[str, ...]
    age: str
    shard_rows: int
    shards: tuple[int, ...]
    left_out: frozenset[int] = frozenset()

    @property
    def num_shards(self) -> int:
        """Above the number of every shard."""
        return max(self.shards, default=-1) + 1


@dataclass(frozen=True)
class _Evaluation:
    """Likewise an evaluation."""

    evaluation_id: str
    run_id: str | None
    subject: str
    age: str
    shard_rows: int
    shards: tuple[int, ...]


def _lists(store: Store, just: str | None, rows: bytes | None, measurements: bytes | None) -> dict[str, pa.Table]:
    """Both lists as they should be, by key; of what the given ones know no manifest is read."""
    before = _by_owner(rows, LISTED_ROWS, "run_id", just)
    known = {run_id: _known_run(listed) for run_id, listed in before.items()}
    names = store.folders(RUNS_PREFIX)
    new = _visible(store, Manifest, [name for name in names if name not in known])
    orders = {name: known[name].age.rsplit(_BETWEEN, 1)[-1] for name in names if name in known}
    orders |= {one.run_id: order_text(one) for one in new}
    runs = [known[name] for name in names if name in known] + [_new_run(one, orders) for one in new]
    retired = retired_by_run(store, runs)
    hidden = {one.run_id: hidden_of(one, retired) for one in runs}
    twice = {one.run_id for one in runs if may_be_twice(one, retired)}
    seen = {one.run_id: tuple(shard for shard in one.shards if shard not in hidden[one.run_id]) for one in runs}
    left_out = _left_out(store, runs, seen, twice, known.keys())
    listed_rows = [
        {
            **{name: getattr(one, name) for name in ("run_id", "method", "method_digest", "lineage", "age")},
            **_of_shard(
                one, shard, f"{run_prefix(one.run_id)}/{rows_name(shard)}", left_out.get(one.run_id, frozenset())
            ),
        }
        for one in sorted(runs, key=lambda one: one.age)
        for shard in seen[one.run_id]
    ]
    by_id = {one.run_id: one for one in runs if seen[one.run_id]}
    listed_measurements = []
    for info in sorted(_evaluations(store, just, measurements), key=lambda info: info.age):
        unseen: set[int] = set()
        if info.run_id is not None:
            if (run := by_id.get(info.run_id)) is None:
                continue
            unseen = {row for shard in hidden[run.run_id] for row in _rows_of(run, shard)}
            unseen.update(left_out[run.run_id])
        for shard in info.shards:
            if unseen.issuperset(_rows_of(info, shard)):
                continue
            key = f"{evaluation_prefix(info.evaluation_id)}/{measurements_name(shard)}"
            about = {name: getattr(info, name) for name in ("evaluation_id", "run_id", "subject", "age")}
            listed_measurements.append({**about, **_of_shard(info, shard, key, unseen)})
    return {
        ROWS_LIST: _table(NO_ROWS, listed_rows, LISTED_ROWS),
        MEASUREMENTS_LIST: _table(NO_MEASUREMENTS, listed_measurements, LISTED_MEASUREMENTS),
    }


_BETWEEN = " / "  # orders of a lineage; sorts before all that names consist of


def _new_run(one: Manifest, orders: Mapping[str, str]) -> _Run:
    """A run as old as what it is made of, as readers see it."""
    age = _BETWEEN.join(orders.get(run_id, orders[one.run_id]) for run_id in reversed(one.lineage))
    named = {file.name for file in one.files}
    shards = tuple(shard for shard in one.own_shards if rows_name(shard) in named)
    return _Run(one.run_id, one.method, one.method_digest, one.lineage, age, one.shard_rows, shards)


def _known_run(listed: Sequence[Mapping[str, Any]]) -> _Run:
    first = listed[0]
    return _Run(
        **{name: first[name] for name in ("run_id", "method", "method_digest", "age", "shard_rows")},
        lineage=tuple(first["lineage"]),
        shards=tuple(one["shard"] for one in listed),
        left_out=frozenset(row for one in listed for row in one["left_out"]),
    )


def _evaluations(store: Store, just: str | None, before: bytes | None) -> list[_Evaluation]:
    """Every evaluation that is published and not retired."""
    known = _by_owner(before, LISTED_MEASUREMENTS, "evaluation_id", just)
    names = store.folders(EVALUATIONS_PREFIX)
    listed = [name for name in names if name in known]
    retired = in_threads(lambda name: is_retired(store, EvaluationInfo.kind, name), listed)
    found = []
    for name, is_gone in zip(listed, retired, strict=True):
        if not is_gone:
            about = {key: known[name][0][key] for key in ("evaluation_id", "run_id", "subject", "age", "shard_rows")}
            found.append(_Evaluation(**about, shards=tuple(one["shard"] for one in known[name])))
    for info in _visible(store, EvaluationInfo, [name for name in names if name not in known]):
        named = {file.name for file in info.files}
        shards = tuple(shard for shard in range(info.num_shards) if measurements_name(shard) in named)
        subject = f"{json.dumps(info.subject, sort_keys=True)} by {info.method}"
        age = order_text(info)
        found.append(_Evaluation(info.evaluation_id, info.run_id, subject, age, info.shard_rows, shards))
    return found


def _left_out(
    store: Store, runs: Sequence[_Run], seen: Mapping[str, tuple[int, ...]], twice: Set[str], known: Set[str]
) -> dict[str, frozenset[int]]:
    """Rows by run that count in an older run of the method; they are read only where something has changed."""
    digests = {one.method_digest for one in runs if one.run_id in twice}
    found: dict[str, frozenset[int]] = {one.run_id: frozenset() for one in runs}
    for digest in digests:
        alike = sorted((one for one in runs if one.method_digest == digest), key=lambda one: one.age)
        suspects = [one for one in alike if one.run_id in twice]
        is_same = all(one.run_id in known and seen[one.run_id] == one.shards for one in alike)
        if is_same and all(one.left_out for one in suspects):
            found.update({one.run_id: one.left_out for one in suspects})
            continue
        manifests = {one.run_id: one for one in _visible(store, Manifest, [one.run_id for one in alike])}
        in_order = [manifests[one.run_id] for one in alike if one.run_id in manifests]
        archive = Archive(store, *read_header(store), in_order)
        for one in suspects:  # of one whose manifest is damaged it stays as it was
            is_known = one.run_id in manifests
            found[one.run_id] = frozenset(archive.rows_left_out(one.run_id)) if is_known else one.left_out
    return found


def _visible(store: Store, manifest_type: type[P], names: Iterable[str]) -> list[P]:
    """Manifests that can be read of what is published and not retired.

    Others are left out: whoever publishes is not stopped by damage elsewhere, which `verify` tells and `repair` mends,
    and that writes the lists again.
    """

    def read(name: str) -> P | None:
        try:
            return visible_manifest(store, manifest_type, name)
        except OBJECT_ERRORS:
            return None

    return [one for one in in_threads(read, names) if one is not None]


def _by_owner(data: bytes | None, schema: pa.Schema, owner: str, just: str | None) -> dict[str, list[dict[str, Any]]]:
    """What a list says, by run or evaluation, but for one; nothing of a list that is missing or damaged."""
    found: dict[str, list[dict[str, Any]]] = {}
    if data is not None:
        try:
            listed = from_parquet(data, schema, owner).to_pylist()
        except CorruptArchiveError:  # it is written anew
            return {}
        for one in listed:
            if one[owner] not in (None, just):
                found.setdefault(one[owner], []).append(one)
    return found


def _of_shard(one: _Run | _Evaluation, shard: int, file: str, unseen: Set[int]) -> dict[str, Any]:
    left_out = [row for row in _rows_of(one, shard) if row in unseen]
    return {"file": file, "shard": shard, "shard_rows": one.shard_rows, "left_out": left_out}


def _rows_of(one: _Run | _Evaluation, shard: int) -> range:
    """Rows that lie in a shard; of the last one also rows that are not there."""
    return range(shard * one.shard_rows, (shard + 1) * one.shard_rows)


def _table(empty: str, listed: Sequence[Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    return pa.Table.from_pylist([{"file": empty, "left_out": []}, *listed], schema)


def _get_or_none(store: Store, key: str) -> bytes | None:
    try:
        return store.get(key)
    except ArchiveNotFoundError:
        return None


def _is_table(data: bytes | None, wanted: pa.Table) -> bool:
    """Whether a file holds a table, whatever version of Parquet's writer made it."""
    if data is None:
        return False
    try:
        with pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True) as file:
            found = file.read()
        return bool(found.equals(wanted, check_metadata=True))
    except (pa.ArrowException, OSError, ValueError):  # it is damaged
        return False
