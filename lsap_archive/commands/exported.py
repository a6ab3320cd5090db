"""The verb `export`: answers as a file for other programs, Parquet or CSV, or codes in the forms of other tools."""

from __future__ import annotations

import argparse
import json
import os
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from lsap_archive.commands.columns import OF_TABLE
from lsap_archive.errors import ArchiveMismatchError
from lsap_archive.exports.chosen import choose
from lsap_archive.exports.hugging_face import write_dataset
from lsap_archive.exports.lance_dataset import write_lance
from lsap_archive.exports.web_dataset import write_tars
from lsap_archive.format.columns import with_descriptions
from lsap_archive.format.layout import W_PLUS
from lsap_archive.reading.archive import Archive
from lsap_archive.reading.opening import open_archive

_WRITERS = {".parquet": pq.ParquetWriter, ".csv": pa.csv.CSVWriter}
_OF_CODES = {"datasets": write_dataset, "lance": write_lance, "webdataset": write_tars}


def add_words(parser: argparse.ArgumentParser, tables: Sequence[str]) -> None:
    """The words of the verb."""
    parser.add_argument("out", metavar="OUT", help="a file .parquet or .csv, or a new folder (of Lance: NAME.lance)")
    formats = [*(suffix.removeprefix(".") for suffix in _WRITERS), *_OF_CODES]
    parser.add_argument("--format", choices=formats, help="default: as OUT ends, in .parquet, .csv or .lance")
    parser.add_argument("--table", choices=tables, help="of a file; default latest: the newest of method and image")
    parser.add_argument(
        "--sql", metavar="QUERY", help="of a file: its answer; of codes: image_id (and method) of images"
    )
    parser.add_argument("--method", action="append", default=[], help="only this one; may be given several times")
    parser.add_argument(
        "--arrays", metavar="NAMES", help="of codes: w_plus,noise,trace or arrays of a refinement; default w_plus"
    )
    parser.add_argument("--pictures", action="store_true", help="of codes: also the pictures that the archive keeps")


def export_asked(parsed: argparse.Namespace) -> int:
    """Write what was asked for; returns how many rows were written.

    Raises:
        ArchiveError: as `export` and the writers of `lsap_archive.exports`, or words do not go together.
        OSError: it cannot be written.
    """
    path = Path(parsed.out)
    form = parsed.format or path.suffix.removeprefix(".")
    if form in _OF_CODES:
        if parsed.table is not None:
            raise ArchiveMismatchError(f"--table is of files: {form} has codes; choose images by --method or --sql")
        chosen = choose(
            open_archive(parsed.url),
            methods=parsed.method,
            query=parsed.sql,
            arrays=(parsed.arrays or W_PLUS).split(","),
            has_pictures=parsed.pictures,
        )
        return _OF_CODES[form](chosen, path)
    if f".{form}" != path.suffix:
        raise ArchiveMismatchError(
            f"{path} ends in {path.suffix or 'nothing'}; wanted .parquet or .csv, or for codes --format "
            f"{', '.join(_OF_CODES)}"
        )
    if parsed.arrays or parsed.pictures:
        raise ArchiveMismatchError(
            f"--arrays and --pictures are of codes: give --format {', '.join(_OF_CODES)}, or leave them out"
        )
    if parsed.sql and (parsed.table or parsed.method):
        raise ArchiveMismatchError("--sql says what is in a file: leave out --table and --method, and say it there")
    query = parsed.sql or f'select * from "{parsed.table or "latest"}"'
    if parsed.method:
        query += f" where method in ({', '.join(map(_quoted, parsed.method))})"
    told = None if parsed.sql else OF_TABLE.get(parsed.table or "latest")
    return export(open_archive(parsed.url), query, path, told)


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


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
