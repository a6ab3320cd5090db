"""Pictures as files of a folder: names that are safe, and files that are whole or not there."""

from __future__ import annotations

import os
import posixpath
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from PIL import Image

from tasks.errors import BadImageError
from tasks.sources.items import SourceItem

MAX_NAME_BYTES = 255


class FileNames:
    """Names of the files that are written: those of the photos, ending in .png, with their folders."""

    def __init__(self, items: Iterable[SourceItem], reserved: Iterable[str] = ()):
        self._stems = Counter(_stem(_safe_path(item.image_id)) for item in items)
        self._taken = set(reserved)  # what else the folder will hold
        self._folders: set[str] = set()

    def of(self, item: SourceItem, face: int | None) -> str:
        """Name of a photo's face, that of no other; photos that differ in the suffix only keep it.

        Raises:
            BadImageError: ("not_written") the name cannot be a file's, or is another face's.
        """
        path = _safe_path(item.image_id)
        name = _stem(path) if self._stems[_stem(path)] == 1 else path
        name = f"{name}{'' if face is None else f'.face-{face}'}.png"
        is_long = any(len(part.encode()) > MAX_NAME_BYTES for part in name.split("/"))
        folders = {name[: slash.start()] for slash in re.finditer("/", name)}
        is_taken = name in self._taken or name in self._folders or bool(folders & self._taken)
        if not path or is_long or is_taken or re.search(r"[\x00-\x1f]", name):
            raise BadImageError(
                "not_written",
                f"the name {name[:100]!r} is {'another face' if is_taken else 'no file'}'s, a new one was wanted: "
                "rename the photo",
            )
        self._taken.add(name)
        self._folders |= folders
        return name


def _safe_path(image_id: str) -> str:
    """An image_id as a path below a folder: manifests may have whole addresses as ids."""
    parts = re.split(r"[/\\]+", re.sub(r"^[A-Za-z][A-Za-z0-9+.-]*:", "", image_id))
    return "/".join(part for part in parts if part not in ("", ".", ".."))


def _stem(path: str) -> str:
    return posixpath.splitext(path)[0]


def write_png(path: Path, picture: Image.Image) -> None:
    """Write a picture as a whole file or not at all; its folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beginning = path.with_name(f".{path.stem[:100]}.{os.getpid()}.png")
    try:
        picture.save(beginning, "PNG")
        beginning.replace(path)
    finally:
        beginning.unlink(missing_ok=True)


def write_whole(path: Path, data: bytes) -> None:
    """Write a file as a whole or not at all."""
    beginning = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beginning.write_bytes(data)
        beginning.replace(path)
    finally:
        beginning.unlink(missing_ok=True)
