"""A file that libraries read from, of which it is known afterwards whether the storage failed or the content."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lsap_archive import Secrets
from tasks.errors import SourceError
from tasks.sources.storage import storage_errors


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


@contextmanager
def storage_or_damage(
    file: WatchedFile, shown: str, secrets: Secrets, damaged: tuple[type[Exception], ...], told: str
) -> Iterator[None]:
    """What a library raises in this block as what it is: a broken network is not a broken file.

    Args:
        file: that it reads.
        shown: what messages call the file.
        secrets: that they must not tell.
        damaged: what it raises where the content is at fault.
        told: the sentence then, with {shown} and {error}.

    Raises:
        SourceError: the storage failed, or the file is damaged.
    """
    try:
        yield
    except SourceError:
        raise
    except Exception as error:  # each client of a storage has its own
        if (failure := file.failure) is not None:
            file.failure = None
            with storage_errors(shown, secrets):
                raise failure from None
        if not isinstance(error, damaged):
            raise
        raise SourceError(told.format(shown=shown, error=error)) from None
