"""Published files of weights by name: in a folder of this machine, or fetched once from one on object storage.

A file whose hash is known is taken only if it has it, whoever asks for it.
"""

from __future__ import annotations

import functools
import hashlib
import os
import uuid
from dataclasses import dataclass
from pathlib import Path

import torch

from lsap_archive import open_file_system, read_file, scheme_of, storage_errors
from lsap_core.errors import CheckpointError
from tasks.sources.listings import version_of

TORCHVISION = {
    "vgg16-397923af.pth": "397923af",
    "alexnet-owt-7be5be79.pth": "7be5be79",
    "squeezenet1_1-b8a52dc0.pth": "b8a52dc0",
}
"""Files of torchvision, whose names end in the first digits of their SHA-256."""


@dataclass(frozen=True)
class Published:
    """The folder of published networks; printed as its path or URL.

    Attributes:
        folder: path or URL, or None for torch's cache on whichever machine looks.
        hashes: first digits of the SHA-256 of files by name, beside those of torchvision's.
        takes_others: whether files with another hash are taken all the same.
    """

    folder: str | None = None
    hashes: tuple[tuple[str, str], ...] = ()
    takes_others: bool = False

    def __str__(self) -> str:
        return str(self.folder or Path(torch.hub.get_dir()) / "checkpoints")

    def place(self, name: str) -> str:
        """Where a file is looked for, whether it is there or not."""
        return f"{str(self).rstrip('/')}/{name}"

    def find(self, name: str) -> Path | None:
        """A file, on this machine; None if it is not there.

        Raises:
            CheckpointError: it is known to be another one.
            ArchiveError: the folder's URL is none, or its storage does not answer.
        """
        path, wanted = self.look(name), "" if self.takes_others else self.hash_of(name)
        if path is not None and wanted and not (found := sha256_of(path)).startswith(wanted):
            raise CheckpointError(
                f"{self.place(name)} has SHA-256 {found[:16]}, and {name} is known by {wanted}: put the published file "
                "in its place, or set LSAP_OTHER_WEIGHTS=1 to take what is there"
            )
        return path

    def hash_of(self, name: str) -> str:
        """The first digits of the SHA-256 of a file, or "" where none are known."""
        return dict(self.hashes).get(name) or TORCHVISION.get(name, "")

    def look(self, name: str) -> Path | None:
        """A file, on this machine, whatever its hash; None if it is not there.

        From object storage it is copied into torch's cache the first time, and again when it has changed there.

        Raises:
            ArchiveError: the folder's URL is none, or its storage does not answer.
        """
        place = self.place(name)
        if scheme_of(place) == "file":
            path = Path(place.removeprefix("file://"))
            return path if path.is_file() else None
        filesystem, remote = open_file_system(place)
        with storage_errors("read", place):
            try:
                version = version_of(filesystem, remote)
            except FileNotFoundError:
                return None
        copied = hashlib.sha256(f"{place} {version}".encode()).hexdigest()[:16]
        path = Path(torch.hub.get_dir()) / "lsap" / copied / name
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            unfinished = path.with_name(f"{name}.{uuid.uuid4().hex}")
            try:
                unfinished.write_bytes(read_file(place))
                os.replace(unfinished, path)
            finally:
                unfinished.unlink(missing_ok=True)
        return path


def sha256_of(path: Path) -> str:
    """SHA-256 of a file; of one that has not changed since, without reading it again."""
    about = path.stat()
    return _sha256(path, about.st_ino, about.st_size, about.st_mtime_ns)


@functools.lru_cache(maxsize=256)
def _sha256(path: Path, *_: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


TORCH_CACHE = Published()
