"""A real file system that fills up: the message names the cause, readers see nothing, and the same command goes on."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lsap_archive import (
    ArchiveWriter,
    Geometry,
    StoreUnavailableError,
    code_arrays,
    open_archive,
    trace_arrays,
    verify_archive,
)

GEOMETRY = Geometry(num_ws=2, w_dim=1024, noise_sides=())  # 16 KiB of codes a shard
ARRAYS = (*code_arrays(GEOMETRY), *trace_arrays((0, 10), ("mse", "lpips", "sncd")))
SIZE = 512 * 1024
FULL = r"No space left on device: [\d,]+ bytes are wanted, [\d,]+ are free; make room and run the same command again"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of half a megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"this machine does not let us mount: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def fill(disk: Path, leave: int) -> Path:
    """Take all but so many bytes."""
    free = os.statvfs(disk)
    path = disk / "of-somebody-else"
    path.write_bytes(b"\0" * max(free.f_bavail * free.f_frsize - leave, 0))
    return path


def writer_on(disk: Path) -> ArchiveWriter:
    return ArchiveWriter.open(str(disk / "archive"), generator_digest="9f", generator_name="tiny", geometry=GEOMETRY)


@pytest.mark.parametrize("leave", [0, 4096, 12 * 1024, 20 * 1024, 32 * 1024, 40 * 1024])
def test_a_disk_that_fills_up_in_a_shard_costs_that_shard_only(small_disk: Path, work: Any, leave: int) -> None:
    """From nothing left to room for all but the last copy."""
    run = writer_on(small_disk).start_run(work.plan(arrays=ARRAYS))
    assert work.write(run, 0)
    other = fill(small_disk, leave)
    with pytest.raises(StoreUnavailableError, match=FULL):
        for shard in (1, 2):
            work.write(run, shard)
    assert open_archive(str(small_disk / "archive")).runs == []
    other.unlink()
    assert set(run.missing_shards()) in ({1, 2}, {2}, set())
    for shard in run.missing_shards():
        assert work.write(run, shard)
    run.promote_committed()
    assert run.publish({})
    assert verify_archive(str(small_disk / "archive")).is_sound
    codes = open_archive(str(small_disk / "archive")).codes([f"image-{row}" for row in range(5)], "lsap_o")
    np.testing.assert_array_equal(codes, work.expected(run))
    assert not list(small_disk.rglob(".tmp-*"))


@pytest.mark.parametrize("leave", [0, 4096])
def test_a_disk_that_is_full_when_a_run_is_published(small_disk: Path, work: Any, leave: int) -> None:
    run = writer_on(small_disk).start_run(work.plan(arrays=ARRAYS))
    work.write_all(run)
    other = fill(small_disk, leave)
    with pytest.raises(StoreUnavailableError, match=FULL):
        run.publish({})
    other.unlink()
    run.publish({})
    report = verify_archive(str(small_disk / "archive"))
    assert report.is_sound and report.information == [] and report.counts["rows"] == 5


def test_what_killed_writers_left_is_removed_when_the_run_is_published(local_place: Any, work: Any) -> None:
    run = local_place.writer().start_run(work.plan())
    work.write_all(run)
    left = Path(local_place.url) / "runs/run-1/rows/.tmp-0123"
    left.write_bytes(b"half")
    assert run.publish({}) and not left.exists()
