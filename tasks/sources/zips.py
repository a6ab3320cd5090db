"""A zip of images as a source."""

import posixpath
import struct
import zipfile
import zlib
from collections.abc import Iterator
from typing import IO, Any, cast

from tasks.errors import BadImageError, SourceError
from tasks.sources.items import IMAGE_SUFFIXES, LeftOut, SourceItem, check_name
from tasks.sources.names import is_hidden, name_of_member
from tasks.sources.storage import StoredFiles

_IS_UTF_8 = 0x08  # in the second byte of the flags

# Others may ask for gigabytes to unpack a byte, and fail as storage that does not answer does.
PLAIN_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


class Zip:
    kind = "zip"

    def __init__(self, files: StoredFiles, path: str) -> None:
        self._files = files
        self._path = path
        # Small blocks: on an object store a member is one short request, not 50 MB of its neighbours.
        file = files.fs.open(path, "rb", block_size=2**20)
        try:
            self._archive = _open_zip(file)
        except (zipfile.BadZipFile, NotImplementedError, UnicodeDecodeError) as error:
            file.close()
            raise SourceError(
                f"{files.shown} is not a complete zip file ({error}): copy it again, or pass a folder"
            ) from error
        self._file = file
        self._names: dict[str, zipfile.ZipInfo] | None = None

    def items(self, left_out: LeftOut) -> Iterator[SourceItem]:
        members = [(name_of_member(info), info) for info in self._archive.infolist()]
        for decoded, info in sorted(members, key=lambda member: member[0].text):
            name = decoded.text
            suffix = posixpath.splitext(name)[1].lower()
            if name.endswith("/"):
                continue
            if is_hidden(decoded):
                left_out.num_hidden += 1
            elif suffix not in IMAGE_SUFFIXES:
                left_out.other_files[suffix] += 1
            else:
                left_out.num_guessed += decoded.is_guessed
                version = f"{info.CRC:08x}-{info.file_size}"
                yield SourceItem(name, f"zip://{name}{self._ending}", check_name(name, "member"), version)

    @property
    def _ending(self) -> str:
        return f"::{self._files.uri(self._path)}"

    def read(self, uri: str) -> bytes:
        name = uri.removeprefix("zip://").removesuffix(self._ending)
        problem = check_name(name, "member")
        if problem is not None:
            raise problem
        info = self._member(name)
        if info is None:
            raise BadImageError(
                "unreadable",
                f"{self._files.shown} has no member {name!r} any more: restore it, or plan the run anew",
            )
        self._files.check_size(name, info.file_size)
        if info.flag_bits & 1:
            raise BadImageError(
                "unreadable",
                f"the member {name!r} is encrypted, plain ones were wanted: unpack the zip, pass its folder",
            )
        if info.compress_type not in PLAIN_METHODS:
            raise BadImageError(
                "unsupported_format",
                f"the member {name!r} is packed by method {info.compress_type}, stored or deflated ones were wanted: "
                "pack it again",
            )
        with self._files.reading(name):
            try:
                return self._archive.read(info)  # never gives more than info.file_size bytes
            except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
                raise BadImageError(
                    "corrupt",
                    f"the member {name!r} cannot be unpacked ({error}): pack it again, stored or deflated",
                ) from error

    def _member(self, name: str) -> zipfile.ZipInfo | None:
        """The member of a name; also of one that older plans have, in which every name without a word was CP437."""
        if self._names is None:
            self._names = {name_of_member(info).text: info for info in self._archive.infolist()}
        return self._names.get(name) or self._archive.NameToInfo.get(name)

    def close(self) -> None:
        self._archive.close()
        self._file.close()


def _open_zip(file: IO[bytes]) -> zipfile.ZipFile:
    """The zip; where a name is said to be UTF-8 and is not, without what it says of its names."""
    try:
        return zipfile.ZipFile(file)
    except UnicodeDecodeError:
        file.seek(0)
        return zipfile.ZipFile(cast(IO[bytes], _WithoutWordOfNames(file)))


class _WithoutWordOfNames:
    """A zip's file in which no header has the flag that its name is UTF-8: all names are kept as bytes."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        if data.startswith(b"PK\3\4") and len(data) == 30:  # the header of one member
            return data[:7] + bytes([data[7] & ~_IS_UTF_8]) + data[8:]
        if not data.startswith(b"PK\1\2"):
            return data
        directory, start = bytearray(data), 0
        while directory.startswith(b"PK\1\2", start) and start + 46 <= len(directory):
            directory[start + 9] &= ~_IS_UTF_8
            start += 46 + sum(struct.unpack_from("<3H", directory, start + 28))  # name, extra fields and comment
        return bytes(directory)
