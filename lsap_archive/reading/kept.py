"""What is kept beside the runs under the name of what decides it: anchors, calibrations, versions, looks at originals.

No manifest has their digests, and a name says what they are made from, not what they hold. So an anchor has a copy in a
document that carries its own digest, a calibration and a look the name that it is kept under, and versions are named by
their content: an altered object, or a sound one in another's place, is told apart from the right one.
"""

from __future__ import annotations

import base64
import binascii
import io
import struct
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lsap_archive.errors import HOW_TO_REPAIR, ArchiveNotFoundError, CorruptArchiveError
from lsap_archive.format.calibrations import decode_calibration
from lsap_archive.format.documents import Number, decode_document, encode_document, sha256_of, typed
from lsap_archive.format.layout import (
    anchor_copy_key,
    anchor_key,
    calibration_key,
    calibration_part_key,
    seen_key,
    versions_key,
)
from lsap_archive.format.seen import decode_seen
from lsap_archive.reading.checked import describe
from lsap_archive.stores.store import Store

_END = struct.Struct("<4s4H2LH")  # of a zip: its last record, where there is no comment
_OF, _DATA, _KEPT_AS, _VALUES = "anchor", "npz", "kept_as", "values"


@dataclass(frozen=True)
class _Part:
    """What there has to be of a part of a calibration."""

    values: tuple[Number | None, ...]
    kept_as: str


def read_kept_anchor(store: Store, digest: str) -> bytes:
    """An anchor, the bytes of an .npz file, which have to be those of its copy.

    Raises:
        ArchiveNotFoundError: it is not there.
        CorruptArchiveError: it or its copy is altered.
    """
    where = store.join(anchor_key(digest))
    try:
        data = store.get(anchor_key(digest))
    except ArchiveNotFoundError as error:
        raise ArchiveNotFoundError(
            f"{where} does not exist: run `lsap archive repair`, which has it from a copy, or `lsap run invert`, which "
            "estimates it again"
        ) from error
    copy = read_anchor_copy(store, digest)
    if copy is None and (problem := npz_problem(data)):
        raise CorruptArchiveError(f"{where} is no anchor ({problem}): {HOW_TO_REPAIR}")
    if copy not in (None, data):
        assert copy is not None
        found, wanted = (describe((len(one), sha256_of(one))) for one in (data, copy))
        raise CorruptArchiveError(f"{where} is {found}, its copy is {wanted}: {HOW_TO_REPAIR}")
    return data


def read_anchor_copy(store: Store, digest: str) -> bytes | None:
    """The bytes of an anchor as its copy has them; None if it has none, as before there were copies.

    Raises:
        CorruptArchiveError: the copy is damaged, or that of another anchor.
    """
    key = anchor_copy_key(digest)
    try:
        document = decode_document(store.get(key), store.join(key))
    except ArchiveNotFoundError:
        return None
    try:
        data = base64.b64decode(document[_DATA], validate=True)
    except (KeyError, TypeError, ValueError, binascii.Error) as error:
        raise CorruptArchiveError(f"{store.join(key)} is no copy of an anchor ({error}): {HOW_TO_REPAIR}") from error
    if document.get(_OF) != digest:
        raise CorruptArchiveError(f"{store.join(key)} is the copy of anchor {document.get(_OF)}: {HOW_TO_REPAIR}")
    return data


def encode_anchor_copy(digest: str, data: bytes) -> bytes:
    """The document that keeps an anchor once more."""
    return encode_document({_OF: digest, _DATA: base64.b64encode(data).decode()}, anchor_copy_key(digest))


def encode_calibration(digest: str, values: Mapping[str, Any]) -> bytes:
    """A calibration as bytes, with the name that it is kept under."""
    return encode_document({**values, _KEPT_AS: digest}, calibration_key(digest))


def read_calibration(store: Store, digest: str) -> dict[str, Any]:
    """A kept calibration, JSON values; those of older archives do not tell under which name they were kept.

    Raises:
        ArchiveNotFoundError: it is not there.
        CorruptArchiveError: it is damaged, makes no sense, or is another one.
    """
    where = store.join(calibration_key(digest))
    values = decode_calibration(store.get(calibration_key(digest)), where)
    if (found := values.pop(_KEPT_AS, digest)) != digest:
        raise CorruptArchiveError(f"{where} is calibration {found}: {HOW_TO_REPAIR}")
    return values


def encode_calibration_part(digest: str, name: str, values: Sequence[float | None]) -> bytes:
    """A part of a calibration as bytes, with the name that it is kept under."""
    key = calibration_part_key(digest, name)
    return encode_document({_VALUES: list(values), _KEPT_AS: key}, key)


def read_calibration_part(store: Store, key: str) -> list[float | None]:
    """What was measured of some images for a calibration.

    Raises:
        ArchiveNotFoundError: it is not there.
        CorruptArchiveError: it is damaged, or is another one.
    """
    where = store.join(key)
    document = decode_document(store.get(key), where)
    found: _Part = typed(_Part, document, where)
    if found.kept_as != key:
        raise CorruptArchiveError(f"{where} is {found.kept_as}: {HOW_TO_REPAIR}")
    return list(found.values)


def versions_digest(data: bytes) -> str:
    """The name of a file of versions."""
    return sha256_of(data)[:32]


def read_versions(store: Store, key: str) -> bytes:
    """A file of versions, which has to be the one that its name says.

    Raises:
        CorruptArchiveError: it is another one, or damaged.
    """
    data = store.get(key)
    if versions_key(versions_digest(data)) != key:
        found = describe((len(data), sha256_of(data)))
        raise CorruptArchiveError(f"{store.join(key)} is {found}, its name says other content: {HOW_TO_REPAIR}")
    return data


def read_seen(store: Store, digest: str) -> dict[str, NDArray[np.floating]]:
    """What a network saw of originals, by digest of the image.

    Raises:
        ArchiveNotFoundError: it is not there.
        CorruptArchiveError: it is damaged, or is something else.
    """
    return decode_seen(store.get(seen_key(digest)), digest, store.join(seen_key(digest)))


def npz_problem(data: bytes) -> str | None:
    """What is wrong with an .npz file, whose members have checksums; None if nothing is.

    Bytes before or behind it are damage as well, though zip files may have them.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as file:
            damaged = file.testzip()
    except (zipfile.BadZipFile, EOFError, ValueError, NotImplementedError, OSError) as error:
        return str(error)
    if damaged is not None:
        return f"{damaged} is damaged"
    signature, *_, size, offset, comment = _END.unpack(data[-_END.size :])
    if signature != b"PK\x05\x06" or comment or offset + size + _END.size != len(data):
        return "there are bytes that do not belong to it"
    return None
