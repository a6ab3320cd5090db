"""A Lance data set whose codes are vectors that Lance and LanceDB search by."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from lsap_archive.errors import ArchiveMismatchError
from lsap_archive.exports.chosen import Chosen
from lsap_archive.exports.tables import schema_of, tables_of
from lsap_archive.exports.whole import appearing_whole


def write_lance(chosen: Chosen, path: Path) -> int:
    """Write the data set, which appears whole or not at all: arrays flat, their shapes in the metadata of the columns.

    Args:
        chosen: what is exported.
        path: of the new folder; its name ends in .lance, as LanceDB looks for tables by.

    Returns:
        How many rows were written.

    Raises:
        ArchiveMismatchError: another name, there is something, the library is not installed, or pictures were asked for
            and none is kept.
        ArchiveKeyError, CorruptArchiveError: as `Chosen.batches`.
        OSError: it cannot be written.
    """
    try:
        import lance
    except ImportError as error:
        raise ArchiveMismatchError(
            "Lance is written by pylance, which is not installed: pip install 'lsap-archive[lance]'"
        ) from error
    if path.suffix != ".lance":
        raise ArchiveMismatchError(f"{path} ends in {path.suffix or 'nothing'}; wanted a name such as codes.lance")
    schema = schema_of(chosen, is_flat=True, picture=pa.binary())
    for index, one in enumerate(schema):
        if one.name in chosen.shapes:
            schema = schema.set(index, one.with_metadata({"shape": json.dumps(chosen.shapes[one.name])}))
    with appearing_whole(path) as unfinished:
        failures: list[Exception] = []

        def batches() -> Iterator[pa.RecordBatch]:  # Lance turns an error of ours into one of its own
            try:
                yield from tables_of(chosen, schema)
            except Exception as error:
                failures.append(error)
                raise

        try:
            written = lance.write_dataset(
                pa.RecordBatchReader.from_batches(schema, batches()), unfinished, schema=schema
            )
        except Exception:
            if failures:
                raise failures[0] from None
            raise
        chosen.check_pictures()
        return int(written.count_rows())
