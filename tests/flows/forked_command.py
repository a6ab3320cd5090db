"""One command in a forked process; conftest.py hands over PROGRAM, ARGUMENTS, ENVIRONMENT and FOLDER as globals."""

import atexit
import contextlib
import logging
import os
import runpy
import signal
import sys
import traceback
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pkgutil import resolve_name

import time_machine
from prefect.context import refresh_global_settings_context


def run(program: str, arguments: Sequence[str], environment: Mapping[str, str], folder: str) -> int:
    """What a shell would do: variables, output to files, the command, the hooks of the interpreter's end."""
    for name, stream in (("out", sys.stdout), ("err", sys.stderr)):
        file = os.open(os.path.join(folder, name), os.O_WRONLY | os.O_CREAT, 0o644)
        os.dup2(file, stream.fileno())
    signal.signal(signal.SIGINT, signal.default_int_handler)  # tests in the background of a shell ignore it
    logging.getLogger().handlers.clear()  # Prefect's, which in a process of its own finds those of the command
    os.environ.update(environment)
    if any(name.startswith("PREFECT_") for name in environment):  # other settings than those it is forked with
        refresh_global_settings_context()
    if "CLOCK_FOLLOWER" in environment:
        runpy.run_path(environment["CLOCK_FOLLOWER"], run_name="__main__")
    main = resolve_name(program)
    sys.argv = [program, *arguments]
    clock = datetime.now(UTC) + timedelta(hours=float(environment.get("CLOCK_AHEAD_HOURS", 0)))
    try:
        with time_machine.travel(clock, tick=True) if "CLOCK_AHEAD_HOURS" in environment else contextlib.nullcontext():
            return main() or 0
    except SystemExit as stop:  # argparse
        return int(stop.code or 0)
    except BaseException:
        traceback.print_exc()
        return 70  # main() lets nothing else through
    finally:
        atexit._run_exitfuncs()  # multiprocessing leaves them out
        sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(run(PROGRAM, ARGUMENTS, ENVIRONMENT, FOLDER))  # noqa: F821
