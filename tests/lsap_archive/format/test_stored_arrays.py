"""Arrays in a file are those that were written, and no header is believed beyond its bytes."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable

import numpy as np
import pytest

from lsap_archive import CorruptArchiveError
from lsap_archive.format.stored_arrays import decode_arrays, encode_arrays

ARRAYS = {"codes": np.arange(12, dtype=np.uint8).reshape(3, 4), "center": np.linspace(0, 1, 5, dtype=np.float32)}


def with_header(shape: str, descr: str = "<f4") -> bytes:
    """An array of version 1.0 that says this, and holds 16 bytes."""
    header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + bytes(16)


def zipped(member: bytes, compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        file.writestr("codes.npy", member)
    return buffer.getvalue()


def test_arrays_are_read_as_they_were_written() -> None:
    data = encode_arrays(ARRAYS)
    found = decode_arrays(data, "here")
    assert found.keys() == ARRAYS.keys() and encode_arrays(ARRAYS) == data
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype
    np.testing.assert_array_equal(decode_arrays(zipped(with_header("(4,)")), "here")["codes"], np.zeros(4))


@pytest.mark.parametrize(
    "damaged",
    [
        lambda: zipped(with_header("(1000000000000,)")),
        lambda: zipped(with_header("(-4,)")),
        lambda: zipped(with_header("(-2, -2)")),
        lambda: zipped(with_header("(2,)", "|O")),
        lambda: zipped(with_header("(2,)", "<f8")),
        lambda: zipped(with_header("(4,)"), zipfile.ZIP_DEFLATED),
        lambda: zipped(b"no array"),
        lambda: b"no zip",
    ],
)
def test_what_promises_more_than_it_holds_is_refused(damaged: Callable[[], bytes]) -> None:
    with pytest.raises(CorruptArchiveError, match=r"here holds no arrays of an archive .*lsap archive repair"):
        decode_arrays(damaged(), "here")
