"""The whole way: Prefect, Ray Train and an object store in between; several workers, and one that is killed."""

from __future__ import annotations

import io
import json
import os
import signal
import time
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import safetensors.numpy
import torch

from flows.parameters.train_encoder import TrainEncoderRun
from lsap_archive import Store
from tasks.settings import Settings
from tasks.training.loop import train_networks
from tasks.training.plan import prepare_training
from tasks.training.store import LAST_KEY, TrainingStore

pytestmark = [pytest.mark.ray, pytest.mark.slow]

PATIENCE_SECONDS = 120.0
CONFIG = """\
source: digits:train[:44]
validation_source: digits:test[:8]
domain: digits
training:
  {batch_size: 4, num_steps: 6, decay_steps: 2, progressive_start: 1, progressive_every: 1, identity_weight: 0.1}
identity: digits-features
anchor: {num_samples: 200}
log_every: 2
validate_every: 3
checkpoint_every: 3
workers: {device: cpu}
"""


@pytest.fixture(scope="module")
def training_config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("training") / "training.yaml"
    path.write_text(CONFIG)
    return path


def sets(**fields: Any) -> list[str]:
    """Changes as a command takes them; `__` stands for a dot."""
    return [word for name, value in fields.items() for word in ("--set", f"{name.replace('__', '.')}={value}")]


def train_here(training_config: Path, output: Path, **fields: Any) -> TrainingStore:
    """The same training in this process, without Ray."""
    changes = [word for word in sets(output=output, **fields) if word != "--set"]
    spec = TrainEncoderRun.read(str(training_config), changes).resolve(Settings()).spec
    prepare_training(spec)
    train_networks(spec, device=torch.device("cpu"))
    return TrainingStore(spec.output)


def weights(data: bytes) -> dict[str, np.ndarray]:
    return safetensors.numpy.load(data)


@pytest.mark.object_store
def test_two_workers_and_an_object_store_train_what_one_process_trains(
    lsap_on_cluster: Any, prefect_server: Any, s3_endpoint: str, training_config: Path, tmp_path: Path
) -> None:
    """Rounding apart. The folder, its curves and Prefect's artifact are read as users read them."""
    url = "s3://lsap/a training/lsap_e"
    finished = lsap_on_cluster.start(
        "run", "train_encoder", str(training_config), *sets(output=url, workers__count=2), "--json"
    ).wait()
    assert finished.code == 0, finished.err
    report = json.loads(finished.out)
    store = Store.from_url(url, {"key": "who", "secret": "reads", "endpoint_url": s3_endpoint})
    assert (report["step"], report["encoder"], report["num_images"]) == (6, f"{url}/encoder.safetensors", 44)
    assert store.keys("ray") == store.keys("failures") == []
    rows = [row for key in store.keys("metrics") for row in _rows(store.get(key))]
    assert [row["step"] for row in rows] == [2, 4, 6]

    alone = train_here(training_config, tmp_path / "alone")
    wanted = alone.table("validation").to_pylist()  # type: ignore[union-attr]
    found = [row for key in store.keys("validation") for row in _rows(store.get(key))]
    assert [row["num_images"] for row in found] == [8, 8]
    for row, wanted_row in zip(found, wanted, strict=True):
        assert row["loss"] == pytest.approx(wanted_row["loss"], rel=1e-4)
    one, two = weights(alone.store.get(LAST_KEY)), weights(store.get(LAST_KEY))
    for name, values in one.items():
        np.testing.assert_allclose(two[name], values, rtol=1e-3, atol=1e-4, err_msg=name)

    artifact = _artifact(prefect_server.url, "training")
    assert "| validation loss |" in artifact and "▁" in artifact and url in artifact
    again = lsap_on_cluster.start("run", "train_encoder", str(training_config), *sets(output=url), "--json").wait()
    assert again.code == 0 and "finished at step 6; nothing is left to do" in again.err
    assert json.loads(again.out)["validation"] == report["validation"]


def test_the_training_of_a_killed_worker_ends_with_the_same_bits(
    lsap_on_cluster: Any, ray_cluster: Any, training_config: Path, tmp_path: Path
) -> None:
    fields = {"training__num_steps": 40, "checkpoint_every": 4, "validate_every": 40}
    output = tmp_path / "killed"
    command = lsap_on_cluster.start(
        "run", "train_encoder", str(training_config), *sets(output=output, **fields), "--json"
    )
    store, deadline = TrainingStore(str(output)), time.monotonic() + PATIENCE_SECONDS
    while (saved := store.latest()) is None or saved.step < 8:
        assert not command.has_ended and time.monotonic() < deadline, command.text("err")
        time.sleep(0.01)
    (worker,) = ray_cluster.head.server.workers("ray::RayTrainWorker")
    os.kill(worker, signal.SIGKILL)
    finished = command.wait()
    assert finished.code == 0, finished.err
    assert "the last start was at step 0" not in finished.err and "the last start was at step" in finished.err

    alone = train_here(training_config, tmp_path / "alone", **fields)
    one, other = weights(alone.store.get(LAST_KEY)), weights(store.store.get(LAST_KEY))
    assert one.keys() == other.keys()
    assert [name for name in one if one[name].tobytes() != other[name].tobytes()] == []
    curves = [each.table("metrics").column("loss").to_pylist() for each in (store, alone)]  # type: ignore[union-attr]
    assert curves[0] == curves[1]


def _rows(parquet: bytes) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(io.BytesIO(parquet)).to_pylist()
    return rows


def _artifact(api: str, key: str) -> str:
    body = json.dumps({"artifacts": {"key": {"any_": [key]}}, "sort": "CREATED_DESC"}).encode()
    request = urllib.request.Request(f"{api}/artifacts/filter", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return str(json.load(answer)[0]["data"])
