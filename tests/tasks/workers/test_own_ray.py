"""Where a Ray of this process's own has its sockets; `test_pool.py` shows who reaches it."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from tasks.workers.own_ray import LONGEST_FOLDER, ClusterUnavailableError, scratch_folder


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
