"""Files of weights as bytes: fetched from anywhere, told apart by content, and written so that they read back."""

from __future__ import annotations

import contextlib
import io
import json
import posixpath
import struct
import uuid
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import safetensors.torch
from fsspec.implementations.local import LocalFileSystem
from torch import Tensor

from lsap_archive import ArchiveMismatchError, ArchiveNotFoundError, open_file_system, read_file, storage_errors
from lsap_core.errors import CheckpointError

Loaded = TypeVar("Loaded")

_ZIP = b"PK\x03\x04"
_OLD_TORCH = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19."  # the magic number of old torch.save
_PICKLES = tuple(bytes([0x80, protocol]) for protocol in range(2, 6))
_PAGES = (b"<!doctype html", b"<html", b"<head", b"<?xml", b"<error")
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"


def read_bytes(location: str, storage_options: Mapping[str, Any] | None, *, wanted: str) -> bytes:
    """The content of a file of weights.

    Args:
        location: a path, or a URL (s3://, gs://, az://, https://, memory://, ...).
        storage_options: passed to the storage's client.
        wanted: the kinds of file that would do, for the message.

    Raises:
        CheckpointError: there is no such file, or the URL carries a credential.
        StoreUnavailableError: the storage does not answer or refuses.
    """
    try:
        return read_file(location, storage_options)
    except ArchiveMismatchError as error:
        raise CheckpointError(str(error)) from None
    except ArchiveNotFoundError as error:
        if "is a folder" in str(error):
            raise CheckpointError(f"{location} is a folder; wanted one file: {wanted}") from None
        raise CheckpointError(
            f"{location} does not exist; wanted {wanted}. Nothing is downloaded by itself: put the file there "
            "or name another path"
        ) from None


@contextlib.contextmanager
def open_weights(location: str, storage_options: Mapping[str, Any] | None, *, wanted: str) -> Iterator[BinaryIO]:
    """A file of weights, opened for reading: one on this machine where it lies, any other one in memory.

    Args:
        location: as for `read_bytes`.
        storage_options: as there.
        wanted: as there.

    Raises:
        CheckpointError, StoreUnavailableError: as `read_bytes`.
    """
    if (path := local_file(location)) is None:
        yield io.BytesIO(read_bytes(location, storage_options, wanted=wanted))
        return
    try:
        file = path.open("rb")
    except OSError:
        read_bytes(location, storage_options, wanted=wanted)  # it has the words
        raise
    with file:
        yield file


def local_file(location: str) -> Path | None:
    """The path of a file on this machine; None of everything else."""
    path = Path(location.removeprefix("file://"))
    return path if "://" not in str(path) and path.is_file() else None


def version_of(location: str) -> list[Any] | None:
    """What changes when a file does, as far as can be seen without reading it; None where nothing tells."""
    if (path := local_file(location)) is not None:
        found = path.stat()
        return [str(path.resolve()), found.st_size, found.st_mtime_ns, found.st_ino]
    filesystem, place = open_file_system(location)
    with storage_errors("read", location):
        try:
            info = filesystem.info(place)
        except FileNotFoundError:
            return None
    told = info.get("ETag") or info.get("etag") or info.get("md5Hash")
    return [location, info.get("size"), str(told)] if told else None


def is_torch_file(data: bytes) -> bool:
    """Whether bytes begin as files of `torch.save` do, old and new."""
    return data.startswith((_ZIP, _OLD_TORCH))


def is_pickle(data: bytes) -> bool:
    """Whether bytes begin as a plain pickle does, such as NVlabs' .pkl; old files of `torch.save` do, too."""
    return data.startswith(_PICKLES)


def is_safetensors(data: bytes) -> bool:
    """Whether bytes begin as a safetensors file does."""
    return data[8:9] == b"{"


def check_torch_zip(data: bytes | BinaryIO, *, wanted: str) -> None:
    """Refuse zip archives that `torch.save` did not write; one that is cut short is for PyTorch to name.

    Raises:
        CheckpointError: saying what the archive is.
    """
    file = io.BytesIO(data) if isinstance(data, bytes) else data
    try:
        if not zipfile.is_zipfile(file):
            return
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
    except Exception as error:  # bytes of unknown origin can fail in any way; all of them mean a wrong file
        raise CheckpointError(f"it is truncated or damaged: {error}") from error
    if any(posixpath.basename(name) == "constants.pkl" for name in names):
        raise CheckpointError(f"it is a TorchScript program, not weights; wanted {wanted}")
    if not any(posixpath.basename(name) == "data.pkl" for name in names):
        raise CheckpointError(f"it is a zip archive of {', '.join(names[:4]) or 'nothing'}; wanted {wanted}")


def read_safetensors(data: bytes) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file.

    Raises:
        CheckpointError: the bytes are none.
    """
    try:
        tensors = safetensors.torch.load(data)
        (length,) = struct.unpack("<Q", data[:8])
        metadata = json.loads(data[8 : 8 + length]).get("__metadata__", {})
    except Exception as error:  # as above
        raise CheckpointError(f"it is truncated or no safetensors file: {error}") from error
    return tensors, metadata


def describe_other(data: bytes) -> str:
    """What bytes are that hold no weights."""
    if not data:
        return "empty (0 bytes): the download or copy failed"
    start = data[:512].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if start.startswith(_PAGES):
        return "a web page: a download page was saved instead of the file behind it; download it again"
    if start.startswith(_LFS_POINTER):
        return "a Git LFS pointer, not the file that it points to: run `git lfs pull`"
    if data.startswith(b"\x1f\x8b"):
        return "compressed with gzip: unpack it first"
    if data.startswith(b"\x89HDF"):
        return "an HDF5 file, as Keras writes"
    return f"no known file of weights (it begins with {data[:16]!r})"


def write_verified(
    location: str, data: bytes, read_back: Callable[[bytes], Loaded], storage_options: Mapping[str, Any] | None
) -> Loaded:
    """Write under a name of its own, read back, and only then move to the wanted name.

    Args:
        location: a path or URL where nothing is yet.
        data: the file.
        read_back: takes the bytes that were found there; raises when they are not what was meant.
        storage_options: passed to the storage's client.

    Returns:
        What `read_back` returned.

    Raises:
        CheckpointError: the file exists already.
        StoreUnavailableError: the storage does not answer or refuses.
    """
    filesystem, path = open_file_system(location, storage_options)
    unverified = f"{path}.{uuid.uuid4().hex}.unverified"
    with storage_errors("write", location, storage_options):
        is_there = filesystem.exists(path)
    if is_there:
        raise CheckpointError(f"{location} exists already: remove it or name another file")
    try:
        with storage_errors("write", location, storage_options):
            if isinstance(filesystem, LocalFileSystem):
                filesystem.makedirs(posixpath.dirname(path), exist_ok=True)
            filesystem.pipe_file(unverified, data)
            found = filesystem.cat_file(unverified)
        loaded = read_back(found)
        with storage_errors("write", location, storage_options):
            filesystem.mv(unverified, path)
    finally:
        with storage_errors("write", location, storage_options):
            if filesystem.exists(unverified):
                filesystem.rm_file(unverified)
    return loaded
