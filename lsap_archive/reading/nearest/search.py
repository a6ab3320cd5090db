"""What an archive answers about nearest codes: exactly, from memory or block by block, or by an index."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lsap_archive.errors import ArchiveMismatchError, ArchiveNotFoundError
from lsap_archive.format.code_index import CodeIndex, asked_digest, index_name
from lsap_archive.format.layout import INDEXES_PREFIX, Geometry, index_key
from lsap_archive.format.style_layers import StyleLayers
from lsap_archive.reading.nearest.exact import Block, Found, nearest_in
from lsap_archive.reading.nearest.index import OpenIndex, library_version
from lsap_archive.reading.nearest.memory import share_of_memory
from lsap_archive.reading.nearest.spaces import Metric, Space, Vectors, check_asked
from lsap_archive.reading.nearest.stored import ResidentCodes, StoredCodes, vector_bytes
from lsap_archive.reading.style_layers import read_style_layers
from lsap_archive.stores.store import Store

EXACT, APPROXIMATE = "exact", "approximate"


@dataclass(frozen=True)
class Answer:
    """Nearest codes, and how they were found.

    Attributes:
        found: for each code that was asked about, places and distances; at least k where there are so many.
        about: for people and machines: space, metric, `answer` ("exact" or "approximate"), of an approximate one the
            `recall` of its index, and a `note` where codes did not stay in memory.
    """

    found: list[tuple[NDArray[np.int64], NDArray[np.float64]]]
    about: dict[str, Any]


class NearestCodes:
    """Nearest codes of one archive; may be asked by several threads."""

    def __init__(
        self,
        store: Store,
        generator: Mapping[str, str],
        geometry: Geometry,
        stored: Callable[[str], StoredCodes],
    ) -> None:
        """Nothing is read yet.

        Args:
            store: the archive.
            generator: as its header says.
            geometry: sizes of its codes.
            stored: the codes of a method, by its name or digest.
        """
        self._store = store
        self._generator = generator
        self._geometry = geometry
        self._find_stored = stored
        self._stored: dict[str, StoredCodes] = {}
        self._indexes: dict[str, OpenIndex] = {}
        self._resident = ResidentCodes()
        self._lock = threading.RLock()

    def ask(
        self,
        codes: NDArray[Any],
        k: int,
        method: str,
        space: Space,
        metric: Metric,
        *,
        approximate: bool,
        stay: bool,
    ) -> Answer:
        """The nearest codes to each of some; see `Archive.nearest`."""
        check_asked(space, metric)
        if k < 1:
            raise ArchiveMismatchError(f"k is {k}: at least 1 is wanted")
        stored, vectors = self.stored(method), self.vectors(space)
        targets = vectors.of_targets(codes)
        about: dict[str, Any] = {"space": space, "metric": metric, "answer": EXACT}
        index = self._index(method, space, metric) if approximate else None
        block = self.resident(method, space) if stay else self._resident.get(method, space)
        if stay and block is None:
            about["note"] = _no_room(stored, vectors, method)
        if index is not None:
            about |= {"answer": APPROXIMATE, "recall": index.info.recall}
            found = _compared(index, stored, vectors, block, targets, k, metric)
        else:
            found = nearest_in(stored.blocks(vectors) if block is None else [block], targets, k, metric)
        return Answer([(stored.places[one.positions], one.distances) for one in found], about)

    def stored(self, method: str) -> StoredCodes:
        """Which codes a method has, and where.

        Raises:
            ArchiveKeyError: there is no such method.
        """
        with self._lock:
            if method not in self._stored:
                self._stored[method] = self._find_stored(method)
            return self._stored[method]

    def vectors(self, space: Space) -> Vectors:
        """What makes vectors of codes.

        Raises:
            ArchiveNotFoundError: for S^N the archive lacks the layers of its generator.
        """
        return Vectors(space, self._geometry, self._layers[1] if space == "s_n" else None)

    def resident(self, method: str, space: Space) -> Block | None:
        """All vectors of a method in memory, read if they are not there yet; None if there is no room for them.

        Raises:
            ArchiveKeyError, ArchiveNotFoundError: as `stored` and `vectors`.
            CorruptArchiveError: an object is missing or damaged.
        """
        return self._resident.keep(method, space, self.stored(method), self.vectors(space))

    def index_names(self, method: str, space: Space, metric: Metric) -> tuple[str, str]:
        """Name of the index of the codes as they are now, and how the names of all older ones begin."""
        layers = (self._layers[0],) if space == "s_n" else ()
        asked = (method, space, metric, *layers)
        return index_name(asked, self.stored(method).digest), f"{asked_digest(asked)}-"

    @cached_property
    def _layers(self) -> tuple[str, StyleLayers]:
        return read_style_layers(self._store, self._generator, self._geometry)

    def _index(self, method: str, space: Space, metric: Metric) -> OpenIndex:
        """The index of exactly these codes.

        Raises:
            ArchiveNotFoundError: there is none, or one of other codes.
            ArchiveMismatchError: the library is not installed, or another version of it made the index.
        """
        name, beginning = self.index_names(method, space, metric)
        with self._lock:
            if name not in self._indexes:
                key = index_key(name)
                try:
                    data = self._store.get(key)
                except ArchiveNotFoundError as error:
                    older = [one for one in self._store.keys(INDEXES_PREFIX) if one.split("/")[1].startswith(beginning)]
                    found = "an index of codes before others were added or retired" if older else "no index"
                    raise ArchiveNotFoundError(
                        f"{self._store.url} has {found} of {method} in {space} by {metric}: make one with "
                        f"`lsap-archive index {self._store.url} {method} --space {space} --metric {metric}`, or ask "
                        "for exact answers"
                    ) from error
                index = CodeIndex.decode(data, name, self._store.join(key))
                if index.info.library != library_version():
                    raise ArchiveMismatchError(
                        f"{self._store.join(key)} was made by {index.info.library}, this is {library_version()}: "
                        "make it again with `lsap-archive index`, or ask for exact answers"
                    )
                self._indexes[name] = OpenIndex(index)
            return self._indexes[name]


def _compared(
    index: OpenIndex,
    stored: StoredCodes,
    vectors: Vectors,
    block: Block | None,
    targets: NDArray[np.float64],
    k: int,
    metric: Metric,
) -> list[Found]:
    """What the index proposes, compared exactly: in memory, or read from the archive."""
    found = []
    for target, positions in zip(targets, index.candidates(targets, k, metric), strict=True):
        if block is None:
            part = Block.of(positions, stored.at(positions, vectors))
        else:
            part = Block(positions, block.vectors[positions], block.squares[positions])
        found += nearest_in([part], target[None], k, metric)
    return found


def _no_room(stored: StoredCodes, vectors: Vectors, method: str) -> str:
    wanted, room = (f"{size / 2**30:.1f} GiB" for size in (vector_bytes(len(stored), vectors.size), share_of_memory()))
    return (
        f"the codes of {method} take {wanted}, more than the {room} (half of the free memory) that they may stay in: "
        "they are read again for each question"
    )
