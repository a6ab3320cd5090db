"""A file that libraries read from, of which it is known afterwards whether the storage failed or the content."""

import io
from typing import Any


class WatchedFile(io.RawIOBase):
    """A file that remembers what failed in it: Arrow tells no more than that something did."""

    def __init__(self, file: Any, size: int | None = None) -> None:
        """`size`: of the file, where a reader may ask for more than there is, and memory for that."""
        super().__init__()
        self._file = file
        self._size = size
        self.failure: BaseException | None = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        try:
            if self._size is not None and size >= 0:
                size = max(0, min(size, self._size - self.tell()))
            return bytes(self._file.read(size))
        except Exception as error:
            self.failure = error
            raise

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()
