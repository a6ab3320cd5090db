"""The tables `runs` and `evaluations`: what was published, when and with which settings, for SQL."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any

import pyarrow as pa

from lsap_archive.errors import HOW_TO_REPAIR, CorruptArchiveError
from lsap_archive.format.evaluations import EvaluationInfo
from lsap_archive.format.manifest import Manifest

JSON_COLUMNS = ("config", "provenance", "summary")
"""Columns whose text is JSON; SQL reads them as DuckDB's type JSON."""

RUNS_SCHEMA = pa.schema(
    [
        pa.field("number", pa.int64(), nullable=False),
        pa.field("run_id", pa.string(), nullable=False),
        pa.field("method", pa.string(), nullable=False),
        pa.field("method_digest", pa.string(), nullable=False),
        pa.field("created", pa.timestamp("us", "UTC"), nullable=False),
        pa.field("num_rows", pa.int64(), nullable=False),
        pa.field("num_bytes", pa.int64(), nullable=False),
        pa.field("num_ok", pa.int64(), nullable=False),
        pa.field("num_failed", pa.int64(), nullable=False),
        pa.field("num_duplicate", pa.int64(), nullable=False),
        pa.field("subject_run_id", pa.string()),
        pa.field("refiner", pa.string()),
        pa.field("edit", pa.string()),
        pa.field("strength", pa.float64()),
        pa.field("config", pa.string(), nullable=False),
        pa.field("provenance", pa.string(), nullable=False),
        pa.field("summary", pa.string(), nullable=False),
    ]
)
"""One row for each published run. number counts from 0, the newest last; num_rows are the images of the run, num_ok,
num_failed and num_duplicate its rows that readers see. Of a refinement or an edit, subject_run_id is the run that it is
made of."""

EVALUATIONS_SCHEMA = pa.schema(
    [
        pa.field("number", pa.int64(), nullable=False),
        pa.field("evaluation_id", pa.string(), nullable=False),
        pa.field("run_id", pa.string()),
        pa.field("method", pa.string(), nullable=False),
        pa.field("edit", pa.string()),
        pa.field("strength", pa.float64()),
        pa.field("created", pa.timestamp("us", "UTC"), nullable=False),
        pa.field("num_rows", pa.int64(), nullable=False),
        pa.field("num_bytes", pa.int64(), nullable=False),
        pa.field("num_measurements", pa.int64(), nullable=False),
        pa.field("measures", pa.list_(pa.string()), nullable=False),
        pa.field("by", pa.list_(pa.string()), nullable=False),
        pa.field("config", pa.string(), nullable=False),
        pa.field("provenance", pa.string(), nullable=False),
        pa.field("summary", pa.string(), nullable=False),
    ]
)
"""One row for each published evaluation: of which run (null for synthetic images), what was measured, and by which
networks, attributes or edits, each list sorted."""


def runs_table(manifests: Sequence[Manifest], counts: Sequence[Mapping[str, int]]) -> pa.Table:
    """The published runs in RUNS_SCHEMA.

    Args:
        manifests: the oldest first.
        counts: of each, the number of rows that readers see by status.
    """
    rows = []
    for number, (one, by_status) in enumerate(zip(manifests, counts, strict=True)):
        subject = one.subject
        row: dict[str, Any] = {
            "number": number,
            **{name: getattr(one, name) for name in ("run_id", "method", "method_digest", "num_rows", "num_bytes")},
            "created": _time_of(one),
            **{f"num_{status}": number_of for status, number_of in by_status.items()},
            **_as_json(one),
        }
        if subject is not None:
            row |= {name: getattr(subject, name) for name in ("refiner", "edit", "strength")}
            row["subject_run_id"] = subject.run_id
        rows.append(row)
    return pa.Table.from_pylist(rows, RUNS_SCHEMA)


def evaluations_table(
    evaluations: Sequence[EvaluationInfo], measured: Sequence[Collection[tuple[str, str]]]
) -> pa.Table:
    """The published evaluations in EVALUATIONS_SCHEMA.

    Args:
        evaluations: the oldest first.
        measured: of each, pairs of a measure and what measured it ("" for nothing but the formula).
    """
    names = ("evaluation_id", "run_id", "method", "edit", "strength", "num_rows", "num_bytes", "num_measurements")
    rows = [
        {
            "number": number,
            **{name: getattr(one, name) for name in names},
            "created": _time_of(one),
            "measures": sorted({measure for measure, _ in pairs}),
            "by": sorted({by for _, by in pairs if by}),
            **_as_json(one),
        }
        for number, (one, pairs) in enumerate(zip(evaluations, measured, strict=True))
    ]
    return pa.Table.from_pylist(rows, EVALUATIONS_SCHEMA)


def _as_json(one: Manifest | EvaluationInfo) -> dict[str, str]:
    return {name: json.dumps(getattr(one, name)) for name in JSON_COLUMNS}


def _time_of(one: Manifest | EvaluationInfo) -> datetime:
    try:
        return datetime.fromisoformat(one.created)
    except ValueError as error:
        raise CorruptArchiveError(
            f"the manifest of {one.kind} {one.name} was created at {one.created!r}, which is no time: {HOW_TO_REPAIR}"
        ) from error
