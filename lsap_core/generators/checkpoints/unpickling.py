"""Pickled weights, read without running anything that the file brings along.

A pickle is a program: it names functions and calls them. The programs of published generators name two dozen
harmless things. Here those names stand for inert records (a tensor is the bytes of its storage, an offset and
a shape), and every other name for an empty object, by which the file is refused once it is known at which of its
entries that object stands. Nothing is computed until the records of the wanted network become tensors.

Files of `torch.save` are read by PyTorch's own restricted loader, and as records where that refuses them: a NumPy
number among the options, or a whole network instead of its `state_dict`, is no reason to lose the weights. A network is
known by its attributes, whatever its class is called, and becomes what its `state_dict` would be.
"""

from __future__ import annotations

import argparse
import io
import pickle
import pickletools
import re
import struct
import threading
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Set
from pathlib import PurePosixPath
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
    "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8",
    "EMPTY_LIST", "APPEND", "APPENDS", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3",
    "EMPTY_DICT", "SETITEM", "SETITEMS", "EMPTY_SET", "ADDITEMS",
    "BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET", "MEMOIZE",
    "GLOBAL", "STACK_GLOBAL", "REDUCE", "NEWOBJ", "BUILD",
})
# fmt: on
_NUMBERS = re.compile(r"[<>=|]?[biuf][1248]")
_OBJECTS = ("O", "O8")
_STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
"""Classes of storages by which `torch.save` tells what numbers they hold."""
_OF_MODULES = ("_parameters", "_buffers", "_modules")
"""Attributes that every `torch.nn.Module` has."""
_OLD_HEADERS = 3
"""Pickles before that of the object in the older format of `torch.save`: magic number, version, system."""
MAX_DEPTH = 64
MAX_MODULES = 10_000
_LOADING = threading.Lock()  # the list of safe globals belongs to the process


class _Record:
    """Something the stream may build but not change: BUILD, which sets attributes, is refused."""

    def __setstate__(self, state: object) -> None:
        raise CheckpointError(f"the file sets attributes on {type(self).__name__}; it was refused")


class StorageBytes(_Record):
    """The bytes of one tensor storage, in PyTorch's own format, unopened."""

    def __init__(self, data: bytes):
        self.data = data


class StoredNumbers(_Record):
    """The numbers of one tensor storage that lies elsewhere in a file of `torch.save`.

    Attributes:
        dtype: of the numbers.
        count: how many the pickle says there are.
        read: gives their bytes, little-endian.
    """

    def __init__(self, dtype: torch.dtype, count: int, read: Callable[[], bytes]):
        self.dtype = dtype
        self.count = count
        self.read = read
        self._typed: torch.storage.TypedStorage | None = None

    def typed(self) -> torch.storage.TypedStorage:
        """The storage, read once.

        Raises:
            CheckpointError: it has another number of bytes than the numbers would take.
        """
        if self._typed is None:
            data = self.read()
            if len(data) != self.count * self.dtype.itemsize:
                raise CheckpointError(
                    f"a storage of {self.count} {self.dtype} has {len(data)} bytes; the file is truncated or damaged"
                )
            bytes_ = torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)
            self._typed = torch.storage.TypedStorage(
                wrap_storage=bytes_.untyped_storage(), dtype=self.dtype, _internal=True
            )
        return self._typed


class TensorRecord(_Record):
    """A tensor as a window on a storage, not yet made."""

    def __init__(
        self, storage: StorageBytes | StoredNumbers, offset: int, shape: tuple[int, ...], stride: tuple[int, ...]
    ):
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


class OptionsRecord:
    """An `argparse.Namespace`: the options that a program was called with, by name."""

    def __init__(self, *_: object) -> None:
        self.options: dict[str, Any] = {}

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
            raise CheckpointError("the file holds a Namespace whose options have no names")
        self.options = state


class _Refused:
    """What stands for a name that is not allowed: it takes whatever the stream gives it, and does nothing.

    Attributes:
        name: the name.
        module: parameters, buffers and modules below, and all else, of what proves to be a network of PyTorch; it is
            then data under whatever name. Empty otherwise.
    """

    name = ""
    module: Mapping[str, Any] = MappingProxyType({})

    def __new__(cls, *_: object, **__: object) -> _Refused:
        return object.__new__(cls)

    def __setstate__(self, state: object) -> None:
        """Takes attributes, and drops them but for a network's."""
        if isinstance(state, dict) and all(isinstance(state.get(entry), Mapping) for entry in _OF_MODULES):
            self.module = state

    def __setitem__(self, key: object, value: object) -> None:
        """Takes entries, and drops them."""

    def append(self, *_: object) -> None:
        """Takes what is appended, and drops it."""

    extend = add = append


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
        case ((StorageBytes() | StoredNumbers()) as bytes_, int(start), tuple(sizes), tuple(steps)) if len(
            sizes
        ) == len(steps):
            if all(type(number) is int and number >= 0 for number in (start, *sizes, *steps)):
                return TensorRecord(bytes_, start, sizes, steps)
    raise CheckpointError("the file holds a tensor without a storage, an offset, a shape and strides")


def _parameter(data: object, *_: object) -> TensorRecord:
    if not isinstance(data, TensorRecord):
        raise CheckpointError("the file holds a parameter that is no tensor")
    return data


def _array(*_: object) -> ArrayRecord:
    return ArrayRecord()


def _array_from_buffer(data: object, dtype: object, shape: object, order: object) -> ArrayRecord:
    match (data, dtype, shape, order):
        case (bytes() | bytearray(), _DType(), tuple(), "C" | "F"):
            array = ArrayRecord()
            array.__setstate__((1, shape, dtype, int(order == "F"), bytes(data)))
            return array
    raise CheckpointError("the file holds an array that is not made of plain numbers")


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


def _path(*parts: object) -> str:
    if not all(isinstance(part, str) for part in parts):
        raise CheckpointError("the file holds a path that is not made of text")
    return str(PurePosixPath(*map(str, parts)))


def _device(*parts: object) -> str:
    return ":".join(map(str, parts))


def _size(numbers: object = ()) -> tuple[object, ...]:
    if not isinstance(numbers, tuple | list):
        raise CheckpointError("the file holds a torch.Size that is not made of numbers")
    return tuple(numbers)


def _dictionary(*_: object) -> dict[Any, Any]:
    return {}


def _numpy_names(core: str) -> dict[tuple[str, str], object]:
    return {
        (f"{core}.multiarray", "scalar"): _Named(_scalar),
        (f"{core}.multiarray", "_reconstruct"): _Named(_array),
        (f"{core}.numeric", "_frombuffer"): _Named(_array_from_buffer),
    }


def _inert(module: str, *names: str) -> dict[tuple[str, str], object]:
    """Names that are data by themselves: all that is kept of them is how they are called."""
    return {(module, name): f"{module}.{name}" for name in names}


_PATHS = ("Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath", "PureWindowsPath")
_TYPES = ("int", "float", "bool", "str", "list", "dict")  # as those of a defaultdict
_DTYPES = ("float16", "bfloat16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "bool")


# Module and name both have to match: in newer pickle protocols a name may have dots, which reach inside.
ALLOWED_GLOBALS: Mapping[tuple[str, str], object] = {
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): _Named(_persistent_node),
    ("dnnlib.util", "EasyDict"): dict,
    ("dnnlib", "EasyDict"): dict,
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_parameter"): _Named(_parameter),
    ("torch._utils", "_rebuild_tensor_v2"): _Named(_tensor),
    ("torch.storage", "_load_from_bytes"): _Named(_storage),
    **_numpy_names("numpy.core"),
    **_numpy_names("numpy._core"),
    ("numpy", "dtype"): _Named(_dtype),
    ("numpy", "ndarray"): _Named(_array_type),
    ("_codecs", "encode"): _Named(_encode),
    ("dnnlib.tflib.network", "Network"): TensorFlowNetwork,
    ("builtins", "set"): set,
    ("__builtin__", "set"): set,
    ("collections", "defaultdict"): _Named(_dictionary),
    ("argparse", "Namespace"): OptionsRecord,
    ("torch", "device"): _Named(_device),
    ("torch", "Size"): _Named(_size),
    **{(module, name): _Named(_path) for module in ("pathlib", "pathlib._local") for name in _PATHS},
    **_inert("torch", *_DTYPES),
    **_inert("builtins", *_TYPES),
    **_inert("__builtin__", *_TYPES),
}

Storages = Callable[[str, torch.dtype, int], StoredNumbers]


class _RecordUnpickler(pickle.Unpickler):
    """Builds records; `refused` are the names that are not allowed, in the order in which the stream asked for them."""

    def __init__(self, file: BinaryIO, storages: Storages | None = None):
        super().__init__(file)
        self.refused: list[str] = []
        self._storages = storages

    def find_class(self, module_name: str, global_name: str) -> Any:
        allowed = ALLOWED_GLOBALS.get((module_name, global_name))
        if allowed is None and self._storages is not None and module_name == "torch":
            allowed = _STORAGES.get(global_name)
        if allowed is not None:
            return allowed
        name = f"{module_name.replace('__builtin__', 'builtins')}.{global_name}"
        self.refused.append(name)
        return type("Refused", (_Refused,), {"name": name})

    def persistent_load(self, pid: object) -> StoredNumbers | type[_Refused]:
        match pid:
            case ("storage", torch.dtype() as dtype, str(key), str(), int(count), *_) if self._storages and count >= 0:
                return self._storages(key, dtype, count)
            case ("module", type() as of_network, *_) if self._storages and issubclass(of_network, _Refused):
                return of_network  # older files of `torch.save` bring the source of networks along, which is not read
        raise CheckpointError("the file refers to something else than the numbers of a tensor")

    def load_records(self) -> Any:
        """The object of the stream.

        Raises:
            CheckpointError: it is malformed, or names something that is not allowed.
        """
        try:
            document = super().load()
        except Exception as error:  # bytes of unknown origin can fail in any way; all of them mean a wrong file
            if self.refused:
                raise _refusal(self.refused[0]) from None
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(f"the pickle is malformed: {error}") from error
        if self.refused and (refused := _first_refused(document, self.refused)):
            raise _refusal(*refused)
        return document


def _first_refused(document: object, names: list[str]) -> tuple[str, str | None] | None:
    """The first name in a document that is not allowed, and the entry where it stands; None where it is in none.

    A class is allowed where nothing but networks was made of it. None of all where each of the names is such a class.
    """
    of_networks: set[str] = set()
    for place, value in _entries(document):
        if isinstance(value, _Refused) and value.module:
            of_networks.add(value.name)
        elif isinstance(value, _Refused) or (isinstance(value, type) and issubclass(value, _Refused)):
            return value.name, place
    return next(((name, None) for name in names if name not in of_networks), None)


def _entries(document: object) -> Iterator[tuple[str, object]]:
    """Everything in a document with its place, such as `opts.callbacks.0`, in order."""
    waiting: list[tuple[str, object]] = [("", document)]
    seen: set[int] = set()
    while waiting:
        place, value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        yield place, value
        below = [(f"{place}.{name}" if place else name, inner) for name, inner in _inner(value)]
        waiting += reversed(below)


def _inner(value: object) -> Iterator[tuple[str, object]]:
    match value:
        case Mapping():
            for key, inner in value.items():
                yield str(key)[:80], key
                yield str(key)[:80], inner
        case list() | tuple() | Set():
            yield from ((str(index), inner) for index, inner in enumerate(value))
        case PersistentNode() | TensorFlowNetwork():
            yield from _inner(value.state)
        case _Refused():
            yield from _inner(value.module)
        case OptionsRecord():
            yield from _inner(value.options)
        case ArrayRecord():
            yield "content", value.content


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
    return _RecordUnpickler(io.BytesIO(data)).load_records()


def read_pickle(data: bytes) -> Any:
    """The object of a pickle as `read_torch` gives one: arrays and tensors as tensors, networks as records.

    Args:
        data: the whole pickle; protocols 2 to 5.

    Raises:
        CheckpointError: as `read_records`, or numbers that PyTorch does not know.
    """
    return _plain(read_records(data))


def to_tensor(record: TensorRecord) -> Tensor:
    """The tensor of a record, on the CPU.

    Raises:
        CheckpointError: its storage is no storage, or smaller than the tensor.
    """
    stored = record.storage
    storage = read_torch(stored.data) if isinstance(stored, StorageBytes) else stored.typed()
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
    """The object of a `torch.save` file: tensors, plain containers, `argparse.Namespace`, NVlabs' networks as records.

    Other whole networks become what their `state_dict` would be, NumPy arrays become tensors, NumPy numbers those of
    Python; of paths, devices and number types the text is kept.

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
        with _LOADING, warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
            warnings.filterwarnings("ignore", "Detected pickle protocol")
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # as in `read_records`
        message = str(error).strip()
        if refused := re.search(r"GLOBAL (\S+)|Unsupported (?:operand|class|type)", message):
            try:
                return _plain(_read_torch_records(file))
            except CheckpointError as refusal:
                # PyTorch's message advises to load without restrictions
                raise refusal from None
            except Exception:  # as in `load_records`
                if refused[1]:
                    raise _refusal(refused[1]) from None
        reason = (message.splitlines() or [type(error).__name__])[0][:200]
        raise CheckpointError(f"PyTorch cannot read it, it is truncated or damaged: {reason}") from None


def _read_torch_records(file: BinaryIO) -> Any:
    """The object of a `torch.save` file as records, whichever of its formats it has."""
    file.seek(0)
    if not zipfile.is_zipfile(file):
        return _read_old_torch_records(file)
    with zipfile.ZipFile(file) as archive:
        (program,) = (name for name in archive.namelist() if name.split("/")[1:] == ["data.pkl"])
        folder = program.removesuffix("data.pkl")
        if f"{folder}byteorder" in archive.namelist() and archive.read(f"{folder}byteorder") != b"little":
            raise CheckpointError("the file was written on a big-endian machine: save it again on another")
        data = archive.read(program)

    def read(key: str) -> bytes:
        file.seek(0)
        with zipfile.ZipFile(file) as archive:
            return archive.read(f"{folder}data/{key}")

    _check_opcodes(data, refers=True)
    kept: dict[str, StoredNumbers] = {}

    def storages(key: str, dtype: torch.dtype, count: int) -> StoredNumbers:
        return kept.setdefault(key, StoredNumbers(dtype, count, lambda: read(key)))

    return _RecordUnpickler(io.BytesIO(data), storages).load_records()


def _read_old_torch_records(file: BinaryIO) -> Any:
    """The object of a stream of pickles, behind which the numbers of all storages lie, one after the other."""
    kept: dict[str, tuple[StoredNumbers, int]] = {}
    places: dict[str, tuple[int, int]] = {}

    def storages(key: str, dtype: torch.dtype, count: int) -> StoredNumbers:
        return kept.setdefault(key, (StoredNumbers(dtype, count, lambda: read(key)), dtype.itemsize))[0]

    def read(key: str) -> bytes:
        start, size = places[key]
        file.seek(start)
        return file.read(size)

    file.seek(0)
    for _ in range(_OLD_HEADERS):
        _load_next(file, None)
    document = _load_next(file, storages)
    for key in _load_next(file, None):
        (count,) = struct.unpack("<q", file.read(8))
        places[key] = file.tell(), max(count, 0) * kept[key][1]
        file.seek(places[key][1], io.SEEK_CUR)
    return document


def _load_next(file: BinaryIO, storages: Storages | None) -> Any:
    """The object of the pickle that comes next in a file."""
    start = file.tell()
    for _ in pickletools.genops(file):
        pass
    end = file.tell()
    file.seek(start)
    data = file.read(end - start)
    _check_opcodes(data, refers=storages is not None)
    return _RecordUnpickler(io.BytesIO(data), storages).load_records()


def _plain(value: Any, depth: int = MAX_DEPTH, done: dict[int, Any] | None = None) -> Any:
    """Records of numbers and options as what PyTorch's own loader gives; those of networks stay.

    What stands at several places is made once: a few bytes must not become many.
    """
    done = {} if done is None else done
    if id(value) in done:
        return done[id(value)]
    if depth == 0:
        raise CheckpointError(f"the file is nested more than {MAX_DEPTH} deep, or in itself")

    def below(inner: Any) -> Any:
        return _plain(inner, depth - 1, done)

    result = value
    match value:
        case TensorRecord(storage=StoredNumbers() as storage, shape=shape) if 0 in shape:
            result = torch.empty(shape, dtype=storage.dtype)
        case TensorRecord():
            result = to_tensor(value)
        case ArrayRecord(array=None, content=content):
            result = below(content)
        case ArrayRecord(array=np.ndarray() as array):
            result = _from_array(array)
        case _Refused():
            result = below(dict(_state_of(value, "", set())))
        case OptionsRecord(options=options):
            result = argparse.Namespace(**below(options))
        case dict():
            result = type(value)((name, below(inner)) for name, inner in value.items())
        case list():
            result = [below(inner) for inner in value]
        case tuple():
            result = tuple(below(inner) for inner in value)
    done[id(value)] = result
    return result


def _state_of(network: _Refused, prefix: str, seen: set[int]) -> Iterator[tuple[str, Any]]:
    """What `state_dict` of a network gives: parameters and buffers by dotted name, but those that it would not save."""
    if id(network) in seen or len(seen) > MAX_MODULES:
        raise CheckpointError(
            f"the network's module {prefix[:80]} is nested in itself, shared or one of very many; it was refused: save "
            "the state_dict"
        )
    seen.add(id(network))
    module = network.module
    left_out = module.get("_non_persistent_buffers_set", ())
    for name, value in (*module["_parameters"].items(), *module["_buffers"].items()):
        if value is not None and name not in left_out:
            yield f"{prefix}{name}", value
    for name, below in module["_modules"].items():
        if isinstance(below, _Refused) and below.module:
            yield from _state_of(below, f"{prefix}{name}.", seen)
        elif below is not None:
            raise CheckpointError(
                f"the network's module {prefix}{name} is a {type(below).__name__}; it was refused: save the state_dict"
            )


def _from_array(array: np.ndarray[Any, np.dtype[Any]]) -> Tensor:
    native = array.astype(array.dtype.newbyteorder("="), order="C", copy=True)
    try:
        return torch.from_numpy(native)
    except TypeError as error:
        raise CheckpointError(f"the file holds an array of {array.dtype}, which PyTorch does not know") from error


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


def _check_opcodes(data: bytes, *, refers: bool = False) -> None:
    """Refuse a truncated program, or one with instructions that published checkpoints do not use.

    Args:
        data: the program.
        refers: whether it may refer to storages beside it, as in files of `torch.save`.
    """
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(data)):
            if opcode.name == "INST":
                raise _refusal(str(argument).replace(" ", "."))
            if opcode.name not in _PLAIN_OPCODES and not (refers and opcode.name == "BINPERSID"):
                raise CheckpointError(f"the pickle has a {opcode.name} instruction; it was refused")
            if opcode.name in {"BINPUT", "LONG_BINPUT"} and isinstance(argument, int) and argument > count:
                raise CheckpointError("the pickle reserves more memory than it can use; it was refused")
    except CheckpointError:
        raise
    except Exception as error:  # as in `read_records`
        raise CheckpointError(f"the pickle is truncated or malformed: {error}") from error


def _refusal(name: str, place: str | None = None) -> CheckpointError:
    if place == "":
        return CheckpointError(
            f"the file wants to use {name}, which is all that it holds; it was refused and nothing was run: save the "
            "weights alone, as a state_dict"
        )
    where = "whose program is not known" if place is None else f"at its entry {place[:200]}"
    return CheckpointError(
        f"the file wants to use {name}, {where}; it was refused and nothing was run: numbers, text, arrays and tensors "
        "are read, so save the file again without it, of a whole network its state_dict alone"
    )
