"""Where a Ray of this process's own has its sockets, and that it ends; `test_pool.py` shows who reaches it."""

from __future__ import annotations

import tempfile
from pathlib import Path

import psutil
import pytest
import ray

from tasks.workers.own_ray import LONGEST_FOLDER, ClusterUnavailableError, check_scratch_folder, own_ray, scratch_folder


@pytest.mark.parametrize("variable", ["RAY_TMPDIR", "TMPDIR"])
def test_a_folder_with_too_long_a_name_is_told_and_passed_over(
    variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / ("x" * LONGEST_FOLDER)
    folder.mkdir()
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv(variable, str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)  # what it has found before
    assert scratch_folder() == ("/tmp" if variable == "TMPDIR" else tempfile.gettempdir())
    assert f"the name of {folder} is {len(str(folder))} bytes long, and sockets allow {LONGEST_FOLDER}" in caplog.text


def test_no_folder_at_all_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / "gone"))
    monkeypatch.setattr("tasks.workers.own_ray.LONGEST_FOLDER", 3)
    with pytest.raises(ClusterUnavailableError, match=r"/tmp is 4 bytes long.*set RAY_TMPDIR to one with a short name"):
        scratch_folder()
    with pytest.raises(ClusterUnavailableError, match="RAY_TMPDIR=/tmp"):
        check_scratch_folder()


@pytest.mark.ray
def test_it_ends_also_where_its_processes_hang(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("tasks.workers.own_ray.END_SECONDS", 1.0)
    before = set(psutil.Process().children())
    with own_ray(1, num_gpus=0, runtime_env=None):
        (raylet,) = (one for one in set(psutil.Process().children()) - before if one.name() == "raylet")
        raylet.suspend()
    assert not ray.is_initialized() and not raylet.is_running()
    assert f"Ray's process {raylet.pid} did not end within 1 s and is killed" in caplog.text
