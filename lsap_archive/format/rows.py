"""The archive's tables. All columns are always written; a new one raises SCHEMA_VERSION and reads as null."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lsap_archive.errors import ArchiveMismatchError, CorruptArchiveError, first_line
from lsap_archive.format.columns import column
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


IMAGES_SCHEMA = pa.schema(
    [
        column("row", pa.int64(), "row of the image in the run's arrays", values="from 0", is_needed=True),
        column("image_id", pa.string(), "name of the image, unique in the run", is_needed=True),
        column("uri", pa.string(), "where the image lay", is_needed=True),
        column("digest", pa.string(), "digest of the image's content", is_needed=True),
        column(
            "version",
            pa.string(),
            "what the storage's listing told of it, such as size and time; while it stays, so does the content "
            "(schema version 3; null where the listing told nothing)",
        ),
    ]
)
"""The plan of a run: which image has which row of the arrays, where it lies and the digest of its content."""

ROW_SCHEMA = pa.schema(
    [
        column("run_id", pa.string(), "the run", is_needed=True),
        column("row", pa.int64(), "row of the image in the run's arrays", values="from 0", is_needed=True),
        column("image_id", pa.string(), "name of the image, unique in the run", is_needed=True),
        column("uri", pa.string(), "where the image lay", is_needed=True),
        column("digest", pa.string(), "digest of the image's content", is_needed=True),
        column("status", pa.string(), "what became of the image", values=", ".join(STATUSES), is_needed=True),
        column("reason", pa.string(), "of a failed image, why: a short code"),
        column("message", pa.string(), "of a failed image, what is wrong and what to do: a sentence"),
        column("duplicate_of", pa.string(), "of a duplicate, the image that has the same content, and its code"),
        column("method", pa.string(), "name of the method; lsap_e/pti is refined, lsap_e/slant edited", is_needed=True),
        column("width", pa.int32(), "of the original file; null where there were no pixels", unit="px"),
        column("height", pa.int32(), "of the original file; null where there were no pixels", unit="px"),
        column(
            "altered",
            pa.string(),
            "what was done to the pixels beyond decoding and shrinking: words between commas, empty for nothing "
            "(schema version 4; null where there were no pixels)",
        ),
        column(
            "noise",
            pa.string(),
            "noise maps that the image is rendered and measured with: its own, or the generator's constant ones "
            "(schema version 5; null where there is no code)",
            values="float32, float16, constant",
        ),
        column("mse", pa.float32(), "mean squared error against the image, of pixels in [-1, 1]", values="0 to 4"),
        column("lpips", pa.float32(), "LPIPS against the image, by the run's network for it", values="from 0"),
        column("lpips_judge", pa.float32(), "LPIPS by a network that is in no loss", values="from 0"),
        column("identity_similarity", pa.float32(), "cosine of identities, of image and inversion", values="-1 to 1"),
        column("sncd", pa.float32(), "S^N cosine distance of the code to the anchor", values="from 0"),
        column(
            "w_distance",
            pa.float32(),
            "squared distance to the mean code, mean over layers; 1 is the level of synthetic codes",
            values="from 0",
        ),
        column("num_steps", pa.int32(), "steps of the optimization, or passes through the encoder", unit="steps"),
        column("seconds", pa.float32(), "wall time of the batch over its size", unit="s"),
        column("final_loss", pa.float32(), "the objective at the last step; null of an encoder"),
        column("shard", pa.int32(), "the shard of the run, one file of rows", values="from 0", is_needed=True),
        column("attempt", pa.string(), "who wrote the shard", is_needed=True),
        column("subject_run_id", pa.string(), "of a refinement or an edit, the run whose code it was made of"),
        column(
            "subject_row", pa.int64(), "of a refinement or an edit, the row of that code in that run", values="from 0"
        ),
        column("edit", pa.string(), "of an edit, its name"),
        column("strength", pa.float64(), "of an edit, how far it goes, in its own measure"),
    ]
)
"""One row per image and method: what became of the image, and what was measured of it.

The arrays hold the codes of rows that are "ok", and NaN at others. A copy of an image that failed is failed itself, and
tells why. What is measured of an edit stands in the measurements of an evaluation.
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
    for status, needed in ((FAILED, "reason"), (DUPLICATE, "duplicate_of")):
        bad = table.filter(pc.and_(pc.equal(table.column("status"), status), pc.is_null(table.column(needed))))
        if bad.num_rows:
            raise ArchiveMismatchError(
                f"{where}: image {bad.column('image_id')[0].as_py()} is {status} and has no {needed}; wanted one"
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
