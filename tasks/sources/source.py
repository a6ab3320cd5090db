"""Where images come from: folders, globs, zips, arrays and manifests, wherever fsspec reaches."""

import hashlib
import posixpath
import re
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol, Self

from domains.embedded import ImageArray
from lsap_archive import Secrets, open_file_system
from tasks.errors import BadImageError, SourceError
from tasks.sources.arrays import BUILTIN_SOURCES, ArrayFile, ArrayInMemory
from tasks.sources.folders import FolderOrGlob, OneImage
from tasks.sources.items import IMAGE_SUFFIXES, LeftOut, SourceItem, without_credential
from tasks.sources.manifests import MANIFESTS, Manifest
from tasks.sources.names import GUESSES
from tasks.sources.patterns import GLOB_CHARACTERS, expand_braces
from tasks.sources.shards import ShardFiles, Shards, is_shard, shards_of_folder
from tasks.sources.storage import SOURCE_KINDS, StoredFiles, storage_errors
from tasks.sources.tars import compressed
from tasks.sources.zips import Zip
from tasks.visible_text import visible

MAX_FILE_BYTES = 512 * 2**20
NOTES_TOLD = 5


@dataclass(frozen=True)
class SourceDescription:
    """What a source holds, and what of it is no image; `str` gives one sentence.

    Attributes:
        spec: as given, without secrets.
        kind: "folder", "glob", "image", "zip", "tar", "parquet", "arrow", "mdb", "shards", "array", "manifest" or
            "built-in".
        num_images: items, those with a problem included.
        num_problems: items that will not be opened (names that lead out of the source, missing uris).
        other_files: how many files are no items, by suffix ("" for none).
        num_hidden: files and folders left out because their name begins with a dot.
        num_loops: folder links left out because they lead back to a folder above them.
        num_guessed: items whose names are no UTF-8, and do not say what they are.
        notes: what is to be told of shards, a part of a sentence each: that one is cut short.
    """

    spec: str
    kind: str
    num_images: int
    num_problems: int
    other_files: Mapping[str, int]
    num_hidden: int
    num_loops: int
    num_guessed: int = 0
    notes: tuple[str, ...] = ()

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
        if self.num_guessed:
            parts.append(f"{self.num_guessed} names are no UTF-8 and were read as {GUESSES}")
        parts += self.notes[:NOTES_TOLD]
        if len(self.notes) > NOTES_TOLD:
            parts.append(f"the like of {len(self.notes) - NOTES_TOLD} more shards")
        return visible("; ".join(parts))  # suffixes are anybody's


class _Backend(Protocol):
    """One kind of source."""

    kind: str

    def items(self, left_out: LeftOut) -> Iterator[SourceItem]:
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
        left_out = LeftOut()
        num_images = num_problems = 0
        previous: SourceItem | None = None
        for item in map(without_credential, self._backend.items(left_out)):
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
            left_out.num_guessed,
            tuple(left_out.notes),
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
            a .zip of images, with names in UTF-8 where they are valid, else as the zip declares, else in CP437;
            a .tar of images (a shard of a WebDataset), or a .parquet file with a column of images ({bytes, path}, as
            `datasets` writes it, or bytes), or an .arrow file with one; folders and globs look into such shards as
            into folders, and a folder of `save_to_disk` is the .arrow files that its state.json names;
            the folder or the .mdb file of an LMDB with an encoded image under each key;
            a pattern with braces, "s3://bucket/train-{000..127}.tar", whose shards all have to be there;
            a .npy array, uint8 [N, H, W] or [N, H, W, C] with C = 1 or 3; ids are "000000", "000001", ...;
            a .csv, .jsonl or .parquet manifest with the column `uri` (relative to the manifest's folder) and perhaps
            `image_id` (else the uri as written; `file_name`, as `imagefolder` writes it, stands for `uri`), texts or
            bytes: UTF-8 where valid, else Latin-1;
            a built-in name, perhaps with a slice: "digits:test[:256]".
            Where Parquet or Arrow files have several columns of images, "#" and the name of one follow:
            "train.parquet#image"; behind an LMDB what the keys begin with: "ffhq.lmdb#256-".
        storage_options: passed to the fsspec file system, such as {"endpoint_url": ..., "key": ...}.
        builtin: loaders of the built-in sources by name.
        max_bytes: refuse to read a single file, or member of a zip, larger than this.

    Returns:
        The source; nothing is read yet beyond what tells its kind.

    Raises:
        SourceError: nothing is there, it is of no known kind, may not be read, is damaged, the spec carries a
            password or a signed query, or the storage does not answer (is_transient).
    """
    secrets = Secrets(storage_options or {})
    shown = secrets.hide(spec)
    match = re.fullmatch(r"(?P<name>[^\[\]]+)(?:\[(?P<start>\d*):(?P<stop>\d*)\])?", spec)
    if match and match["name"] in builtin:
        return Source(spec, ArrayInMemory(match, builtin[match["name"]]))
    backend: _Backend
    with storage_errors(shown, secrets):
        address, column = _split_column(spec)
        fs, path = open_file_system(address, storage_options)
        fs.invalidate_cache()
        files = StoredFiles(fs, secrets.hide(address), secrets, max_bytes)
        found = _type_of(fs, path)
        if found is None and column is None and _COLUMN_OF_FOLDER.fullmatch(spec):
            address, _, column = spec.rpartition("#")
            folder = str(fs._strip_protocol(address))
            if _type_of(fs, folder) == "directory":
                path, found = folder, "directory"
        shards = Shards(files, column)
        if found == "directory":
            paths = shards_of_folder(files, path)
            root = None if paths and len(paths) == 1 else path
            backend = ShardFiles(files, shards, paths, root) if paths else FolderOrGlob(files, shards, path)
        elif found is not None:
            backend = _open_file(files, shards, path, column)
        elif (pattern := _open_pattern(files, shards, path)) is not None:
            backend = pattern
        else:
            raise SourceError(
                f"nothing is at {shown} ({secrets.hide(fs.unstrip_protocol(path))}); wanted {SOURCE_KINDS}; or a "
                f"built-in source ({', '.join(sorted(builtin))}): check the spelling"
            )
    return Source(shown, backend)


_COLUMN_OF_FILES = re.compile(r"(?P<address>.+\.(?:parquet|arrow|mdb))#(?P<column>[^/#]+)", re.IGNORECASE | re.DOTALL)
_COMPRESSED_TAR = re.compile(r".*\.(tar\.(?:gz|bz2|xz|zst|lz4)|tgz|tbz2?|txz|tzst)", re.IGNORECASE | re.DOTALL)
_COLUMN_OF_FOLDER = re.compile(r".+#[^/#]+", re.DOTALL)


def _split_column(spec: str) -> tuple[str, str | None]:
    """The address and the column of images that is named behind Parquet files, None for none."""
    match = _COLUMN_OF_FILES.fullmatch(spec)
    return (match["address"], match["column"]) if match else (spec, None)


def _type_of(fs: Any, path: str) -> str | None:
    """ "file" or "directory", None where nothing is."""
    try:
        return str(fs.info(path)["type"])
    except FileNotFoundError:
        return None


def _open_pattern(files: StoredFiles, shards: Shards, path: str) -> _Backend | None:
    """What globs and braces pick; None where a path has neither."""
    paths = expand_braces(path)
    if paths == [path] and not any(character in path for character in GLOB_CHARACTERS):
        return None
    root = re.split(r"[*?\[{]", path, maxsplit=1)[0].rpartition("/")[0]
    if all(is_shard(one) and not any(character in one for character in GLOB_CHARACTERS) for one in paths):
        return ShardFiles(files, shards, list(dict.fromkeys(paths)), root)
    return FolderOrGlob(files, shards, root, paths)


def _open_file(files: StoredFiles, shards: Shards, path: str, column: str | None) -> _Backend:
    """The kind of source that a file's suffix names."""
    if problem := files.special_file(path):
        raise SourceError(problem)
    suffix = posixpath.splitext(path)[1].lower()
    if suffix == ".zip":
        return Zip(files, path)
    if suffix == ".npy":
        return ArrayFile(files, path)
    if is_shard(path) and (suffix != ".parquet" or column is not None or shards.has_images(path)):
        return ShardFiles(files, shards, [path])
    if suffix in MANIFESTS:
        return Manifest(files, path)
    if match := _COMPRESSED_TAR.fullmatch(path):
        raise SourceError(compressed(files.shown, match[1]))
    if suffix in IMAGE_SUFFIXES:
        return OneImage(files, path)
    raise SourceError(f"{files.shown} is a file of no known kind; wanted {SOURCE_KINDS}: convert it or pass its folder")


@dataclass(frozen=True)
class PlannedImage:
    """An image as it enters a plan.

    Attributes:
        image_id: as in the source.
        uri: as in the source.
        digest: SHA-256 of the bytes, in hex; "unreadable:<reason>" when they cannot be read.
        problem: why they cannot be read, or None.
        version: as in the source.
    """

    image_id: str
    uri: str
    digest: str
    problem: BadImageError | None = None
    version: str | None = None


def plan_items(
    source: Source, items: Iterable[SourceItem] | None = None, *, num_threads: int = 8
) -> Iterator[PlannedImage]:
    """Read every image once and yield its digest, in the order of the ids.

    Threads hide the latency of object stores; at most twice num_threads images are in memory at a time.

    Args:
        source: where the images come from.
        items: those that are read; all of the source if not given.
        num_threads: how many are read at the same time.

    Yields:
        One planned image per item. A bad one has the digest "unreadable:<reason>" and its problem.

    Raises:
        SourceError: as `Source.items` and `Source.read`; the storage's failures are never booked on an image.
    """
    waiting: deque[Future[PlannedImage]] = deque()
    with ThreadPoolExecutor(num_threads, thread_name_prefix="read-source") as pool:
        try:
            for item in source.items() if items is None else items:
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
        return PlannedImage(item.image_id, item.uri, digest_bytes(source.read(item)), version=item.version)
    except BadImageError as problem:
        return PlannedImage(item.image_id, item.uri, f"unreadable:{problem.reason}", problem, item.version)


def digest_bytes(data: bytes) -> str:
    """SHA-256 in hex: equal for equal files, wherever they lie."""
    return hashlib.sha256(data).hexdigest()
