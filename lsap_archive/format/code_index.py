"""An index of codes as it is kept beside the runs: each code's signs, by which a library guesses which are near."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lsap_archive.errors import HOW_TO_REPAIR, CorruptArchiveError
from lsap_archive.format.documents import Count, Number, Size, decode_document, encode_document, sha256_of, typed
from lsap_archive.format.stored_arrays import decode_arrays, encode_arrays

_NAMES = {"about", "codes", "center"}


@dataclass(frozen=True)
class IndexInfo:
    """What an index is of.

    Attributes:
        kept_as: its name.
        method: name or digest of the method.
        space: "w_plus", "w" or "s_n".
        metric: "euclidean" or "cosine".
        num_codes: N.
        size: V, numbers of a vector.
        library: what made it, name and version; another version may read the bytes otherwise.
        recall: of the 10 nearest others of a code, the share that is found.
        num_asked: codes that this was measured on.
        created: UTC time, ISO 8601.
    """

    kept_as: str
    method: str
    space: Literal["w_plus", "w", "s_n"]
    metric: Literal["euclidean", "cosine"]
    num_codes: Count
    size: Size
    library: str
    recall: Number
    num_asked: Count
    created: str


@dataclass(frozen=True)
class CodeIndex:
    """An index.

    Attributes:
        info: what it is of.
        codes: each vector in few bytes, as the library encodes it, [N, bytes], uint8.
        center: what was subtracted before, [V], float32.
    """

    info: IndexInfo
    codes: NDArray[np.uint8]
    center: NDArray[np.float32]

    def encode(self) -> bytes:
        """The index as an .npz file."""
        about = encode_document(asdict(self.info), self.info.kept_as)
        return encode_arrays({"about": np.frombuffer(about, np.uint8), "codes": self.codes, "center": self.center})

    @classmethod
    def decode(cls, data: bytes, name: str, where: str) -> CodeIndex:
        """The index that `encode` wrote.

        Args:
            data: the file.
            name: what it is kept as.
            where: its URL, for the message.

        Raises:
            CorruptArchiveError: it is damaged, or another one.
        """
        arrays = decode_arrays(data, where)
        if set(arrays) != _NAMES:
            raise CorruptArchiveError(f"{where} holds {', '.join(sorted(arrays))} and is no index: {HOW_TO_REPAIR}")
        info: IndexInfo = typed(IndexInfo, decode_document(arrays["about"].tobytes(), where), where)
        codes, center = arrays["codes"], arrays["center"]
        is_fitting = codes.dtype == np.uint8 and codes.ndim == 2 and len(codes) == info.num_codes
        is_fitting &= center.dtype == np.float32 and center.shape == (info.size,)
        if not is_fitting or info.kept_as != name:
            raise CorruptArchiveError(
                f"{where} holds {list(codes.shape)} codes and a centre {list(center.shape)} as index {info.kept_as}, "
                f"of {info.num_codes} codes of {info.size} numbers: {HOW_TO_REPAIR}"
            )
        return cls(info, codes, center)


def index_name(asked: tuple[str, ...], codes_digest: str) -> str:
    """Name of an index: what may be asked of it, and which codes are in it; those of older sets share the beginning.

    Args:
        asked: method, space, metric, and the digest of style layers where the space needs them.
        codes_digest: of exactly the codes that are in it.
    """
    return f"{asked_digest(asked)}-{codes_digest[:32]}"


def asked_digest(asked: tuple[str, ...]) -> str:
    """The beginning of the names of all indexes of one kind."""
    return sha256_of("\n".join(asked).encode())[:32]
