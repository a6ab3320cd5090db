"""The archive's small JSON documents, each carrying the digest of its own content."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from typing import Any

from lsap_archive.errors import HOW_TO_REPAIR, ArchiveMismatchError, CorruptArchiveError

_DIGEST = "document_sha256"


def sha256_of(data: bytes) -> str:
    """SHA-256 of the bytes, 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def utc_now() -> str:
    """The present time in UTC, ISO 8601 with microseconds, so that texts sort as times do."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


def as_json(values: Any, what: str) -> Any:
    """`values` as JSON would give them back: tuples become lists, keys become text.

    Raises:
        ArchiveMismatchError: a value has no JSON form (a tensor, a NaN, an object).
    """
    try:
        return json.loads(json.dumps(values, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ArchiveMismatchError(
            f"{what} cannot be written as JSON ({error}): use numbers, text, lists and dicts"
        ) from error


def encode_document(values: dict[str, Any], what: str) -> bytes:
    """A document as bytes, its own digest included.

    Raises:
        ArchiveMismatchError: a value has no JSON form.
    """
    plain = as_json(values, what)
    return _dump({**plain, _DIGEST: sha256_of(_dump(plain))})


def decode_document(data: bytes, name: str) -> dict[str, Any]:
    """The document that `encode_document` wrote.

    Args:
        data: the bytes.
        name: where they were, for the message.

    Raises:
        CorruptArchiveError: not a document, or altered since it was written.
    """
    try:
        values = json.loads(data)
    except ValueError as error:
        raise CorruptArchiveError(f"{name} is not JSON ({len(data)} bytes), it was damaged: {HOW_TO_REPAIR}") from error
    if not isinstance(values, dict) or _DIGEST not in values:
        raise CorruptArchiveError(f"{name} is not a document of an archive: {HOW_TO_REPAIR}")
    wanted = values.pop(_DIGEST)
    found = sha256_of(_dump(values))
    if found != wanted:
        raise CorruptArchiveError(
            f"{name} has content of digest {found[:16]}, it says {str(wanted)[:16]}: "
            f"it was edited or damaged; {HOW_TO_REPAIR}"
        )
    return values


def _dump(values: dict[str, Any]) -> bytes:
    return (json.dumps(values, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()
