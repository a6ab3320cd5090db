"""Files of NumPy whose headers say what their bytes do not hold."""

from __future__ import annotations

import io
import tracemalloc
import zipfile
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.array_files import ArrayFileError, read_array_header, read_npy, read_npz


def npy(shape: object, dtype: object = "|u1", content: bytes = b"\0" * 16, order: object = False) -> bytes:
    """A .npy file with a header of one's own."""
    header = repr({"descr": dtype, "fortran_order": order, "shape": shape}).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + content


def npz(members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return file.getvalue()


LIES = {
    "two negative sides": npy((1, -4, -4)),
    "one negative side": npy((-16,)),
    "more than there is": npy((17,)),
    "more than any machine has": npy((10**9, 10**9, 10**9)),
    "sides that overflow": npy((2**32, 2**32, 0, 2**63)),
    "sides that are claims": npy((True, 16)),
    "sides that are no numbers": npy(("a", 2)),
    "wide values": npy((2,), "<f8", b"\0" * 15),
    "objects": npy((1,), "|O"),
    "values of no size": npy((4,), "|V0"),
    "more sides than NumPy has": npy((1,) * 100),
    "a header that is a program": npy("__import__('os').system('true')"),
    "a deep header": b"\x93NUMPY\x01\x00" + (3000).to_bytes(2, "little") + b"(" * 3000,
    "a long header": b"\x93NUMPY\x02\x00" + (2**31).to_bytes(4, "little") + b" " * 100,
    "a version that nobody knows": b"\x93NUMPY\x09\x00" + b"\0" * 20,
    "nothing": b"",
}


def test_sides_below_0_are_named_although_their_product_fits() -> None:
    with pytest.raises(ArrayFileError, match=r"says uint8 \[1, -4, -4\], with a side below 0"):
        read_array_header(io.BytesIO(LIES["two negative sides"]), len(LIES["two negative sides"]))


@pytest.mark.parametrize("lie", LIES)
def test_a_header_that_lies_is_told_and_nothing_is_allocated(lie: str) -> None:
    data = LIES[lie]
    tracemalloc.start()
    try:
        with pytest.raises(ArrayFileError) as alone:
            read_npy(data)
        with pytest.raises(ArrayFileError, match=r"x (is|says|has)"):
            read_npz(npz({"x.npy": data}))
        assert tracemalloc.get_traced_memory()[1] < 5 * 2**20
    finally:
        tracemalloc.stop()
    assert "\n" not in str(alone.value) and len(str(alone.value)) < 600


@pytest.mark.parametrize(
    "array", [np.arange(6).reshape(2, 3), np.asfortranarray(np.ones((2, 3))), np.zeros((0, 4)), np.float32(2)]
)
def test_other_arrays_come_back_as_numpy_reads_them(array: np.ndarray) -> None:
    file = io.BytesIO()
    np.save(file, array)
    found = read_npy(file.getvalue())
    assert found.dtype == array.dtype and found.flags.writeable
    np.testing.assert_array_equal(found, array)
    assert str(read_array_header(io.BytesIO(file.getvalue()))).startswith(f"{array.dtype} {list(array.shape)}")
    np.testing.assert_array_equal(read_npz(npz({"x.npy": file.getvalue()}, zipfile.ZIP_DEFLATED))["x"], array)


def test_a_zip_that_is_no_npz_is_refused() -> None:
    whole = npz({"x.npy": npy((16,))})
    for data in (b"", b"PK", whole[:-5], whole[:60] + b"\xff" + whole[61:]):
        with pytest.raises(ArrayFileError):
            read_npz(data)
    forged = whole.replace((len(npy((16,)))).to_bytes(4, "little"), b"\xf0\xff\xff\xff")
    with pytest.raises(ArrayFileError):
        read_npz(forged)


SIDES = st.one_of(st.integers(-3, 5), st.sampled_from([2**31, 2**63, -(2**40), True, 1.5, "2", None]))


@settings(derandomize=True, deadline=None, database=None, max_examples=150)
@given(
    shape=st.one_of(st.lists(SIDES, max_size=5).map(tuple), SIDES),
    dtype=st.sampled_from(["|u1", "<f4", ">f8", "|O", "|S0", "<U3", "<M8[s]", [("a", "<f4", (2,))], "x", 5, "|V10"]),
    content=st.binary(max_size=64),
    order=st.sampled_from([True, False, None, 2]),
)
def test_no_more_is_made_than_there_is(shape: Any, dtype: Any, content: bytes, order: Any) -> None:
    data = npy(shape, dtype, content, order)
    try:
        array = read_npy(data)
    except ArrayFileError as refusal:
        assert "\n" not in str(refusal)
    else:
        assert array.nbytes <= len(content) and array.shape == tuple(shape)
