"""A published run as a dataset of xarray: lazy, checked, with the names and coordinates that version 7 writes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lsap_archive.errors import ArchiveMismatchError
from lsap_archive.format.arrays import RunArray
from lsap_archive.format.coordinates import IMAGE_ID, coordinate_values, coordinates_of, dimension_names
from lsap_archive.format.shards import run_attributes
from lsap_archive.reading.run_reader import RunReader

if TYPE_CHECKING:
    import xarray

_Index = int | slice | NDArray[np.int64]


def run_dataset(reader: RunReader) -> xarray.Dataset:
    """The run's arrays and coordinates; values are read, and compared with the manifest, when they are asked for.

    Raises:
        ArchiveMismatchError: xarray is not installed.
        CorruptArchiveError: images.parquet is missing or altered.
    """
    try:
        import xarray
        from xarray.backends import BackendArray
        from xarray.core.indexing import ExplicitIndexer, IndexingSupport, LazilyIndexedArray, explicit_indexing_adapter
    except ImportError as error:
        raise ArchiveMismatchError(
            "Archive.dataset needs xarray, which is not installed: pip install 'lsap-archive[xarray]'"
        ) from error

    class Lazy(BackendArray):
        """Values as xarray asks for them."""

        def __init__(self, values: RunValues) -> None:
            self._values = values
            self.shape, self.dtype = values.shape, values.dtype

        def __getitem__(self, key: ExplicitIndexer) -> Any:
            return explicit_indexing_adapter(key, self.shape, IndexingSupport.OUTER, self._values.chosen)

    manifest = reader.manifest
    names = dimension_names(manifest.arrays)
    arrays = {}
    for one in manifest.arrays:
        values = LazilyIndexedArray(Lazy(RunValues(reader, one)))
        arrays[one.name] = xarray.Variable(names[one.name], values, attrs=dict(one.attributes))
    along = {one.name: one.dimension for one in coordinates_of(manifest.arrays, manifest.num_rows)}
    found = coordinate_values(manifest.arrays, reader.images.column(IMAGE_ID).to_pylist())
    coordinates = {name: xarray.Variable((along[name],), of) for name, of in found.items()}
    return xarray.Dataset(arrays, coords=coordinates, attrs=run_attributes(manifest, manifest.generator["digest"]))


class RunValues:
    """An array of a published run, [N, ...], read shard by shard where it is indexed.

    Attributes:
        shape: of all of it.
        dtype: of its values.
    """

    def __init__(self, reader: RunReader, array: RunArray) -> None:
        self._reader = reader
        self._name = array.name
        self.shape = (reader.manifest.num_rows, *array.item_shape)
        self.dtype = np.dtype(array.dtype)

    def chosen(self, key: Sequence[_Index]) -> NDArray[Any]:
        """Values at an index for each dimension, independent of each other; a number takes its dimension away."""
        rows = np.arange(self.shape[0])[key[0]]
        each = np.atleast_1d(rows)
        values = np.empty((len(each), *self.shape[1:]), self.dtype)
        shards = each // self._reader.manifest.shard_rows
        for shard in np.unique(shards):
            where = np.flatnonzero(shards == shard)
            first, last = int(each[where].min()), int(each[where].max())
            values[where] = self._reader.array(self._name, range(first, last + 1))[each[where] - first]
        for axis in reversed(range(1, len(key))):  # the last first, as it may go
            values = values[(*[slice(None)] * axis, key[axis])]
        return values if rows.ndim else values[0]
