"""Pieces of large files by their place; small ones that follow one another come with one request."""

import threading
from collections import deque

from tasks.errors import BadImageError, SourceError
from tasks.sources.storage import StoredFiles

TOGETHER_BYTES = 4 * 2**20  # fetched at once, where small pieces are read one after the other
SMALL_BYTES = 256 * 2**10  # a piece above this is worth a request of its own
NEAR_BYTES = 256 * 2**10  # between two pieces that follow one another


def fetch(files: StoredFiles, path: str, start: int, end: int) -> bytes:
    """Bytes `start` to `end` of a file, fewer only where it ends before.

    Raises:
        SourceError: the storage gives whole files alone, or does not answer.
        BadImageError: the file is not there, or may not be read.
    """
    with files.reading(path):
        data = bytes(files.fs.cat_file(path, start=start, end=end))
    if len(data) > end - start:
        raise SourceError(
            f"{files.shown} is on a server that gives whole files alone, parts of one were wanted: copy it to a disk "
            "or a bucket"
        )
    return data


class Pieces:
    """Pieces of files, read from any thread.

    Where small pieces are read in their order, as planning and shards of work do, some megabytes are fetched together
    and kept for the next ones; at most two such windows are in memory. All others are read by themselves, so that
    images drawn at random do not bring their neighbours.
    """

    def __init__(self, files: StoredFiles) -> None:
        self._files = files
        self._lock = threading.Lock()
        self._windows: deque[tuple[str, int, bytes]] = deque(maxlen=2)
        self._previous = ("", 0)  # where the last piece ended

    def read(self, path: str, start: int, size: int) -> bytes:
        """The bytes of a piece.

        Raises:
            BadImageError: the file ends before the piece does ("unreadable"); else as `fetch`.
            SourceError: as `fetch`.
        """
        if size > SMALL_BYTES:
            return self._whole(path, start, size, fetch(self._files, path, start, start + size))
        with self._lock:
            for kept, begin, data in self._windows:
                if kept == path and begin <= start and start + size <= begin + len(data):
                    self._previous = (path, start + size)
                    return data[start - begin : start - begin + size]
            before, end = self._previous
            self._previous = (path, start + size)
            if before == path and abs(start - end) <= NEAR_BYTES:
                data = fetch(self._files, path, start, start + TOGETHER_BYTES)
                self._windows.append((path, start, data))
                return self._whole(path, start, size, data[:size])
        return self._whole(path, start, size, fetch(self._files, path, start, start + size))

    def _whole(self, path: str, start: int, size: int, data: bytes) -> bytes:
        if len(data) != size:
            raise BadImageError(
                "unreadable",
                f"{self._files.secrets.hide(path)} ends before byte {start + size}, where the image ends: restore it, "
                "or plan the run anew",
            )
        return data
