"""Arrays in one .npz file, as this archive keeps them: not compressed, and no header is believed beyond its bytes."""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lsap_archive.errors import HOW_TO_REPAIR, CorruptArchiveError

_DTYPES = ("float32", "uint8")


def encode_arrays(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """The .npz file of some arrays; the same bytes for the same arrays.

    Args:
        arrays: by name, float32 or uint8.
    """
    buffer = io.BytesIO()
    named: dict[str, Any] = dict(arrays)
    np.savez(buffer, **named)
    return buffer.getvalue()


def decode_arrays(data: bytes, where: str) -> dict[str, NDArray[Any]]:
    """The arrays that `encode_arrays` was given, by name; they share the memory of nothing else and are read-only.

    Args:
        data: the file.
        where: its URL, for the message.

    Raises:
        CorruptArchiveError: it is damaged, or holds what no such file does.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as file:
            return {one.filename.removesuffix(".npy"): _member(file, one) for one in file.infolist()}
    except (zipfile.BadZipFile, EOFError, ValueError, NotImplementedError, OSError) as error:
        raise CorruptArchiveError(f"{where} holds no arrays of an archive ({error}): {HOW_TO_REPAIR}") from error


def _member(file: zipfile.ZipFile, info: zipfile.ZipInfo) -> NDArray[Any]:
    if info.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{info.filename} is compressed")
    content = file.read(info)  # raises where its checksum is another
    stream = io.BytesIO(content)
    if np.lib.format.read_magic(stream) != (1, 0):
        raise ValueError(f"{info.filename} is no array of version 1.0")
    shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    if is_fortran or dtype.name not in _DTYPES or stream.tell() + math.prod(shape) * dtype.itemsize != len(content):
        raise ValueError(f"{info.filename} says {dtype} {list(shape)}, which it does not hold")
    return np.frombuffer(content, dtype, offset=stream.tell()).reshape(shape)
