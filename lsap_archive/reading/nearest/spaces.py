"""What codes are compared as: their vectors in a space, and the distance of two of them."""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from lsap_archive.errors import ArchiveMismatchError
from lsap_archive.format.layout import Geometry
from lsap_archive.format.style_layers import StyleLayers

Space = Literal["w_plus", "w", "s_n"]
Metric = Literal["euclidean", "cosine"]

LENGTH_FLOOR = 1e-12
"""Shorter vectors count as so long where directions are compared."""


def check_asked(space: str, metric: str) -> None:
    """Make sure that a space and a metric are known.

    Raises:
        ArchiveMismatchError: one is not.
    """
    for what, found, known in (("space", space, get_args(Space)), ("metric", metric, get_args(Metric))):
        if found not in known:
            raise ArchiveMismatchError(f'{what} is "{found}"; wanted {", ".join(known)}')


class Vectors:
    """Vectors of codes in a space, float32.

    * "w_plus": all K x D values.
    * "w": the mean of the K rows.
    * "s_n": directions of the K style vectors side by side (LSAP, eq. 4), each of length 1.

    Attributes:
        size: V, numbers of a vector.
    """

    def __init__(self, space: Space, geometry: Geometry, layers: StyleLayers | None = None) -> None:
        """Args: layers are needed by "s_n" alone."""
        self._space = space
        self._geometry = geometry
        self._layers = layers
        self.size = {
            "w_plus": geometry.num_ws * geometry.w_dim,
            "w": geometry.w_dim,
            "s_n": layers.width if layers is not None else 0,
        }[space]

    def of(self, codes: NDArray[np.floating]) -> NDArray[np.float32]:
        """Vectors [N, V] of codes [N, K, D]; computed in float64, rounded once."""
        if self._space == "w_plus":
            return np.ascontiguousarray(codes.reshape(len(codes), -1), dtype=np.float32)
        if self._space == "w":
            means: NDArray[np.float64] = codes.mean(axis=1, dtype=np.float64)
            return means.astype(np.float32)
        assert self._layers is not None
        return self._layers.directions(codes)

    def of_targets(self, codes: NDArray[Any]) -> NDArray[np.float64]:
        """Vectors of codes that are asked about, [N, V]: those in W+ as they are, not rounded.

        Args:
            codes: [N, K, D], or one code [K, D] or [D], which in W stands for K equal rows.

        Raises:
            ArchiveMismatchError: another shape, or a value that is not finite.
        """
        wanted = (self._geometry.num_ws, self._geometry.w_dim)
        given = np.asarray(codes, dtype=np.float64)
        many = (
            given
            if given.ndim == 3
            else np.broadcast_to(given, wanted)[None]
            if given.shape in (wanted, wanted[1:])
            else given
        )
        if many.ndim != 3 or many.shape[1:] != wanted or not len(many) or not np.isfinite(many).all():
            raise ArchiveMismatchError(
                f"the code is {given.shape}: finite {wanted} or {wanted[1:]} is wanted, or (N, {wanted[0]}, "
                f"{wanted[1]}) of several"
            )
        if self._space == "w_plus":
            return many.reshape(len(many), -1)
        return self.of(many).astype(np.float64)


def distances(vectors: NDArray[np.floating], target: NDArray[np.float64], metric: Metric) -> NDArray[np.float64]:
    """Distance of each vector to one, in float64: what every answer is ordered by.

    "euclidean" is ||x - t||. "cosine" is ||x / ||x|| - t / ||t|| ||^2 / 2, which is 1 - x.t / (||x|| ||t||) without its
    rounding near 0; of S^N it is the mean over layers of 1 - s_l.t_l, as every layer has length 1.

    Args:
        vectors: [N, V].
        target: [V].
        metric: "euclidean" or "cosine".

    Returns:
        [N].
    """
    exact = vectors.astype(np.float64)
    if metric == "euclidean":
        return np.sqrt(np.square(exact - target).sum(axis=1))  # type: ignore[no-any-return]
    lengths = np.maximum(np.sqrt(np.square(exact).sum(axis=1, keepdims=True)), LENGTH_FLOOR)
    length = max(float(np.sqrt(np.square(target).sum())), LENGTH_FLOOR)
    return np.square(exact / lengths - target / length).sum(axis=1) / 2  # type: ignore[no-any-return]
