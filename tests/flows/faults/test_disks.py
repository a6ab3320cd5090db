"""Disks without room and disks that nobody may write to, from a drawn moment on: said, and nothing is lost by it."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.flows.faults.fault_proxy import StoreRequest
from tests.flows.faults.kill_points import Trap
from tests.flows.faults.work import PATIENCE_SECONDS, Work

pytestmark = [
    pytest.mark.ray,
    pytest.mark.object_store,
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a disk of its own"),
]

HowMany = Callable[[int, int], int]
SIZE = "8m"
AT_ONCE_SECONDS = 60.0  # from the first refusal to the end of the command, on a busy machine


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small disk."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", folder]).returncode:
        pytest.skip("this machine does not let root mount a disk, as in a container")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def fill(disk: Path) -> Path:
    """A file that leaves no room."""
    with (disk / "ballast").open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"\0" * 4096)
    return disk / "ballast"


def remount(disk: Path, how: str) -> None:
    """Let it be written to ("rw") or not ("ro"), as soon as nobody has a file open for writing."""
    deadline = time.monotonic() + 20
    while subprocess.run(["mount", "-o", f"remount,{how}", disk], capture_output=True).returncode:
        assert time.monotonic() < deadline, f"{disk} cannot be made {how}"


def wait_for_files(archive: Path, number: int, command: Any) -> None:
    """Return once an archive has so many files, or its command has ended."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not command.has_ended and sum(path.is_file() for path in archive.rglob("*")) < number:
        assert time.monotonic() < deadline, command.text("err")
        time.sleep(0.001)


def some_moments(work: Work, count: int, chosen: random.Random) -> list[int]:
    """By how many files an archive has, spread over those that it has in the end."""
    files = len(work.bench.files.find(work.undisturbed.archive))
    return [int((number + chosen.random()) * files / count) for number in range(count)]


def test_a_full_disk(
    disk: Path, inversion: Work, chosen: random.Random, how_many: HowMany, record: Callable[..., None]
) -> None:
    """Somebody else fills the disk, and makes room when the command says what is the matter."""
    outcomes, bench = [], inversion.bench
    for number in some_moments(inversion, how_many(1, 5), chosen):
        archive = disk / f"archive-{number}"
        command = bench.invert(str(archive))
        wait_for_files(archive, number, command)
        ballast = fill(disk)
        before = bench.finished_shards(str(archive))
        deadline = time.monotonic() + PATIENCE_SECONDS
        while os.strerror(errno.ENOSPC) not in command.text("err") and not command.has_ended:
            assert time.monotonic() < deadline, command.text("err")
            time.sleep(0.05)
        ballast.unlink()
        finished = bench.commands.ended(command)
        if finished.code:  # not tried again by itself: while runs are planned
            assert finished.code == 1 and os.strerror(errno.ENOSPC) in finished.err.splitlines()[-1], finished.err
            inversion.finish(str(archive))
        again = before.recomputed(bench.store(str(archive)), [])
        outcomes.append(inversion.outcome("disk full", 1, str(archive), again))
    record(outcomes)


@pytest.mark.all_faults
def test_a_disk_that_becomes_read_only(
    disk: Path, inversion: Work, chosen: random.Random, record: Callable[..., None]
) -> None:
    """Before the command begins, and in the middle of it: waiting does not help, so the command ends."""
    outcomes, bench, ended = [], inversion.bench, []
    moments = some_moments(inversion, 4, chosen)
    for number in [*moments[1:], 0]:
        archive = disk / f"archive-{number}"
        if number:
            command = bench.invert(str(archive))
            wait_for_files(archive, number, command)
            remount(disk, "ro")
        else:
            remount(disk, "ro")
            command = bench.invert(str(archive))
        refused_at = time.monotonic()
        before = bench.finished_shards(str(archive))
        ended.append((bench.commands.ended(command), time.monotonic() - refused_at))
        remount(disk, "rw")
        inversion.finish(str(archive))
        again = before.recomputed(bench.store(str(archive)), [])
        outcomes.append(inversion.outcome("disk made read-only", 1, str(archive), again))
    record(outcomes)
    for finished, seconds in ended:
        if finished.code:  # else it had written all that it had to write
            check_refused(finished, seconds, os.strerror(errno.EROFS))


@pytest.mark.all_faults
def test_a_bucket_that_becomes_read_only(
    inversion: Work, chosen: random.Random, how_many: HowMany, record: Callable[..., None]
) -> None:
    """The right to write is taken away, before the command begins or in the middle of it, and given back."""
    outcomes, bench, ended = [], inversion.bench, []
    for number in range(how_many(1, 4)):
        url = inversion.archive(f"read-only-{number}")
        (point,) = inversion.draw_in_shards(1, chosen)
        denial = Denial()
        trap = Trap([point] if number else [], url, denial.begin, is_deadly=False)
        if not number:
            denial.begin()
        with bench.proxy.disturbing(denial), bench.proxy.watched(trap):
            finished = bench.commands.ended(inversion.start(url))
        assert denial.began is not None and not trap.left
        ended.append((finished, time.monotonic() - denial.began))
        before = bench.finished_shards(url)
        inversion.finish(url)
        again = before.recomputed(bench.store(url), bench.proxy.log)
        outcomes.append(inversion.outcome("bucket made read-only", 1, url, again))
    record(outcomes)
    for finished, seconds in ended:
        check_refused(finished, seconds, "s3://lsap")


class Denial:
    """The right to write is taken away.

    Attributes:
        began: when, by the monotonic clock; None before.
    """

    def __init__(self) -> None:
        self.began: float | None = None

    def begin(self, _: Any = None) -> None:
        """From now on."""
        self.began = time.monotonic()

    def __call__(self, request: StoreRequest) -> str | None:
        return "denied" if self.began is not None and request.verb not in ("GET", "HEAD", "LIST") else None


def check_refused(finished: Any, seconds: float, words: str) -> None:
    """One sentence with these words, at once."""
    assert finished.code in (1, 2), finished.err
    last = finished.err.splitlines()[-1]
    assert last.startswith("lsap: ") and words in last, finished.err
    assert seconds < AT_ONCE_SECONDS, f"said after {seconds:.0f} s:\n{finished.err}"
