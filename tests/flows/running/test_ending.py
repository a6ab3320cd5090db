"""How a command ends, whatever it is at when it is told to: processes of their own, with nothing heavy in them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from flows.running.ending import SIGNALS

HERE = Path(__file__).parents[3]
BEGIN = """
import atexit, os, signal, subprocess, sys, tempfile, threading, time
import flows.running.ending
from flows.running.ending import Ending, take_signals, when_interrupted
ending = Ending("interrupted")
ending.own_scratch()
child = subprocess.Popen(["sleep", "300"])
print(child.pid, tempfile.mkdtemp(), flush=True)
def go_on():
    print("ready", flush=True)
    time.sleep(60)
"""
WORK = {
    "it sleeps": "go_on()",
    "it computes": "print('ready', flush=True)\nwhile True: pass",
    "it imports": "print('ready', flush=True)\nimport torch\ntime.sleep(60)",
    "a library has caught the signal": "def caught(*_): raise KeyboardInterrupt\n"
    "signal.signal(signal.SIGTERM, caught)\n"
    "try:\n    go_on()\nexcept KeyboardInterrupt:\n    print('caught', file=sys.stderr)\n    ending.interrupt()",
    "a library has caught it, and it was taken back": "signal.signal(signal.SIGTERM, lambda *_: 1 / 0)\n"
    "take_signals()\ngo_on()",
    "somebody has to know": "with when_interrupted(lambda: os.write(1, b'told')):\n    go_on()",
    "somebody does not listen": "flows.running.ending.TELLING_SECONDS = 0.5\n"
    "with when_interrupted(lambda: time.sleep(60)):\n    go_on()",
    "a thread prints": "def loud():\n    while True: print('Traceback', file=sys.stderr)\n"
    "threading.Thread(target=loud, daemon=True).start()\ngo_on()",
    "nobody reads what it prints": "def loud():\n    while True: os.write(2, b'x' * 1000 + b'\\n')\n"
    "threading.Thread(target=loud, daemon=True).start()\ntime.sleep(0.2)\ngo_on()",
    "a thread waits for ever": "threading.Thread(target=time.sleep, args=(300,)).start()\ngo_on()",
    "it runs out of its main function": "threading.Thread(target=go_on).start()",
    "it has forked": "if os.fork() == 0:\n    time.sleep(300)\ngo_on()",
}


@pytest.fixture(autouse=True)
def signals_are_heard() -> Iterator[None]:
    """What these tests were started to ignore, as by `nohup make test &`, the commands that they start would too."""
    ignored = [number for number in SIGNALS if signal.getsignal(number) is signal.SIG_IGN]
    for number in ignored:
        signal.signal(number, signal.SIG_DFL)
    yield
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)


def started(work: str, *before: str) -> tuple[subprocess.Popen[str], int, Path]:
    """A command at work, its child, and a folder of temporary files."""
    command = [*before, sys.executable, "-c", BEGIN + work]
    process = subprocess.Popen(
        command,
        env={**os.environ, "PYTHONPATH": str(HERE)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    child, _, folder = process.stdout.readline().strip().partition(" ")
    assert process.stdout.readline() == "ready\n"
    return process, int(child), Path(folder)


def is_gone(pid: int) -> bool:
    """Whether a process that was killed has ended within a moment."""
    deadline = time.monotonic() + 5
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


@pytest.mark.parametrize("work", WORK)
def test_it_ends_with_its_sentence_last_and_takes_along_what_it_has_started(work: str) -> None:
    process, child, folder = started(WORK[work])
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 1
    assert err.splitlines()[-1] == "interrupted"
    assert is_gone(child) and not folder.parent.exists()
    assert out == ("told" if work == "somebody has to know" else "")


@pytest.mark.parametrize("by", ["SIGTERM", "SIGINT", "SIGHUP"])
def test_signals_all_mean_the_same_also_when_they_come_twice(by: str) -> None:
    process, child, _ = started(WORK["somebody does not listen"])
    for _ in range(2):
        process.send_signal(getattr(signal, by))
        time.sleep(0.05)
    assert process.communicate(timeout=30) == ("", "interrupted\n")
    assert process.returncode == 1 and is_gone(child)


@pytest.mark.parametrize("by", ["SIGTERM", "SIGINT", "SIGHUP"])
def test_what_goes_on_until_a_signal_ends_well_with_it(by: str) -> None:
    process, child, _ = started("flows.running.ending.end_well_when_interrupted('closed')\ngo_on()")
    process.send_signal(getattr(signal, by))
    assert process.communicate(timeout=30) == ("", "closed\n")
    assert process.returncode == 0 and is_gone(child)


def test_what_it_was_started_to_ignore_it_ignores() -> None:
    process, _, _ = started("print('ready', flush=True)\ntime.sleep(1)\nending.decide(0)", "nohup")
    process.send_signal(signal.SIGHUP)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 0 and "interrupted" not in err


@pytest.mark.parametrize(("code", "sentence"), [(0, ""), (1, "it failed"), (2, "asked wrongly")])
@pytest.mark.parametrize("is_signalled", [False, True])
def test_once_it_is_decided_a_signal_only_makes_it_end_sooner(code: int, sentence: str, is_signalled: bool) -> None:
    seconds = 60 if is_signalled else 0.2
    work = f"""
def slow():
    print("a library says good bye", file=sys.stderr)
    print("ready", flush=True)
    time.sleep({seconds})
atexit.register(slow)
ending.decide({code}, {sentence!r})
"""
    process, child, _ = started(work)
    if is_signalled:
        process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=30)
    assert process.returncode == code
    assert err == "a library says good bye\n" + (f"{sentence}\n" if sentence else "")
    assert is_gone(child)


def test_a_bar_on_a_terminal_does_not_keep_the_line_or_the_cursor() -> None:
    import pty

    ours, theirs = pty.openpty()
    script = "print('ready', flush=True)\nsys.stderr.write('\\x1b[?25l 40 %')\nsys.stderr.flush()\ntime.sleep(60)"
    command = [sys.executable, "-c", BEGIN + script]
    process = subprocess.Popen(
        command, env={**os.environ, "PYTHONPATH": str(HERE)}, stdout=subprocess.PIPE, stderr=theirs
    )
    assert process.stdout is not None
    while b"ready" not in process.stdout.readline():
        pass
    shown = b""
    while b"%" not in shown:
        shown += os.read(ours, 1000)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    os.close(theirs)
    shown += os.read(ours, 1000)
    os.close(ours)
    assert re.fullmatch(rb"\x1b\[\?25l 40 %\x1b\[\?25h\r?\ninterrupted\r?\n", shown)
