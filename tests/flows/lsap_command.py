"""One `lsap` command in a forked process; conftest.py hands over ARGUMENTS, ENVIRONMENT and FOLDER as globals."""

import atexit
import contextlib
import os
import signal
import sys
import traceback
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta

import time_machine
from prefect.context import refresh_global_settings_context


def run(arguments: Sequence[str], environment: Mapping[str, str], folder: str) -> int:
    """What a shell would do: variables, output to files, the command, the hooks of the interpreter's end."""
    for name, stream in (("out", sys.stdout), ("err", sys.stderr)):
        file = os.open(os.path.join(folder, name), os.O_WRONLY | os.O_CREAT, 0o644)
        os.dup2(file, stream.fileno())
    signal.signal(signal.SIGINT, signal.default_int_handler)  # tests in the background of a shell ignore it
    os.environ.update(environment)
    if "PREFECT_API_URL" in environment:  # another server than that of the process it is forked from
        refresh_global_settings_context()
    from flows.commands.cli import main

    clock = datetime.now(UTC) + timedelta(hours=float(environment.get("CLOCK_AHEAD_HOURS", 0)))
    try:
        with time_machine.travel(clock, tick=True) if "CLOCK_AHEAD_HOURS" in environment else contextlib.nullcontext():
            return main(arguments)
    except SystemExit as stop:  # argparse
        return int(stop.code or 0)
    except BaseException:
        traceback.print_exc()
        return 70  # main() lets nothing else through
    finally:
        atexit._run_exitfuncs()  # multiprocessing leaves them out
        sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(run(ARGUMENTS, ENVIRONMENT, FOLDER))  # noqa: F821
