"""Published evaluations: their manifests, and the measurements that count."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from lsap_archive.format.evaluations import EvaluationInfo
from lsap_archive.format.layout import EVALUATIONS_PREFIX, evaluation_prefix
from lsap_archive.format.manifest import StoredObject
from lsap_archive.format.measurements import MEASUREMENT_SCHEMA
from lsap_archive.reading.checked import read_checked_table
from lsap_archive.reading.retirement import visible_manifest
from lsap_archive.stores.concurrency import in_threads
from lsap_archive.stores.store import Store

_SHARDS_TOGETHER = 16  # files of measurements that are read at once; an image has a row for each measure


def read_evaluations(store: Store) -> list[EvaluationInfo]:
    """Every evaluation that is published and not retired, the oldest first."""
    names = store.folders(EVALUATIONS_PREFIX)
    found = in_threads(lambda name: visible_manifest(store, EvaluationInfo, name), names)
    return sorted((one for one in found if one), key=lambda one: one.order)


def measurement_parts(store: Store, info: EvaluationInfo, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """The measurements of a published evaluation, in the order of its shards and some at a time, every file checked.

    Args:
        store: the archive.
        info: the evaluation.
        columns: names from MEASUREMENT_SCHEMA; None for all.

    Raises:
        CorruptArchiveError: a file is missing or altered.
    """

    def read(stored: StoredObject) -> pa.Table:
        key = f"{evaluation_prefix(info.evaluation_id)}/{stored.name}"
        return read_checked_table(store, key, stored, MEASUREMENT_SCHEMA, None if columns is None else list(columns))

    files = [file for file in info.files if file.name.startswith("shards/")]
    files.sort(key=lambda one: (len(one.name), one.name))
    for start in range(0, len(files), _SHARDS_TOGETHER):
        yield pa.concat_tables(in_threads(read, files[start : start + _SHARDS_TOGETHER]))


def newest_measurements(
    evaluations: Sequence[EvaluationInfo],
    tables: Iterable[pa.Table],
    seen: Callable[[EvaluationInfo, pa.Table], pa.Table],
) -> pa.Table:
    """All measurements, the oldest evaluation first; what was measured of a subject again counts once, the newest.

    Args:
        evaluations: the oldest first.
        tables: the measurements of each.
        seen: what of an evaluation's measurements readers are to see.
    """
    taken: set[tuple[str, str, str | None]] = set()
    kept = []
    for info, table in zip(reversed(evaluations), reversed(list(tables)), strict=True):
        subject = repr(sorted(info.subject.items())) + info.method
        names = set(zip(*(table.column(name).to_pylist() for name in ("measure", "by")), strict=True))
        for measure, by in names:
            if (subject, measure, by) in taken:
                same_by = pc.is_null(table.column("by")) if by is None else pc.equal(table.column("by"), by)
                again = pc.and_(pc.equal(table.column("measure"), measure), pc.fill_null(same_by, False))
                table = table.filter(pc.invert(again))
        taken |= {(subject, measure, by) for measure, by in names}
        kept.append(seen(info, table))
    return pa.concat_tables([MEASUREMENT_SCHEMA.empty_table(), *reversed(kept)])
