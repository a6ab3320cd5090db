"""Pickled weights, read without running anything that the file brings along.

A pickle is a program: it names functions and calls them. The programs of published generators name a dozen
harmless things. Here those names stand for inert records (a tensor is the bytes of its storage, an offset and
a shape), and every other name is refused. Nothing is computed until the records of the wanted network become
tensors.
"""

from __future__ import annotations

import argparse
import io
import pickle
import pickletools
import re
import threading
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, BinaryIO, NoReturn

import numpy as np
import torch
from torch import Tensor

from lsap_core.errors import CheckpointError

PERSISTENCE_VERSION = 6

# fmt: off
_PLAIN_OPCODES = frozenset({
    "PROTO", "FRAME", "STOP", "MARK", "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2",
    "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
    "BINBYTES", "SHORT_BINBYTES", "BINBYTES8",
    "EMPTY_LIST", "APPEND", "APPENDS", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3",
    "EMPTY_DICT", "SETITEM", "SETITEMS", "EMPTY_SET", "ADDITEMS",
    "BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET", "MEMOIZE",
    "GLOBAL", "STACK_GLOBAL", "REDUCE", "NEWOBJ", "BUILD",
})
# fmt: on
_NUMBERS = re.compile(r"[<>=|]?[biuf][1248]")
_OBJECTS = ("O", "O8")
_LOADING = threading.Lock()  # the list of safe globals belongs to the process


class _Record:
    """Something the stream may build but not change: BUILD, which sets attributes, is refused."""

    def __setstate__(self, state: object) -> None:
        raise CheckpointError(f"the file sets attributes on {type(self).__name__}; it was refused")


class StorageBytes(_Record):
    """The bytes of one tensor storage, in PyTorch's own format, unopened."""

    def __init__(self, data: bytes):
        self.data = data


class TensorRecord(_Record):
    """A tensor as a window on a storage, not yet made."""

    def __init__(self, storage: StorageBytes, offset: int, shape: tuple[int, ...], stride: tuple[int, ...]):
        self.storage = storage
        self.offset = offset
        self.shape = shape
        self.stride = stride


class PersistentNode(_Record):
    """One persistent object of NVlabs' pickles: class name and attributes, without its source code."""

    def __init__(self, class_name: str, state: Mapping[str, Any]):
        self.class_name = class_name
        self.state = state


class ArrayRecord:
    """A NumPy array of plain numbers, or a single object in an array's place; the stream delivers it with BUILD.

    The second is how `numpy.save` writes a dictionary.
    """

    def __init__(self) -> None:
        self.array: np.ndarray[Any, np.dtype[Any]] | None = None
        self.content: object = None

    def __setstate__(self, state: object) -> None:
        match state:
            case (int(), (), _DType(is_object=True), int(), [content]):
                self.content = content
            case (int(), tuple(shape), _DType() as dtype, int(is_fortran), bytes(data)):
                flat = np.frombuffer(data, dtype.numpy())
                self.array = flat.reshape(shape, order="F" if is_fortran else "C")
            case _:
                raise CheckpointError("the file holds an array that is not made of plain numbers")


class _DType:
    """A NumPy number type by name; BUILD may only tell its byte order."""

    def __init__(self, name: object):
        self.is_object = name in _OBJECTS
        if not isinstance(name, str) or not (self.is_object or _NUMBERS.fullmatch(name)):
            raise CheckpointError(f"the file holds a NumPy type {name!r}; plain numbers were wanted")
        self.name = name

    def __setstate__(self, state: object) -> None:
        match state:
            case (int(), str(byte_order), None, None, None, *_) if byte_order in {"<", ">", "=", "|"}:
                self.name = byte_order + self.name.lstrip("<>=|")
            case _:
                raise CheckpointError("the file holds a NumPy type with fields; plain numbers were wanted")

    def numpy(self) -> np.dtype[Any]:
        if self.is_object:
            raise CheckpointError("the file holds an array of objects; plain numbers were wanted")
        return np.dtype(self.name)


class TensorFlowNetwork:
    """One network of TensorFlow's pickles: what BUILD delivers, as data, its source code included."""

    state: Mapping[str, Any] = MappingProxyType({})

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, dict):
            raise CheckpointError("the file holds a TensorFlow network without attributes")
        self.state = state


class _Named(_Record):
    """What the stream gets for an allowed name: it can be called, and nothing else."""

    def __init__(self, function: Callable[..., object]):
        self._function = function

    def __call__(self, *arguments: object) -> object:
        return self._function(*arguments)


def _persistent_node(meta: object) -> PersistentNode:
    if not isinstance(meta, dict) or meta.get("type") != "class":
        raise CheckpointError("the file holds a persistent object that is no class instance")
    if meta.get("version") != PERSISTENCE_VERSION:
        raise CheckpointError(
            f"the file holds persistent objects of version {meta.get('version')!r}; "
            f"version {PERSISTENCE_VERSION} is known"
        )
    match meta:
        case {"class_name": str(class_name), "state": dict(state)}:
            return PersistentNode(class_name, state)
    raise CheckpointError("the file holds a persistent object without class name or state")


def _storage(data: object) -> StorageBytes:
    if not isinstance(data, bytes):
        raise CheckpointError(f"the file holds a storage made of {type(data).__name__}; bytes were wanted")
    return StorageBytes(data)


def _tensor(storage: object, offset: object, shape: object, stride: object, *_: object) -> TensorRecord:
    match (storage, offset, shape, stride):
        case (StorageBytes() as bytes_, int(start), tuple(sizes), tuple(steps)) if len(sizes) == len(steps):
            if all(type(number) is int and number >= 0 for number in (start, *sizes, *steps)):
                return TensorRecord(bytes_, start, sizes, steps)
    raise CheckpointError("the file holds a tensor without a storage, an offset, a shape and strides")


def _parameter(data: object, *_: object) -> TensorRecord:
    if not isinstance(data, TensorRecord):
        raise CheckpointError("the file holds a parameter that is no tensor")
    return data


def _array(*_: object) -> ArrayRecord:
    return ArrayRecord()


def _array_type(*_: object) -> NoReturn:
    raise CheckpointError("the file makes a NumPy array by calling its type; it was refused")


def _dtype(name: object, *_: object) -> _DType:
    return _DType(name)


def _scalar(dtype: object, data: object) -> object:
    match (dtype, data):
        case (_DType() as number, bytes(raw)) if len(raw) == number.numpy().itemsize:
            return np.frombuffer(raw, number.numpy())[0].item()
    raise CheckpointError("the file holds a NumPy scalar that is not a plain number")


def _encode(text: object, encoding: object = None) -> bytes:
    if not isinstance(text, str) or encoding not in {"latin1", "latin-1"}:
        raise CheckpointError("the file encodes something else than bytes written as text")
    return text.encode("latin-1")


def _numpy_names(core: str) -> dict[tuple[str, str], object]:
    return {(core, "scalar"): _Named(_scalar), (core, "_reconstruct"): _Named(_array)}


# Module and name both have to match: in newer pickle protocols a name may have dots, which reach inside.
ALLOWED_GLOBALS: Mapping[tuple[str, str], object] = {
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): _Named(_persistent_node),
    ("dnnlib.util", "EasyDict"): dict,
    ("dnnlib", "EasyDict"): dict,
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_parameter"): _Named(_parameter),
    ("torch._utils", "_rebuild_tensor_v2"): _Named(_tensor),
    ("torch.storage", "_load_from_bytes"): _Named(_storage),
    **_numpy_names("numpy.core.multiarray"),
    **_numpy_names("numpy._core.multiarray"),
    ("numpy", "dtype"): _Named(_dtype),
    ("numpy", "ndarray"): _Named(_array_type),
    ("_codecs", "encode"): _Named(_encode),
    ("dnnlib.tflib.network", "Network"): TensorFlowNetwork,
    ("builtins", "set"): set,
    ("__builtin__", "set"): set,
}


class _RecordUnpickler(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str) -> Any:
        try:
            return ALLOWED_GLOBALS[module_name, global_name]
        except KeyError:
            raise _refusal(f"{module_name}.{global_name}") from None


def read_records(data: bytes) -> Any:
    """The object of a pickle, with tensors, arrays and networks as inert records.

    Args:
        data: the whole pickle; protocols 2 to 5.

    Returns:
        Plain values, containers, `PersistentNode`, `TensorRecord`, `ArrayRecord` and `TensorFlowNetwork`.

    Raises:
        CheckpointError: the pickle is truncated or malformed, or names something that is not allowed.
    """
    _check_opcodes(data)
    try:
        return _RecordUnpickler(io.BytesIO(data)).load()
    except CheckpointError:
        raise
    except Exception as error:  # bytes of unknown origin can fail in any way; all of them mean a wrong file
        raise CheckpointError(f"the pickle is malformed: {error}") from error


def to_tensor(record: TensorRecord) -> Tensor:
    """The tensor of a record, on the CPU.

    Raises:
        CheckpointError: its storage is no storage, or smaller than the tensor.
    """
    storage = read_torch(record.storage.data)
    if not isinstance(storage, torch.storage.TypedStorage):
        raise CheckpointError(f"a tensor's storage is a {type(storage).__name__}; it was refused")
    num_elements = storage._size()
    last = record.offset + sum((n - 1) * step for n, step in zip(record.shape, record.stride, strict=True))
    is_empty = 0 in record.shape
    if is_empty or last >= num_elements or np.prod(record.shape, dtype=object) > num_elements:
        raise CheckpointError(f"a tensor {list(record.shape)} claims a storage of {num_elements} elements")
    tensor: Tensor = torch._utils._rebuild_tensor_v2(
        storage, record.offset, record.shape, record.stride, False, OrderedDict()
    )
    return tensor


def read_torch(data: bytes | BinaryIO) -> Any:
    """The object of a `torch.save` file: tensors, plain containers, `argparse.Namespace`; nothing else.

    Args:
        data: the whole file, in the zip format or the older stream of pickles; or the file, opened for reading, of
            which no more is in memory than the tensors that come out of it.

    Raises:
        CheckpointError: the file is truncated, would become larger when it is unpacked, or names what PyTorch's
            restricted loader does not allow.
    """
    file = io.BytesIO(data) if isinstance(data, bytes) else data
    _check_unpacked_size(file)
    try:
        file.seek(0)
        with _LOADING, torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # as in `read_records`
        message = str(error).strip()
        refused = re.search(r"GLOBAL (\S+)", message)
        if refused:
            raise _refusal(refused[1]) from None  # PyTorch's message advises to load without restrictions
        reason = (message.splitlines() or [type(error).__name__])[0][:200]
        raise CheckpointError(f"PyTorch cannot read it, it is truncated or damaged: {reason}") from None


def _check_unpacked_size(file: BinaryIO) -> None:
    """Refuse a zip that unpacks to more than it is: `torch.save` compresses nothing, PyTorch unpacks anything."""
    try:
        with zipfile.ZipFile(file) as archive:
            size = sum(member.file_size for member in archive.infolist())
    except Exception:  # an old file, a truncated one or none at all: PyTorch has the words for each
        return
    has = file.seek(0, io.SEEK_END)
    if size > has:
        raise CheckpointError(
            f"the file has {has} bytes and would unpack to {size}, torch.save writes them as they are; it was "
            "refused: save the weights again"
        )


def _check_opcodes(data: bytes) -> None:
    """Refuse a truncated program, or one with instructions that published checkpoints do not use."""
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(data)):
            if opcode.name == "INST":
                raise _refusal(str(argument).replace(" ", "."))
            if opcode.name not in _PLAIN_OPCODES:
                raise CheckpointError(f"the pickle has a {opcode.name} instruction; it was refused")
            if opcode.name in {"BINPUT", "LONG_BINPUT"} and isinstance(argument, int) and argument > count:
                raise CheckpointError("the pickle reserves more memory than it can use; it was refused")
    except CheckpointError:
        raise
    except Exception as error:  # as in `read_records`
        raise CheckpointError(f"the pickle is truncated or malformed: {error}") from error


def _refusal(name: str) -> CheckpointError:
    return CheckpointError(f"the file wants to use {name}, which no weights need; it was refused and nothing was run")
