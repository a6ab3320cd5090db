"""What a run's Zarr group says beside its arrays, so that `xarray.open_zarr` opens it: dimension names and coordinates.

xarray wants a name to have one size in a whole group, and finds what stands along a dimension in arrays of their own:
`image_id` along `image`; `step` and `term` along the trace. Runs of format version 7 are begun with both. Coordinates
are stored without compression, so their bytes follow from the plan whatever wrote them.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lsap_archive.format.arrays import RunArray, trace_of
from lsap_archive.format.layout import TRACE, W_PLUS, chunk_name

IMAGE = "image"
"""The dimension that every array begins with."""
IMAGE_ID, STEP, TERM = "image_id", "step", "term"
COORDINATES = (IMAGE_ID, STEP, TERM)
"""Names of the group that are no arrays of a plan."""
COORDINATE_CHUNKS = tuple(chunk_name(name, 0, 1) for name in COORDINATES)
"""The one object of values that a coordinate has, relative to the run's folder."""

_NAMED_ALIKE = (W_PLUS, TRACE)  # in every run, whatever it keeps beside


@dataclass(frozen=True)
class Coordinate:
    """What stands along a dimension of a run.

    Attributes:
        name: COORDINATES has them.
        dimension: along which it stands.
        dtype: "string" or "int64".
        size: how many values.
    """

    name: str
    dimension: str
    dtype: str
    size: int


def coordinates_of(arrays: Collection[RunArray], num_rows: int) -> tuple[Coordinate, ...]:
    """The coordinates that a run of these arrays has: `image_id`, and with a trace its steps and terms."""
    found = [Coordinate(IMAGE_ID, IMAGE, "string", num_rows)]
    if _has_named_trace(arrays):
        steps, terms = trace_of(arrays)
        found += [Coordinate(STEP, STEP, "int64", len(steps)), Coordinate(TERM, TERM, "string", len(terms))]
    return tuple(found)


def coordinate_values(arrays: Collection[RunArray], image_ids: Sequence[str]) -> dict[str, NDArray[np.generic]]:
    """Values of those coordinates by name, each one-dimensional; texts are numpy's `StringDType`.

    Args:
        arrays: of the run.
        image_ids: of its rows, in their order.
    """
    texts = np.dtypes.StringDType()
    found: dict[str, NDArray[np.generic]] = {IMAGE_ID: np.array(list(image_ids), dtype=texts)}
    if _has_named_trace(arrays):
        steps, terms = trace_of(arrays)
        found |= {STEP: np.array(steps, dtype=np.int64), TERM: np.array(terms, dtype=texts)}
    return found


def dimension_names(arrays: Collection[RunArray]) -> dict[str, tuple[str, ...]]:
    """Names of the dimensions of each array in the run's group, `image` first; no name has two sizes.

    A dimension is called as its array declares it. Where arrays of a run declare one name with several sizes, as noise
    maps do, the size is added: `y_4`, `y_8`. Codes and trace keep the declared names, so these are alike in every run.

    Args:
        arrays: of the run.
    """
    sizes: dict[str, set[int]] = defaultdict(set)
    for array in arrays:
        for dimension, size in zip(array.dimensions, array.item_shape, strict=True):
            sizes[dimension].add(size)
    reserved = {IMAGE, *COORDINATES, *(array.name for array in arrays)}
    claimed: dict[str, int] = {}
    found: dict[str, tuple[str, ...]] = {}
    for array in sorted(arrays, key=lambda one: one.name not in _NAMED_ALIKE):
        names: list[str] = []
        for dimension, size in zip(array.dimensions, array.item_shape, strict=True):
            if array.name in _NAMED_ALIKE and dimension not in (IMAGE, *names):
                name = dimension
            else:
                name = next(
                    one
                    for one in _candidates(array.name, dimension, size)
                    if one not in names
                    and one not in reserved
                    and sizes.get(one, {size}) == {size}
                    and claimed.get(one, size) == size
                )
            claimed[name] = size
            names.append(name)
        found[array.name] = (IMAGE, *names)
    return {array.name: found[array.name] for array in arrays}


def _candidates(array: str, dimension: str, size: int) -> Iterator[str]:
    yield dimension
    yield f"{dimension}_{size}"
    yield f"{array}_{dimension}"
    yield from (f"{array}_{dimension}_{number}" for number in itertools.count(2))


def _has_named_trace(arrays: Collection[RunArray]) -> bool:
    """Whether there is a trace whose every step and term has a name."""
    steps, terms = trace_of(arrays)
    return bool(steps) and any(array.name == TRACE and array.item_shape == (len(steps), len(terms)) for array in arrays)
