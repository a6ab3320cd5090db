"""What is told of a cluster that cannot be joined, and how GPUs are shared out."""

from __future__ import annotations

import socket

import pytest
import ray

from tasks.workers.cluster import LOCAL, ClusterUnavailableError, join_cluster, runtime_environment, share_of_gpus


def test_a_cluster_that_is_not_there_is_told_at_once_and_in_one_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(
        ClusterUnavailableError, match=rf"127\.0\.0\.1:{port} cannot be joined .*LSAP_RAY_ADDRESS"
    ) as told:
        join_cluster(f"127.0.0.1:{port}", 1, {}, wants_gpus=False)
    assert "\n" not in str(told.value) and not ray.is_initialized()


@pytest.mark.parametrize(
    ("num_gpus", "num_workers", "share"),
    [(0, 2, 0.0), (1, 1, 1.0), (1, 2, 0.5), (2, 3, 0.5), (4, 2, 1.0), (1, 3, 1 / 3)],
)
def test_every_worker_gets_a_share_of_some_gpu(
    monkeypatch: pytest.MonkeyPatch, num_gpus: int, num_workers: int, share: float
) -> None:
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"GPU": float(num_gpus)} if num_gpus else {})
    assert share_of_gpus(num_workers) == share
    if num_gpus:
        assert num_gpus * (1 // share_of_gpus(num_workers)) >= num_workers  # as many fit


def test_only_what_workers_need_travels_and_nothing_where_they_inherit_it() -> None:
    assert runtime_environment({"OMP_NUM_THREADS": "2"}, "head:6379") == {"env_vars": {"OMP_NUM_THREADS": "2"}}
    assert runtime_environment({"OMP_NUM_THREADS": "2"}, LOCAL) == {}
