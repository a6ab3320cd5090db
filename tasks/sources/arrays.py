"""Arrays of pixels as sources: a .npy file, and the arrays built into a domain."""

import math
import re
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from domains.embedded import ImageArray, embedded_sources
from tasks.array_files import ArrayFileError, read_array_header
from tasks.errors import BadImageError, SourceError
from tasks.sources.items import LeftOut, SourceItem
from tasks.sources.listings import version_of
from tasks.sources.storage import StoredFiles, storage_errors

BUILTIN_SOURCES = embedded_sources()


class ArrayFile:
    """A .npy file. Images are cut out of it by their offset, so that nothing is unpickled or read twice."""

    kind = "array"

    def __init__(self, files: StoredFiles, path: str) -> None:
        self._files = files
        self._path = path
        with files.fs.open(path, "rb") as file:
            try:
                header = read_array_header(file, files.fs.size(path))
            except ArrayFileError as error:
                raise SourceError(f"{files.shown} {error}: save it with numpy.save, or copy it again") from error
        found, shape = f"{files.shown} holds {header}", header.shape
        is_image = len(shape) in (3, 4) and shape[3:] in ((), (1,), (3,))
        if header.dtype != np.uint8 or header.is_fortran or not is_image:
            raise SourceError(
                f"{found}, uint8 [N, H, W] or [N, H, W, C] with C = 1 or 3 in C order was wanted: convert the array "
                "and save it with numpy.save"
            )
        self._offset = header.offset
        self._num_images, *self._image_shape = shape
        self._image_bytes = math.prod(self._image_shape)
        if self._image_bytes == 0:
            raise SourceError(f"{found}, images without a pixel: sides above 0 were wanted, save the array again")
        if self._image_bytes > files.max_bytes:
            raise SourceError(
                f"{found}, images of {self._image_bytes} bytes; at most {files.max_bytes} were wanted: save smaller"
            )

    def items(self, left_out: LeftOut) -> Iterator[SourceItem]:
        base = self._files.uri(self._path)
        with storage_errors(self._files.shown, self._files.secrets):
            version = version_of(self._files.fs, self._path)  # of the file: one pixel changed is all images changed
        for index in range(self._num_images):
            yield SourceItem(f"{index:06d}", f"{base}#{index:06d}", version=version)

    def read(self, uri: str) -> bytes:
        base, _, number = uri.rpartition("#")
        if base != self._files.uri(self._path) or not number.isdecimal():
            raise BadImageError("unreadable", f"{uri} is no image of {self._files.shown}: plan the run anew")
        index = int(number)
        start = self._offset + index * self._image_bytes
        with self._files.reading(uri):
            pixels = self._files.fs.cat_file(self._path, start=start, end=start + self._image_bytes)
        if not 0 <= index < self._num_images or len(pixels) != self._image_bytes:
            raise BadImageError("unreadable", f"{uri} is beyond the end of the array: restore it, or plan the run anew")
        return _as_pnm(np.frombuffer(pixels, np.uint8).reshape(self._image_shape))

    def close(self) -> None:
        pass


class ArrayInMemory:
    """A built-in source, whole or a slice of it."""

    kind = "built-in"

    def __init__(self, match: re.Match[str], load: Callable[[], ImageArray]) -> None:
        loaded = load()
        chosen = slice(int(match["start"] or 0), int(match["stop"]) if match["stop"] else None)
        self._scheme = f"{match['name'].partition(':')[0]}:"
        self._row_of = {image_id: row for row, image_id in enumerate(loaded.ids)}
        self._ids = sorted(loaded.ids[chosen])
        self._images = loaded.images

    def items(self, left_out: LeftOut) -> Iterator[SourceItem]:
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
