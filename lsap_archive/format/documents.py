"""The archive's small JSON documents, each carrying the digest of its own content."""

from __future__ import annotations

import functools
import hashlib
import json
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from lsap_archive.errors import HOW_TO_REPAIR, ArchiveError, ArchiveMismatchError, CorruptArchiveError

Count = Annotated[int, Field(strict=True, ge=0, le=2**53)]
Size = Annotated[int, Field(strict=True, ge=1, le=2**53)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Claim = Annotated[bool, Field(strict=True)]
"""Of documents: a whole number from 0 or from 1, any finite one, true or false; nothing in text stands for them."""

ONLY_FIELDS = ConfigDict(extra="forbid")
"""Of a dataclass that `typed` reads: what it does not know is refused."""
MAX_DEPTH = 100
_DIGEST = "document_sha256"
_SHOWN = 60  # characters of a wrong value


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
        values = json.loads(data, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise CorruptArchiveError(f"{name} is not JSON ({len(data)} bytes), it was damaged: {HOW_TO_REPAIR}") from error
    if not isinstance(values, dict) or _DIGEST not in values:
        raise CorruptArchiveError(f"{name} is not a document of an archive: {HOW_TO_REPAIR}")
    wanted = values.pop(_DIGEST)
    try:
        found = sha256_of(_dump(values))
        _refuse_depth(values)
        if b"\\ud" in data.lower():
            json.dumps(values, ensure_ascii=False).encode()  # half a character cannot be printed, nor kept in a table
    except (ValueError, RecursionError) as error:  # also a number that is infinite once it is read, such as 1e999
        raise CorruptArchiveError(f"{name} holds what no document does ({error}): {HOW_TO_REPAIR}") from error
    if found != wanted:
        raise CorruptArchiveError(
            f"{name} has content of digest {found[:16]}, it says {str(wanted)[:16]}: "
            f"it was edited or damaged; {HOW_TO_REPAIR}"
        )
    return values


def typed(kind: Any, values: Any, name: str) -> Any:
    """Values of a document as what they should be: whoever may write can make the digest of anything right.

    Args:
        kind: a dataclass of this package, or any other type that pydantic reads.
        values: JSON values; of a dataclass its fields, and no others unless it says so.
        name: where they were, for the message.

    Raises:
        CorruptArchiveError: a field is missing, of another type or beyond its bounds; the message names it.
        ArchiveMismatchError: what the type itself refuses, such as a name that leads out of its folder.
    """
    try:
        return _adapter(kind).validate_python(values)
    except ValidationError as error:
        problem = error.errors()[0]
        if isinstance(own := problem.get("ctx", {}).get("error"), ArchiveError):
            raise type(own)(f"{name}: {own}") from error
        field = ".".join(str(part) for part in problem["loc"]) or "it"
        found = "" if problem["type"] == "missing" else f" is {repr(problem['input'])[:_SHOWN]}"
        raise CorruptArchiveError(
            f"{name} makes no sense: {field[:_SHOWN]}{found}, {problem['msg'][:100]}: {HOW_TO_REPAIR}"
        ) from error


@functools.cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def _refuse_depth(values: Any) -> None:
    """Documents that Python can read and not walk through would fail anywhere later."""
    level, depth = [values], 0
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            raise ValueError(f"values more than {MAX_DEPTH} levels deep")
        inner = (one.values() if isinstance(one, dict) else one for one in level)
        level = [value for of_one in inner for value in of_one if isinstance(value, dict | list)]


def _dump(values: dict[str, Any]) -> bytes:
    return (json.dumps(values, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()
