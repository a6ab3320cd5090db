"""The k nearest vectors, exactly, for the price of a product in float32.

A product in float32 gives every distance with an error that has a bound, whatever order it adds up in (Higham, Accuracy
and Stability of Numerical Algorithms, 2002, section 3.1): |fl(x.t) - x.t| <= g ||x|| ||t|| with g = V u / (1 - V u) and
u = 2^-24. Only vectors whose lower bound is no more than the k-th upper bound can be among the k nearest, equal ones
included; these few are compared again in float64.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lsap_archive.reading.nearest.spaces import LENGTH_FLOOR, Metric, distances

_BLOCK_PRODUCTS = 4 * 2**20  # distances that are estimated at once
_BLOCK_VALUES = 2**20  # numbers that are in memory as float64 at once
_U32, _U64 = 2.0**-24, 2.0**-53


@dataclass(frozen=True)
class Block:
    """Some vectors, and where they come from.

    Attributes:
        positions: number of each among all codes of the method, [N].
        vectors: [N, V], float32.
        squares: ||x||^2 of each, [N], float64.
    """

    positions: NDArray[np.int64]
    vectors: NDArray[np.float32]
    squares: NDArray[np.float64]

    @classmethod
    def of(cls, positions: NDArray[np.int64], vectors: NDArray[np.float32]) -> Block:
        """The block of some vectors."""
        return cls(positions, vectors, squares_of(vectors))

    def parts(self, step: int) -> Iterator[Block]:
        """The same vectors, so many at a time; no copies."""
        for start in range(0, len(self.positions), step):
            some = slice(start, start + step)
            yield Block(self.positions[some], self.vectors[some], self.squares[some])


@dataclass(frozen=True)
class Found:
    """What may be among the nearest of one target: at least the k nearest, and all that are as near as the k-th.

    Attributes:
        positions: [n].
        distances: [n], float64.
    """

    positions: NDArray[np.int64]
    distances: NDArray[np.float64]


def squares_of(vectors: NDArray[np.float32]) -> NDArray[np.float64]:
    """||x||^2 of each vector, in float64, some at a time."""
    found = np.empty(len(vectors), dtype=np.float64)
    step = max(_BLOCK_VALUES // max(vectors.shape[1], 1), 1)
    for start in range(0, len(vectors), step):
        found[start : start + step] = np.square(vectors[start : start + step], dtype=np.float64).sum(axis=1)
    return found


def nearest_in(blocks: Iterable[Block], targets: NDArray[np.float64], k: int, metric: Metric) -> list[Found]:
    """The nearest vectors to each target.

    Args:
        blocks: all vectors, each once.
        targets: [N, V], finite.
        k: how many, at least 1.
        metric: "euclidean" or "cosine".

    Returns:
        What was found for each target, in no order.
    """
    kept = [Found(np.empty(0, np.int64), np.empty(0)) for _ in targets]
    with np.errstate(over="ignore", invalid="ignore"):  # what is beyond float32 is compared in float64
        rounded = np.ascontiguousarray(targets, dtype=np.float32)
    for block in blocks:
        for part in block.parts(max(_BLOCK_PRODUCTS // max(len(targets), 1), 1)):
            with np.errstate(over="ignore", invalid="ignore"):
                products = part.vectors @ rounded.T  # [n, N]
            for number, target in enumerate(targets):
                chosen = _possible(products[:, number], part.squares, target, k, metric)
                near = _distances_at(part.vectors, chosen, target, metric)
                kept[number] = _nearest_of(kept[number], Found(part.positions[chosen], near), k)
    return kept


def _distances_at(
    vectors: NDArray[np.float32], chosen: NDArray[np.int64], target: NDArray[np.float64], metric: Metric
) -> NDArray[np.float64]:
    """Distances of chosen vectors, some at a time: of codes that are all alike every one may be chosen."""
    step = max(_BLOCK_VALUES // max(vectors.shape[1], 1), 1)
    parts = [distances(vectors[chosen[at : at + step]], target, metric) for at in range(0, len(chosen), step)]
    return np.concatenate([np.empty(0), *parts])


def _possible(
    products: NDArray[np.float32], squares: NDArray[np.float64], target: NDArray[np.float64], k: int, metric: Metric
) -> NDArray[np.int64]:
    """Which vectors can be among the k nearest of these."""
    if len(products) <= k:
        return np.arange(len(products))
    size = len(target)
    rounding = (size + 2) * _U32 / (1 - (size + 2) * _U32)  # of the product, and of the target itself
    slack = 8 * (size + 8) * _U64  # of everything in float64, the final comparison included
    length = float(np.sqrt(np.square(target).sum()))
    lengths = np.sqrt(squares)
    underflow = (size + 1) * 2.0**-125 * (1 + lengths + length)
    if metric == "euclidean":
        estimates = squares - 2 * products.astype(np.float64) + length**2
        bounds = 2 * rounding * length * lengths + slack * (squares + length**2) + 2 * underflow
    else:
        scales = np.maximum(lengths, LENGTH_FLOOR) * max(length, LENGTH_FLOOR)
        shares = (lengths / np.maximum(lengths, LENGTH_FLOOR)) ** 2 + (length / max(length, LENGTH_FLOOR)) ** 2
        estimates = shares / 2 - products.astype(np.float64) / scales
        bounds = rounding + 4 * slack + underflow / scales
    upper = estimates + bounds
    lower = estimates - bounds
    is_known = np.isfinite(upper)
    if not is_known.all():
        upper[~is_known], lower[~is_known] = np.inf, -np.inf
    return np.flatnonzero(lower <= np.partition(upper, k - 1)[k - 1])


def _nearest_of(kept: Found, more: Found, k: int) -> Found:
    """The k nearest of both, and all as near as the k-th."""
    positions = np.concatenate([kept.positions, more.positions])
    near = np.concatenate([kept.distances, more.distances])
    if len(near) > k:
        is_near = near <= np.partition(near, k - 1)[k - 1]
        positions, near = positions[is_near], near[is_near]
    return Found(positions, near)
