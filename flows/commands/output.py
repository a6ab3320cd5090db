"""What a command prints: its result, for people or for machines; and what libraries log meanwhile.

Names in it are anybody's: each line is made of visible text, so that no name commands the terminal or forges a line.
"""

from __future__ import annotations

import argparse
import functools
import json
import logging
import sys
import threading
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from flows.running.ending import DONE
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
        print(json.dumps(document, indent=2, default=str))
        return
    for line in lines:
        print(visible(line))


def lines_of(document: Mapping[str, Any], indent: str = "") -> Iterator[str]:
    """A document as lines of `name: value`, for people."""
    for name, value in document.items():
        if isinstance(value, Mapping):
            yield f"{indent}{name}:"
            yield from lines_of(value, indent + "  ")
        elif isinstance(value, list | tuple) and value and isinstance(value[0], Mapping):
            yield f"{indent}{name}:"
            for item in value:
                yield from lines_of(item, indent + "  ")
                yield ""
        else:
            yield f"{indent}{name}: {value}"


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
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(OneLine(tracebacks=tracebacks))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
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
