"""What can go wrong in a task, and whose fault it is: the source's or one image's.

Messages go to terminals, logs and pages, and name files that are anybody's: each is one line of visible text.
"""

from tasks.visible_text import visible


class TaskError(Exception):
    """Base of every error that a task raises on purpose."""


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
