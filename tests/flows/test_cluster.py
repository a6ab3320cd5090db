"""A cluster of several nodes: who works where, a node that comes, one that is killed, a training across two."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import safetensors.numpy
import torch

from flows.parameters.train_encoder import TrainEncoderRun
from lsap_archive import RunWriter, open_archive, verify_archive
from tasks.inversion.request import InversionRequest
from tasks.inversion.worker import EmbedWorker
from tasks.settings import Settings
from tasks.training.loop import train_networks
from tasks.training.plan import prepare_training
from tasks.training.store import LAST_KEY, TrainingStore
from tasks.workers import pool as pool_module
from tasks.workers.pool import NoWorkerLeftError, RayPool
from tests.flows.forked_workers import WorkerServer
from tests.flows.ray_nodes import SOON, RayNode, RayNodes

pytestmark = [pytest.mark.ray, pytest.mark.slow]

PATIENCE_SECONDS = 90.0
NUM_IMAGES, SHARD_ROWS, NUM_STEPS = 16, 2, 30
METHOD = "lsap_o_w_plus"
TRAINING = """\
source: digits:train[:24]
validation_source: digits:test[:4]
domain: digits
training: {batch_size: 4, num_steps: 3, decay_steps: 1, progressive_start: 1, progressive_every: 1}
identity: digits-features
anchor: {num_samples: 200}
log_every: 1
validate_every: 3
checkpoint_every: 3
workers: {device: cpu}
"""


@dataclass
class Nodes:
    """A cluster, and its nodes by name."""

    cluster: RayNodes
    named: dict[str, RayNode] = field(default_factory=dict)

    def __getitem__(self, name: str) -> RayNode:
        return self.named[name]

    def add(self, name: str, **node: Any) -> None:
        """A further node, once it belongs to the cluster."""
        self.named[name] = self.cluster.add(**node)

    def freeze_at_work(self, name: str) -> bool:
        """Stop the workers of a node where they are; False, and nobody is stopped, when none is in a piece of work."""
        workers = self.at_work("ray::Host")[name]
        for worker in workers:
            os.kill(worker, signal.SIGSTOP)
        if not (is_at_work := bool(self.at_work()[name])):
            for worker in workers:
                os.kill(worker, signal.SIGCONT)
        return is_at_work

    def at_work(self, title: str = "ray::Host.call") -> dict[str, list[int]]:
        """Processes of actors whose title begins like this, by the name of their node."""
        return {name: node.server.workers(title) for name, node in self.named.items()}


@pytest.fixture(scope="module")
def nodes(fork_server: ForkServerContext, worker_server: WorkerServer) -> Iterator[Nodes]:
    """A head that works on nothing, a node with a GPU that only the books know of, and one without."""
    with contextlib.closing(RayNodes(fork_server, worker_server, num_cpus=0, _system_config=SOON)) as cluster:
        nodes = Nodes(cluster)
        nodes.add("gpu", num_cpus=1, num_gpus=1)
        nodes.add("cpu", num_cpus=1)
        yield nodes


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory, save_digits: Callable[[Path, Iterable[int]], list[str]]) -> Path:
    folder = tmp_path_factory.mktemp("digits") / "images"
    save_digits(folder, range(NUM_IMAGES))
    return folder


@pytest.fixture(scope="module")
def invert(lsap: Any, nodes: Nodes, config: Path) -> Callable[..., Any]:
    """Begins an inversion on the cluster."""

    def start(source: Path, archive: Path, workers: str) -> Any:
        fields = {
            "source": source,
            "archive": archive,
            "methods": f"[{METHOD}]",
            "shard_rows": SHARD_ROWS,
            "embedding.num_steps": NUM_STEPS,
            "workers": workers,
        }
        changes = [word for name, value in fields.items() for word in ("--set", f"{name}={value}")]
        return lsap.start("run", "invert", str(config), *changes, "--json", LSAP_RAY_ADDRESS=nodes.cluster.address)

    return start


@pytest.fixture
def undisturbed(
    images: Path, plan_here: Callable[..., tuple[Any, InversionRequest]], tmp_path: Path
) -> Callable[..., Any]:
    """Codes of some of the images, made in this process."""

    def embed(names: list[str]) -> np.ndarray:
        (tmp_path / "some").mkdir()
        for name in names:
            shutil.copy(images / name, tmp_path / "some" / name)
        archive = tmp_path / "undisturbed"
        fields = {"methods": f"[{METHOD}]", "shard_rows": SHARD_ROWS, "embedding.num_steps": NUM_STEPS}
        prepared, request = plan_here(source=tmp_path / "some", archive=archive, **fields)
        (shard,) = prepared.shards
        EmbedWorker(request)(shard)
        RunWriter.open(str(archive), shard.job_id).publish({})
        return open_archive(str(archive)).codes(names, METHOD)

    return embed


def wait_until(condition: Callable[[], Any], command: Any) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert not command.has_ended and time.monotonic() < deadline, command.text("err")
        time.sleep(0.02)


class Clerk:
    """Says where it is and what it was given."""

    def parent(self) -> int:
        return os.getppid()

    def variable(self, name: str) -> str | None:
        return os.environ.get(name)


@pytest.fixture
def open_pool(nodes: Nodes) -> Iterator[Callable[..., RayPool]]:
    """Workers on the cluster for this process."""
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import a test
    with contextlib.ExitStack() as opened:

        def start(**asked: Any) -> RayPool:
            pool = RayPool(Clerk, address=nodes.cluster.address, **asked)
            opened.callback(pool.close)
            return pool

        yield start
    ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


def test_workers_are_where_they_belong_with_the_environment_of_their_node(
    open_pool: Callable[..., RayPool], nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "the-drivers-own")
    pool = open_pool(num_workers=1, num_threads=3)
    assert pool.call("parent") == nodes["cpu"].server.pid  # and not on the node that has a GPU
    assert pool.call("variable", "OMP_NUM_THREADS") == "3"
    assert pool.call("variable", "AWS_SECRET_ACCESS_KEY") is None
    shared = open_pool(num_workers=1, gpus_per_worker=0.5)
    assert shared.call("parent") == nodes["gpu"].server.pid


def test_a_pool_that_fits_nowhere_says_what_there_is_and_what_it_wants(
    open_pool: Callable[..., RayPool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_module, "ROOM_TIMEOUT_SECONDS", 1.0)
    pool = open_pool(num_workers=2, min_workers=1, gpus_per_worker=2.0)
    with pytest.raises(NoWorkerLeftError, match=r"3 nodes with 2 CPUs and 1 GPUs in all, .* each worker wants 2 GPU:"):
        pool.call("parent")


def test_two_workers_on_two_nodes_train_what_one_process_trains(lsap: Any, nodes: Nodes, tmp_path: Path) -> None:
    config, output = tmp_path / "training.yaml", tmp_path / "across"
    config.write_text(TRAINING)
    changes = ("--set", f"output={output}", "--set", "workers.count=2")
    command = lsap.start("run", "train_encoder", str(config), *changes, LSAP_RAY_ADDRESS=nodes.cluster.address)
    together = {"gpu": 1, "cpu": 1}
    wait_until(lambda: {n: len(a) for n, a in nodes.at_work("ray::RayTrainWorker").items()} == together, command)
    finished = command.wait()
    assert finished.code == 0, finished.err
    assert not (output / "ray").exists()  # what Train wrote is gone, its folder too

    spec = TrainEncoderRun.read(str(config), [f"output={tmp_path / 'alone'}"]).resolve(Settings()).spec
    prepare_training(spec)
    train_networks(spec, device=torch.device("cpu"))
    one, two = (safetensors.numpy.load((tmp_path / name / LAST_KEY).read_bytes()) for name in ("alone", "across"))
    assert one.keys() == two.keys()
    for name, values in one.items():
        np.testing.assert_allclose(two[name], values, rtol=1e-3, atol=1e-4, err_msg=name)
    assert TrainingStore(str(output)).progress()["step"] == 3  # type: ignore[index]


def test_a_node_that_comes_is_used_and_one_that_is_killed_costs_no_image(
    invert: Callable[..., Any],
    nodes: Nodes,
    images: Path,
    undisturbed: Callable[[list[str]], np.ndarray],
    tmp_path: Path,
) -> None:
    archive = tmp_path / "archive"
    command = invert(images, archive, "{count: 4, gpus_each: 0.5}")
    wait_until(lambda: len(nodes.at_work("ray::Host")["gpu"]) == 2, command)  # and two wait for another GPU
    wait_until(lambda: nodes.freeze_at_work("gpu"), command)
    nodes.add("second gpu", num_cpus=1, num_gpus=1)
    wait_until(lambda: nodes.at_work()["second gpu"], command)
    assert nodes.at_work("ray::Host")["cpu"] == []
    nodes["gpu"].kill()
    finished = command.wait()
    assert finished.code == 0, finished.err
    assert "WorkerLostError" in finished.err
    assert json.loads(finished.out)["by_status"] == {"ok": NUM_IMAGES}
    assert verify_archive(str(archive)).problems == []
    found = open_archive(str(archive))
    names = sorted(path.name for path in images.iterdir())
    assert Counter(row["image_id"] for row in found.rows(history=True).to_pylist()) == dict.fromkeys(names, 1)
    wanted = undisturbed(names[:SHARD_ROWS])
    np.testing.assert_array_equal(found.codes(names[:SHARD_ROWS], METHOD), wanted)
