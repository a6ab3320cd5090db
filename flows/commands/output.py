"""What a command prints: its result, for people or for machines; and what libraries log meanwhile.

Names in it are anybody's: each line is made of visible text, so that no name commands the terminal or forges a line.
"""

from __future__ import annotations

import argparse
import functools
import json
import logging
import math
import sys
import threading
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TextIO

from flows.commands.fitted import fitted, width_of_output
from flows.running.ending import DONE
from tasks.machine_memory import in_words
from tasks.visible_text import visible

if TYPE_CHECKING:  # help should not wait for the archive
    from lsap_archive import Secrets


def show(document: dict[str, Any], parsed: argparse.Namespace) -> int:
    """Print a document as it is asked for."""
    print_result(document, parsed.json, lines_of(document))
    return DONE


def print_result(document: dict[str, Any], as_json: bool, lines: Iterable[str]) -> None:
    """Print a document for machines, or its lines for people."""
    if as_json:
        print(json.dumps(_for_machines(document), indent=2, allow_nan=False))
        return
    for line in fitted(map(visible, lines), width_of_output()):
        print(line)


def _for_machines(value: Any) -> Any:
    """What JSON has: numbers stay numbers, and those that are none, which its readers do not know, become null."""
    if isinstance(value, Mapping):
        return {str(name): _for_machines(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_for_machines(inner) for inner in (sorted(value) if isinstance(value, set | frozenset) else value)]
    if hasattr(value, "tolist"):  # NumPy's numbers and arrays
        return _for_machines(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def lines_of(document: Mapping[str, Any], indent: str = "", *, of_bytes: bool = False) -> Iterator[str]:
    """A document as lines of `name: value`, for people.

    Args:
        document: what is shown.
        indent: what stands before each line.
        of_bytes: whether its whole numbers count bytes.
    """
    for name, value in document.items():
        is_bytes = of_bytes or "bytes" in name
        if isinstance(value, Mapping) and value:
            yield f"{indent}{name}:"
            yield from lines_of(value, indent + "  ", of_bytes=is_bytes)
        elif isinstance(value, list | tuple) and value and isinstance(value[0], Mapping):
            yield f"{indent}{name}:"
            for item in value:
                yield from lines_of(item, indent + "  ")
                yield ""
        else:
            yield f"{indent}{name}: {_in_words(value, is_bytes=is_bytes)}"


def _in_words(value: Any, *, is_bytes: bool) -> str:
    """A plain value for people."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple | Mapping) and all(isinstance(item, str) for item in value):
        return ", ".join(value) or "none"
    if is_bytes and isinstance(value, int):
        return f"{value:,}" + (f" ({in_words(value)})" if value >= WORTH_WORDS else "")
    return str(value)


WORTH_WORDS = 2**28
"""Bytes from which on they are also told in GiB."""
TOLD = ("lsap", "tasks.workers")
"""Loggers whose progress is shown."""
NO_NEWS = ("Finished in state Completed()", "Starting temporary server on", "Stopping temporary server on")
"""How lines of Prefect begin that only it needs."""


class OneLine(logging.Formatter):
    """A record as one visible line; where the error came from is shown to those who ask for it, or for everything."""

    def __init__(self, *, tracebacks: bool = False) -> None:
        super().__init__()
        self._tracebacks = tracebacks

    def format(self, record: logging.LogRecord) -> str:
        lines = [f"{record.levelname} {record.name}: {record.getMessage()}"]
        if record.exc_info and (self._tracebacks or logging.getLogger(record.name).isEnabledFor(logging.DEBUG)):
            lines += self.formatException(record.exc_info).split("\n")
        return "\n".join(visible(self._secrets.hide(line)) for line in lines)

    @functools.cached_property
    def _secrets(self) -> Secrets:
        from lsap_archive import Secrets

        return Secrets()


class PresentStderr(logging.StreamHandler[TextIO]):
    """Writes to what is standard error at the moment: a live bar puts itself there, to stay below what is printed."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record."""
        self.setStream(sys.stderr)
        super().emit(record)


def _is_news(record: logging.LogRecord) -> bool:
    """Whether a line tells anything: that each of Prefect's tasks has ended well, or where its server is, does not."""
    if record.levelno != logging.INFO or not record.name.startswith("prefect"):
        return True
    return not record.getMessage().startswith(NO_NEWS)


def show_traceback(error: BaseException) -> None:
    """Where an error came from, on stderr, line by line as visible text."""
    shown = logging.makeLogRecord(
        {"name": "lsap", "levelname": "ERROR", "msg": "failed", "exc_info": (type(error), error, error.__traceback__)}
    )
    print(OneLine(tracebacks=True).format(shown), file=sys.stderr)


def log_to_stderr(*, tracebacks: bool = False) -> None:
    """Show what libraries log, and their warnings, on stderr.

    Prefect's loggers are among them, at the level that `PREFECT_LOGGING_LEVEL` says; at DEBUG with tracebacks.

    Args:
        tracebacks: whether to show where logged errors came from at any level.
    """
    handler = PresentStderr()
    handler.setFormatter(OneLine(tracebacks=tracebacks))
    handler.addFilter(_is_news)
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    for name in TOLD:
        logging.getLogger(name).setLevel(logging.INFO)
    logging.captureWarnings(True)
    warnings.formatwarning = _warning
    threading.excepthook = _thread_failed
    sys.unraisablehook = _could_not_raise


def _thread_failed(failed: threading.ExceptHookArgs) -> None:
    """Python itself would write the traceback of an error that nobody in its thread caught."""
    _log_uncaught(f"a thread ({failed.thread.name if failed.thread else 'gone'}) failed", failed.exc_value)


def _could_not_raise(failed: sys.UnraisableHookArgs) -> None:
    """Likewise of an error where there was no caller, as when an object is thrown away."""
    _log_uncaught(failed.err_msg or "an object could not be thrown away", failed.exc_value)


def _log_uncaught(what: str, error: BaseException | None) -> None:
    if error is not None and not isinstance(error, SystemExit):
        shown = (type(error), error, error.__traceback__)
        logging.getLogger("lsap").error("%s: %s: %s", what, type(error).__name__, error, exc_info=shown)


def _warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """A warning without the line of code that it comes from."""
    return f"{category.__name__}: {message} ({filename}:{lineno})"
