"""kill -9 of the command; the same command then finishes the work and redoes none of it."""

from __future__ import annotations

import json
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lsap_archive import ShardCommit, open_archive, verify_archive

pytestmark = [pytest.mark.ray, pytest.mark.slow]

NUM_IMAGES, SHARD_ROWS = 12, 4
FIELDS = {"embedding.num_steps": 4}
PATIENCE_SECONDS = 120.0
METRICS = ("mse", "lpips", "lpips_judge", "identity_similarity", "sncd", "w_distance")
TOLERANCE = 1e-5


@dataclass(frozen=True)
class Watched:
    """An archive on disk, seen from outside while a command works on it."""

    folder: Path

    def found(self, pattern: str) -> list[Path]:
        return sorted(self.folder.glob(pattern))

    @property
    def markers(self) -> list[Path]:
        return self.found("runs/*/_commit/*.json")

    def rows(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = open_archive(str(self.folder)).rows(history=True).to_pylist()
        return found


NUM_SHARDS = 2 * NUM_IMAGES // SHARD_ROWS


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory, save_digits: Callable[[Path, Iterable[int]], list[str]]) -> Path:
    folder = tmp_path_factory.mktemp("digits") / "images"
    save_digits(folder, range(NUM_IMAGES))
    return folder


@pytest.fixture(scope="module")
def undisturbed(lsap_on_cluster: Any, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Watched:
    """What the command makes when it is left alone."""
    archive = Watched(tmp_path_factory.mktemp("undisturbed") / "archive")
    finished = lsap_on_cluster.invert(source=images, archive=archive.folder, **FIELDS).wait()
    assert finished.code == 0, finished.err
    return archive


def kill_when(reached: Callable[[Watched], bool], command: Any, archive: Watched) -> dict[Path, tuple[bytes, int]]:
    """kill -9 once the point is reached; the shards that were committed by then."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not reached(archive):
        assert not command.has_ended, f"it ended before it could be killed:\n{command.text('err')}"
        assert time.monotonic() < deadline, command.text("err")
        time.sleep(0.001)
    markers = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in archive.markers}
    command.kill()
    assert command.process.exitcode == -9
    return markers


def check_finished(
    archive: Watched, markers: dict[Path, tuple[bytes, int]], finished: Any, undisturbed: Watched
) -> None:
    """Complete, sound, equal to the undisturbed one; what was committed at the kill is as it was."""
    assert finished.code == 0, finished.err
    assert verify_archive(str(archive.folder)).problems == []
    rows, wanted_rows = archive.rows(), undisturbed.rows()
    assert Counter((row["method"], row["image_id"]) for row in rows) == Counter(
        (row["method"], row["image_id"]) for row in wanted_rows
    )
    for path, (content, written) in markers.items():
        assert (path.read_bytes(), path.stat().st_mtime_ns) == (content, written)
        commit = ShardCommit.decode(content, str(path))
        shard = [row for row in rows if (row["run_id"], row["shard"]) == (commit.run_id, commit.shard)]
        assert {row["attempt"] for row in shard} == {commit.attempt}
    told = json.loads(finished.out)
    assert told["num_images"] == NUM_IMAGES
    assert told["embedded"] <= SHARD_ROWS * (NUM_SHARDS - len(markers))
    check_same_values(archive, undisturbed)


def check_same_values(archive: Watched, undisturbed: Watched) -> None:
    found, wanted = (open_archive(str(one.folder)) for one in (archive, undisturbed))
    columns = ["method", "image_id", "status", *METRICS]
    tables = [
        {(row["method"], row["image_id"]): row for row in one.rows(columns, history=True).to_pylist()}
        for one in (found, wanted)
    ]
    for key, row in tables[1].items():
        assert tables[0][key]["status"] == row["status"] == "ok"
        np.testing.assert_allclose(
            [tables[0][key][name] for name in METRICS], [row[name] for name in METRICS], atol=TOLERANCE, rtol=0
        )
    for method in wanted.methods:
        ids = sorted(image_id for name, image_id in tables[1] if name == method)
        np.testing.assert_allclose(found.codes(ids, method), wanted.codes(ids, method), atol=TOLERANCE, rtol=0)
        for maps, wanted_maps in zip(found.noise(ids, method), wanted.noise(ids, method), strict=True):
            np.testing.assert_allclose(maps, wanted_maps, atol=TOLERANCE, rtol=0)


def test_the_same_command_finishes_what_a_killed_one_began(
    lsap: Any, lsap_on_cluster: Any, images: Path, undisturbed: Watched, tmp_path: Path
) -> None:
    """One that had a Ray of its own, which outlives it for a moment, and a folder for its archive.

    `faults/test_kills.py` kills commands of a cluster at every kind of request to a bucket.
    """
    archive = Watched(tmp_path / "archive")
    command = lsap.invert(source=images, archive=archive.folder, **FIELDS)
    markers = kill_when(lambda archive: bool(archive.markers), command, archive)
    assert len(archive.markers) < NUM_SHARDS
    finished = lsap_on_cluster.invert("--json", source=images, archive=archive.folder, **FIELDS).wait()
    check_finished(archive, markers, finished, undisturbed)


def test_a_kill_in_the_middle_of_promotion_leaves_nothing_half_visible(
    lsap_on_cluster: Any, images: Path, undisturbed: Watched, tmp_path: Path
) -> None:
    """Rows cannot be promoted here, as a file lies where their folder should be: committed shards stay half-way."""
    archive = Watched(tmp_path / "archive")
    obstacles = [archive.folder / path.relative_to(undisturbed.folder) for path in undisturbed.found("runs/*/rows")]
    assert len(obstacles) == 2
    for obstacle in obstacles:
        obstacle.parent.mkdir(parents=True)
        obstacle.write_text("in the way")
    command = lsap_on_cluster.invert(source=images, archive=archive.folder, **FIELDS)
    markers = kill_when(lambda archive: len(archive.markers) >= 2, command, archive)
    assert open_archive(str(archive.folder)).runs == []
    for obstacle in obstacles:
        obstacle.unlink()
    finished = lsap_on_cluster.invert("--json", source=images, archive=archive.folder, **FIELDS).wait()
    check_finished(archive, markers, finished, undisturbed)


def test_an_interrupted_command_ends_soon_and_leaves_no_worker(
    lsap_on_cluster: Any, ray_cluster: Any, prefect_server: Any, images: Path, tmp_path: Path
) -> None:
    """Ctrl-C: the threads that wait for a worker must not wait for ever.

    `faults/test_interrupted.py` has a scheduler's first warning, and `running/test_ending.py` every signal.
    """
    taken = prefect_server.slots_taken()
    command = lsap_on_cluster.invert(source=images, archive=tmp_path / "archive", embedding__num_steps=2000)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not ray_cluster.head.server.workers("ray::Host.call"):
        assert not command.has_ended and time.monotonic() < deadline, command.text("err")
        time.sleep(0.02)
    os.kill(command.pid, signal.SIGINT)
    finished = command.wait(timeout_seconds=150)
    assert (finished.code, finished.out) == (1, "")
    assert finished.err.splitlines()[-1] == "lsap: interrupted; the same command goes on where this one stopped"
    assert "Traceback" not in finished.err and "ERROR" not in finished.err
    assert prefect_server.states_of(finished) == ["CRASHED"] and prefect_server.slots_taken() == taken
    while ray_cluster.head.server.workers():
        assert time.monotonic() < deadline, "workers outlived the command that they worked for"
        time.sleep(0.05)
