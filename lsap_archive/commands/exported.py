"""Answers of an archive as a file for other programs: Parquet or CSV, a batch at a time."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from lsap_archive.errors import ArchiveMismatchError
from lsap_archive.format.columns import with_descriptions
from lsap_archive.reading.archive import Archive

_WRITERS = {".parquet": pq.ParquetWriter, ".csv": pa.csv.CSVWriter}


def export(archive: Archive, query: str, path: Path, told: pa.Schema | None = None) -> int:
    """Write the answer to a query into a file, which appears whole or not at all.

    Args:
        archive: that is asked.
        query: SQL, as `Archive.sql` takes it.
        path: of the file; .parquet or .csv says which kind. In CSV lists and the like are JSON.
        told: a schema whose fields tell what the columns hold, which the Parquet file then tells too; None for a query
            whose columns may be anything.

    Returns:
        How many rows were written.

    Raises:
        ArchiveMismatchError: another suffix, no such folder, or the query has no answer.
        QueryError: the query was refused.
        CorruptArchiveError: a file of the archive is missing or altered.
        OSError: the file cannot be written.
    """
    if path.suffix not in _WRITERS:
        raise ArchiveMismatchError(f"{path} ends in {path.suffix or 'nothing'}; wanted .parquet or .csv")
    if not path.parent.is_dir():
        raise ArchiveMismatchError(f"{path.parent} is no folder: make it, or name a file in another one")
    written = 0
    with archive.sql_batches(query) as batches:
        if not batches.schema.names:
            raise ArchiveMismatchError(f"the query has no columns that could be written: wanted a select, got {query}")
        schema = batches.schema if told is None else with_descriptions(batches.schema, told)
        schema = _flat(schema) if path.suffix == ".csv" else schema
        with _appearing_whole(path) as unfinished, _WRITERS[path.suffix](unfinished, schema) as writer:
            for batch in batches:
                writer.write_batch(_in_schema(batch, schema))
                written += batch.num_rows
    return written


@contextmanager
def _appearing_whole(path: Path) -> Iterator[Path]:
    """Where to write instead: what is there takes the place of the path at the end, and is removed at an error."""
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        yield unfinished
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def _flat(schema: pa.Schema) -> pa.Schema:
    """The schema with text in the place of what a cell of CSV cannot hold."""
    return pa.schema([field.with_type(pa.string()) if pa.types.is_nested(field.type) else field for field in schema])


def _in_schema(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    columns = [
        column if column.type == field.type else pa.array(map(_as_json, column.to_pylist()), pa.string())
        for column, field in zip(batch.columns, schema, strict=True)
    ]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _as_json(value: object) -> str | None:
    return None if value is None else json.dumps(value, default=str)
