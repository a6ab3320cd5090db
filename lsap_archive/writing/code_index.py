"""Making the index that finds nearest codes sooner."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lsap_archive.errors import ArchiveMismatchError
from lsap_archive.format.code_index import CodeIndex, IndexInfo
from lsap_archive.format.documents import utc_now
from lsap_archive.format.layout import INDEXES_PREFIX, index_key
from lsap_archive.reading.nearest.exact import Block, nearest_in
from lsap_archive.reading.nearest.index import OpenIndex, compared, encoded, library_version
from lsap_archive.reading.nearest.spaces import Metric, Space, check_asked
from lsap_archive.reading.opening import open_archive
from lsap_archive.stores.store import Store

_TOGETHER = 2**14  # codes that are encoded at once
_ASKED, _NEAREST = 100, 10


def build_index(
    url: str,
    method: str,
    storage_options: Mapping[str, Any] | None = None,
    *,
    space: Space = "w_plus",
    metric: Metric = "euclidean",
) -> IndexInfo:
    """Make the index of a method's codes as they are now, in the place of older ones, and measure what it finds.

    Its recall is measured against the exact answers to 100 questions. The codes are read once, or three times where
    they take more than half of the free memory. Readers see the index whole or not at all.

    Args:
        url: of the archive.
        method: name or digest of the method; who asks `nearest` calls it the same.
        storage_options: what the store's client takes.
        space: as in `Archive.nearest`.
        metric: likewise.

    Returns:
        What was made, with its recall.

    Raises:
        ArchiveKeyError: an unknown method.
        ArchiveMismatchError: an unknown space or metric, no codes, or the library is not installed.
        ArchiveNotFoundError: no archive is there, or for S^N it lacks the layers of its generator.
        CorruptArchiveError: an object is missing or damaged.
        StoreRefusedError: this process may not write there.
    """
    check_asked(space, metric)
    library = library_version()
    archive = open_archive(url, storage_options)
    codes = archive.nearest_codes
    stored, vectors = codes.stored(method), codes.vectors(space)
    if not len(stored):
        raise ArchiveMismatchError(f"{url} has no code of {method}: there is nothing to index")
    store = Store.from_url(url, storage_options)
    store.check_writable()
    name, beginning = codes.index_names(method, space, metric)
    resident = codes.resident(method, space)

    def blocks() -> Iterator[Block]:
        return stored.blocks(vectors) if resident is None else resident.parts(_TOGETHER)

    center = _mean(blocks(), metric)
    signs = encoded(blocks(), len(stored), center, metric)
    asked = _some(len(stored), _ASKED)
    info = IndexInfo(name, method, space, metric, len(stored), vectors.size, library, 0.0, len(asked), utc_now())
    index = CodeIndex(info, signs, center)
    recall = _recall(OpenIndex(index), blocks(), asked, stored.at(asked, vectors).astype(np.float64), metric)
    index = replace(index, info=replace(info, recall=recall))
    store.put(index_key(name), index.encode())
    for key in store.keys(INDEXES_PREFIX):
        if key.split("/")[1].startswith(beginning) and key != index_key(name):
            store.delete(key)
    return index.info


def _mean(blocks: Iterable[Block], metric: Metric) -> NDArray[np.float32]:
    """Mean [V] of all vectors as they are compared; what is subtracted before signs are taken."""
    sums, count = None, 0
    for block in blocks:
        of_block = compared(block.vectors, metric).sum(axis=0, dtype=np.float64)
        sums, count = of_block if sums is None else sums + of_block, count + len(block.positions)
    assert sums is not None
    means: NDArray[np.float64] = sums / count
    return means.astype(np.float32)


def _recall(
    index: OpenIndex,
    blocks: Iterable[Block],
    asked: NDArray[np.int64],
    targets: NDArray[np.float64],
    metric: Metric,
) -> float:
    """Of the 10 nearest others of each code that is asked about, the share that the index proposes, and so finds."""
    nearest = _NEAREST + 1  # each code is its own nearest
    exact = nearest_in(blocks, targets, nearest, metric)
    proposed = index.candidates(targets, nearest, metric)
    shares = []
    for found, position, candidates in zip(exact, asked.tolist(), proposed, strict=True):
        order = np.lexsort((found.positions, found.distances))[:nearest]
        others = found.positions[order][found.positions[order] != position]
        if len(others):
            shares.append(float(np.isin(others, candidates).mean()))
    return float(np.mean(shares)) if shares else 1.0


def _some(count: int, wanted: int) -> NDArray[np.int64]:
    """Positions of some codes of all, drawn by a fixed seed, ascending."""
    if count <= wanted:
        return np.arange(count)
    drawn: NDArray[np.int64] = np.random.default_rng(0).choice(count, wanted, replace=False)
    return np.sort(drawn)
