"""How a command ends: what signals do to it, what it takes along, its last line and its exit code.

A command that is told to stop does not unwind. Whatever it is in the middle of may be cut off at any moment, because an
archive's objects are created whole or not at all; and unwinding is what takes time and makes noise: dozens of threads
wait for shards and for Prefect, and Ray, torch and DuckDB abort when they are taken down under threads that use them.
So a thread of its own, which needs nothing from the others, tells those who have to know (`when_interrupted`), ends
every process that the command has started, says that it was interrupted, and leaves.

Signals reach that thread through Python's wakeup descriptor. The interpreter's C handler writes to it at once,
whichever Python handler Prefect or Ray have put in the place of ours and whatever the main thread is at. (Signals that
all threads block and one waits for would do as well, but every program that is started inherits what is blocked.) Ray's
own C++ handler, which prints a stack, has to be off: `RAY_DISABLE_FAILURE_SIGNAL_HANDLER`.
"""

from __future__ import annotations

import atexit
import contextlib
import io
import os
import select
import signal
import sys
import threading
import time

TYPE_CHECKING = False
if TYPE_CHECKING:  # until signals are taken over they kill: as little as possible is imported before
    from collections.abc import Callable, Iterator
    from types import FrameType
    from typing import NoReturn

DONE, FAILED, ASKED_WRONGLY = 0, 1, 2  # the only exit codes
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
TELLING_SECONDS = 5.0  # for those who have to know of an interruption
PATIENT_SECONDS = 1.0  # after which a second signal waits for nobody; `timeout` sends two at once
LEAVING_SECONDS = 30.0  # for threads and exit functions, once it is decided how the command ends
STDERR = 2
SHOW_CURSOR = "\x1b[?25h"  # a bar that is cut off has hidden it

_current: Ending | None = None


class Ending:
    """The end of this process, from the moment at which it becomes a command."""

    def __init__(self, sentence: str) -> None:
        """Take over the process's signals and exit; called by its main thread before it does anything else.

        Args:
            sentence: the last line after a signal.
        """
        global _current
        self._code, self._sentence = FAILED, sentence
        self._is_decided = self._is_interrupted = False
        self._deciding, self._leaving = threading.Lock(), threading.Lock()
        self._tellers: list[Callable[[], None]] = []
        self._scratch: str | None = None
        self._null = os.open(os.devnull, os.O_RDWR)
        try:
            self._stderr = os.dup(STDERR)
        except OSError:  # closed by the one who started us
            self._stderr = self._null
        if isinstance(sys.stderr, io.TextIOWrapper):  # whole lines, so that none is cut off in the middle
            sys.stderr.reconfigure(line_buffering=True, write_through=False)
        self._woken, waking = os.pipe()
        os.set_blocking(waking, False)
        signal.set_wakeup_fd(waking, warn_on_full_buffer=False)
        # What we were started to ignore stays ignored: `nohup`, the background jobs of a script.
        self._signals = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
        self.take_signals()
        os.register_at_fork(after_in_child=self._let_go)
        atexit.register(self._leave)  # the first to be registered is the last to be called
        threading.Thread(target=self._watch, name="lsap-signals", daemon=True).start()
        _current = self

    def take_signals(self) -> None:
        """Let signals do nothing in the main thread."""
        for number in self._signals:
            signal.signal(number, _nothing)

    def own_scratch(self) -> None:
        """Let temporary files lie in a folder that goes with the command, however it ends."""
        import tempfile

        with contextlib.suppress(OSError):  # nowhere to write: what needs to will say so
            self._scratch = tempfile.tempdir = tempfile.mkdtemp(prefix="lsap-")

    def decide(self, code: int, sentence: str = "", *, at_once: bool = False) -> int:
        """Say how the command ends; a signal from now on only makes it end sooner.

        Args:
            code: exit code.
            sentence: the last line, which is written when everything else has ended.
            at_once: whether to leave out what libraries do at the end of a process.

        Returns:
            The code.
        """
        with self._deciding:
            if not self._is_interrupted:
                self._is_decided, self._code, self._sentence = True, code, sentence
        if not self._is_decided:
            _wait_for_the_end()
        if at_once:
            self._leave()
        limit = threading.Timer(LEAVING_SECONDS, self._leave)
        limit.daemon = True
        limit.start()
        return code

    def interrupt(self) -> NoReturn:
        """End as after a signal."""
        self._end()
        _wait_for_the_end()

    def end_well(self, sentence: str) -> None:
        """Let an interruption from now on be the end that the command is to have.

        Args:
            sentence: the last line after it.
        """
        with self._deciding:
            if not self._is_interrupted:
                self._code, self._sentence = DONE, sentence

    def tell(self, teller: Callable[[], None]) -> Callable[[], None]:
        """Have a function called when the command is interrupted, in another thread; returns what takes that back."""
        self._tellers.append(teller)
        return lambda: self._tellers.remove(teller)

    def _watch(self) -> None:
        while True:
            if any(number in self._signals for number in os.read(self._woken, 64)):
                self._end()

    def _end(self) -> None:
        with self._deciding:
            if self._is_interrupted:
                return
            self._is_interrupted = not self._is_decided
        if self._is_interrupted:
            os.dup2(self._null, STDERR)  # what is being cut off has nothing to say any more
            self._tell_all()
        self._leave()

    def _tell_all(self) -> None:
        """Call all tellers; as long as it is worth it."""
        started = time.monotonic()
        telling = [threading.Thread(target=teller, daemon=True) for teller in list(self._tellers)]
        for thread in telling:
            thread.start()
        for thread in telling:
            while thread.is_alive() and time.monotonic() - started < TELLING_SECONDS:
                thread.join(0.05)
                if self._is_woken_again() and time.monotonic() - started > PATIENT_SECONDS:
                    return

    def _is_woken_again(self) -> bool:
        return bool(select.select([self._woken], [], [], 0)[0] and os.read(self._woken, 64))

    def _leave(self) -> NoReturn:
        """Take along what was started, say the last sentence and end the process.

        By `os._exit`, when exit functions have been called: what would come after them takes C++ libraries (Ray, Arrow,
        torch) down under their own threads, at which some abort with exit code 134, gives signals back their default
        action, and has DuckDB complain of each object that a traceback keeps alive.
        """
        import shutil

        if not self._leaving.acquire(blocking=False):
            _wait_for_the_end()
        try:
            _end_children()
            if self._scratch is not None:
                shutil.rmtree(self._scratch, ignore_errors=True)
            if self._is_decided or self._is_interrupted:  # else the interpreter has told an error of ours
                self._say()
        finally:
            os._exit(self._code)

    def _say(self) -> None:
        """Write the sentence, unless nobody takes it."""
        is_cut_off = self._is_interrupted and os.isatty(self._stderr)
        line = (f"{SHOW_CURSOR}\n" if is_cut_off else "") + (f"{self._sentence}\n" if self._sentence else "")
        with contextlib.suppress(OSError):
            if select.select([], [self._stderr], [], PATIENT_SECONDS)[1]:
                os.write(self._stderr, line.encode(errors="backslashreplace"))

    def _let_go(self) -> None:
        """In a forked process: it is not the command."""
        global _current
        _current = None
        signal.set_wakeup_fd(-1)
        atexit.unregister(self._leave)
        for number in self._signals:
            if signal.getsignal(number) is _nothing:
                is_interrupt = number == signal.SIGINT
                signal.signal(number, signal.default_int_handler if is_interrupt else signal.SIG_DFL)


def take_signals() -> None:
    """Take back the signals of the command that this process is, if it is one, from libraries that catch them."""
    if _current is not None and threading.current_thread() is threading.main_thread():
        _current.take_signals()


def end_well_when_interrupted(sentence: str) -> None:
    """Say of the command that this process is, if it is one, that it goes on until a signal ends it: then it is done.

    Args:
        sentence: its last line.
    """
    if _current is not None:
        _current.end_well(sentence)


@contextlib.contextmanager
def when_interrupted(tell: Callable[[], None]) -> Iterator[None]:
    """Have somebody told when the command that this process is, if it is one, is interrupted meanwhile.

    Args:
        tell: is called by another thread and given a few seconds.
    """
    forget = None if _current is None else _current.tell(tell)
    try:
        yield
    finally:
        if forget is not None:
            forget()


def _nothing(_number: int, _frame: FrameType | None) -> None:
    """The thread that ends the command is woken beside this."""


def _wait_for_the_end() -> NoReturn:
    while True:
        time.sleep(LEAVING_SECONDS)


def _end_children() -> None:
    """End every process that this one has started: the temporary Prefect server, Ray and its workers.

    What Ray's processes start in the moment in which they are ended does not find them, and ends.
    """
    import psutil  # not before there is something to end: help should not wait for it

    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it has ended, or is another user's
            process.kill()
