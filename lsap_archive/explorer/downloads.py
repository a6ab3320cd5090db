"""Selections as files: ids, codes, SQL."""

from __future__ import annotations

import csv
import io
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from typing import IO

import numpy as np

from lsap_archive.errors import QueryError
from lsap_archive.explorer.chosen import Chosen, Places
from lsap_archive.format.rows import FAILED
from lsap_archive.reading.archive import Archive

MOST_BYTES_OF_CODES = 256 * 2**20
LONGEST_ID = 1024  # NumPy gives every text of an array the room of the longest
_ROWS_TOGETHER = 2**15
_CODES_TOGETHER = 512


def most_codes(archive: Archive) -> int:
    """How many codes one file may have."""
    return MOST_BYTES_OF_CODES // (4 * archive.geometry.num_ws * archive.geometry.w_dim)


def ids_as_text(chosen: Chosen, places: Places) -> Iterator[str]:
    """One id a line; a line break in an id, which would make two of it, is written out."""
    for start in range(0, len(places), _ROWS_TOGETHER):
        rows = chosen.rows(places[start : start + _ROWS_TOGETHER], [])
        yield "".join(row["image_id"].replace("\r", "\\r").replace("\n", "\\n") + "\n" for row in rows)


def ids_as_csv(chosen: Chosen, places: Places, values: Sequence[str]) -> Iterator[str]:
    """Id, method, status, and values of some columns."""
    names = list(dict.fromkeys(("image_id", "method", "status", *values)))
    for start in range(0, max(len(places), 1), _ROWS_TOGETHER):
        file = io.StringIO()
        writer = csv.writer(file)
        if start == 0:
            writer.writerow(names)
        rows = chosen.rows(places[start : start + _ROWS_TOGETHER], values)
        writer.writerows([row[name] for name in names] for row in rows)
        yield file.getvalue()


def codes_as_npz(archive: Archive, chosen: Chosen, places: Places) -> IO[bytes]:
    """A file for `numpy.load`: image_id [N], method [N] and w_plus [N, K, D], float32, of the rows that have codes.

    Raises:
        QueryError: there are more codes than one file may have, or none.
    """
    limit = most_codes(archive)
    if len(places) > limit:
        raise QueryError(
            f"{len(places)} codes were asked for, a file has up to {limit} ({MOST_BYTES_OF_CODES // 2**20} MiB): "
            "choose fewer, or take selection.sql and archive.codes"
        )
    rows = [
        row
        for start in range(0, len(places), _ROWS_TOGETHER)
        for row in chosen.rows(places[start : start + _ROWS_TOGETHER], [])
        if row["status"] != FAILED
    ]
    if not rows:
        raise QueryError("no image of this selection has a code: choose others")
    if (letters := max(len(row[name]) for row in rows for name in ("image_id", "method"))) > LONGEST_ID:
        raise QueryError(f"a name of {letters} letters is among them, and each would take its room: leave it out")
    shape = (len(rows), archive.geometry.num_ws, archive.geometry.w_dim)
    file = tempfile.TemporaryFile()  # noqa: SIM115, whoever sends it closes it
    try:
        with zipfile.ZipFile(file, "w") as zipped:
            for name in ("image_id", "method"):
                with zipped.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, np.array([row[name] for row in rows]), allow_pickle=False)
            with zipped.open("w_plus.npy", "w", force_zip64=True) as member:
                header = {"descr": "<f4", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(member, header)
                for start in range(0, len(rows), _CODES_TOGETHER):
                    member.write(_codes(archive, rows[start : start + _CODES_TOGETHER]).astype("<f4").tobytes())
        file.seek(0)
    except BaseException:
        file.close()
        raise
    return file


def _codes(archive: Archive, rows: Sequence[dict[str, str]]) -> np.ndarray:
    """Codes of rows of several methods, in their order."""
    by_method: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        by_method.setdefault(row["method"], []).append(index)
    codes = np.empty((len(rows), archive.geometry.num_ws, archive.geometry.w_dim), dtype=np.float32)
    for method, indices in by_method.items():
        codes[indices] = archive.codes([rows[index]["image_id"] for index in indices], method)
    return codes
