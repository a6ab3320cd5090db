"""An index of codes by FAISS: one bit of each number of a code (RaBitQ), all of them compared at each question.

It needs neither clustering nor a graph, so it is made in the time that reading the codes takes, has 3 % of their bytes,
and its recall hangs little on how codes are spread (Gao and Long, RaBitQ, 2024). What FAISS would write into a file of
its own is kept as arrays: an archive may come from anybody, and their sizes are checked before FAISS sees them.
"""

from __future__ import annotations

from collections.abc import Iterable
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lsap_archive.errors import ArchiveMismatchError
from lsap_archive.format.code_index import CodeIndex
from lsap_archive.reading.nearest.exact import Block
from lsap_archive.reading.nearest.spaces import LENGTH_FLOOR, Metric

CANDIDATES = 2000
"""Codes that the index proposes at least; these are compared exactly."""
_CANDIDATES_EACH = 50  # for one that is asked for
_QUERY_BITS = 4


def faiss() -> ModuleType:
    """The library.

    Raises:
        ArchiveMismatchError: it is not installed.
    """
    try:
        import faiss as library
    except ImportError as error:
        raise ArchiveMismatchError(
            f"an index needs FAISS, which cannot be loaded here ({error}): pip install 'lsap-archive[index]'; exact "
            "answers need none"
        ) from error
    return library


def library_version() -> str:
    """Name and version of what makes an index and can read it."""
    return f"faiss {'.'.join(faiss().__version__.split('.')[:2])}"


def encoded(blocks: Iterable[Block], count: int, center: NDArray[np.float32], metric: Metric) -> NDArray[np.uint8]:
    """Codes of all vectors, [count, bytes], uint8, by position.

    Args:
        blocks: all vectors.
        count: how many there are.
        center: what is subtracted first, [V].
        metric: "cosine" encodes directions.
    """
    empty = _quantizer(center)
    found = np.empty((count, empty.code_size), dtype=np.uint8)
    for block in blocks:
        found[block.positions] = empty.sa_encode(compared(block.vectors, metric))
    return found


def compared(vectors: NDArray[np.floating], metric: Metric) -> NDArray[np.float32]:
    """Vectors whose Euclidean distances are in the order of the metric: as they are, or divided by their lengths."""
    if metric == "cosine":
        vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), LENGTH_FLOOR)
    return np.ascontiguousarray(vectors, dtype=np.float32)


class OpenIndex:
    """An index in memory; may be asked by several threads."""

    def __init__(self, index: CodeIndex) -> None:
        """Raises ArchiveMismatchError: the installed library makes codes of another size."""
        self.info = index.info
        self._quantizer = _quantizer(index.center)
        if index.codes.shape[1] != self._quantizer.code_size:
            raise ArchiveMismatchError(
                f"index {index.info.kept_as} has codes of {index.codes.shape[1]} bytes, {library_version()} makes such "
                f"of {self._quantizer.code_size}: make it again (`lsap-archive index`)"
            )
        faiss().copy_array_to_vector(np.ascontiguousarray(index.codes).ravel(), self._quantizer.codes)
        self._quantizer.ntotal = len(index.codes)

    def candidates(self, targets: NDArray[np.float64], k: int, metric: Metric) -> list[NDArray[np.int64]]:
        """Positions of codes that may be among the k nearest to each target, ascending."""
        count = min(max(CANDIDATES, _CANDIDATES_EACH * k), self._quantizer.ntotal)
        _, found = self._quantizer.search(compared(targets, metric), count)
        return [np.unique(one[one >= 0]) for one in found]


def _quantizer(center: NDArray[np.float32]) -> Any:
    library = faiss()
    found = library.IndexRaBitQ(len(center), library.METRIC_L2)
    library.copy_array_to_vector(np.ascontiguousarray(center), found.center)
    found.qb = _QUERY_BITS
    found.is_trained = True
    return found
