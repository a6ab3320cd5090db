"""The layers of a generator that make style vectors of codes, kept once, so that S^N needs no torch.

s_l = A_l w_l + b_l, with A_l as it is used: the equalized learning rate 1 / sqrt(D) is in it (Karras et al. 2020).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lsap_archive.errors import HOW_TO_REPAIR, ArchiveMismatchError, CorruptArchiveError
from lsap_archive.format.documents import decode_document, encode_document, sha256_of, typed
from lsap_archive.format.layout import Geometry
from lsap_archive.format.stored_arrays import decode_arrays, encode_arrays

_LENGTH_FLOOR = 1e-12
_ABOUT = "about"


@dataclass(frozen=True)
class _About:
    generator_digest: str


@dataclass(frozen=True)
class StyleLayers:
    """One affine layer for each row of W+: those of the style convolutions, and of the last ToRGB (set "authors").

    Attributes:
        generator_digest: whose layers they are.
        weights: A_l, K of [width, D], float32.
        biases: b_l, K of [width], float32.
    """

    generator_digest: str
    weights: tuple[NDArray[np.float32], ...]
    biases: tuple[NDArray[np.float32], ...]

    @property
    def width(self) -> int:
        """Sum of the layers' widths."""
        return sum(map(len, self.biases))

    def check_fits(self, geometry: Geometry) -> None:
        """Make sure that codes of this geometry can be read by the layers.

        Raises:
            ArchiveMismatchError: there is not one layer for each row, or one has another shape or no finite numbers.
        """
        found = [(one.shape, bias.shape) for one, bias in zip(self.weights, self.biases, strict=True)]
        wanted = [((len(bias), geometry.w_dim), (len(bias),)) for bias in self.biases]
        if len(found) != geometry.num_ws or found != wanted:
            raise ArchiveMismatchError(
                f"style layers have weights and biases {found}: {geometry.num_ws} of [width, {geometry.w_dim}] and "
                "[width] are wanted"
            )
        if not all(np.isfinite(one).all() for one in (*self.weights, *self.biases)):
            raise ArchiveMismatchError("style layers hold numbers that are not finite")

    def directions(self, codes: NDArray[np.floating]) -> NDArray[np.float32]:
        """S^N of codes: of every layer s_l / ||s_l|| (LSAP, eq. 4), side by side.

        Lengths below 1e-12 count as 1e-12. Computed in float64.

        Args:
            codes: [N, K, D].

        Returns:
            [N, sum of widths], float32.
        """
        found = np.empty((len(codes), self.width), dtype=np.float32)
        start = 0
        for row, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            styles = codes[:, row].astype(np.float64) @ weight.T.astype(np.float64) + bias
            lengths = np.sqrt(np.square(styles).sum(axis=1, keepdims=True))
            found[:, start : start + len(bias)] = styles / np.maximum(lengths, _LENGTH_FLOOR)
            start += len(bias)
        return found

    def encode(self) -> bytes:
        """The layers as an .npz file: `weight_00`, `bias_00`, ..., and a document about them."""
        about = encode_document({"generator_digest": self.generator_digest}, "style layers")
        count = len(self.biases)
        named = zip(_names("weight", count) + _names("bias", count), (*self.weights, *self.biases), strict=True)
        return encode_arrays({_ABOUT: np.frombuffer(about, np.uint8), **dict(named)})

    @classmethod
    def decode(cls, data: bytes, where: str) -> StyleLayers:
        """The layers that `encode` wrote.

        Raises:
            CorruptArchiveError: they are damaged.
        """
        arrays = decode_arrays(data, where)
        if _ABOUT not in arrays:
            raise CorruptArchiveError(f"{where} does not say whose layers it has: {HOW_TO_REPAIR}")
        about: _About = typed(_About, decode_document(arrays.pop(_ABOUT).tobytes(), where), where)
        count = len(arrays) // 2
        names = _names("weight", count) + _names("bias", count)
        if set(names) != set(arrays) or any(one.dtype != np.float32 for one in arrays.values()):
            raise CorruptArchiveError(f"{where} holds other arrays than weights and biases in float32: {HOW_TO_REPAIR}")
        return cls(
            about.generator_digest,
            tuple(arrays[name] for name in names[:count]),
            tuple(arrays[name] for name in names[count:]),
        )


def style_layers_digest(data: bytes) -> str:
    """The name of a file of style layers: all of its SHA-256."""
    return sha256_of(data)


def _names(kind: str, count: int) -> list[str]:
    return [f"{kind}_{index:02d}" for index in range(count)]
