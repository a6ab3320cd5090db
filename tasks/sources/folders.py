"""Sources that are files of their own: a folder, a glob, or one image."""

import heapq
import math
import os
import posixpath
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fsspec.implementations.local import LocalFileSystem
from fsspec.utils import glob_translate

from tasks.sources.items import IMAGE_SUFFIXES, LeftOut, SourceItem, check_name, outside
from tasks.sources.listings import Entry, list_below, list_folder, version_of
from tasks.sources.names import file_name
from tasks.sources.shards import SHARD_SUFFIXES, Shards
from tasks.sources.storage import StoredFiles, storage_errors

_HIDDEN = re.compile(r"^(?:[^./][^/]*/)*\.[^/]*/?")  # up to the end of the first hidden part of a path


class OneImage:
    kind = "image"

    def __init__(self, files: StoredFiles, path: str) -> None:
        self._files = files
        self._path = path

    def items(self, left_out: LeftOut) -> Iterator[SourceItem]:
        name, is_guessed = file_name(posixpath.basename(self._path))
        left_out.num_guessed += is_guessed
        with storage_errors(self._files.shown, self._files.secrets):
            version = version_of(self._files.fs, self._path)
        yield SourceItem(name, self._files.uri(self._path), check_name(name, "file name"), version)

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

    def __init__(self, files: StoredFiles, shards: Shards, path: str, globs: Sequence[str] = ()) -> None:
        """A folder at `path`, or what one of some globs picks, which all are below it."""
        self._files = files
        self._shards = shards
        self.kind = "glob" if globs else "folder"
        self._pattern: re.Pattern[str] | None = None
        self._max_depth: float = math.inf
        self._root = path.rstrip("/")
        if globs:
            below = [glob[len(self._root) :].lstrip("/") for glob in globs]
            self._pattern = re.compile("|".join(f"(?:{glob_translate(one)})" for one in below))
            self._max_depth = max(math.inf if "**" in one else one.count("/") for one in below)

    def items(self, left_out: LeftOut) -> Iterator[SourceItem]:
        with storage_errors(self._files.shown, self._files.secrets):
            self._files.fs.invalidate_cache()
            keys = list_below(self._files.fs, self._root) if self._max_depth == math.inf else None
            if keys is not None:
                found = self._walk_keys(keys, left_out)
            else:
                found = self._walk(self._root, "", 0, frozenset({self._identify(self._root)}), left_out)
            yield from self._look_into_shards(found, left_out)

    def _look_into_shards(self, found: Iterator["SourceItem | _Shard"], left_out: LeftOut) -> Iterator[SourceItem]:
        """The items of a listing, with those of shards in their places.

        A shard stands for what is in it like a folder, but is listed like a file: it waits for those of the following
        names that come before what is in it, as "a.tar.png" comes before "a.tar/0.png".
        """
        waiting: list[tuple[str, _Shard]] = []
        for one in found:
            while waiting and waiting[0][0] <= one.image_id:
                yield from self._look_into(heapq.heappop(waiting)[1], left_out)
            if isinstance(one, _Shard):
                heapq.heappush(waiting, (f"{one.image_id}/", one))
            else:
                yield one
        while waiting:
            yield from self._look_into(heapq.heappop(waiting)[1], left_out)

    def _look_into(self, shard: "_Shard", left_out: LeftOut) -> Iterator[SourceItem]:
        within = f"{shard.image_id}/"
        yield from self._shards.items_or_problem(shard.path, shard.version, left_out, within=within)

    def _walk_keys(self, keys: Iterator[Entry], left_out: LeftOut) -> Iterator["SourceItem | _Shard"]:
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
    ) -> Iterator["SourceItem | _Shard"]:
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

    def _take(self, image_id: str, entry: Entry, left_out: LeftOut) -> Iterator["SourceItem | _Shard"]:
        """The item of a file, if it is one, or the shard."""
        if self._pattern is not None and not self._pattern.match(image_id):
            return
        suffix = posixpath.splitext(entry.path)[1].lower()
        problem = check_name(image_id, "file name")
        is_guessed = file_name(entry.path.removeprefix(self._root)).is_guessed
        if entry.kind == "file" and suffix in SHARD_SUFFIXES and problem is None:
            left_out.num_guessed += is_guessed
            yield _Shard(image_id, entry.path, entry.version)
        elif suffix not in IMAGE_SUFFIXES | SHARD_SUFFIXES or entry.kind != "file":
            left_out.other_files[suffix] += 1
        else:
            left_out.num_guessed += is_guessed
            yield SourceItem(image_id, self._files.uri(entry.path), problem, entry.version)

    def _identify(self, folder: str) -> str:
        return os.path.realpath(folder) if isinstance(self._files.fs, LocalFileSystem) else folder

    def read(self, uri: str) -> bytes:
        in_shard = self._shards.split(uri)
        path = in_shard[0] if in_shard else self._files.path(uri)
        if not path.startswith(self._root + "/"):  # another bucket's keys begin as relative paths do
            raise outside(uri, self._files.shown)
        problem = check_name(file_name(path.removeprefix(self._root + "/")).text, "path")
        if problem is not None:
            raise problem
        return self._shards.read(*in_shard) if in_shard else self._files.read(path)

    def close(self) -> None:
        self._shards.close()


@dataclass(frozen=True, order=True)
class _Shard:
    """A file that is looked into: what its images' ids begin with, its path and its version."""

    image_id: str
    path: str
    version: str | None
