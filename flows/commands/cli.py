"""The command `lsap`: turns words into one call. Results go to stdout, everything else to stderr.

Signals are taken over before anything that takes time is imported.
"""

from __future__ import annotations

import os
import sys

from flows.running.ending import ASKED_WRONGLY, DONE, FAILED, Ending

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

# Small machines and closed networks: what the libraries would otherwise do on their own.
ENVIRONMENT = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DISABLE_FAILURE_SIGNAL_HANDLER": "1",  # it prints a stack of C++ at SIGTERM, and lets no other handler know
    "OMP_NUM_THREADS": "1",
}
INTERRUPTED = "lsap: interrupted; the same command goes on where this one stopped"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns 0 when it is done, 1 when it failed, 2 when it was asked wrongly.

    Args:
        arguments: its words. None for those of this process, which then is the command: a signal ends it and all that
            it has started, and what is printed at its end comes before its last sentence.
    """
    ending = Ending(INTERRUPTED) if arguments is None else None
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    code, sentence, is_server_gone = _done(sys.argv[1:] if arguments is None else arguments, ending)
    try:
        if sys.stdout is not None:  # closed by the one who started us
            sys.stdout.flush()
    except OSError as error:  # a full disk, or a reader that has gone
        code, sentence = FAILED, sentence or _sentence(f"the result could not be written to standard output: {error}")
    if ending is not None:  # Prefect would try for seconds to tell a server that is gone each event
        return ending.decide(code, sentence, at_once=is_server_gone)
    if sentence:
        print(sentence, file=sys.stderr)
    return code


def _done(arguments: Sequence[str], ending: Ending | None) -> tuple[int, str, bool]:
    """Run a command; returns its exit code, what to say last, and whether the Prefect server does not answer."""
    is_debugged = False
    try:
        from flows.commands.output import log_to_stderr
        from flows.commands.parser import WrongWordsError, command_parser

        try:
            parsed = command_parser().parse_args(arguments)
        except WrongWordsError as error:
            return ASKED_WRONGLY, _sentence(str(error)), False
        except SystemExit:  # help was asked for, and shown
            return DONE, "", False
        if ending is not None:
            log_to_stderr(tracebacks=parsed.debug)
            ending.own_scratch()
        is_debugged = parsed.debug
        return parsed.command(parsed), "", False
    except Exception as error:
        return _failure(error, is_debugged)
    except BaseException:  # Ctrl-C where signals are not ours; what Prefect and Ray make of SIGTERM where they had it
        if ending is not None:
            ending.interrupt()
        return FAILED, INTERRUPTED, False


def _failure(error: Exception, is_debugged: bool) -> tuple[int, str, bool]:
    try:
        from flows.commands.exit_codes import is_wrong_request, told
        from flows.running.server import is_gone
    except Exception:  # a library does not even import: it is what failed, or why nothing better can be said of it
        return FAILED, _sentence(f"{type(error).__name__}: {error}"), False

    if is_debugged:
        from flows.commands.output import show_traceback

        show_traceback(error)
    if is_wrong_request(error):
        return ASKED_WRONGLY, _sentence(str(error)), False
    return FAILED, _sentence(told(error)), is_gone(error)


def _sentence(text: str) -> str:
    """A message to whoever sits there; names in it are anybody's, and must not command the terminal or forge lines."""
    try:
        from lsap_archive import Secrets
        from tasks.visible_text import visible
    except Exception as error:  # the same that failed the command, unless Python itself is out of memory meanwhile
        told = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        shown = "".join(character if character.isprintable() else "?" for character in told[-1].strip())
        return (
            f"lsap: a library cannot be loaded ({shown}): allow the command more memory where that is limited "
            "(ulimit -v), or install the project again"
        )

    return "lsap: " + visible(Secrets().hide(text))


if __name__ == "__main__":
    sys.exit(main())
