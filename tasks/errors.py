"""What can go wrong in a task, and whose fault it is: the source's, one image's, or nobody's where memory ran out.

Messages go to terminals, logs and pages, and name files that are anybody's: each is one line of visible text.
"""

import contextlib
import re
from collections.abc import Iterator

from tasks.visible_text import visible

LESS_MEMORY = "make batch_size, shard_rows or workers.count smaller"
"""What helps where memory ran out, in fields of a run."""

# PyTorch raises RuntimeErrors of several wordings, DuckDB and Ray errors of their own; others a MemoryError.
_RAN_OUT = re.compile(
    r"out of memory|OutOfMemory|running low on memory|enforce fail at .*alloc|not enough memory|can't allocate memory|"
    r"unable to allocate|cannot allocate memory|std::bad_alloc",
    re.IGNORECASE,
)
_ASKED = re.compile(r"allocate\s+(?:memory:?\s+you tried to allocate\s+)?([\d.,]+ ?(?:bytes|[KMGTPE]?i?B))", re.I)


class TaskError(Exception):
    """Base of every error that a task raises on purpose."""


class OutOfMemoryError(TaskError, MemoryError):
    """Memory ran out; the message says how much was asked for, where that is known, and what helps."""


def memory_told(error: BaseException | None) -> str | None:
    """A sentence about memory where an error, or what caused it, is that there was none left; else None.

    What says already what helps, such as of a worker that was killed, stays as it is: with its figures.
    """
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        seen.append(error)
        if isinstance(error, OutOfMemoryError) or LESS_MEMORY in str(error):
            return str(error)
        if isinstance(error, MemoryError) or _RAN_OUT.search(f"{type(error).__name__}: {error}"):
            asked = _ASKED.search(str(error))
            much = f" ({asked[1]} were asked for)" if asked else ""
            return f"memory ran out{much}: {LESS_MEMORY}; the same command then goes on where this one stopped"
        error = error.__cause__
    return None


@contextlib.contextmanager
def memory_errors() -> Iterator[None]:
    """What libraries raise when there is no memory left, as one error that travels between processes.

    Raises:
        OutOfMemoryError: memory ran out.
    """
    try:
        yield
    except Exception as error:
        if told := memory_told(error):
            raise OutOfMemoryError(told) from error
        raise


class SourceError(TaskError, ValueError):
    """A source as a whole cannot be used: missing, empty, ambiguous, unreachable.

    Attributes:
        is_transient: the network or a machine broke, not the data; the same call may work later, so retry it.
    """

    def __init__(self, message: str, *, is_transient: bool = False) -> None:
        super().__init__(visible(message))
        self.is_transient = is_transient


class BadImageError(TaskError, ValueError):
    """One image cannot be used; it becomes a row with this reason, and the run goes on.

    Attributes:
        reason: a short code in snake_case, such as "truncated", to count and filter by.
        message: a sentence that says what was found, what was wanted and what to do.
    """

    def __init__(self, reason: str, message: str) -> None:
        message = visible(message)
        super().__init__(reason, message)  # both in args: the error has to survive pickling
        self.reason = reason
        self.message = message

    def __str__(self) -> str:
        return self.message
