"""A folder that `datasets.load_dataset` opens: Parquet with features, and a card."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lsap_archive.exports.card import card
from lsap_archive.exports.chosen import Chosen
from lsap_archive.exports.parts import in_parts
from lsap_archive.exports.tables import PICTURE, schema_of, tables_of
from lsap_archive.exports.whole import appearing_whole
from lsap_archive.format.rows import ROW_SCHEMA

FILE_BYTES = 400 * 2**20
"""Of values in a Parquet file, about; the Hub shows files up to 500 MB."""
_VALUES = {
    pa.string(): "string",
    pa.int64(): "int64",
    pa.int32(): "int32",
    pa.float64(): "float64",
    pa.float32(): "float32",
}


def write_dataset(chosen: Chosen, path: Path, *, file_bytes: int = FILE_BYTES) -> int:
    """Write the folder, which appears whole or not at all; what is exported stands in its README.md.

    Args:
        chosen: what is exported.
        path: of the new folder.
        file_bytes: of values in a file at most, unless one batch is larger.

    Returns:
        How many rows were written.

    Raises:
        ArchiveMismatchError: there is something at the path, or pictures were asked for and none is kept.
        ArchiveKeyError, CorruptArchiveError: as `Chosen.batches`.
        OSError: it cannot be written.
    """
    features = features_of(chosen)
    told = json.dumps({"info": {"features": features}})
    schema = schema_of(chosen, is_flat=False, picture=PICTURE).with_metadata({"huggingface": told})
    with appearing_whole(path) as unfinished:
        folder = unfinished / "data"
        folder.mkdir()
        files, num_rows, num_bytes = [], 0, 0
        for number, part in enumerate(_in_files(tables_of(chosen, schema), file_bytes)):
            files.append(folder / f"train-{number:05d}.parquet")
            with pq.ParquetWriter(files[-1], schema) as writer:
                for batch in part:
                    writer.write_batch(batch)
                    num_rows, num_bytes = num_rows + batch.num_rows, num_bytes + batch.nbytes
        chosen.check_pictures()
        stored = sum(file.stat().st_size for file in files)
        for number, file in enumerate(files):
            file.rename(folder / f"train-{number:05d}-of-{len(files):05d}.parquet")
        about = card(chosen, features, num_rows=num_rows, num_bytes=num_bytes, stored_bytes=stored)
        (unfinished / "README.md").write_text(about, encoding="utf-8")
    return num_rows


def features_of(chosen: Chosen) -> dict[str, Any]:
    """Features of the columns, as `datasets.Features.from_dict` takes them."""
    features: dict[str, Any] = {one.name: {"dtype": _VALUES[one.type], "_type": "Value"} for one in ROW_SCHEMA}
    for name, shape in chosen.shapes.items():
        value: dict[str, Any] = {"dtype": "float32", "_type": "Value"}
        if 2 <= len(shape) <= 5:
            features[name] = {"shape": list(shape), "dtype": "float32", "_type": f"Array{len(shape)}D"}
        else:
            for size in reversed(shape):
                value = {"feature": value, "length": size, "_type": "List"}
            features[name] = value
    return features | {name: {"_type": "Image"} for name in chosen.picture_columns}


def _in_files(batches: Iterator[pa.RecordBatch], file_bytes: int) -> Iterator[Iterator[pa.RecordBatch]]:
    return in_parts(batches, lambda batch: batch.nbytes, most_bytes=file_bytes, most_items=sys.maxsize)
