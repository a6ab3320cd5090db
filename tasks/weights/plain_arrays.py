"""Arrays of numbers in files of any kind that circulates, read without running anything that a file says."""

from __future__ import annotations

import hashlib
import io
import math
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import safetensors
import torch
from numpy.typing import NDArray
from torch import Tensor

from lsap_core.errors import CheckpointError
from lsap_core.generators.checkpoints import read_pickle, read_torch
from tasks.array_files import ArrayFileError, read_array_header, read_npy, read_npz
from tasks.weights.files import (
    check_torch_zip,
    describe_other,
    is_pickle,
    is_safetensors,
    is_torch_file,
    local_file,
    read_bytes,
    read_safetensors,
)

_NUMPY = b"\x93NUMPY"


def file_digest(data: bytes) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(data).hexdigest()


def read_document(data: bytes, *, wanted: str) -> Any:
    """What a file holds: (tensors, metadata) of a .safetensors, else an array, a list, or a mapping of names to such.

    Args:
        data: the file.
        wanted: the kinds of file that would do, for the message.

    Raises:
        CheckpointError: nothing that can be read without running what it says.
    """
    if data.startswith(_NUMPY):
        return _read_numpy(data)
    if _is_npz(data):
        return dict(_read_numpy(data))
    if is_torch_file(data):
        check_torch_zip(data, wanted=wanted)
        return read_torch(data)
    if is_safetensors(data):
        return read_safetensors(data)
    if is_pickle(data):
        return read_pickle(data)
    raise CheckpointError(f"it is {describe_other(data)}; wanted {wanted}")


def map_document(path_or_url: str, *, wanted: str) -> tuple[Any, str]:
    """What a file holds, and its SHA-256; arrays of .npy and .safetensors files on this machine stay on their disk.

    Args:
        path_or_url: of the file.
        wanted: the kinds of file that would do, for the message.

    Returns:
        As `read_document`, but the tensors of a .safetensors alone.

    Raises:
        CheckpointError: as `read_document`; messages do not name the file, unless there is none.
    """
    path = local_file(path_or_url)
    if path is None:
        data = read_bytes(path_or_url, None, wanted=wanted)
        document = read_document(data, wanted=wanted)
        return (document[0] if isinstance(document, tuple) else document), file_digest(data)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        file.seek(0)
        start = file.read(16)
        file.seek(0)
        if start.startswith(_NUMPY):
            return _mapped_numpy(file, path), digest
        if is_torch_file(start) and not _is_npz(file):
            check_torch_zip(file, wanted=wanted)
            return read_torch(file), digest
        if is_safetensors(start):
            try:
                with safetensors.safe_open(path, framework="pt") as opened:
                    return {name: opened.get_tensor(name) for name in opened.keys()}, digest  # noqa: SIM118
            except Exception as error:  # bytes of unknown origin can fail in any way; all of them mean a wrong file
                raise CheckpointError(f"it is truncated or no safetensors file: {error}") from error
        file.seek(0)
        return read_document(file.read(), wanted=wanted), digest


def _mapped_numpy(file: BinaryIO, path: Path) -> NDArray[Any]:
    """The array of a .npy file, of which only what is looked at is in memory."""
    try:
        header = read_array_header(file, path.stat().st_size)
    except ArrayFileError as error:
        raise CheckpointError(f"NumPy cannot read it as plain numbers: it {error}") from error
    if not math.prod(header.shape):
        return np.empty(header.shape, header.dtype)
    order: Literal["F", "C"] = "F" if header.is_fortran else "C"
    # Copy on write: PyTorch warns of arrays that nobody may write to.
    return np.memmap(path, header.dtype, "c", header.offset, header.shape, order)


def _is_npz(data: bytes | BinaryIO) -> bool:
    file = io.BytesIO(data) if isinstance(data, bytes) else data
    if not zipfile.is_zipfile(file):
        return False
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
    return bool(names) and all(name.endswith(".npy") for name in names)


def _read_numpy(data: bytes) -> Any:
    """The array of a .npy file, or the arrays of a .npz file by name; never an object."""
    try:
        return read_npz(data) if _is_npz(data) else read_npy(data)
    except ArrayFileError as error:
        raise CheckpointError(f"NumPy cannot read it as plain numbers: it {error}") from error


def numbers_of(values: Any) -> Tensor:
    """Real numbers of any type and byte order as float32, on the CPU.

    Raises:
        CheckpointError: they are none.
    """
    if isinstance(values, np.ndarray) and values.dtype.kind in "fiu":
        values = values.astype(np.float32, copy=False)
    try:
        tensor = torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"it holds a {_type_of(values)}; wanted an array of numbers") from error
    if tensor.is_complex() or tensor.is_meta or tensor.layout is not torch.strided:
        raise CheckpointError(f"it holds numbers of type {tensor.dtype}; wanted plain real ones")
    return tensor.detach().to("cpu", torch.float32)


def _type_of(values: Any) -> str:
    if isinstance(values, Sequence) and not isinstance(values, str) and values:
        return f"{type(values).__name__} of {type(values[0]).__name__}"
    return type(values).__name__
