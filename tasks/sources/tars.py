"""Shards of a WebDataset: what is in a .tar file, and where, from its headers alone."""

import io
import posixpath
import re
import tarfile
from collections import Counter
from typing import Final

from tasks.errors import BadImageError, SourceError
from tasks.sources.items import IMAGE_SUFFIXES, stored_name
from tasks.sources.names import file_name, is_hidden
from tasks.sources.ranges import Pieces, fetch
from tasks.sources.shard_index import Member, ShardIndex, index_of
from tasks.sources.storage import StoredFiles

_LARGEST_HEADER = 2**20  # bytes of one member's headers: long names, attributes, maps of sparse files
_ZEROS_AFTER_THE_END = 2**20  # of padding, behind which another archive may have been appended
_SMALLEST_WINDOW, _LARGEST_WINDOW = 8 * 2**10, 4 * 2**20
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_PLACE = re.compile(r"(\d+)\+(\d+)")


class TarShard:
    """Reads members by their offset, and finds the offsets in one pass over the headers."""

    kind: Final = "tar"

    def __init__(self, files: StoredFiles) -> None:
        self._files = files
        self._pieces = Pieces(files)

    def index(self, path: str) -> ShardIndex:
        """The images of a tar; nothing is unpacked, and payloads are passed over where they are large.

        Raises:
            SourceError: it is no tar, or the storage does not answer.
        """
        if problem := self._files.special_file(path):
            raise SourceError(problem)
        size = _size_of(self._files, path)
        headers = _Headers(self._files, path, size)
        shown = self._files.secrets.hide(path)
        try:
            tar = tarfile.TarFile(fileobj=headers, encoding="utf-8", errors="surrogateescape")
        except (tarfile.TarError, *_DAMAGE) as error:
            raise SourceError(_no_tar(shown, headers.beginning, error)) from None
        return _Listing(shown, size, headers, tar).read()

    def read(self, path: str, place: str) -> bytes:
        """The bytes of a member.

        Raises:
            BadImageError: the place is none ("unsafe_name"), too large, or beyond the end of the file.
            SourceError: the storage does not answer.
        """
        match = _PLACE.fullmatch(place)
        if match is None:
            raise BadImageError("unsafe_name", f"{path}#{place} is no place in a tar, #OFFSET+SIZE was wanted")
        start, size = int(match[1]), int(match[2])
        self._files.check_size(f"{path}#{place}", size)
        return self._pieces.read(path, start, size)

    def close(self) -> None:
        """Nothing is open."""


class _HeaderTooLargeError(Exception):
    """A header that asks for more memory than any has to."""


# What tarfile raises at what is no header: its own errors, numbers that are none, headers nested without an end.
_DAMAGE = (tarfile.HeaderError, _HeaderTooLargeError, ValueError, IndexError, RecursionError)


class _Headers(io.RawIOBase):
    """The file as tarfile is to see it: headers in windows that grow where they stand close, and shrink where not."""

    def __init__(self, files: StoredFiles, path: str, size: int) -> None:
        super().__init__()
        self._files = files
        self._path = path
        self._size = size
        self._position = 0
        self._left = _LARGEST_HEADER
        self._start, self._window = 0, b""
        self._window_bytes = 64 * 2**10
        self._num_headers = 0  # begun in this window
        self.beginning = b""

    def begin(self, position: int) -> None:
        """Go to the next header."""
        self._position = position
        self._left = _LARGEST_HEADER
        self._num_headers += 1

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        assert whence == io.SEEK_SET
        self._position = offset
        return offset

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= self._left:
            raise _HeaderTooLargeError(f"a header of {size} bytes")
        self._left -= size
        end = min(self._position + size, self._size)
        if end <= self._position:
            return b""
        if not self._start <= self._position <= end <= self._start + len(self._window):
            self._fetch(size)
        begin = self._position - self._start
        data = self._window[begin : begin + end - self._position]
        self._position = end
        return data

    def _fetch(self, size: int) -> None:
        if self._num_headers >= 8:
            self._window_bytes = min(4 * self._window_bytes, _LARGEST_WINDOW)
        elif self._num_headers <= 2:
            self._window_bytes = max(self._window_bytes // 2, _SMALLEST_WINDOW)
        self._num_headers = 1
        start, end = self._position, min(self._position + max(size, self._window_bytes), self._size)
        data = fetch(self._files, self._path, start, end)
        if len(data) != end - start:
            raise SourceError(
                f"{self._files.secrets.hide(self._path)} ended at byte {start + len(data)} of {self._size} while its "
                "headers were read: run again when nobody writes it",
                is_transient=True,
            )
        self._start, self._window = start, data
        if start == 0:
            self.beginning = data[:512]


class _Listing:
    """One pass over the headers of a tar."""

    def __init__(self, shown: str, size: int, headers: _Headers, tar: tarfile.TarFile) -> None:
        self._shown = shown
        self._size = size
        self._headers = headers
        self._tar = tar
        self._members: list[Member] = []
        self._other_files: Counter[str] = Counter()
        self._num_hidden = 0

    def read(self) -> ShardIndex:
        """Every member, until the end or what is damaged."""
        offset = num_members = 0
        lost = note = ""
        while True:
            self._headers.begin(offset)
            block = self._headers.read(tarfile.BLOCKSIZE)
            if not block:
                note = f"{self._shown} has no end mark after its {num_members} members, and may be cut short there"
                break
            if not any(block) and len(block) == tarfile.BLOCKSIZE:
                appended = self._appended_at(offset)
                if appended is None:
                    break
                offset = appended
                continue
            self._headers.begin(offset)
            try:
                member = tarfile.TarInfo.fromtarfile(self._tar)
            except _DAMAGE:
                lost = f"is damaged at byte {offset} or ends behind it: no whole header is there"
                break
            end = self._tar.offset
            if member.size < 0 or end <= offset:
                lost = f"is damaged at byte {offset}: a member of {member.size} bytes"
                break
            num_members += 1
            is_whole = not member.isreg() or member.issparse() or member.offset_data + member.size <= self._size
            self._take(member, is_whole=is_whole)
            if not is_whole or end > self._size + tarfile.BLOCKSIZE:
                lost = f"ends at byte {self._size}, inside the member {file_name(member.name).text!r}"
                break
            offset = end
        if lost:
            note = f"{self._shown} {lost}, after {num_members} members"
            self._members.append(Member.unread_part(f"{note}; what came before was read: copy the shard again"))
        return index_of(self._members, self._other_files, self._num_hidden, note)

    def _take(self, member: tarfile.TarInfo, *, is_whole: bool) -> None:
        raw = member.name.encode("utf-8", "surrogateescape")
        while raw.startswith(b"./"):  # as `tar cf shard.tar .` writes them
            raw = raw[2:].lstrip(b"/")
        decoded, problem = stored_name(raw, "member")
        name = decoded.text
        suffix = posixpath.splitext(name)[1].lower()
        if member.isdir() or not name:
            return
        if is_hidden(decoded):
            self._num_hidden += 1
        elif suffix not in IMAGE_SUFFIXES:
            self._other_files[suffix] += 1
        else:
            problem = problem or _problem_of(name, member, is_whole=is_whole)
            place = f"{member.offset_data}+{member.size}"
            self._members.append(Member(name, place, problem, is_guessed=decoded.is_guessed))

    def _appended_at(self, offset: int) -> int | None:
        """Where the next archive begins, of several that were written one behind the other; None for none."""
        for after in range(offset + tarfile.BLOCKSIZE, offset + _ZEROS_AFTER_THE_END, tarfile.BLOCKSIZE):
            self._headers.begin(after)
            block = self._headers.read(tarfile.BLOCKSIZE)
            if not block:
                return None
            if any(block):
                try:
                    tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
                except _DAMAGE:
                    return None  # padding that is not of zeros
                return after
        return None


def _problem_of(name: str, member: tarfile.TarInfo, *, is_whole: bool) -> BadImageError | None:
    if member.issym() or member.islnk():
        found, do = "is a link", "pack it with --dereference --hard-dereference"
    elif not member.isreg():
        found, do = "is a device, a pipe or of a kind that is not known", "take it out of the shard"
    elif member.issparse():
        found, do = "is packed as a sparse file", "pack it without --sparse"
    elif not is_whole:
        return BadImageError("corrupt", f"the member {name!r} is cut short, as its shard is: copy the shard again")
    else:
        return None
    return BadImageError(
        "unsafe_name", f"the member {name!r} {found}, a plain file was wanted; it was not opened: {do}"
    )


def _size_of(files: StoredFiles, path: str) -> int:
    size = files.fs.info(path).get("size")
    if size is None:
        raise SourceError(
            f"{files.secrets.hide(path)} is on a server that does not tell its size, which reading parts of it takes: "
            "copy it to a disk or a bucket"
        )
    return int(size)


def _no_tar(shown: str, beginning: bytes, error: Exception) -> str:
    for magic, name in _COMPRESSED.items():
        if beginning.startswith(magic):
            return compressed(shown, name)
    return f"{shown} is no tar file ({error}): copy it again, or pass a folder"


def compressed(shown: str, by: str) -> str:
    """Why a compressed tar is refused."""
    return (
        f"{shown} is compressed ({by}), so that no member of it can be read by its offset; a plain .tar was wanted: "
        "decompress it, images are compressed themselves"
    )
