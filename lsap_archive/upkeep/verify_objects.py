"""Looking at single objects: is it there, and is it what was written?"""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from lsap_archive.errors import OBJECT_ERRORS, ArchiveNotFoundError, CorruptArchiveError
from lsap_archive.format.documents import decode_document, sha256_of
from lsap_archive.format.manifest import StoredObject
from lsap_archive.format.rows import from_parquet
from lsap_archive.reading.kept import npz_problem
from lsap_archive.stores.store import Store
from lsap_archive.upkeep.verify_report import VerifyReport


def checked_object(store: Store, key: str, file: StoredObject, report: VerifyReport) -> bytes | None:
    """The object's bytes if they are those of the manifest; else None, and the problem is noted."""
    report.count("objects")
    try:
        data = store.get(key)
    except ArchiveNotFoundError:
        report.note(key, "nothing", f"{file.size} bytes")
        return None
    report.count("bytes", len(data))
    if len(data) != file.size:
        report.note(key, f"{len(data)} bytes", f"{file.size} bytes")
        return None
    if sha256_of(data) != file.sha256:
        report.note(key, f"sha256 {sha256_of(data)}", f"sha256 {file.sha256}")
        return None
    return data


def checked_document(store: Store, key: str, what: str, report: VerifyReport) -> dict[str, Any] | None:
    """A document that carries its own digest; None if it is missing or damaged, and the problem is noted."""
    try:
        return decode_document(store.get(key), key)
    except ArchiveNotFoundError:
        report.note(key, "nothing", what)
    except OBJECT_ERRORS as error:
        report.note(key, str(error), what)
    return None


def readable_table(data: bytes | None, schema: pa.Schema, key: str, report: VerifyReport) -> pa.Table | None:
    """The table of a Parquet file; None if it is none, and the problem is noted."""
    if data is None:
        return None
    try:
        return from_parquet(data, schema, key)
    except CorruptArchiveError as error:
        report.note(key, str(error), "a Parquet file of the archive's schema")
        return None


def verify_npz(data: bytes, key: str, report: VerifyReport) -> None:
    """An .npz file: its members have checksums, and nothing stands before or behind it."""
    if problem := npz_problem(data):
        report.note(key, f"no sound .npz file ({problem})", "one")
