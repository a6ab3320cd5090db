"""Shards as sources: .tar, Parquet, Arrow and LMDB files with images in them, one or many."""

import itertools
import json
import posixpath
import re
import threading
from collections.abc import Iterator, Sequence
from typing import Protocol
from urllib.parse import quote, unquote

from tasks.errors import BadImageError, SourceError
from tasks.sources.arrow_images import ArrowShard
from tasks.sources.image_columns import NoImageColumnError, SeveralImageColumnsError
from tasks.sources.items import LeftOut, SourceItem, outside
from tasks.sources.listings import list_folder, version_of
from tasks.sources.lmdb_images import DATA_FILE, LmdbShard
from tasks.sources.parquet_images import ParquetShard
from tasks.sources.shard_index import Member, ShardIndex, remembered_index
from tasks.sources.storage import StoredFiles, storage_errors
from tasks.sources.tars import TarShard

SHARD_SUFFIXES = frozenset({".tar", ".parquet", ".arrow", ".mdb"})
# Addresses of images in shards.
_IN_TAR = re.compile(r"(?P<shard>.+\.tar)#(?P<place>(?P<number>\d{1,19})\+\d{1,19})", re.IGNORECASE | re.DOTALL)
_BAD = re.compile(r"(?P<shard>.+\.(?:tar|parquet|arrow|mdb))#(?P<place>!(?P<name>[^#]*))", re.IGNORECASE | re.DOTALL)
_IN_PARQUET = re.compile(r"(?P<shard>.+\.parquet)#(?P<place>[^#]*:(?P<number>\d{1,19}))", re.IGNORECASE | re.DOTALL)

_IN_ARROW = re.compile(
    r"(?P<shard>.+\.arrow)#(?P<place>[^#]*:(?P<number>\d{1,19})\+\d{1,9})", re.IGNORECASE | re.DOTALL
)
_IN_LMDB = re.compile(r"(?P<shard>.+\.mdb)#(?P<place>(?:[0-9a-f]{2})+)", re.IGNORECASE | re.DOTALL)


def is_shard(path: str) -> bool:
    """Whether a file is looked into."""
    return posixpath.splitext(path)[1].lower() in SHARD_SUFFIXES


def place_in_shard(uri: str) -> tuple[str, int]:
    """By what images of shards are sorted to be read in the order in which they lie; equal for all others."""
    match = _address(uri)
    return (match["shard"], int(match.groupdict().get("number", 0))) if match else ("", 0)


def _address(uri: str) -> re.Match[str] | None:
    kinds = (_IN_TAR, _BAD, _IN_PARQUET, _IN_ARROW, _IN_LMDB)
    return next((match for kind in kinds if (match := kind.fullmatch(uri))), None)


def _bad_place(name: str) -> str:
    """Stands in an address where an image has no place of its own: its name, by which its problem is found again."""
    return f"!{quote(name)}"


class _Reader(Protocol):
    """One kind of shard."""

    def index(self, path: str) -> ShardIndex:
        """What is in a shard, and where."""
        ...

    def read(self, path: str, place: str) -> bytes:
        """The bytes of an image at a place that `index` has given."""
        ...

    def close(self) -> None: ...


class Shards:
    """What is inside shards, for sources that have some."""

    def __init__(self, files: StoredFiles, column: str | None) -> None:
        self._files = files
        self._column = column
        self._parquet = ParquetShard(files, column)
        self._readers: dict[str, _Reader] = {
            ".tar": TarShard(files),
            ".parquet": self._parquet,
            ".arrow": ArrowShard(files, column),
            ".mdb": LmdbShard(files, column),
        }
        self._lock = threading.Lock()
        self._problems: dict[tuple[str, str | None], dict[str, BadImageError]] = {}

    def items(self, path: str, version: str | None, left_out: LeftOut, *, within: str) -> Iterator[SourceItem]:
        """The images of one shard in the order of their ids, which begin with `within`.

        Raises:
            NoImageColumnError, SourceError: as the shard's `index`.
        """
        uri = self._files.uri(path)
        index = self._index(path, uri, version)
        left_out.other_files.update(index.other_files)
        left_out.num_hidden += index.num_hidden
        if index.note:
            left_out.notes.append(index.note)
        for member in index:
            place = _bad_place(member.name) if member.problem else member.place
            yield SourceItem(within + member.name, f"{uri}#{place}", member.problem, version)

    def items_or_problem(
        self, path: str, version: str | None, left_out: LeftOut, *, within: str
    ) -> Iterator[SourceItem]:
        """The same of one shard among others: a damaged one is one bad image, a table without images another file."""
        try:
            yield from self.items(path, version, left_out, within=within)
        except NoImageColumnError:
            left_out.other_files[posixpath.splitext(path)[1].lower()] += 1
        except SeveralImageColumnsError:
            raise
        except SourceError as error:
            if error.is_transient:
                raise
            left_out.notes.append(str(error))
            lost = Member.unread_part(str(error))
            uri = f"{self._files.uri(path)}#{_bad_place(lost.name)}"
            yield SourceItem(within + lost.name, uri, lost.problem)

    def has_images(self, path: str) -> bool:
        """Whether a Parquet file is a shard of images rather than a manifest."""
        try:
            self._parquet.column(path)
        except NoImageColumnError:
            return False
        return True

    def split(self, uri: str) -> tuple[str, str] | None:
        """Path of the shard and place in it, of an address in one; None for the address of a file."""
        match = _address(uri)
        return (self._files.path(match["shard"]), match["place"]) if match else None

    def read(self, path: str, place: str) -> bytes:
        """The bytes of an image; as the shard's `read`. A bad one, which has no place, is bad for its reason again."""
        if place.startswith("!"):
            raise self._problem_of(path, unquote(place[1:]))
        return self._reader(path).read(path, place)

    def _problem_of(self, path: str, name: str) -> BadImageError:
        with self._files.reading(path):
            version = version_of(self._files.fs, path)
        with self._lock:
            if (path, version) not in self._problems:
                try:
                    index = self._index(path, self._files.uri(path), version)
                    problems = {member.name: member.problem for member in index if member.problem}
                except SourceError as error:
                    if error.is_transient:
                        raise
                    lost = Member.unread_part(str(error))
                    problems = {lost.name: lost.problem} if lost.problem else {}
                self._problems = {(path, version): problems}  # of one shard at a time
            problem = self._problems[path, version].get(name)
        return problem or BadImageError("unreadable", f"{name!r} is not what it was in {path}: plan the run anew")

    def _index(self, path: str, uri: str, version: str | None) -> ShardIndex:
        with storage_errors(self._files.secrets.hide(path), self._files.secrets):
            make = self._reader(path).index
            column = "" if self._column is None or path.lower().endswith(".tar") else f"#{self._column}"
            return remembered_index(uri + column, version, lambda: make(path))

    def _reader(self, path: str) -> "_Reader":
        return self._readers[posixpath.splitext(path)[1].lower()]

    def close(self) -> None:
        """Let go of open files."""
        for reader in self._readers.values():
            reader.close()


def shards_of_folder(files: StoredFiles, folder: str) -> list[str] | None:
    """The files that are all of a data set in a folder, and none of its images by themselves; None for other folders.

    They are those that the `state.json` of `save_to_disk` names, or the data of an LMDB with no images beside it.

    Raises:
        SourceError: a `state.json` names what is not in its folder by its name.
    """
    root = folder.rstrip("/")
    if told := _data_files(files, f"{root}/state.json"):
        if bad := [name for name in told if name != posixpath.basename(name) or not is_shard(name)]:
            raise SourceError(f"the state.json of {files.shown} names {bad[0]!r}, an .arrow file beside it was wanted")
        return [f"{root}/{name}" for name in told]
    if files.fs.isfile(f"{root}/{DATA_FILE}"):
        few = {entry.name for entry in itertools.islice(list_folder(files.fs, root), 3)}  # of a folder of any size
        if few <= {DATA_FILE, "lock.mdb"}:
            return [f"{root}/{DATA_FILE}"]
    return None


def _data_files(files: StoredFiles, place: str) -> list[str]:
    """The names in the `state.json` of `datasets`; none where it is missing, or that of another program."""
    if not files.fs.isfile(place):
        return []
    try:
        return [str(one["filename"]) for one in json.loads(files.fs.cat_file(place))["_data_files"]]
    except (ValueError, KeyError, TypeError, RecursionError):
        return []


class ShardFiles:
    """One shard, or those that a pattern with braces names.

    Ids are the members' names; of several shards with the shard's path before them, from where the names differ.
    """

    def __init__(self, files: StoredFiles, shards: Shards, paths: Sequence[str], root: str | None = None) -> None:
        """Shards by their paths; `root` is the folder that ids begin below, None where one shard has no need of it."""
        self._files = files
        self._shards = shards
        self._names = {path: "" if root is None else f"{path.removeprefix(root).lstrip('/')}/" for path in paths}
        one = posixpath.splitext(paths[0])[1].lower().lstrip(".")
        self.kind = one if root is None else "shards"

    def items(self, left_out: LeftOut) -> Iterator[SourceItem]:
        versions = self._versions()
        for path, within in sorted(self._names.items(), key=lambda named: named[1]):
            if within:
                yield from self._shards.items_or_problem(path, versions[path], left_out, within=within)
            else:
                yield from self._shards.items(path, versions[path], left_out, within="")

    def _versions(self) -> dict[str, str | None]:
        versions, missing = {}, []
        with storage_errors(self._files.shown, self._files.secrets):
            for path in self._names:
                try:
                    versions[path] = version_of(self._files.fs, path)
                except FileNotFoundError:
                    missing.append(path)
        if missing:
            shown = self._files.secrets.hide(", ".join(missing[:3]) + (", ..." if len(missing) > 3 else ""))
            raise SourceError(
                f"{len(missing)} of the {len(self._names)} shards that {self._files.shown} names are not there "
                f"({shown}), all were wanted: copy them, or name those that are"
            )
        return versions

    def read(self, uri: str) -> bytes:
        found = self._shards.split(uri)
        if found is None or found[0] not in self._names:
            raise outside(uri, self._files.shown)
        return self._shards.read(*found)

    def close(self) -> None:
        self._shards.close()
