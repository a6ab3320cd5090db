"""Objects as files of this machine: written whole or not at all, and create-only where that is asked."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import shutil
import stat
import time
import uuid
from collections.abc import Callable, Iterator
from typing import TypeVar

T = TypeVar("T")

TEMPORARY = ".tmp-"
BLOCK_BYTES = 16 * 2**20
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_TRIES = 100  # of a file whose folder somebody tidies up at this very moment


@contextlib.contextmanager
def _temporary(path: str) -> Iterator[str]:
    """Name of a temporary file beside `path`, in a folder that exists; removed at the end if still there."""
    folder = os.path.dirname(path)
    os.makedirs(folder, exist_ok=True)
    name = os.path.join(folder, f"{TEMPORARY}{uuid.uuid4().hex}")
    try:
        yield name
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)


@contextlib.contextmanager
def _room_for(path: str, size: int) -> Iterator[None]:
    """Tell of a full disk how much was wanted and how much there is."""
    try:
        yield
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        free = shutil.disk_usage(os.path.dirname(path)).free
        raise OSError(error.errno, f"{error.strerror}: {size:,} bytes are wanted, {free:,} are free") from error


def _write_synced(path: str, data: bytes) -> None:
    with _room_for(path, len(data)), open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _undisturbed(write: Callable[[], T]) -> T:
    """Write once more if somebody who tidies up took the temporary file away meanwhile, or the folder that it is in."""
    for tried in range(_TRIES - 1):
        try:
            return write()
        except FileNotFoundError:
            time.sleep(min(tried, 10) / 1000)
    return write()


def write_local(path: str, data: bytes) -> None:
    """Write a file in the place of an older one."""

    def write() -> None:
        with _temporary(path) as name:
            _write_synced(name, data)
            os.replace(name, path)

    _undisturbed(write)


def create_local(path: str, data: bytes) -> bool:
    """Write a file if there is none; False if there is."""

    def write() -> bool:
        with _temporary(path) as name:
            _write_synced(name, data)
            try:
                os.link(name, path)
            except FileExistsError:
                return False
        return True

    return _undisturbed(write)


def copy_local(source: str, target: str) -> None:
    """Copy a file in the place of an older one."""
    with open(source, "rb") as file:  # outside of what is tried again: a source that is missing stays so

        def write() -> None:
            file.seek(0)
            with _temporary(target) as name:
                with _room_for(name, os.fstat(file.fileno()).st_size), open(name, "wb") as copy:
                    shutil.copyfileobj(file, copy, BLOCK_BYTES)
                    copy.flush()
                    os.fsync(copy.fileno())
                os.replace(name, target)

        _undisturbed(write)


def special_file(path: str) -> str | None:
    """What lies at a path that is neither a file nor a folder, in words: such may be waited for, or read, for ever."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):  # what is wrong with it is told by whoever opens it
        return None
    kinds = {"a pipe": stat.S_ISFIFO, "a socket": stat.S_ISSOCK, "a device": stat.S_ISCHR, "a disk": stat.S_ISBLK}
    return next((kind for kind, is_it in kinds.items() if is_it(mode)), None)


def list_local(path: str) -> Iterator[tuple[str, int]]:
    """Path and size of every file below; what vanishes or is no file is left out, what is unreadable is not."""
    try:
        entries = sorted(os.scandir(path), key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):
        return
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            yield from list_local(entry.path)
        elif not entry.name.startswith(TEMPORARY) and not entry.is_dir() and not special_file(entry.path):
            with contextlib.suppress(FileNotFoundError):
                yield entry.path, entry.stat().st_size


def delete_temporary(path: str) -> None:
    """Remove what killed writers left below a folder; whoever is writing there writes once more."""
    for folder, _, names in os.walk(path):
        for name in names:
            if name.startswith(TEMPORARY):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(os.path.join(folder, name))


def is_inside(path: str, root: str) -> bool:
    """Whether a path lies below a folder once symbolic links are followed, those of the folder itself included."""
    parts = path.removeprefix(root + os.sep).split(os.sep)
    if path.startswith(root + os.sep) and not {"", os.curdir, os.pardir} & {*parts}:
        steps = itertools.accumulate(parts, os.path.join, initial=root)
        if not any(os.path.islink(step) for step in itertools.islice(steps, 1, None)):
            return True  # no link below the folder: several times as quick as following those above it
    return os.path.realpath(path).startswith(os.path.realpath(root) + os.sep)


def delete_local(path: str) -> None:
    """Remove every file below a folder, and the folders that are left empty."""
    for folder, _, names in os.walk(path, topdown=False):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(folder, name))
        with contextlib.suppress(OSError):  # another process removed it, or is just writing into it
            os.rmdir(folder)


def unwritable_folder(path: str) -> str | None:
    """Why this process may not write into a folder, or into the nearest one above where it is still to be made.

    Returns:
        What is wrong, the path and the reason; None if it may.
    """
    while not os.path.lexists(path) and path != os.path.dirname(path):
        path = os.path.dirname(path)
    if not os.path.isdir(path):
        return f"no folder can be made there ({path}: {os.strerror(errno.ENOTDIR)})"
    if os.access(path, os.W_OK | os.X_OK):
        return None
    is_read_only = os.statvfs(path).f_flag & os.ST_RDONLY
    return f"permission denied ({path}: {os.strerror(errno.EROFS if is_read_only else errno.EACCES)})"
