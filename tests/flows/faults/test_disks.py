"""A local disk without room: said in one sentence, waited for, and nothing is lost by it."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.flows.faults.outcome import FaultOutcome

pytestmark = [
    pytest.mark.ray,
    pytest.mark.object_store,
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a disk of its own"),
]

SIZE = "8m"
PATIENCE_SECONDS = 200.0


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


def test_a_full_disk(disk: Path, bench: Any, undisturbed: Any, record: Callable[[FaultOutcome], None]) -> None:
    """Somebody else fills the disk after the first shards, and makes room when the command says what is the matter."""
    archive = disk / "archive"
    command = bench.invert(str(archive))
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not any(archive.glob("runs/*/_commit/*.json")):
        assert not command.has_ended and time.monotonic() < deadline, command.text("err")
        time.sleep(0.001)
    ballast = fill(disk)
    before = bench.finished_shards(str(archive))
    while os.strerror(errno.ENOSPC) not in command.text("err"):
        assert not command.has_ended and time.monotonic() < deadline, command.text("err")
        time.sleep(0.05)
    ballast.unlink()
    finished = command.wait(PATIENCE_SECONDS)
    assert finished.code == 0, finished.err
    assert 0 < len(before) < len(undisturbed.members)
    again = before.recomputed(bench.store(str(archive)), [])
    record(bench.outcome("disk full", 1, str(archive), undisturbed, again))
