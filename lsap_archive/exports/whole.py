"""Folders that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lsap_archive.errors import ArchiveMismatchError


@contextmanager
def appearing_whole(path: Path) -> Iterator[Path]:
    """A folder to write into instead: it gets its name at the end, and is removed at an error.

    Raises:
        ArchiveMismatchError: something is there already, or the folder that it shall lie in is not.
    """
    if not path.absolute().parent.is_dir():
        raise ArchiveMismatchError(f"{path.parent} is no folder: make it, or name a place in another one")
    if path.is_symlink() or path.exists():
        raise ArchiveMismatchError(f"{path} is there already: remove it, or name a new folder")
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    unfinished.mkdir()
    try:
        yield unfinished
        os.rename(unfinished, path)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
