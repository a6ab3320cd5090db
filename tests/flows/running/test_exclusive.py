"""One writer for each region of an archive: who waits, who is refused, and what the dead leave behind."""

from __future__ import annotations

import os
import runpy
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from flows.running.exclusive import region_name

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent


@pytest.fixture
def hold(fork_server: Any, tmp_path: Path) -> Callable[..., tuple[Any, Path]]:
    """Starts a flow that holds the edits of an archive, in a process of its own; returns it, and where it speaks."""

    def start(name: str, archive: str, when_busy: str, seconds: float) -> tuple[Any, Path]:
        folder = tmp_path / name
        folder.mkdir()
        said = {"ARCHIVE": archive, "WHEN_BUSY": when_busy, "SECONDS": seconds, "FOLDER": str(folder)}
        process = fork_server.Process(
            target=runpy.run_path,
            args=(str(HERE / "hold_region.py"),),
            kwargs={"init_globals": said, "run_name": "__main__"},
        )
        process.start()
        return process, folder

    return start


def until(happened: Callable[[], bool], timeout_seconds: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_seconds
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_second_writer_is_refused_or_waits_until_the_first_is_dead(hold: Any, prefect_server: Any) -> None:
    """A writer killed with -9 keeps its slot on the server for minutes; nobody waits for that."""
    archive = "s3://lsap/held"
    holder, folder = hold("holder", archive, "wait", 120.0)
    until((folder / "entered").exists)
    other, other_folder = hold("other", "s3://lsap/another", "refuse", 0.0)
    refused, refused_folder = hold("refused", archive, "refuse", 0.0)
    waiting, waiting_folder = hold("waiting", archive, "wait", 0.0)
    refused.join()
    sentence = (refused_folder / "refused").read_text()
    assert f"edits of {archive} are written by flow run" in sentence
    assert f"process {holder.pid} on " in sentence and "when_busy=wait" in sentence
    other.join()
    assert (other_folder / "entered").exists()
    assert not (waiting_folder / "entered").exists()
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    waiting.join(60)
    assert (waiting.exitcode, (waiting_folder / "entered").exists()) == (0, True)
    (dead,) = runs_of(prefect_server.url, archive, "CRASHED")
    assert dead["state"]["message"] == "Its process is gone."
    assert len(runs_of(prefect_server.url, archive, "COMPLETED")) == 1


def test_a_slot_that_the_server_has_forgotten_whom_it_gave_to_is_free(hold: Any, prefect_server: Any) -> None:
    """As after the death of a server, which keeps slots in its database and leases in memory."""
    archive = "s3://lsap/forgotten"
    name = region_name(archive, "edits")
    with httpx.Client(base_url=prefect_server.url) as api:
        api.post("/v2/concurrency_limits/", json={"name": name, "limit": 1}).raise_for_status()
        api.post("/v2/concurrency_limits/increment", json={"names": [name], "slots": 1}).raise_for_status()
        process, folder = hold("next", archive, "refuse", 0.0)
        process.join(60)
        assert (process.exitcode, (folder / "entered").exists()) == (0, True)
        assert api.get(f"/v2/concurrency_limits/{name}").json()["active_slots"] == 0


def test_one_archive_has_one_name_for_each_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    same = {
        region_name(url, "edits")
        for url in ("archive", "./archive/", f"{tmp_path}/archive", f"file://{tmp_path}/archive")
    }
    assert len(same) == 1
    assert region_name("archive", "inversions") not in same
    assert region_name("s3://archive", "edits") not in same


def runs_of(url: str, archive: str, state: str) -> list[dict[str, Any]]:
    """Flow runs in a state that have written the edits of an archive."""
    wanted = {"tags": {"all_": [region_name(archive, "edits")]}, "state": {"type": {"any_": [state]}}}
    answer = httpx.post(f"{url}/flow_runs/filter", json={"flow_runs": wanted})
    runs: list[dict[str, Any]] = answer.raise_for_status().json()
    return runs
