"""The notebook of the examples, run as whoever opens it runs it."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[2]


def test_every_cell_runs_and_pictures_are_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LSAP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(ROOT / "examples" / "one_photo.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "kept without results: they would age"
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()
    shown = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    pictures = [one for one in shown if "data:image/png;base64," in one.get("data", {}).get("text/html", "")]
    assert len(pictures) == 4
    assert any("looks unlike" in one.get("text", "") for one in shown)
