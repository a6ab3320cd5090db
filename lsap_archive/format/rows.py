"""The archive's tables. All columns are always written; a new one raises SCHEMA_VERSION and reads as null."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lsap_archive.errors import ArchiveMismatchError, CorruptArchiveError, first_line
from lsap_archive.format.subject import Subject

SCHEMA_VERSION = 5

OK, FAILED, DUPLICATE = "ok", "failed", "duplicate"
STATUSES = (OK, FAILED, DUPLICATE)
UNSETTLED = ("changed", "unreadable")
"""Reasons of failed rows that say nothing of the planned content: the image was another one, or gone, at its turn."""
OF_READER = (
    *("no_avif_reader", "no_heic_reader", "no_jpeg_2000_reader", "no_webp_reader"),
    *("unsupported_colour", "unsupported_depth", "unsupported_format"),
)
"""Reasons of failed rows that say something of the machine that read, or of the versions there: others may read it."""
IS_SETTLED = (
    f"(status <> '{FAILED}' or coalesce(reason, '') not in {UNSETTLED + OF_READER} "
    "or starts_with(digest, 'unreadable:'))"
)
"""Whether a row says something of the planned content, in SQL; what could not be read at planning either does."""

BETWEEN_WORDS = ","
"""Separates what `altered` tells."""
FITTED = ("cropped", "letterboxed", "stretched")
"""Words of `altered` that tell of a choice: a run that makes another one gets other pixels of the same file."""
UNFIT = ("not_square", "wrong_aspect")
"""Reasons of failed rows that tell of a choice as well: the image has another shape, and was not to be fitted."""
HOW_FITTED = (
    f"(case when status <> '{FAILED}' then regexp_extract(coalesce(altered, ''), '{'|'.join(FITTED)}') "
    f"when coalesce(reason, '') in {UNFIT} then 'refused' else '' end)"
)
"""What was done because of an image's shape, in SQL; '' for nothing. Rows of one content are alike where it is one."""


def _needed(name: str, kind: Any) -> Any:
    return pa.field(name, kind, nullable=False)


IMAGES_SCHEMA = pa.schema(
    [
        _needed("row", pa.int64()),
        _needed("image_id", pa.string()),
        _needed("uri", pa.string()),
        _needed("digest", pa.string()),
        pa.field("version", pa.string()),
    ]
)
"""The plan of a run: which image has which row of the arrays, where it lies and the digest of its content.

version is what the listing of the storage told of it, such as size and time: while it stays the same at a uri, so does
the content. It is null where the listing told nothing, and in plans of schema versions before 3.
"""

ROW_SCHEMA = pa.schema(
    [
        _needed("run_id", pa.string()),
        _needed("row", pa.int64()),
        _needed("image_id", pa.string()),
        _needed("uri", pa.string()),
        _needed("digest", pa.string()),
        _needed("status", pa.string()),
        pa.field("reason", pa.string()),
        pa.field("message", pa.string()),
        pa.field("duplicate_of", pa.string()),
        _needed("method", pa.string()),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("altered", pa.string()),
        pa.field("noise", pa.string()),
        pa.field("mse", pa.float32()),
        pa.field("lpips", pa.float32()),
        pa.field("lpips_judge", pa.float32()),
        pa.field("identity_similarity", pa.float32()),
        pa.field("sncd", pa.float32()),
        pa.field("w_distance", pa.float32()),
        pa.field("num_steps", pa.int32()),
        pa.field("seconds", pa.float32()),
        pa.field("final_loss", pa.float32()),
        _needed("shard", pa.int32()),
        _needed("attempt", pa.string()),
        pa.field("subject_run_id", pa.string()),
        pa.field("subject_row", pa.int64()),
        pa.field("edit", pa.string()),
        pa.field("strength", pa.float64()),
    ]
)
"""One row per image and method: what became of the image, and what was measured of it.

status is "ok" (the arrays hold its code), "failed" (`reason` is a code, `message` a sentence; the arrays hold
NaN) or "duplicate" (the same content as image `duplicate_of`, whose code it shares; the arrays hold NaN). A copy of an
image that failed is failed itself, and tells why.
width and height are those of the original file, in pixels; altered is what was done to its pixels beyond decoding and
shrinking them, as words between commas such as "cmyk_to_rgb,cropped", "" for nothing. All three are null where there
were no pixels; altered also in rows of schema versions before 4. noise is what the image is rendered with: maps of its
own, "float32" or "float16", or the generator's "constant" ones; what is measured is of that. It is null where there is
no code, and in rows of schema versions before 5. seconds is the batch's wall time over its size.
Of a refinement or an edit, subject_run_id and subject_row say which code was refined or edited; they are null for an
inversion. What is measured of an edit stands in the measurements of an evaluation.
"""


def hangs_on_fit(row: Mapping[str, Any]) -> bool | None:
    """Whether what became of an image is that of its run's `fit` alone; None where the row does not tell.

    Args:
        row: with width, reason and altered.

    Example:
        >>> hangs_on_fit({"width": 48, "reason": None, "altered": "cropped,upsampled"})
        True
        >>> hangs_on_fit({"width": None, "reason": "truncated", "altered": None})
        False
    """
    if row["reason"] in UNFIT:
        return True
    if row["width"] is None:  # no fit takes it
        return False
    return None if row["altered"] is None else not set(FITTED).isdisjoint(row["altered"].split(BETWEEN_WORDS))


def count_alterations(rows: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """How many images that have a code, also as copies, were altered in each way; an image may count for several.

    Args:
        rows: with status and altered.

    Example:
        >>> rows = [{"status": "ok", "altered": "cmyk_to_rgb,cropped"}, {"status": "duplicate", "altered": "cropped"}]
        >>> count_alterations([*rows, {"status": "failed", "altered": None}])
        {'cmyk_to_rgb': 1, 'cropped': 2}
    """
    told = (row.get("altered") for row in rows if row["status"] != FAILED)
    return dict(Counter(word for words in told if words for word in words.split(BETWEEN_WORDS)))


def conform_rows(
    rows: Any,
    *,
    planned: Any,
    run_id: str,
    method: str,
    shard: int,
    attempt: str,
    subject: Subject | None = None,
) -> Any:
    """A shard's rows in ROW_SCHEMA, checked against the plan.

    What the plan knows (run_id, row, image_id, uri, digest, method, shard, attempt, and its subject) may be
    left out; where it is there, it must agree. Columns of measurements may be left out and are null.

    Args:
        rows: pyarrow table, one row per planned image, in the plan's order; needs `status`.
        planned: the plan's part of this shard, in IMAGES_SCHEMA.
        run_id: the run.
        method: the run's method.
        shard: number of the shard.
        attempt: the attempt that made the rows.
        subject: what a refinement or an edit is made of, None for an inversion.

    Returns:
        A pyarrow table in ROW_SCHEMA.

    Raises:
        ArchiveMismatchError: another number of rows, an unknown column, a row that is not the planned one, an
            unknown status, a failed row without a reason, a duplicate that does not say of what.
    """
    where = f"rows of shard {shard} of run {run_id}"
    size = planned.num_rows
    if rows.num_rows != size:
        raise ArchiveMismatchError(f"{where}: {rows.num_rows} rows were given, the plan has {size}")
    unknown = sorted(set(rows.column_names) - set(ROW_SCHEMA.names))
    if unknown:
        raise ArchiveMismatchError(f"{where}: unknown columns {', '.join(unknown)}: leave them out")
    if "status" not in rows.column_names:
        raise ArchiveMismatchError(f"{where}: the column status is missing: one of {', '.join(STATUSES)}")
    known = {name: planned.column(name) for name in IMAGES_SCHEMA.names}
    for name, value in (("run_id", run_id), ("method", method), ("shard", shard), ("attempt", attempt)):
        known[name] = pa.chunked_array([pa.array([value] * size, ROW_SCHEMA.field(name).type)])
    known |= _subject_columns(subject, planned)
    columns = []
    for field in ROW_SCHEMA:
        given = _cast(rows.column(field.name), field, where) if field.name in rows.column_names else None
        if field.name in known:
            wanted = known[field.name].cast(field.type)
            if given is not None and not given.equals(wanted):
                index = _first_difference(given, wanted)
                raise ArchiveMismatchError(
                    f"{where}: {field.name} of row {index} is {given[index].as_py()!r}, the plan says "
                    f"{wanted[index].as_py()!r}: hand in the rows in the order of the plan"
                )
            columns.append(wanted)
        else:
            columns.append(pa.nulls(size, field.type) if given is None else given)
    table = pa.Table.from_arrays(columns, schema=ROW_SCHEMA)
    _check_status(table, where)
    return table


def count_by_status(rows: Any) -> dict[str, int]:
    """How many rows have each status; all of STATUSES are there."""
    found = rows.column("status").to_pylist()
    return {status: found.count(status) for status in STATUSES}


def to_parquet(table: Any, notes: Mapping[str, str] | None = None) -> bytes:
    """The table as a Parquet file (zstd), whose pages have checksums: damage tells where no manifest names it yet.

    Args:
        table: pyarrow table.
        notes: text by name that is kept beside it, see `notes_of`.
    """
    sink = pa.BufferOutputStream()
    told = table if notes is None else table.replace_schema_metadata(notes)
    pq.write_table(told, sink, compression="zstd", write_page_checksum=True)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def from_parquet(data: bytes, schema: Any, name: str, columns: list[str] | None = None) -> Any:
    """The table of a Parquet file in `schema`: columns an older writer did not know are null.

    Args:
        data: the file.
        schema: the wanted pyarrow schema.
        name: where the file was, for the message.
        columns: only these, in this order.

    Raises:
        CorruptArchiveError: not a Parquet file, or a column that can not be null is missing.
    """
    fields = list(schema) if columns is None else [schema.field(column) for column in columns]
    try:
        with pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True) as file:
            there = set(file.schema_arrow.names)
            table = file.read(columns=[field.name for field in fields if field.name in there])
        arrays = [
            table.column(field.name).cast(field.type) if field.name in there else pa.nulls(table.num_rows, field.type)
            for field in fields
        ]
        missing = [field.name for field in fields if not field.nullable and field.name not in there]
    except (pa.ArrowException, OSError, ValueError) as error:  # a damaged footer may hold no text
        raise CorruptArchiveError(f"{name} is not a readable Parquet file: {first_line(error)}") from error
    if missing:
        raise CorruptArchiveError(f"{name} lacks the columns {', '.join(missing)}")
    return pa.Table.from_arrays(arrays, schema=pa.schema(fields))


def notes_of(data: bytes, name: str) -> dict[str, str]:
    """What `to_parquet` has kept beside a table.

    Args:
        data: the file.
        name: where it was, for the message.

    Raises:
        CorruptArchiveError: not a Parquet file.
    """
    try:
        with pq.ParquetFile(pa.BufferReader(data)) as file:
            told = file.schema_arrow.metadata or {}
        return {key.decode(): value.decode() for key, value in told.items()}
    except (pa.ArrowException, OSError, ValueError) as error:
        raise CorruptArchiveError(f"{name} is not a readable Parquet file: {first_line(error)}") from error


def _cast(column: Any, field: Any, where: str) -> Any:
    try:
        column = column.cast(field.type)
    except pa.ArrowException as error:
        raise ArchiveMismatchError(
            f"{where}: column {field.name} is {column.type}, {field.type} is wanted ({first_line(error)})"
        ) from error
    if not field.nullable and column.null_count:
        raise ArchiveMismatchError(f"{where}: column {field.name} has {column.null_count} nulls: give a value")
    return column


def _check_status(table: Any, where: str) -> None:
    unknown = sorted(set(table.column("status").to_pylist()) - set(STATUSES))
    if unknown:
        raise ArchiveMismatchError(f"{where}: status {unknown[0]!r}: one of {', '.join(STATUSES)} is wanted")
    for status, column in ((FAILED, "reason"), (DUPLICATE, "duplicate_of")):
        bad = table.filter(pc.and_(pc.equal(table.column("status"), status), pc.is_null(table.column(column))))
        if bad.num_rows:
            raise ArchiveMismatchError(
                f"{where}: image {bad.column('image_id')[0].as_py()} is {status} and has no {column}; wanted one"
            )


def _subject_columns(subject: Subject | None, planned: Any) -> dict[str, Any]:
    """What rows say of what a refinement or an edit is made of; null for an inversion."""
    size = planned.num_rows
    values: dict[str, list[Any]] = {
        "subject_run_id": [None if subject is None else subject.run_id] * size,
        "subject_row": [None] * size if subject is None else planned.column("row").to_pylist(),
        "edit": [None if subject is None else subject.edit] * size,
        "strength": [None if subject is None else subject.strength] * size,
    }
    return {name: pa.chunked_array([pa.array(of, ROW_SCHEMA.field(name).type)]) for name, of in values.items()}


def _first_difference(given: Any, wanted: Any) -> int:
    pairs = zip(given.to_pylist(), wanted.to_pylist(), strict=True)
    return next(index for index, (found, planned) in enumerate(pairs) if found != planned)
