"""Published files of weights by name: in a folder of this machine, or fetched once from one on object storage."""

from __future__ import annotations

import hashlib
import os
import uuid
from dataclasses import dataclass
from pathlib import Path

import torch

from lsap_archive import open_file_system, read_file, scheme_of, storage_errors
from tasks.sources.listings import version_of


@dataclass(frozen=True)
class Published:
    """The folder of published networks; printed as its path or URL.

    Attributes:
        folder: path or URL, or None for torch's cache on whichever machine looks.
    """

    folder: str | None = None

    def __str__(self) -> str:
        return str(self.folder or Path(torch.hub.get_dir()) / "checkpoints")

    def place(self, name: str) -> str:
        """Where a file is looked for, whether it is there or not."""
        return f"{str(self).rstrip('/')}/{name}"

    def find(self, name: str) -> Path | None:
        """A file, on this machine; None if it is not there.

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


TORCH_CACHE = Published()
