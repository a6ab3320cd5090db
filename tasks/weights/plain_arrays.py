"""Arrays of numbers in files of any kind that circulates, read without running anything that a file says."""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lsap_core.errors import CheckpointError
from lsap_core.generators.checkpoints import read_pickle, read_torch
from tasks.array_files import ArrayFileError, read_npy, read_npz
from tasks.weights.files import (
    check_torch_zip,
    describe_other,
    is_pickle,
    is_safetensors,
    is_torch_file,
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


def _is_npz(data: bytes) -> bool:
    if not zipfile.is_zipfile(io.BytesIO(data)):
        return False
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
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
        values = values.astype(np.float32)
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
