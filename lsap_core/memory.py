"""How a process asks the system for memory."""

from __future__ import annotations

import ctypes
import sys

_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1
"""`mallopt`'s names of its parameters, of malloc.h."""
_MOST, _NEVER = 2**31 - 1, -1


def keep_freed_memory() -> bool:
    """Keep what tensors leave free for the next ones, instead of giving it back to the system; whether that is had.

    glibc gives every tensor of more than 32 MiB back, and the system clears each page of the next one again: on a
    virtual machine that took longer than the work on the tensor. A process keeps the size of its peak from then on.
    Of glibc alone; elsewhere nothing changes.
    """
    return set_thresholds(mmap=_MOST, trim=_NEVER)


def set_thresholds(mmap: int, trim: int) -> bool:
    """Set glibc's two thresholds; whether that is had.

    Args:
        mmap: bytes from which on a tensor gets pages of its own, which go back when it is freed.
        trim: bytes that may stay free at the end of the heap; -1 for all.
    """
    if not sys.platform.startswith("linux"):
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    return all([library.mallopt(_MMAP_THRESHOLD, mmap), library.mallopt(_TRIM_THRESHOLD, trim)])
