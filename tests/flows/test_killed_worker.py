"""kill -9 of a worker in the middle of a shard: that shard is tried again, in sight, and nothing else changes."""

from __future__ import annotations

import contextlib
import json
import os
import runpy
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load

from lsap_archive import Archive, RunWriter, open_archive, verify_archive
from tasks.archived.saved_states import DIGEST_BYTES
from tasks.inversion.request import InversionRequest
from tasks.inversion.worker import EmbedWorker

HERE = Path(__file__).parent
NUM_IMAGES, SHARD_ROWS = 16, 4
PATIENCE_SECONDS = 120.0
PlanHere = Callable[..., tuple[Any, InversionRequest]]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory, save_digits: Callable[[Path, Iterable[int]], list[str]]) -> Path:
    folder = tmp_path_factory.mktemp("digits") / "images"
    save_digits(folder, range(NUM_IMAGES))
    return folder


@pytest.mark.ray
@pytest.mark.slow
def test_the_shard_of_a_killed_worker_is_tried_again_in_sight(
    lsap_on_cluster: Any, ray_cluster: Any, prefect_server: Any, images: Path, tmp_path: Path
) -> None:
    archive = tmp_path / "archive"
    fields = {"embedding.num_steps": 40, "methods": "[lsap_o_w_plus]"}
    command = lsap_on_cluster.invert("--json", source=images, archive=archive, **fields)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (workers := ray_cluster.head.server.workers("ray::Host.call")):
        assert not command.has_ended and time.monotonic() < deadline, command.text("err")
        time.sleep(0.01)
    os.kill(workers[0], signal.SIGKILL)
    assert list(archive.glob("runs/*/_commit/*")) == []
    finished = command.wait()
    assert finished.code == 0, finished.err
    assert "WorkerLostError" in finished.err
    assert json.loads(finished.out)["by_status"] == {"ok": NUM_IMAGES}
    assert verify_archive(str(archive)).problems == []
    rows = open_archive(str(archive)).rows(history=True).to_pylist()
    assert Counter(row["image_id"] for row in rows) == {path.name: 1 for path in images.iterdir()}
    tasks = [run for run in prefect_server.task_runs_of(finished) if run["name"].startswith("embed-")]
    assert sorted(run["run_count"] for run in tasks) == [1] * (NUM_IMAGES // SHARD_ROWS - 1) + [2]
    assert {run["state_type"] for run in tasks} == {"COMPLETED"}


@pytest.mark.ray
@pytest.mark.slow
def test_workers_that_cannot_be_built_end_the_command(lsap_on_cluster: Any, images: Path, tmp_path: Path) -> None:
    """The machines of the cluster have no tenth GPU, which is known there alone; waiting for one would help nobody."""
    workers = "{count: 2, device: 'cuda:9'}"
    command = lsap_on_cluster.invert(source=images, archive=tmp_path / "archive", workers=workers)
    finished = command.wait(timeout_seconds=120)
    assert finished.code == 1
    assert finished.out == ""
    last = finished.err.splitlines()[-1]
    assert last.startswith("lsap: UnfinishedError: 8 of 8 shards could not be finished")
    assert "no worker is left of 2" in last and "same command again" in last


@pytest.mark.slow
def test_a_killed_worker_leaves_what_the_next_one_goes_on_from_bit_for_bit(
    fork_server: Any, plan_here: PlanHere, images: Path, tmp_path: Path
) -> None:
    fields = {"source": images, "methods": "[lsap_o_w_plus]", "embedding.num_steps": 30, "shard_rows": NUM_IMAGES}
    folder = tmp_path / "killed"
    prepared, request = plan_here(archive=folder, **fields)
    (shard,) = prepared.shards
    process = fork_server.Process(
        target=runpy.run_path,
        args=(str(HERE / "embed_shard.py"),),
        kwargs={"init_globals": {"REQUEST": request, "SHARD": shard}, "run_name": "__main__"},
    )
    process.start()
    deadline = time.monotonic() + PATIENCE_SECONDS
    while num_finished(folder) < 2 or saved_step(folder) < 5:  # two batches of four, and the third is under way
        assert process.is_alive() and time.monotonic() < deadline
        time.sleep(0.005)
    process.kill()
    process.join()
    finished, at = num_finished(folder), saved_step(folder)
    assert list(folder.glob("runs/*/_commit/*")) == []

    outcome = EmbedWorker(request)(shard)
    assert 5 <= outcome.resumed_at == at < 30
    assert 2 <= finished < 4 and outcome.num_known == request.batch_size * finished
    assert not list(folder.glob("runs/*/_staging/*/state-*")) and num_finished(folder) == 0
    resumed = publish(folder, prepared)
    assert verify_archive(str(folder)).problems == []

    wanted, other = plan_here(archive=tmp_path / "undisturbed", **fields)
    assert EmbedWorker(other)(shard).resumed_at == 0
    undisturbed = publish(tmp_path / "undisturbed", wanted)
    ids = sorted(path.name for path in images.iterdir())
    np.testing.assert_array_equal(resumed.codes(ids, "lsap_o_w_plus"), undisturbed.codes(ids, "lsap_o_w_plus"))
    for found, maps in zip(resumed.noise(ids, "lsap_o_w_plus"), undisturbed.noise(ids, "lsap_o_w_plus"), strict=True):
        np.testing.assert_array_equal(found, maps)
    trace, wanted_trace = (one.trace(ids, "lsap_o_w_plus").values for one in (resumed, undisturbed))
    np.testing.assert_array_equal(trace, wanted_trace)


def num_finished(folder: Path) -> int:
    """Batches whose results are kept."""
    return len(list(folder.glob("runs/*/_staging/*/finished-*")))


def saved_step(folder: Path) -> int:
    """The step of the state of the batch under way; -1 while there is none."""
    with contextlib.suppress(FileNotFoundError):  # it is finished meanwhile
        for state in folder.glob("runs/*/_staging/*/state-*"):
            return int(load(state.read_bytes()[DIGEST_BYTES:])["step"].min())
    return -1


def publish(folder: Path, prepared: Any) -> Archive:
    for run_id in prepared.runs:
        assert RunWriter.open(str(folder), run_id).publish({})
    return open_archive(str(folder))
