"""The codes of a method as an archive has them: which, where, and read by several threads."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from lsap_archive.reading.nearest.exact import Block
from lsap_archive.reading.nearest.memory import share_of_memory
from lsap_archive.reading.nearest.spaces import Vectors

S = TypeVar("S")
T = TypeVar("T")

_READERS = 4

Read = Callable[[int, int, NDArray[np.int64]], NDArray[np.float32]]
"""W+ codes [n, K, D] of a run's rows that lie in one shard: number of the run, shard, rows."""


@dataclass(frozen=True)
class StoredCodes:
    """Every image's newest code of a method; a position is the number of a code among them.

    Attributes:
        places: number of each code's row in the table of rows, ascending.
        runs: number of its run.
        rows: its row there.
        run_ids: id of each run that is in `runs`, by number.
        shard_rows: rows of a shard, likewise.
        read: reads some of them.
    """

    places: NDArray[np.int64]
    runs: NDArray[np.int64]
    rows: NDArray[np.int64]
    run_ids: dict[int, str]
    shard_rows: dict[int, int]
    read: Read

    def __len__(self) -> int:
        return len(self.places)

    @cached_property
    def digest(self) -> str:
        """Name of exactly these codes: the same for whoever opens the same archive, another once one is added."""
        told = hashlib.sha256()
        for run in np.unique(self.runs).tolist():
            told.update(f"{self.run_ids[run]}\n".encode())
            told.update(np.ascontiguousarray(self.rows[self.runs == run], dtype="<i8").tobytes())
        return told.hexdigest()

    @cached_property
    def shards(self) -> list[tuple[int, int, NDArray[np.int64]]]:
        """Run, shard and the positions of the codes there, for each shard that has some."""
        found = []
        for run in np.unique(self.runs).tolist():
            of_run = np.flatnonzero(self.runs == run)
            shards = self.rows[of_run] // self.shard_rows[run]
            order = np.argsort(shards, kind="stable")
            numbers, starts = np.unique(shards[order], return_index=True)
            parts = np.split(of_run[order], starts[1:])
            found += [(run, shard, part) for shard, part in zip(numbers.tolist(), parts, strict=True)]
        return found

    def blocks(self, vectors: Vectors) -> Iterator[Block]:
        """All codes as vectors, shard by shard, some shards ahead."""

        def read(one: tuple[int, int, NDArray[np.int64]]) -> Block:
            run, shard, positions = one
            return Block.of(positions, vectors.of(self.read(run, shard, self.rows[positions])))

        yield from _ahead(read, self.shards)

    def at(self, positions: NDArray[np.int64], vectors: Vectors) -> NDArray[np.float32]:
        """Vectors [n, V] of some codes."""
        found = np.empty((len(positions), vectors.size), dtype=np.float32)
        runs = self.runs[positions]
        shards = self.rows[positions] // np.array([self.shard_rows[run] for run in runs.tolist()], dtype=np.int64)
        keys, number = np.unique(np.stack([runs, shards], axis=1), axis=0, return_inverse=True)
        groups = [np.flatnonzero(number.ravel() == one) for one in range(len(keys))]

        def read(one: tuple[list[int], NDArray[np.int64]]) -> None:
            (run, shard), group = one
            found[group] = vectors.of(self.read(run, shard, self.rows[positions[group]]))

        for _ in _ahead(read, list(zip(keys.tolist(), groups, strict=True))):
            pass
        return found


def _ahead(call: Callable[[S], T], items: Sequence[S]) -> Iterator[T]:
    """`call` of each item in their order; threads work a few items ahead of whoever takes them."""
    with ThreadPoolExecutor(_READERS) as pool:
        waiting = []
        for item in items:
            waiting.append(pool.submit(call, item))
            if len(waiting) > 2 * _READERS:
                yield waiting.pop(0).result()
        for one in waiting:
            yield one.result()


class ResidentCodes:
    """Vectors of codes that stay in memory, as long as there is room: a share of what this process may still take."""

    def __init__(self) -> None:
        self._blocks: dict[tuple[str, str], Block] = {}
        self._lock = threading.Lock()

    def get(self, method: str, space: str) -> Block | None:
        """What is there."""
        return self._blocks.get((method, space))

    def keep(self, method: str, space: str, codes: StoredCodes, vectors: Vectors) -> Block | None:
        """The vectors of all codes of a method, read if they are not there yet; None if there is no room for them.

        What was not asked for the longest makes room first. One thread reads, others that want to, wait.

        Raises:
            CorruptArchiveError: an object is missing or damaged.
        """
        key = (method, space)
        with self._lock:
            if key not in self._blocks:
                wanted, room = vector_bytes(len(codes), vectors.size), share_of_memory()
                if wanted > room + sum(map(_given_back, self._blocks.values())):
                    return None
                while wanted > room:
                    room += _given_back(self._blocks.pop(next(iter(self._blocks))))
                self._blocks[key] = _read_all(codes, vectors)
            self._blocks[key] = block = self._blocks.pop(key)  # the newest comes last
            return block


def _read_all(codes: StoredCodes, vectors: Vectors) -> Block:
    found = Block(np.arange(len(codes)), np.empty((len(codes), vectors.size), dtype=np.float32), np.empty(len(codes)))
    for block in codes.blocks(vectors):
        found.vectors[block.positions] = block.vectors
        found.squares[block.positions] = block.squares
    return found


def _given_back(block: Block) -> int:
    """What there is more of the share of free memory without a block."""
    return vector_bytes(*block.vectors.shape) // 2


def vector_bytes(count: int, size: int) -> int:
    """Bytes of so many vectors in memory, with what is kept beside each."""
    return count * (4 * size + 16)
