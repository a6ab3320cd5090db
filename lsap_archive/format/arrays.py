"""What a run keeps of each image beside its row: arrays, which its plan and its manifest declare.

Whoever writes, reads, verifies or repairs a run knows its arrays from this declaration alone.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np

from lsap_archive.errors import ArchiveMismatchError
from lsap_archive.format.documents import ONLY_FIELDS, Claim, Count, Size, as_json, typed
from lsap_archive.format.layout import LARGEST_ITEM_BYTES, TRACE, W_PLUS, Geometry, noise_name

DTYPES = ("float32", "float16", "uint8")
NO_COMPRESSION, LZ4_BITS, ZSTD_BYTES = "none", "lz4_bits", "zstd_bytes"
COMPRESSIONS = (NO_COMPRESSION, LZ4_BITS, ZSTD_BYTES)
"""LZ4 of transposed bits, or Zstandard of transposed bytes, both by Blosc: see `lsap_archive.format.chunks`."""
_TRACED = tuple[tuple[Count, ...], tuple[str, ...]]  # steps and terms
_NAME = re.compile(r"(?!(rows|images)$)[a-z][a-z0-9_]{0,63}")  # rows and images lie in the same folder


@dataclass(frozen=True)
class RunArray:
    """One array of a run.

    Attributes:
        name: name in the run's Zarr group: a small letter, then small letters, digits and underscores.
        item_shape: shape of one image's part, e.g. (K, D).
        dimensions: a name for each of its dimensions, e.g. ("layer", "channel").
        dtype: "float32" or "float16", which hold NaN where a row is not ok, or "uint8", which holds 0 there.
        is_needed: whether every shard with an ok row has it; a shard may be without one that is not.
        has_gaps: whether an ok row may hold values that are not finite, as a trace that ended early.
        attributes: what readers of the array want to know, JSON values.
        compression: of its chunks, one of COMPRESSIONS. A run that is started with "none" gets what pays for the dtype.
        chunk_rows: rows of a chunk, or None: whoever starts the run decides, and before version 6 there were 16.

    Raises:
        ArchiveMismatchError: any of this does not hold.
    """

    __pydantic_config__: ClassVar = ONLY_FIELDS
    name: str
    item_shape: tuple[Size, ...]
    dimensions: tuple[str, ...]
    dtype: str = "float32"
    is_needed: Claim = True
    has_gaps: Claim = False
    attributes: dict[str, Any] = field(default_factory=dict)
    compression: str = NO_COMPRESSION
    chunk_rows: Size | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "item_shape", tuple(int(side) for side in self.item_shape))
        object.__setattr__(self, "dimensions", tuple(self.dimensions))
        attributes = as_json(self.attributes, f"attributes of array {self.name}")
        in_order = json.loads(json.dumps(attributes, sort_keys=True))  # as a manifest gives them back, for equal bytes
        object.__setattr__(self, "attributes", in_order)
        is_shape = len(self.item_shape) == len(self.dimensions) and all(side > 0 for side in self.item_shape)
        if not _NAME.fullmatch(self.name) or not is_shape or self.dtype not in DTYPES:
            raise ArchiveMismatchError(
                f"{self}: a name such as 'noise_00', sides of at least 1, each of them named, and a dtype of "
                f"{', '.join(DTYPES)} are wanted"
            )
        if self.compression not in COMPRESSIONS or (self.chunk_rows is not None and self.chunk_rows < 1):
            raise ArchiveMismatchError(
                f"array {self.name} has chunks of {self.chunk_rows} rows, compressed by {self.compression!r}: at least "
                f"1, and one of {', '.join(COMPRESSIONS)} are wanted"
            )
        num_bytes = np.dtype(self.dtype).itemsize * math.prod(self.item_shape)
        if num_bytes > LARGEST_ITEM_BYTES:
            raise ArchiveMismatchError(
                f"array {self.name} is {num_bytes} bytes of each image {list(self.item_shape)}; at most "
                f"{LARGEST_ITEM_BYTES} are wanted"
            )

    @property
    def fill_value(self) -> float:
        """What stands where a row is not ok."""
        return 0 if self.dtype == "uint8" else float("nan")


def as_before(array: RunArray) -> RunArray:
    """What an array holds, without how it lies in its objects: as versions before 6 declared and stored it."""
    return replace(array, compression=NO_COMPRESSION, chunk_rows=None)


def code_arrays(geometry: Geometry) -> tuple[RunArray, ...]:
    """The W+ codes, which every run has."""
    return (RunArray(W_PLUS, (geometry.num_ws, geometry.w_dim), ("layer", "channel")),)


def noise_arrays(geometry: Geometry, dtype: str = "float32") -> tuple[RunArray, ...]:
    """Noise maps of every image's own, one array for each convolution. An edit has none: they are its subject's.

    Args:
        geometry: of the archive.
        dtype: "float32", or "float16" for half the bytes.
    """
    sizes = enumerate(geometry.noise_sizes)
    return tuple(RunArray(noise_name(index), size, ("y", "x"), dtype) for index, size in sizes)


def trace_arrays(steps: Sequence[int], terms: Sequence[str]) -> tuple[RunArray, ...]:
    """The objective along an optimization; no array without steps and terms.

    Args:
        steps: at which it is kept, counted from 0.
        terms: names of what it consists of.

    Raises:
        ArchiveMismatchError: there are steps and no terms, or terms and no steps.
    """
    if bool(steps) != bool(terms):
        raise ArchiveMismatchError(f"{len(steps)} trace steps and {len(terms)} terms: give both or neither")
    if not steps:
        return ()
    attributes = {"steps": [int(step) for step in steps], "terms": list(terms)}
    shape = (len(steps), len(terms))
    return (RunArray(TRACE, shape, ("step", "term"), is_needed=False, has_gaps=True, attributes=attributes),)


def trace_of(arrays: Collection[RunArray]) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Steps and terms of the trace among some arrays; empty where there is none."""
    for array in arrays:
        if array.name == TRACE:
            steps, terms = (array.attributes.get(name, ()) for name in ("steps", "terms"))
            found: tuple[tuple[int, ...], tuple[str, ...]] = typed(_TRACED, (steps, terms), f"the array {TRACE}")
            return found
    return (), ()


def declared_arrays(values: Mapping[str, Any], geometry: Geometry, where: str) -> tuple[RunArray, ...]:
    """The arrays that a plan or manifest declares.

    Before version 4 they did not: they had codes, noise maps where they were no edits, kept or not, and the trace whose
    steps and terms they told.

    Args:
        values: the document.
        geometry: of the archive.
        where: its name, for the message.

    Raises:
        ArchiveMismatchError, CorruptArchiveError: what it declares is no array.
    """
    if "arrays" in values:
        declared: tuple[RunArray, ...] = typed(tuple[RunArray, ...], values["arrays"], f"{where}: arrays")
        return declared
    noise = () if values.get("subject") else noise_arrays(geometry)
    steps, terms = typed(_TRACED, (values.get("trace_steps"), values.get("trace_terms")), f"{where}: trace")
    trace = trace_arrays(steps, terms)
    return (*code_arrays(geometry), *(replace(one, is_needed=False) for one in noise), *trace)


def check_arrays(arrays: Sequence[RunArray], geometry: Geometry, where: str) -> None:
    """Refuse arrays that are not of this geometry: there are codes, and codes and noise maps have its sizes.

    Raises:
        ArchiveMismatchError: it is so.
    """
    shapes = {one.name: one.item_shape for one in (*code_arrays(geometry), *noise_arrays(geometry))}
    found = {one.name: one.item_shape for one in arrays}
    if W_PLUS not in found:
        raise ArchiveMismatchError(f"{where} has no array {W_PLUS}: declare code_arrays(geometry) too")
    for name in shapes.keys() & found.keys():
        if found[name] != shapes[name]:
            raise ArchiveMismatchError(
                f"{where}: {name} of an image is {found[name]}, the archive holds {shapes[name]}: "
                "declare the arrays of its geometry"
            )
