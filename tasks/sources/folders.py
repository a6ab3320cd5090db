"""Sources that are files of their own: a folder, a glob, or one image."""

import math
import os
import posixpath
import re
from collections.abc import Iterator

from fsspec.implementations.local import LocalFileSystem
from fsspec.utils import glob_translate

from tasks.sources.items import IMAGE_SUFFIXES, LeftOut, SourceItem, as_unicode, check_name, outside
from tasks.sources.listings import Entry, list_below, list_folder, version_of
from tasks.sources.storage import StoredFiles, storage_errors

_HIDDEN = re.compile(r"^(?:[^./][^/]*/)*\.[^/]*/?")  # up to the end of the first hidden part of a path


class OneImage:
    kind = "image"

    def __init__(self, files: StoredFiles, path: str) -> None:
        self._files = files
        self._path = path

    def items(self, left_out: LeftOut) -> Iterator[SourceItem]:
        name = posixpath.basename(self._path)
        with storage_errors(self._files.shown, self._files.secrets):
            version = version_of(self._files.fs, self._path)
        uri = as_unicode(self._files.uri(self._path))
        yield SourceItem(as_unicode(name), uri, check_name(name, "file name"), version)

    def read(self, uri: str) -> bytes:
        path = self._files.path(uri)
        if path != self._path:
            raise outside(uri, self._files.shown)
        return self._files.read(path)

    def close(self) -> None:
        pass


class FolderOrGlob:
    """A folder, or the part of one that a glob picks.

    A store that lists its keys in order is listed page by page, whatever the folders. Elsewhere, and where a glob
    limits the depth, folders are listed one at a time, and an entry is ordered as its name with "/" added to
    folders. Both are the order of whole paths, without all of them in memory.
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
            keys = list_below(self._files.fs, self._root) if self._max_depth == math.inf else None
            if keys is not None:
                yield from self._walk_keys(keys, left_out)
            else:
                yield from self._walk(self._root, "", 0, frozenset({self._identify(self._root)}), left_out)

    def _walk_keys(self, keys: Iterator[Entry], left_out: LeftOut) -> Iterator[SourceItem]:
        """Items of a store that lists all keys below a folder, as `_walk` finds them."""
        hidden = ""
        for entry in keys:
            if match := _HIDDEN.match(entry.name):
                left_out.num_hidden += match[0] != hidden  # what lies in one hidden folder follows one another
                hidden = match[0]
            else:
                yield from self._take(entry.name, entry, left_out)

    def _walk(
        self, folder: str, prefix: str, depth: int, above: frozenset[str], left_out: LeftOut
    ) -> Iterator[SourceItem]:
        for entry in list_folder(self._files.fs, folder):
            image_id = prefix + entry.name
            if entry.name.startswith("."):
                left_out.num_hidden += 1
            elif entry.kind == "directory":
                identity = self._identify(entry.path)
                if identity in above:
                    left_out.num_loops += 1
                elif depth < self._max_depth:
                    yield from self._walk(entry.path, image_id + "/", depth + 1, above | {identity}, left_out)
            else:
                yield from self._take(image_id, entry, left_out)

    def _take(self, image_id: str, entry: Entry, left_out: LeftOut) -> Iterator[SourceItem]:
        """The item of a file, if it is one."""
        if self._pattern is not None and not self._pattern.match(image_id):
            return
        suffix = posixpath.splitext(entry.path)[1].lower()
        if suffix not in IMAGE_SUFFIXES or entry.kind != "file":
            left_out.other_files[suffix] += 1
        else:
            problem = check_name(image_id, "file name")
            yield SourceItem(as_unicode(image_id), as_unicode(self._files.uri(entry.path)), problem, entry.version)

    def _identify(self, folder: str) -> str:
        return os.path.realpath(folder) if isinstance(self._files.fs, LocalFileSystem) else folder

    def read(self, uri: str) -> bytes:
        path = self._files.path(uri)
        if not path.startswith(self._root + "/"):  # another bucket's keys begin as relative paths do
            raise outside(uri, self._files.shown)
        problem = check_name(path.removeprefix(self._root + "/"), "path")
        if problem is not None:
            raise problem
        return self._files.read(path)

    def close(self) -> None:
        pass
