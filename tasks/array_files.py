"""NumPy's files from outside: the header is believed only as far as the bytes behind it go."""

from __future__ import annotations

import io
import math
import zipfile
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

_READERS: dict[tuple[int, int], Any] = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
_MAX_HEADER_BYTES = 10_000  # what NumPy itself reads of one
_MAX_MEMBER_BYTES = 2**31  # unpacked; a few kilobytes can say that they are more


class ArrayFileError(ValueError):
    """A file is no array of NumPy, or its header says what its bytes do not hold."""


@dataclass(frozen=True)
class ArrayHeader:
    """What the header of a .npy file says.

    Attributes:
        shape: its sides; none is negative.
        dtype: of its values; none is an object.
        is_fortran: whether its first side changes fastest.
        offset: where its values begin.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    is_fortran: bool
    offset: int

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}" + (" in Fortran order" if self.is_fortran else "")

    @property
    def num_bytes(self) -> int:
        """Size of the whole file."""
        return self.offset + math.prod(self.shape) * self.dtype.itemsize


def read_array_header(file: IO[bytes], size: int | None = None) -> ArrayHeader:
    """The header of a .npy file, compared with the file's size; nothing is allocated.

    Args:
        file: at its beginning.
        size: bytes of the file, or None where nobody knows.

    Raises:
        ArrayFileError: it is none, holds objects or a side below 0, or says more than there is.
    """
    try:
        version = np.lib.format.read_magic(file)
        if version not in _READERS:
            raise ValueError(f"version {version[0]}.{version[1]}")
        shape, is_fortran, dtype = _READERS[version](file, max_header_size=_MAX_HEADER_BYTES)
    except Exception as error:  # bytes of unknown origin can fail in any way; all of them mean a wrong file
        told = " ".join(str(error).split())[:200]
        raise ArrayFileError(f"is not a .npy array of version 1 or 2 ({told})") from error
    header = ArrayHeader(tuple(shape), dtype, is_fortran, file.tell())
    if dtype.hasobject or dtype.itemsize == 0:
        raise ArrayFileError(f"says {header}, which are no numbers; pickled objects are never loaded")
    if any(type(side) is not int or side < 0 for side in shape):
        raise ArrayFileError(f"says {header}, with a side below 0")
    if size is not None and size < header.num_bytes:
        raise ArrayFileError(f"says {header}, for which {header.num_bytes} bytes were wanted, and has {size}")
    return header


def read_npy(data: bytes) -> NDArray[Any]:
    """The array of a .npy file.

    Raises:
        ArrayFileError: as `read_array_header`.
    """
    header = read_array_header(io.BytesIO(data), len(data))
    content = data[header.offset : header.num_bytes]
    try:
        array: NDArray[Any] = np.ndarray(header.shape, header.dtype, content, order="F" if header.is_fortran else "C")
    except ValueError as error:  # more sides than NumPy has
        raise ArrayFileError(f"says {header}: {error}") from error
    return array.copy(order="K")


def read_npz(data: bytes) -> dict[str, NDArray[Any]]:
    """The arrays of a .npz file, by name.

    Raises:
        ArrayFileError: it is no zip of .npy files, a member is damaged or would unpack to more than it may, or as
            `read_array_header`.
    """
    arrays = {}
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for member in archive.infolist():
                name = member.filename.removesuffix(".npy")
                if member.file_size > _MAX_MEMBER_BYTES:
                    raise ArrayFileError(f"{name} would unpack to {member.file_size} bytes")
                try:
                    arrays[name] = read_npy(archive.read(member))
                except ArrayFileError as error:
                    raise ArrayFileError(f"{name} {error}") from error
    except ArrayFileError:
        raise
    except Exception as error:  # as above; zipfile has no one error either
        raise ArrayFileError(f"is not a complete .npz file ({' '.join(str(error).split())[:200]})") from error
    return arrays
