"""Tar files as WebDataset reads them: of each image a row as JSON, arrays as .npy, pictures."""

from __future__ import annotations

import io
import json
import math
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lsap_archive.exports.chosen import IMAGE, Batch, Chosen
from lsap_archive.exports.parts import in_parts
from lsap_archive.exports.whole import appearing_whole
from lsap_archive.format.layout import W_PLUS

TAR_BYTES = 256 * 2**20
TAR_SAMPLES = 10_000
"""A tar file has at most so many bytes, unless one sample is larger, and samples."""


def write_tars(chosen: Chosen, path: Path, *, tar_bytes: int = TAR_BYTES, tar_samples: int = TAR_SAMPLES) -> int:
    """Write a folder of 000000.tar, 000001.tar, ..., which appears whole or not at all.

    The key of a sample is its number; the image's id may have dots and slashes, which mean something in keys, so it
    stands in `<key>.json` with the rest of the row. `<key>.npy` is the code, `<key>.<array>.npy` any other array,
    `<key>.webp` or `<key>.png` what the method made of the image, `<key>.original.webp` the image itself.

    Args:
        chosen: what is exported.
        path: of the new folder.
        tar_bytes: of a tar file at most.
        tar_samples: of a tar file at most.

    Returns:
        How many samples were written.

    Raises:
        ArchiveMismatchError: there is something, or pictures were asked for and none is kept.
        ArchiveKeyError, CorruptArchiveError: as `Chosen.batches`.
        OSError: it cannot be written.
    """
    written = 0
    with appearing_whole(path) as unfinished:
        parts = in_parts(_samples(chosen), _stored_bytes, most_bytes=tar_bytes, most_items=tar_samples)
        for number, part in enumerate(parts):
            with tarfile.open(unfinished / f"{number:06d}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
                for files in part:
                    for suffix, data in files.items():
                        member = tarfile.TarInfo(f"{written:09d}.{suffix}")
                        member.size = len(data)
                        tar.addfile(member, io.BytesIO(data))
                    written += 1
        chosen.check_pictures()
    return written


def _samples(chosen: Chosen) -> Iterator[dict[str, bytes]]:
    """Files of each sample by suffix."""
    for batch in chosen.batches():
        yield from _of_batch(batch)


def _of_batch(batch: Batch) -> Iterator[dict[str, bytes]]:
    for index, row in enumerate(batch.rows.to_pylist()):
        files = {"json": json.dumps(_finite(row), allow_nan=False).encode()}
        for name, values in batch.arrays.items():
            files["npy" if name == W_PLUS else f"{name}.npy"] = _npy(values[index])
        for name, pictures in batch.pictures.items():
            picture = pictures[index]
            if picture is not None:
                kind = "webp" if picture.startswith(b"RIFF") else "png"  # archives keep no others
                files[kind if name == IMAGE else f"{name}.{kind}"] = picture
        yield files


def _finite(row: dict[str, Any]) -> dict[str, Any]:
    """The row with null for what JSON has not, such as NaN."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in row.items()
    }


def _npy(values: NDArray[Any]) -> bytes:
    data = io.BytesIO()
    np.save(data, values, allow_pickle=False)
    return data.getvalue()


def _stored_bytes(files: dict[str, bytes]) -> int:
    """Of a sample in a tar: of each file a header, and whole blocks."""
    block = tarfile.BLOCKSIZE
    return sum(block + block * math.ceil(len(data) / block) for data in files.values())
