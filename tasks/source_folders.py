"""Sources that are files of their own: a folder, a glob, or one image."""

import math
import os
import posixpath
import re
from collections.abc import Iterator

from fsspec.implementations.local import LocalFileSystem
from fsspec.utils import glob_translate

from tasks.source_items import IMAGE_SUFFIXES, LeftOut, SourceItem, as_unicode, check_name
from tasks.source_storage import StoredFiles, storage_errors


class OneImage:
    kind = "image"

    def __init__(self, files: StoredFiles, path: str) -> None:
        self._files = files
        self._path = path

    def items(self, left_out: LeftOut) -> Iterator[SourceItem]:
        name = posixpath.basename(self._path)
        yield SourceItem(as_unicode(name), as_unicode(self._files.uri(self._path)), check_name(name, "file name"))

    def read(self, uri: str) -> bytes:
        return self._files.read(self._files.path(uri))

    def close(self) -> None:
        pass


class FolderOrGlob:
    """A folder, or the part of one that a glob picks.

    Folders are listed one at a time, and an entry is ordered as its name with "/" added to folders: that is
    the order of whole paths, without all of them in memory.
    """

    def __init__(self, files: StoredFiles, path: str, *, is_glob: bool) -> None:
        self._files = files
        self.kind = "glob" if is_glob else "folder"
        self._pattern: re.Pattern[str] | None = None
        self._max_depth: float = math.inf
        self._root = path.rstrip("/")
        if is_glob:
            self._root = re.split(r"[*?\[]", path, maxsplit=1)[0].rpartition("/")[0]
            below = path[len(self._root) :].lstrip("/")
            self._pattern = re.compile(glob_translate(below))
            self._max_depth = math.inf if "**" in below else below.count("/")

    def items(self, left_out: LeftOut) -> Iterator[SourceItem]:
        with storage_errors(self._files.shown, self._files.secrets):
            self._files.fs.invalidate_cache()
            yield from self._walk(self._root, "", 0, frozenset({self._identify(self._root)}), left_out)

    def _walk(
        self, folder: str, prefix: str, depth: int, above: frozenset[str], left_out: LeftOut
    ) -> Iterator[SourceItem]:
        for name, path, kind in self._list_folder(folder):
            image_id = prefix + name
            if name.startswith("."):
                left_out.num_hidden += 1
            elif kind == "directory":
                identity = self._identify(path)
                if identity in above:
                    left_out.num_loops += 1
                elif depth < self._max_depth:
                    yield from self._walk(path, image_id + "/", depth + 1, above | {identity}, left_out)
            elif self._pattern is not None and not self._pattern.match(image_id):
                continue
            elif (suffix := posixpath.splitext(name)[1].lower()) not in IMAGE_SUFFIXES or kind != "file":
                left_out.other_files[suffix] += 1
            else:
                problem = check_name(image_id, "file name")
                yield SourceItem(as_unicode(image_id), as_unicode(self._files.uri(path)), problem)

    def _list_folder(self, folder: str) -> list[tuple[str, str, str]]:
        entries: list[tuple[str, str, str]] = []
        for entry in self._files.fs.ls(folder, detail=True):
            path = entry["name"].rstrip("/")
            if path == folder:  # object stores may keep an empty object for the folder itself
                continue
            kind = entry["type"]  # "directory", "file" or "other": links, and pipes, which would block
            if entry.get("islink", False):
                kind = "directory" if self._files.fs.isdir(path) else "file"
            entries.append((path.rpartition("/")[2], path, kind))
        return sorted(entries, key=lambda entry: entry[0] + "/" * (entry[2] == "directory"))

    def _identify(self, folder: str) -> str:
        return os.path.realpath(folder) if isinstance(self._files.fs, LocalFileSystem) else folder

    def read(self, uri: str) -> bytes:
        path = self._files.path(uri)
        problem = check_name(path.removeprefix(self._root + "/"), "path")
        if problem is not None:
            raise problem
        return self._files.read(path)

    def close(self) -> None:
        pass
