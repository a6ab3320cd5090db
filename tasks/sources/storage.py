"""Files wherever fsspec reaches: what fails there as a SourceError or a BadImageError, and no secret in either."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, unquote_to_bytes

from fsspec.implementations.local import LocalFileSystem

from lsap_archive import ArchiveError, ArchiveMismatchError, Secrets, refuse_special_file
from tasks.errors import BadImageError, SourceError, TaskError

SOURCE_KINDS = (
    "a folder, a glob, an image, a .zip, a .npy array, a .tar, .parquet or .arrow shard of images, a folder of "
    "save_to_disk, an LMDB (lsap[lmdb], on disk), or a .csv, .jsonl or .parquet manifest; on disk or at s3://, gs://, "
    "az://, memory:// or another fsspec URL"
)

PERCENT = "file+percent://"
"""What addresses begin with of files on disks whose paths are no UTF-8."""


@contextmanager
def storage_errors(shown: str, secrets: Secrets) -> Iterator[None]:
    """Turn what a file system raises into a SourceError, and say whether trying again can help.

    Each storage client has its own exceptions, hence the broad clause. The original is named but not chained:
    its text may hold credentials.
    """
    try:
        yield
    except (TaskError, MemoryError):
        raise
    except ArchiveError as error:  # the file system does not open; says what to do, and tells no secret
        raise SourceError(str(error)) from None
    except Exception as error:
        what = secrets.hide(f"{type(error).__name__}: {error}")
        if isinstance(error, PermissionError) or "credential" in type(error).__name__.lower():
            message = (
                f"{shown} may not be read ({what}), read access was wanted: check the permissions and "
                "credentials of this process (docs/storage.md)"
            )
        elif isinstance(error, OSError) and _concerns_one_file(error):
            message = f"{shown} cannot be opened ({what}): check the path and the links along it"
        elif isinstance(error, ValueError | TypeError) and not isinstance(error, OSError):
            message = f"{shown} is no readable address ({what}); wanted {SOURCE_KINDS}: check it"
        else:
            message = f"{shown} does not answer ({what}): check the endpoint and the network, then run again"
            raise SourceError(message, is_transient=True) from None
        raise SourceError(message) from None


def _concerns_one_file(error: OSError) -> bool:
    return isinstance(
        error, FileNotFoundError | PermissionError | IsADirectoryError | NotADirectoryError
    ) or error.errno in (errno.ELOOP, errno.ENAMETOOLONG)


@dataclass(frozen=True)
class StoredFiles:
    """Whole files of one file system, with the failures sorted into the image's and the storage's."""

    fs: Any  # fsspec.AbstractFileSystem, which carries no types
    shown: str
    secrets: Secrets
    max_bytes: int

    def uri(self, path: str) -> str:
        """The address of a file; where its path is no UTF-8, its bytes in percents, so that it can be written down."""
        try:
            path.encode()
        except UnicodeEncodeError:
            return PERCENT + quote(path.encode("utf-8", "surrogateescape"))
        return str(self.fs.unstrip_protocol(path))

    def path(self, uri: str) -> str:
        """The path at an address."""
        if self.is_in_percents(uri):
            return unquote_to_bytes(uri.removeprefix(PERCENT)).decode("utf-8", "surrogateescape")
        return str(self.fs._strip_protocol(uri))

    def is_in_percents(self, uri: str) -> bool:
        """Whether an address of this file system has bytes in percents."""
        return uri.startswith(PERCENT) and isinstance(self.fs, LocalFileSystem)

    def read(self, path: str) -> bytes:
        if problem := self.special_file(path):
            raise BadImageError("unreadable", problem)
        with self.reading(path), self.fs.open(path, "rb", cache_type="none") as file:
            size = getattr(file, "size", None)  # some web servers do not say
            if size is not None:
                self.check_size(path, size)
            data = bytes(file.read(-1 if size is not None else self.max_bytes + 1))
            self.check_size(path, len(data))
            return data

    def special_file(self, path: str) -> str | None:
        """A sentence about a pipe, device or socket, which might be read for ever; None for a file."""
        try:
            refuse_special_file(self.fs, path)
        except ArchiveMismatchError as error:
            return self.secrets.hide(str(error))
        return None

    def check_size(self, name: str, num_bytes: int) -> None:
        if num_bytes > self.max_bytes:
            raise BadImageError(
                "too_large",
                f"{self.secrets.hide(name)} has {num_bytes} bytes or more, at most {self.max_bytes} were "
                "wanted; it was not read: shrink it, or take it out of the source",
            )

    @contextmanager
    def reading(self, path: str) -> Iterator[None]:
        """What concerns this file alone becomes a BadImageError, everything else a SourceError."""
        shown = self.secrets.hide(path)
        with storage_errors(shown, self.secrets):
            try:
                yield
            except TaskError:
                raise
            except (OSError, ValueError) as error:  # ValueError: an unknown protocol or impossible name
                if isinstance(error, OSError) and not _concerns_one_file(error):
                    raise
                raise BadImageError(
                    "unreadable",
                    f"{shown} cannot be read ({type(error).__name__}), a readable file was wanted: "
                    "restore it or its permissions, or take it out of the source",
                ) from None
