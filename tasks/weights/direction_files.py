"""What files of directions hold, in every layout that circulates, before it is fitted to a generator."""

from __future__ import annotations

import hashlib
import io
import json
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from lsap_core.editing import Components, Direction
from lsap_core.errors import CheckpointError, ShapeError
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

KINDS = "a .safetensors of this project, or an array in a .pt, .npy, .npz or .pkl file"
DIRECTION, COMPONENTS = "direction", "components"
FORMAT_VERSION = "1"
TENSORS = ("vectors", "deviations", "eigenvalues", "mean")

MOST_ROWS = 2 * 16  # rows of W+ of generators that anybody has: 18 at 1024 pixels

Subject = TypeVar("Subject", Direction, Components)

_NUMPY = b"\x93NUMPY"
_PLACE = re.compile(r"(?P<file>.+\.(?:pt|pth|npy|npz|pkl|safetensors))#(?P<entry>.+)", re.IGNORECASE | re.DOTALL)
_MOST_NAMES = 12


class ComponentsLayout(NamedTuple):
    """Names under which a program writes components.

    Attributes:
        kind: of the components.
        vectors: the name of [M, D], or [M, 1, D].
        of_columns: whether they are [D, M] instead.
        mean: [D], of "pca".
        deviations: [M], of "pca".
        eigenvalues: [M], of "sefa"; may be missing.
        program: whose layout it is.
    """

    kind: Literal["pca", "sefa"]
    vectors: str
    program: str
    of_columns: bool = False
    mean: str | None = None
    deviations: str | None = None
    eigenvalues: str | None = None

    @property
    def needed(self) -> set[str]:
        """Names without which it is another layout."""
        return {name for name in (self.vectors, self.mean, self.deviations) if name is not None}


COMPONENTS_LAYOUTS = (
    ComponentsLayout("pca", "comp", "GANSpace, as editors pass it on", mean="mean", deviations="std"),
    ComponentsLayout("pca", "lat_comp", "GANSpace's own cache", mean="lat_mean", deviations="lat_stdev"),
    ComponentsLayout("sefa", "eigvec", "closed-form factorization (rosinality)", of_columns=True, eigenvalues="eigval"),
    ComponentsLayout("sefa", "boundaries", "SeFa", eigenvalues="eigen_values"),
)


@dataclass(frozen=True)
class Foreign:
    """A direction as another program wrote it, before a generator says which space it belongs to.

    Attributes:
        name: of the entry, or of the file.
        array: one array, with axes of length 1 still there; None of a list.
        vectors: style vectors, or rows of a code, in a list.
        file_sha256: of the file.
    """

    name: str
    array: Tensor | None
    vectors: tuple[Tensor, ...]
    file_sha256: str

    @property
    def rows(self) -> Tensor:
        """The array as [rows, width].

        Raises:
            ShapeError: it has more axes.
        """
        assert self.array is not None
        shape = [side for side in self.array.shape[:-1] if side != 1]
        if self.array.ndim == 0 or len(shape) > 1:
            raise ShapeError(
                f'"{self.name}" is {list(self.array.shape)}; wanted [D], [1, D], [K, D], [1, K, D] or [1, K * D], or '
                "style vectors in a list; of many in one array name one, FILE#INDEX"
            )
        return self.array.reshape(-1, self.array.shape[-1])


@dataclass(frozen=True)
class Several:
    """A file of many directions, of which one has to be chosen.

    Attributes:
        entries: by name.
    """

    entries: Mapping[str, Foreign]

    def choose(self, entry: str | None) -> Foreign:
        """The direction of a name.

        Raises:
            CheckpointError: none is named, or there is no such one.
        """
        if entry is not None and entry in self.entries:
            return self.entries[entry]
        names = ", ".join(list(self.entries)[:_MOST_NAMES]) + (", ..." if len(self.entries) > _MOST_NAMES else "")
        missing = "" if entry is None else f', and none is "{entry}"'
        raise CheckpointError(f"it holds {len(self.entries)} directions ({names}){missing}: choose one, as FILE#NAME")


def split_place(asked: str) -> tuple[str, str | None]:
    """The file, and the entry of it that is meant: "directions.pt#smile" is ("directions.pt", "smile")."""
    match = _PLACE.fullmatch(asked)
    return (match["file"], match["entry"]) if match else (asked, None)


def file_digest(data: bytes) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(data).hexdigest()


def read_subject(data: bytes, *, name: str, entry: str | None = None) -> Direction | Components | Foreign | Several:
    """What a file holds, or one entry of it.

    Args:
        data: the file.
        name: of a direction that has none of its own.
        entry: which of many, or None for all that there is.

    Raises:
        CheckpointError: neither directions nor components, or no such entry.
        ShapeError, ConfigError: they cannot be right.
    """
    document = read_document(data)
    if isinstance(document, tuple):  # of ours
        if entry is not None:
            raise CheckpointError(f'it holds one thing, none is named "{entry}": leave #{entry} out')
        return _ours(*document)
    if isinstance(document, Mapping):
        layouts = [one for one in COMPONENTS_LAYOUTS if one.needed <= set(document)]
        if layouts and entry is None:
            return _components(document, layouts[0], file_digest(data))
    found = _entries(document, name, file_digest(data))
    if isinstance(found, Foreign):
        return found if entry is None else _row_of(found, entry)
    return found if entry is None else found.choose(entry)


def read_components(data: bytes) -> Components:
    """The components of a file.

    Raises:
        CheckpointError: there are none.
    """
    found = read_subject(data, name="")
    if not isinstance(found, Components):
        what = "several directions" if isinstance(found, Several) else "one direction"
        raise CheckpointError(f"it holds {what}, not components: name it as `direction`")
    return found


def read_direction(data: bytes, *, name: str, entry: str | None = None) -> Direction | Foreign:
    """The direction of a file.

    Raises:
        CheckpointError: there is none, or one has to be chosen.
    """
    found = read_subject(data, name=name, entry=entry)
    if isinstance(found, Components):
        raise CheckpointError("it holds components, not one direction: name it as `components`, with a component")
    return found.choose(None) if isinstance(found, Several) else found


# --- layouts ------------------------------------------------------------------------------------------


def read_document(data: bytes) -> Any:
    """What a file holds: (tensors, metadata) of a .safetensors, else an array, a list, or a mapping of names to such.

    Raises:
        CheckpointError: nothing that can be read without running what it says.
    """
    if data.startswith(_NUMPY):
        return _read_numpy(data)
    if _is_npz(data):
        return dict(_read_numpy(data))
    if is_torch_file(data):
        check_torch_zip(data, wanted=KINDS)
        return read_torch(data)
    if is_safetensors(data):
        return read_safetensors(data)
    if is_pickle(data):
        return read_pickle(data)
    raise CheckpointError(f"it is {describe_other(data)}; wanted {KINDS}")


def _entries(document: Any, name: str, sha256: str) -> Foreign | Several:
    """One direction, or many by name."""
    if not isinstance(document, Mapping):
        return _foreign(document, name, sha256)
    arrays = dict(_arrays_in(document))
    if not arrays:
        names = ", ".join(map(str, list(document)[:4])) or "nothing"
        raise CheckpointError(f"it holds {names}; wanted arrays: {KINDS}")
    if len(arrays) == 1:
        return _foreign(next(iter(arrays.values())), name, sha256)
    if vectors := _numbered(arrays):
        return _foreign(vectors, name, sha256)
    return Several({entry: _foreign(value, entry, sha256) for entry, value in arrays.items()})


def _arrays_in(document: Mapping[Any, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Arrays, and lists of them, by name; those of mappings inside by "outer.inner". One number is company of them."""
    found: list[tuple[str, Any]] = []
    for key, value in document.items():
        if isinstance(value, Mapping):
            found += _arrays_in(value, f"{prefix}{key}.")
        elif (isinstance(value, np.ndarray | Tensor) and _size(value) > 1) or _is_list_of_arrays(value):
            found.append((f"{prefix}{key}", value))
    return found


def _numbered(arrays: Mapping[str, Any]) -> list[Any] | None:
    """The style vectors that `np.savez(file, *vectors)` wrote as arr_0, arr_1, ...: vectors of several widths."""
    in_order = [f"arr_{index}" for index in range(len(arrays))]
    if set(arrays) != set(in_order):
        return None
    vectors = [arrays[name] for name in in_order]
    are_vectors = all(not isinstance(one, list | tuple) and max(one.shape) == _size(one) for one in vectors)
    return vectors if are_vectors and len({_size(one) for one in vectors}) > 1 else None


def _size(array: Any) -> int:
    return int(array.numel() if isinstance(array, Tensor) else array.size)


def _is_list_of_arrays(value: Any) -> bool:
    is_list = isinstance(value, list | tuple) and bool(value)
    return is_list and all(isinstance(one, np.ndarray | Tensor) and one.ndim for one in value)


def _foreign(value: Any, name: str, sha256: str) -> Foreign:
    if _is_list_of_arrays(value):
        vectors = tuple(numbers_of(one) for one in value)
        if len(vectors) == 1:
            return Foreign(name, vectors[0], (), sha256)
        if long := [vector for vector in vectors if max(vector.shape) != vector.numel()]:
            raise ShapeError(
                f'"{name}" is a list with an array of {list(long[0].shape)} in it; wanted a style vector for each layer'
            )
        return Foreign(name, None, vectors, sha256)
    return Foreign(name, numbers_of(value), (), sha256)


def _row_of(found: Foreign, entry: str) -> Foreign:
    """A direction of many that lie one under the other in one array, by its index."""
    count = len(found.array) if found.array is not None and found.array.ndim > 1 else 0
    if not entry.isdecimal() or int(entry) >= count:
        wanted = f"an index from 0 to {count - 1}" if count > 1 else "no entry: leave it out"
        raise CheckpointError(f'it holds one array, and "{entry}" was asked for; wanted {wanted}')
    assert found.array is not None
    return Foreign(f"{found.name}_{entry}", found.array[int(entry)], (), found.file_sha256)


def _components(document: Mapping[str, Any], layout: ComponentsLayout, sha256: str) -> Components:
    given = {
        name: numbers_of(document[key]).flatten()
        for name, key in (
            ("mean", layout.mean),
            ("deviations", layout.deviations),
            ("eigenvalues", layout.eigenvalues),
        )
        if key is not None and key in document
    }
    vectors = numbers_of(document[layout.vectors])
    if vectors.ndim < 2:
        raise ShapeError(f"{layout.vectors} is {list(vectors.shape)}; wanted components [M, D] or [M, 1, D]")
    vectors = vectors.T if layout.of_columns and vectors.ndim == 2 else vectors.flatten(1)
    provenance = {"file_sha256": sha256, "layout": layout.program}
    if layout.kind == "pca" and _looks_like_z(given):
        provenance["note"] = "its mean is 0 and its deviations 1, as in Z: GANSpace finds components of W with --use_w"
    return Components(layout.kind, vectors.contiguous(), provenance=provenance, **given)  # type: ignore[arg-type]


def _looks_like_z(given: Mapping[str, Tensor]) -> bool:
    """Whether sampled codes were standard normal."""
    mean, deviations = given["mean"], given["deviations"]
    return bool(mean.abs().max() < 0.02) and bool(((deviations - 1).abs() < 0.1).all())


def _ours(tensors: dict[str, Tensor], metadata: dict[str, str]) -> Direction | Components:
    kind = metadata.get("kind", "none")
    version = metadata.get("format_version")
    if kind not in (DIRECTION, COMPONENTS):
        raise CheckpointError(f'it is a safetensors file of kind "{kind}"; wanted {KINDS}')
    if version != FORMAT_VERSION:
        raise CheckpointError(f"its format version is {version}; this library reads {FORMAT_VERSION}: update it")
    return _direction_of_ours(tensors, metadata) if kind == DIRECTION else _components_of_ours(tensors, metadata)


def _direction_of_ours(tensors: dict[str, Tensor], metadata: dict[str, str]) -> Direction:
    if set(tensors) != {"vectors"} or metadata.get("space") not in ("w", "w_plus"):
        raise CheckpointError(f"it is damaged: a direction with {', '.join(tensors) or 'no tensor'}")
    direction = Direction(
        metadata.get("name", ""),
        tensors["vectors"],
        metadata.get("generator") or None,
        metadata["space"],  # type: ignore[arg-type]
        _json(metadata.get("provenance", "{}")),
    )
    return _undamaged(direction, metadata)


def _components_of_ours(tensors: dict[str, Tensor], metadata: dict[str, str]) -> Components:
    if set(tensors) - set(TENSORS) or "vectors" not in tensors or metadata.get("components") not in ("pca", "sefa"):
        raise CheckpointError(f"it is damaged: components with {', '.join(tensors) or 'no tensor'}")
    layers = _json(metadata.get("layers", "null"))
    components = Components(
        metadata["components"],  # type: ignore[arg-type]
        **tensors,
        layers=layers and tuple(layers),
        generator=metadata.get("generator") or None,
        provenance=_json(metadata.get("provenance", "{}")),
    )
    return _undamaged(components, metadata)


def _undamaged(subject: Subject, metadata: Mapping[str, str]) -> Subject:
    if metadata.get("digest") != subject.digest:
        raise CheckpointError(
            f"it is damaged: its numbers have digest {subject.digest}, {metadata.get('digest')} was written; "
            "make it again"
        )
    return subject


# --- arrays -------------------------------------------------------------------------------------------


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


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise CheckpointError(f"its metadata {text[:80]!r} are no JSON") from error
