"""Two workers train what one trains."""

import os
import subprocess
import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from lsap_core.training.workers import WholeBatchNorm, synchronize_batch_norm

WORKERS = 2


@pytest.fixture(scope="module")
def of_workers(small: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two workers had at the end."""
    folder = tmp_path_factory.mktemp("workers")
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo"}
    running = [
        subprocess.Popen(
            [sys.executable, str(small.__file__), str(rank), str(WORKERS), str(folder)],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(WORKERS)
    ]
    try:
        errors = [process.communicate(timeout=120)[1] for process in running]
    finally:
        for process in running:
            process.kill()
    assert [process.returncode for process in running] == [0] * WORKERS, "\n".join(errors)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(WORKERS)]


@pytest.fixture(scope="module")
def alone(small: ModuleType) -> dict[str, Any]:
    """What one process had at the end, of the same batches."""
    return small.train_all()


@pytest.mark.parametrize("method", ["e4e", "lsap_e", "restyle_e4e"])
def test_two_workers_train_what_one_trains(
    small: ModuleType, of_workers: list[dict[str, Any]], alone: dict[str, Any], method: str
) -> None:
    first = small.make_training(method).encoder.state_dict()
    found, expected = of_workers[0][method], alone[method]
    moved = 0.0
    for name, value in expected["encoder"].items():
        torch.testing.assert_close(
            found["encoder"][name], value, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
        )
        moved = max(moved, (value - first[name]).abs().max().item())
    assert moved > 1e-2
    assert found["step"] == expected["step"] == small.STEPS_WITH_WORKERS
    if expected["adversary"] is None:
        assert found["adversary"] is None
    else:
        for part in ("network", "real_pool", "fake_pool"):
            torch.testing.assert_close(found["adversary"][part], expected["adversary"][part], rtol=1e-3, atol=1e-4)
    for step, logged in enumerate(expected["logged"]):
        of_both = [worker[method]["logged"][step]["loss"] for worker in of_workers]
        assert sum(of_both) / WORKERS == pytest.approx(logged["loss"], rel=1e-4)
        assert of_both[0] != of_both[1]


def test_every_worker_ends_with_the_same_weights(small: ModuleType, of_workers: list[dict[str, Any]]) -> None:
    for method in ("e4e", "lsap_e", "restyle_e4e"):
        for part in ("encoder", "ranger", "adversary"):
            small.assert_equal(of_workers[0][method][part], of_workers[1][method][part])


def test_a_bad_image_of_one_worker_stops_all_and_changes_nothing(of_workers: list[dict[str, Any]]) -> None:
    for worker in of_workers:
        assert worker["diverged"]["is_untouched"]
        assert "step 0: the loss or its gradient is not finite on some worker" in worker["diverged"]["message"]


def test_synchronized_normalization_keeps_names_and_tensors() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(nn.BatchNorm2d(4)))
    before = network.state_dict()
    weight = network[1][0].weight
    synchronize_batch_norm(network)
    assert isinstance(network[1][0], WholeBatchNorm) and network[1][0].weight is weight
    assert network.state_dict().keys() == before.keys()
    images = torch.randn(2, 3, 4, 4)
    other = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(nn.BatchNorm2d(4)))
    other.load_state_dict(before)
    assert torch.equal(network(images), other(images))  # one process: the ordinary normalization
