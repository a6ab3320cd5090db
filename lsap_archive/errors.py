"""What can go wrong with an archive. Every error is an ArchiveError and also a built-in one.

A message says what was found, what was wanted and what to do next, and never holds a credential.
"""

from __future__ import annotations

HOW_TO_REPAIR = "run `lsap archive verify` on the archive and then `lsap archive repair`, or restore it from a copy"
"""What a message about damage tells to do next."""


class ArchiveError(Exception):
    """Base of every error of this package."""

    def __str__(self) -> str:
        """The message as it was written (KeyError would quote it, OSError would number it)."""
        return " ".join(str(part) for part in self.args)


class ArchiveMismatchError(ArchiveError, ValueError):
    """What is there, or what was handed in, is not what this archive or run holds."""


class ArchiveNotFoundError(ArchiveError, FileNotFoundError):
    """There is no archive, run or object of that name."""


class ArchiveKeyError(ArchiveError, KeyError):
    """No such image, method or column, or the image has no code; the message says why."""


class CorruptArchiveError(ArchiveError, ValueError):
    """An object is missing, truncated or altered; the message names its key."""


class QueryError(ArchiveError, ValueError):
    """A SQL query was refused; the message is the database's."""


class IncompleteRunError(ArchiveError, RuntimeError):
    """A run cannot be published yet; the message names the missing shards."""


class StoreUnavailableError(ArchiveError, OSError):
    """The store does not answer or refuses: network, bucket, disk. Trying again may help.

    Attributes:
        is_transient: whether the same call may work later.
    """

    is_transient = True


class StoreRefusedError(StoreUnavailableError):
    """The store does not let this process read or write there: permission, read-only disk. Trying again is no use."""

    is_transient = False


OBJECT_ERRORS = (ArchiveMismatchError, ArchiveNotFoundError, CorruptArchiveError)
"""What can be wrong with an object of an archive, and not with the store that it lies in."""


def first_line(error: BaseException) -> str:
    """The first line of what an error of a library says, or its name."""
    return (str(error).splitlines() or [type(error).__name__])[0]
