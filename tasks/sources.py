"""Where images come from: folders, globs, zips, arrays and manifests, wherever fsspec reaches."""

import csv
import errno
import hashlib
import io
import math
import os
import posixpath
import re
import weakref
import zipfile
import zlib
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, Self

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem
from fsspec.utils import glob_translate
from numpy.typing import NDArray

from domains.digits.data import load_split
from tasks.errors import BadImageError, SourceError, TaskError

IMAGE_SUFFIXES = frozenset(
    {".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".tif", ".tiff", ".gif"}
    | {".pbm", ".pgm", ".ppm", ".pnm"}
    | {".avif", ".heic", ".heif", ".jp2", ".jxl"}  # not decoded here: a bad row each, none is lost
)
MAX_FILE_BYTES = 512 * 2**20

_KINDS = (
    "a folder, a glob, an image, a .zip, a .npy array, or a .parquet or .csv manifest; on disk or at s3://, "
    "memory:// or another fsspec URL"
)


# --- what a source is --------------------------------------------------------------------------------


@dataclass(frozen=True)
class SourceItem:
    """One image of a source; enough to read it later without listing the source again.

    Attributes:
        image_id: the name within the source, unique there, such as "faces/a b.png".
        uri: where the bytes are; `Source.read` uses nothing else.
        problem: why the item is not to be opened at all, or None.
    """

    image_id: str
    uri: str
    problem: BadImageError | None = None


@dataclass(frozen=True)
class PlannedImage:
    """An image as it enters a plan.

    Attributes:
        image_id: as in the source.
        uri: as in the source.
        digest: SHA-256 of the bytes, in hex; "unreadable:<reason>" when they cannot be read.
        problem: why they cannot be read, or None.
    """

    image_id: str
    uri: str
    digest: str
    problem: BadImageError | None = None


@dataclass(frozen=True)
class SourceDescription:
    """What a source holds, and what of it is no image; `str` gives one sentence.

    Attributes:
        spec: as given, without secrets.
        kind: "folder", "glob", "image", "zip", "array", "manifest" or "built-in".
        num_images: items, those with a problem included.
        num_problems: items that will not be opened (names that lead out of the source, missing uris).
        other_files: how many files are no items, by suffix ("" for none).
        num_hidden: files and folders left out because their name begins with a dot.
        num_loops: folder links left out because they lead back to a folder above them.
    """

    spec: str
    kind: str
    num_images: int
    num_problems: int
    other_files: Mapping[str, int]
    num_hidden: int
    num_loops: int

    def __str__(self) -> str:
        parts = [f"{self.kind} {self.spec}: {self.num_images} images"]
        if self.num_problems:
            parts.append(f"{self.num_problems} of them not to be opened")
        if self.other_files:
            by_suffix = ", ".join(f"{n} {suffix or 'without suffix'}" for suffix, n in self.other_files.items())
            parts.append(f"{sum(self.other_files.values())} other files left out ({by_suffix})")
        if self.num_hidden:
            parts.append(f"{self.num_hidden} hidden entries left out")
        if self.num_loops:
            parts.append(f"{self.num_loops} links in a circle left out")
        return "; ".join(parts)


class ImageArray(Protocol):
    """What a built-in source loads: uint8 images [N, H, W] or [N, H, W, C], C = 1 or 3, and N ids."""

    @property
    def images(self) -> NDArray[np.uint8]: ...

    @property
    def ids(self) -> Sequence[str]: ...


BUILTIN_SOURCES: Mapping[str, Callable[[], ImageArray]] = {
    "digits:test": partial(load_split, "test"),
    "digits:train": partial(load_split, "train"),
}


@dataclass
class _LeftOut:
    """Counts of what a listing passes over, filled while it runs."""

    other_files: Counter[str] = field(default_factory=Counter)
    num_hidden: int = 0
    num_loops: int = 0


class _Backend(Protocol):
    """One kind of source."""

    kind: str

    def items(self, left_out: _LeftOut) -> Iterator[SourceItem]:
        """Every item in the order of its id."""
        ...

    def read(self, uri: str) -> bytes:
        """The bytes at a uri that `items` has given, in this process or in another."""
        ...

    def close(self) -> None: ...


class Source:
    """Images by id, made by `open_source`; to be read from any thread, and closed after use (`with`)."""

    def __init__(self, spec: str, backend: _Backend) -> None:
        self.spec = spec
        self._backend = backend
        self._description: SourceDescription | None = None
        self._closer = weakref.finalize(self, backend.close)

    def items(self) -> Iterator[SourceItem]:
        """Every image, ordered by image_id, one at a time.

        Yields:
            Items; one whose name leads out of the source, or that has no uri, carries a problem.

        Raises:
            SourceError: the listing breaks off, two images have one id, or there is no image at all.
        """
        left_out = _LeftOut()
        num_images = num_problems = 0
        previous: SourceItem | None = None
        for item in self._backend.items(left_out):
            if previous is not None and previous.image_id == item.image_id:
                raise SourceError(
                    f"{self.spec} holds two images with the id {item.image_id!r}, {previous.uri} and "
                    f"{item.uri}: one id has to mean one image, so rename or take out one of them"
                )
            previous = item
            num_images += 1
            num_problems += item.problem is not None
            yield item
        self._description = SourceDescription(
            self.spec,
            self._backend.kind,
            num_images,
            num_problems,
            dict(sorted(left_out.other_files.items())),
            left_out.num_hidden,
            left_out.num_loops,
        )
        if num_images == 0:
            raise SourceError(
                f"no image found, at least one was wanted in {self._description}: "
                f"check the path; files are images by their suffix ({' '.join(sorted(IMAGE_SUFFIXES))})"
            )

    def read(self, item: SourceItem) -> bytes:
        """The bytes of one image. The item may come from another process: only its uri is used.

        Raises:
            BadImageError: the item carries a problem (which is raised), or the file vanished, may not be read
                ("unreadable"), is larger than the source's limit ("too_large"), lies outside the source
                ("unsafe_name") or is damaged inside its zip ("corrupt").
            SourceError: the storage did not answer (is_transient), or the source is closed.
        """
        if item.problem is not None:
            raise item.problem
        if not self._closer.alive:
            raise SourceError(f"{self.spec} was closed before {item.image_id!r} was read: open the source again")
        return self._backend.read(item.uri)

    def describe(self) -> SourceDescription:
        """Counts of images and of what is left out; lists the source unless `items` has run to its end."""
        if self._description is None:
            deque(self.items(), maxlen=0)
        assert self._description is not None
        return self._description

    def close(self) -> None:
        """Let go of open files. Harmless twice."""
        self._closer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def open_source(
    spec: str,
    *,
    storage_options: Mapping[str, Any] | None = None,
    builtin: Mapping[str, Callable[[], ImageArray]] = BUILTIN_SOURCES,
    max_bytes: int = MAX_FILE_BYTES,
) -> Source:
    """Open images by one line of text.

    Args:
        spec: one of
            a folder: every image below it, by suffix; hidden files are left out, folder links are followed;
            a glob such as "s3://bucket/faces/**/*.png";
            one image file;
            a .zip of images;
            a .npy array, uint8 [N, H, W] or [N, H, W, C] with C = 1 or 3; ids are "000000", "000001", ...;
            a .csv or .parquet manifest with the column `uri` (relative to the manifest's folder) and perhaps
            `image_id` (else the uri as written);
            a built-in name, perhaps with a slice: "digits:test[:256]".
        storage_options: passed to the fsspec file system, such as {"endpoint_url": ..., "key": ...}.
        builtin: loaders of the built-in sources by name.
        max_bytes: refuse to read a single file, or member of a zip, larger than this.

    Returns:
        The source; nothing is read yet beyond what tells its kind.

    Raises:
        SourceError: nothing is there, it is of no known kind, may not be read, is damaged, the spec carries a
            password, or the storage does not answer (is_transient).
    """
    secrets = _Secrets(storage_options or {})
    shown = secrets.hide(spec)
    match = re.fullmatch(r"(?P<name>[^\[\]]+)(?:\[(?P<start>\d*):(?P<stop>\d*)\])?", spec)
    if match and match["name"] in builtin:
        return Source(spec, _ArrayInMemory(match, builtin[match["name"]]))
    if _has_password(spec):
        raise SourceError(
            f"{shown} carries a password, which would end up in logs and archives: "
            "pass it by storage_options or by the environment of the storage's client"
        )
    backend: _Backend
    with _storage_errors(shown, secrets):
        fs, path = fsspec.core.url_to_fs(spec, **(storage_options or {}))
        fs.invalidate_cache()
        try:
            is_folder = fs.info(path)["type"] == "directory"
        except FileNotFoundError:
            if any(character in path for character in "*?["):
                files = _Files(fs, shown, secrets, max_bytes)
                return Source(shown, _Tree(files, path))
            raise SourceError(
                f"nothing is at {shown} ({secrets.hide(fs.unstrip_protocol(path))}); wanted {_KINDS}; or a "
                f"built-in source ({', '.join(sorted(builtin))}): check the spelling"
            ) from None
        files = _Files(fs, shown, secrets, max_bytes)
        suffix = posixpath.splitext(path)[1].lower()
        if is_folder:
            backend = _Tree(files, path, is_glob=False)
        elif suffix == ".zip":
            backend = _Zip(files, path)
        elif suffix == ".npy":
            backend = _ArrayFile(files, path)
        elif suffix in (".csv", ".parquet"):
            backend = _Manifest(files, path, read=_read_csv if suffix == ".csv" else _read_parquet)
        elif suffix in IMAGE_SUFFIXES:
            backend = _OneImage(files, path)
        else:
            raise SourceError(f"{shown} is a file of no known kind; wanted {_KINDS}: convert it or pass its folder")
    return Source(shown, backend)


def digest_bytes(data: bytes) -> str:
    """SHA-256 in hex: equal for equal files, wherever they lie."""
    return hashlib.sha256(data).hexdigest()


def plan_items(source: Source, *, num_threads: int = 8) -> Iterator[PlannedImage]:
    """Read every image once and yield its digest, in the order of the ids.

    Threads hide the latency of object stores; at most twice num_threads images are in memory at a time.

    Args:
        source: where the images come from.
        num_threads: how many are read at the same time.

    Yields:
        One planned image per item. A bad one has the digest "unreadable:<reason>" and its problem.

    Raises:
        SourceError: as `Source.items` and `Source.read`; the storage's failures are never booked on an image.
    """
    waiting: deque[Future[PlannedImage]] = deque()
    with ThreadPoolExecutor(num_threads, thread_name_prefix="read-source") as pool:
        try:
            for item in source.items():
                waiting.append(pool.submit(_plan_one, source, item))
                if len(waiting) >= 2 * num_threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _plan_one(source: Source, item: SourceItem) -> PlannedImage:
    try:
        return PlannedImage(item.image_id, item.uri, digest_bytes(source.read(item)))
    except BadImageError as problem:
        return PlannedImage(item.image_id, item.uri, f"unreadable:{problem.reason}", problem)


# --- names, secrets, failures ------------------------------------------------------------------------


def _has_password(url: str) -> bool:
    return re.search(r"://[^/\s@]*:[^/\s]*@", url) is not None


class _Secrets:
    """Hides in a text what must not be logged: passwords in URLs, signed queries, secret storage options."""

    def __init__(self, storage_options: Mapping[str, Any]) -> None:
        self._values = sorted(self._collect(storage_options), key=len, reverse=True)

    def _collect(self, options: Mapping[str, Any]) -> Iterator[str]:
        for name, value in options.items():
            if isinstance(value, Mapping):
                yield from self._collect(value)
            elif isinstance(value, str) and value and re.search("key|secret|token|pass|cred|sas|conn", name, re.I):
                yield value

    def hide(self, text: str) -> str:
        text = re.sub(r"://[^/\s@]*@", "://***@", text)
        text = re.sub(r"(?i)([?&][^=&\s]*(?:sig|token|credential|key|secret)[^=&\s]*=)[^&\s'\")]+", r"\1***", text)
        for value in self._values:
            text = text.replace(value, "***")
        return text


def _check_name(name: str, what: str) -> BadImageError | None:
    """The problem of a name that leads out of its source, or cannot be stored; None when it is fine."""
    parts = re.split(r"[/\\]", name)
    if ".." in parts or name.startswith(("/", "\\")) or re.match(r"[A-Za-z]:[/\\]", name):
        return BadImageError(
            "unsafe_name",
            f"the {what} {name!r} leads out of the source, a name below it was wanted; it was not opened: "
            "rename it, or make it a manifest row with its full address",
        )
    try:
        name.encode()
    except UnicodeEncodeError:
        return BadImageError(
            "unsafe_name", f"the {what} {name!r} is not valid Unicode, UTF-8 was wanted: rename the file"
        )
    return None


def _as_unicode(name: str) -> str:
    """The name itself, or, where a file system gave bytes that are no UTF-8, those bytes as \\xNN."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _concerns_one_file(error: OSError) -> bool:
    return isinstance(
        error, FileNotFoundError | PermissionError | IsADirectoryError | NotADirectoryError
    ) or error.errno in (errno.ELOOP, errno.ENAMETOOLONG)


@contextmanager
def _storage_errors(shown: str, secrets: _Secrets) -> Iterator[None]:
    """Turn what a file system raises into a SourceError, and say whether trying again can help.

    Each storage client has its own exceptions, hence the broad clause. The original is named but not chained:
    its text may hold credentials.
    """
    try:
        yield
    except (SourceError, BadImageError, MemoryError):
        raise
    except Exception as error:
        what = secrets.hide(f"{type(error).__name__}: {error}")
        if isinstance(error, ImportError):
            message = f"{shown} needs a storage client that is not installed ({what}): install it"
        elif isinstance(error, PermissionError) or "credential" in type(error).__name__.lower():
            message = (
                f"{shown} may not be read ({what}), read access was wanted: check the permissions and "
                "credentials of this process, or pass storage_options"
            )
        elif isinstance(error, OSError) and _concerns_one_file(error):
            message = f"{shown} cannot be opened ({what}): check the path and the links along it"
        elif isinstance(error, ValueError | TypeError) and not isinstance(error, OSError):
            message = f"{shown} is no readable address ({what}); wanted {_KINDS}: check it"
        else:
            message = f"{shown} does not answer ({what}): check the endpoint and the network, then run again"
            raise SourceError(message, is_transient=True) from None
        raise SourceError(message) from None


@dataclass(frozen=True)
class _Files:
    """Whole files of one file system, with the failures sorted into the image's and the storage's."""

    fs: Any  # fsspec.AbstractFileSystem, which carries no types
    shown: str
    secrets: _Secrets
    max_bytes: int

    def uri(self, path: str) -> str:
        return str(self.fs.unstrip_protocol(path))

    def path(self, uri: str) -> str:
        return str(self.fs._strip_protocol(uri))

    def read(self, path: str) -> bytes:
        with self.reading(path), self.fs.open(path, "rb", cache_type="none") as file:
            size = getattr(file, "size", None)  # some web servers do not say
            if size is not None:
                self.check_size(path, size)
            data = bytes(file.read(-1 if size is not None else self.max_bytes + 1))
            self.check_size(path, len(data))
            return data

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
        with _storage_errors(shown, self.secrets):
            try:
                yield
            except (OSError, ValueError) as error:  # ValueError: an unknown protocol or impossible name
                if isinstance(error, TaskError):
                    raise
                if isinstance(error, OSError) and not _concerns_one_file(error):
                    raise
                raise BadImageError(
                    "unreadable",
                    f"{shown} cannot be read ({type(error).__name__}), a readable file was wanted: "
                    "restore it or its permissions, or take it out of the source",
                ) from None


# --- the kinds of source -----------------------------------------------------------------------------


class _OneImage:
    kind = "image"

    def __init__(self, files: _Files, path: str) -> None:
        self._files = files
        self._path = path

    def items(self, left_out: _LeftOut) -> Iterator[SourceItem]:
        name = posixpath.basename(self._path)
        yield SourceItem(_as_unicode(name), _as_unicode(self._files.uri(self._path)), _check_name(name, "file name"))

    def read(self, uri: str) -> bytes:
        return self._files.read(self._files.path(uri))

    def close(self) -> None:
        pass


class _Tree:
    """A folder, or the part of one that a glob picks.

    Folders are listed one at a time, and an entry is ordered as its name with "/" added to folders: that is
    the order of whole paths, without all of them in memory.
    """

    def __init__(self, files: _Files, path: str, *, is_glob: bool = True) -> None:
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

    def items(self, left_out: _LeftOut) -> Iterator[SourceItem]:
        with _storage_errors(self._files.shown, self._files.secrets):
            self._files.fs.invalidate_cache()
            yield from self._walk(self._root, "", 0, frozenset({self._identify(self._root)}), left_out)

    def _walk(
        self, folder: str, prefix: str, depth: int, above: frozenset[str], left_out: _LeftOut
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
                problem = _check_name(image_id, "file name")
                yield SourceItem(_as_unicode(image_id), _as_unicode(self._files.uri(path)), problem)

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
        problem = _check_name(path.removeprefix(self._root + "/"), "path")
        if problem is not None:
            raise problem
        return self._files.read(path)

    def close(self) -> None:
        pass


class _Zip:
    kind = "zip"

    def __init__(self, files: _Files, path: str) -> None:
        self._files = files
        self._path = path
        # Small blocks: on an object store a member is one short request, not 50 MB of its neighbours.
        file = files.fs.open(path, "rb", block_size=2**20)
        try:
            self._archive = zipfile.ZipFile(file)
        except zipfile.BadZipFile as error:
            file.close()
            raise SourceError(
                f"{files.shown} is not a complete zip file ({error}): copy it again, or pass a folder"
            ) from error
        self._file = file

    def items(self, left_out: _LeftOut) -> Iterator[SourceItem]:
        for info in sorted(self._archive.infolist(), key=lambda info: info.filename):
            name = info.filename
            suffix = posixpath.splitext(name)[1].lower()
            if info.is_dir():
                continue
            if any(part.startswith(".") and part != ".." for part in re.split(r"[/\\]", name)):
                left_out.num_hidden += 1
            elif suffix not in IMAGE_SUFFIXES:
                left_out.other_files[suffix] += 1
            else:
                yield SourceItem(name, f"zip://{name}{self._ending}", _check_name(name, "member"))

    @property
    def _ending(self) -> str:
        return f"::{self._files.uri(self._path)}"

    def read(self, uri: str) -> bytes:
        name = uri.removeprefix("zip://").removesuffix(self._ending)
        problem = _check_name(name, "member")
        if problem is not None:
            raise problem
        try:
            info = self._archive.getinfo(name)
        except KeyError:
            raise BadImageError(
                "unreadable",
                f"{self._files.shown} has no member {name!r} any more: restore it, or plan the run anew",
            ) from None
        self._files.check_size(name, info.file_size)
        if info.flag_bits & 1:
            raise BadImageError(
                "unreadable",
                f"the member {name!r} is encrypted, plain ones were wanted: unpack the zip, pass its folder",
            )
        with self._files.reading(name):
            try:
                return self._archive.read(info)  # never gives more than info.file_size bytes
            except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
                raise BadImageError(
                    "corrupt",
                    f"the member {name!r} cannot be unpacked ({error}): pack it again, stored or deflated",
                ) from error

    def close(self) -> None:
        self._archive.close()
        self._file.close()


class _ArrayFile:
    """A .npy file. Images are cut out of it by their offset, so that nothing is unpickled or read twice."""

    kind = "array"

    def __init__(self, files: _Files, path: str) -> None:
        self._files = files
        self._path = path
        with files.fs.open(path, "rb") as file:
            try:
                version = np.lib.format.read_magic(file)
                read_header = {
                    (1, 0): np.lib.format.read_array_header_1_0,
                    (2, 0): np.lib.format.read_array_header_2_0,
                }[version]
                shape, is_fortran, dtype = read_header(file)
            except (ValueError, KeyError) as error:
                raise SourceError(
                    f"{files.shown} is not a .npy array of version 1 or 2 ({error}): save it with numpy.save"
                ) from error
            self._offset = file.tell()
        found = f"{files.shown} holds {dtype} {list(shape)}" + (" in Fortran order" if is_fortran else "")
        if dtype != np.uint8 or is_fortran or len(shape) not in (3, 4) or shape[3:] not in ((), (1,), (3,)):
            raise SourceError(
                f"{found}, uint8 [N, H, W] or [N, H, W, C] with C = 1 or 3 in C order was wanted (pickled "
                "objects are never loaded): convert the array and save it with numpy.save"
            )
        self._num_images, *self._image_shape = shape
        self._image_bytes = math.prod(self._image_shape)
        if self._image_bytes == 0:
            raise SourceError(f"{found}, images without a pixel: sides above 0 were wanted, save the array again")
        files.check_size(path, self._image_bytes)
        wanted = self._offset + self._num_images * self._image_bytes
        size = files.fs.size(path)
        if size is not None and size < wanted:
            raise SourceError(f"{found}, for which {wanted} bytes were wanted, and has {size}: copy it again")

    def items(self, left_out: _LeftOut) -> Iterator[SourceItem]:
        base = self._files.uri(self._path)
        for index in range(self._num_images):
            yield SourceItem(f"{index:06d}", f"{base}#{index:06d}")

    def read(self, uri: str) -> bytes:
        index = int(uri.rpartition("#")[2])
        start = self._offset + index * self._image_bytes
        with self._files.reading(uri):
            pixels = self._files.fs.cat_file(self._path, start=start, end=start + self._image_bytes)
        if not 0 <= index < self._num_images or len(pixels) != self._image_bytes:
            raise BadImageError("unreadable", f"{uri} is beyond the end of the array: restore it, or plan the run anew")
        return _as_pnm(np.frombuffer(pixels, np.uint8).reshape(self._image_shape))

    def close(self) -> None:
        pass


class _ArrayInMemory:
    """A built-in source, whole or a slice of it."""

    kind = "built-in"

    def __init__(self, match: re.Match[str], load: Callable[[], ImageArray]) -> None:
        loaded = load()
        chosen = slice(int(match["start"] or 0), int(match["stop"]) if match["stop"] else None)
        self._scheme = f"{match['name'].partition(':')[0]}:"
        self._row_of = {image_id: row for row, image_id in enumerate(loaded.ids)}
        self._ids = sorted(loaded.ids[chosen])
        self._images = loaded.images

    def items(self, left_out: _LeftOut) -> Iterator[SourceItem]:
        for image_id in self._ids:
            yield SourceItem(image_id, self._scheme + image_id)

    def read(self, uri: str) -> bytes:
        row = self._row_of.get(uri.removeprefix(self._scheme))
        if row is None:
            raise BadImageError("unreadable", f"no built-in image is called {uri}: plan the run anew")
        return _as_pnm(self._images[row])

    def close(self) -> None:
        pass


def _as_pnm(pixels: NDArray[np.uint8]) -> bytes:
    """An image file of bare pixels, [H, W] or [H, W, C] with C = 1 or 3.

    PNM, because its bytes follow from the pixels alone: a PNG's depend on the version of zlib, and with them
    the digest by which a finished image is recognized.
    """
    height, width, *channels = pixels.shape
    kind = b"P6" if channels == [3] else b"P5"
    return b"%s\n%d %d\n255\n" % (kind, width, height) + pixels.tobytes()


class _Manifest:
    """A table of addresses, read whole so that its ids can be ordered and compared."""

    kind = "manifest"

    def __init__(self, files: _Files, path: str, *, read: Callable[[_Files, str], list[tuple[Any, Any]]]) -> None:
        self._files = files
        self._folder = posixpath.dirname(path)
        self._rows = read(files, path)

    def items(self, left_out: _LeftOut) -> Iterator[SourceItem]:
        items = [self._to_item(number, *row) for number, row in enumerate(self._rows, start=1)]
        yield from sorted(items, key=lambda item: (item.image_id, item.uri))

    def _to_item(self, number: int, image_id: Any, uri: Any) -> SourceItem:
        given_id = None if image_id in (None, "") else str(image_id)
        problem: BadImageError | None
        if uri is None or str(uri).strip() == "":
            problem = BadImageError("no_uri", f"row {number} of {self._files.shown} has no uri: add it or take it out")
            return SourceItem(given_id or f"row-{number:06d}", "", problem)
        written = str(uri)
        if self._is_address(written):
            problem = self._check_address(written)
            shown = self._files.secrets.hide(written) if _has_password(written) else written
            return SourceItem(given_id or shown, shown, problem)
        problem = _check_name(written, "uri")
        below = f"{self._folder}/{written.removeprefix('./')}"
        return SourceItem(given_id or written, written if problem else self._files.uri(below), problem)

    def _is_address(self, written: str) -> bool:
        return "://" in written or (written.startswith("/") and isinstance(self._files.fs, LocalFileSystem))

    def _is_own(self, uri: str) -> bool:
        own = self._files.fs.protocol
        return (fsspec.core.split_protocol(uri)[0] or "file") in ((own,) if isinstance(own, str) else own)

    def _check_address(self, uri: str) -> BadImageError | None:
        is_local = uri.startswith(("/", "file://", "local://"))
        if ".." in re.split(r"[/\\]", uri) or ("::" in uri and not self._is_own(uri)):
            found, wanted = "climbs with `..` or chains file systems with `::`", "a plain address"
        elif _has_password(uri):
            found, wanted = "carries a password", "an address without one (storage_options may hold it)"
            uri = self._files.secrets.hide(uri)
        elif is_local and not isinstance(self._files.fs, LocalFileSystem):
            found, wanted = (
                "asks for a file of this machine, in a manifest from elsewhere",
                "an address over there",
            )
        else:
            return None
        return BadImageError(
            "unsafe_name", f"the uri {uri!r} {found}, {wanted} was wanted; it was not opened: rewrite the row"
        )

    def read(self, uri: str) -> bytes:
        problem = self._check_address(uri)
        if problem is not None:
            raise problem
        if self._is_own(uri):
            return self._files.read(self._files.path(uri))
        with self._files.reading(uri):
            fs, path = fsspec.core.url_to_fs(uri)
        return _Files(fs, self._files.shown, self._files.secrets, self._files.max_bytes).read(path)

    def close(self) -> None:
        pass


def _read_csv(files: _Files, path: str) -> list[tuple[Any, Any]]:
    """Rows (image_id, uri) as written: no cell is taken for a number, so the id 0001 keeps its zeros."""
    with files.fs.open(path, "rb") as file:
        try:
            table = csv.DictReader(io.TextIOWrapper(file, encoding="utf-8-sig", newline=""), strict=True)
            _check_columns(files, list(table.fieldnames or ()))
            return [(row.get("image_id"), row["uri"]) for row in table]
        except (csv.Error, UnicodeDecodeError) as error:
            raise SourceError(
                f"{files.shown} is not a CSV table in UTF-8 ({error}): export it again, with commas"
            ) from error


def _read_parquet(files: _Files, path: str) -> list[tuple[Any, Any]]:
    data = files.fs.cat_file(path)  # apart from parsing: a broken network is not a broken file
    try:
        table = pq.ParquetFile(io.BytesIO(data))
        names = table.schema_arrow.names
        _check_columns(files, names)
        columns = table.read([name for name in ("image_id", "uri") if name in names]).to_pydict()
    except (pa.ArrowException, OSError) as error:
        raise SourceError(f"{files.shown} is not a complete Parquet file ({error}): copy it again") from error
    uris = columns["uri"]
    return list(zip(columns.get("image_id", [None] * len(uris)), uris, strict=True))


def _check_columns(files: _Files, names: list[str]) -> None:
    if "uri" not in names:
        raise SourceError(
            f"the manifest {files.shown} has the columns {names}, `uri` and perhaps `image_id` were wanted: "
            "add a header or rename the column"
        )
    if len(set(names)) < len(names):
        raise SourceError(f"the manifest {files.shown} has a column twice, {names}: rename one of them")
