"""Both pools keep one contract; what only a cluster can do, a local Ray shows."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import ray

from lsap_archive import ArchiveKeyError
from tasks import pool as pool_module
from tasks.errors import BadImageError, SourceError
from tasks.pool import LocalPool, NoWorkerLeftError, Pool, RayPool, WorkerLostError

PATIENCE_SECONDS = 60.0


@dataclass(frozen=True)
class Stay:
    """When a call was inside which process."""

    process: int
    began: float
    ended: float


class Clerk:
    """Does what the tests need to see."""

    def __init__(self) -> None:
        self._progress = 0.0
        self.num_calls = 0

    def progress(self) -> float:
        return self._progress

    def divide(self, a: float, b: float) -> float:
        return a / b

    def stay(self, seconds: float) -> Stay:
        began = time.monotonic()  # one clock for all processes of a machine
        time.sleep(seconds)
        return Stay(os.getpid(), began, time.monotonic())

    def refuse(self, which: str) -> None:
        raise {
            "bad image": BadImageError("truncated", "the file ends too early"),
            "transient": SourceError("the storage is away", is_transient=True),
            "key": ArchiveKeyError("no image anna"),
        }[which]

    def work_until(self, release: str) -> str:
        """Be at 2.5 pieces until the file `release` exists."""
        self._progress = 2.5
        while not Path(release).exists():
            time.sleep(0.01)
        return "released"

    def die(self) -> None:
        os._exit(7)

    def count(self) -> int:
        self.num_calls += 1
        return self.num_calls

    def resources(self) -> dict[str, float]:
        return dict(ray.get_runtime_context().get_assigned_resources())


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """One Ray for this file, with a GPU that only the books know of."""
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import a test
    ray.init(
        address="local",
        num_cpus=3,
        num_gpus=1,
        object_store_memory=pool_module.OBJECT_STORE_BYTES,
        include_dashboard=False,
        log_to_driver=False,
    )
    yield
    ray.shutdown()
    ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


@pytest.fixture(scope="module")
def two_actors(cluster: None) -> Iterator[RayPool]:
    pool = RayPool(Clerk, num_workers=2)
    yield pool
    pool.close()
    assert ray.is_initialized()  # the pool joined this cluster, so it is not the pool's to end


@pytest.fixture(params=["local", pytest.param("ray", marks=pytest.mark.ray)])
def pool(request: pytest.FixtureRequest) -> Pool:
    """Each kind of pool in turn."""
    return LocalPool(Clerk) if request.param == "local" else request.getfixturevalue("two_actors")


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.05)


def within_patience(call: Callable[[], Any]) -> Any:
    """The result of a call that must not hang; its thread is left behind if it does."""
    result: Future[Any] = Future()

    def run() -> None:
        try:
            result.set_result(call())
        except BaseException as error:  # handed to whoever waits
            result.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return result.result(timeout=PATIENCE_SECONDS)


# --- the contract --------------------------------------------------------------------------------


def test_a_call_returns_what_the_worker_returns(pool: Pool) -> None:
    assert pool.call("divide", 7, 2) == 3.5


@pytest.mark.parametrize(
    ("which", "wanted", "message", "attributes"),
    [
        ("bad image", BadImageError, "the file ends too early", {"reason": "truncated"}),
        ("transient", SourceError, "the storage is away", {"is_transient": True}),
        ("key", ArchiveKeyError, "no image anna", {}),
    ],
)
def test_an_error_arrives_as_it_was_raised(
    pool: Pool, which: str, wanted: type[Exception], message: str, attributes: dict[str, Any]
) -> None:
    with pytest.raises(wanted) as caught:
        pool.call("refuse", which)
    assert type(caught.value) is wanted
    assert str(caught.value) == message  # one sentence for people, not a traceback
    assert {name: getattr(caught.value, name) for name in attributes} == attributes
    assert pool.call("divide", 4, 2) == 2  # and the worker serves on


def test_an_error_tells_where_in_the_worker_it_was_raised(pool: Pool) -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        pool.call("divide", 1, 0)
    trace = "".join(str(frame) for frame in caught.traceback) + str(caught.value.__cause__)
    assert "return a / b" in trace


def test_callers_never_share_a_worker(pool: Pool) -> None:
    num_calls = 8
    with ThreadPoolExecutor(num_calls) as callers:
        stays = list(callers.map(lambda _: pool.call("stay", 0.1), range(num_calls)))
    by_worker = {process: [s for s in stays if s.process == process] for process in {s.process for s in stays}}
    assert len(by_worker) == pool.num_workers
    for own in by_worker.values():
        own.sort(key=lambda s: s.began)
        assert all(first.ended <= second.began for first, second in zip(own, own[1:], strict=False))
    if pool.num_workers > 1:
        apart = [(a, b) for a in stays for b in stays if a.process < b.process]
        assert any(a.began < b.ended and b.began < a.ended for a, b in apart), "one worker waited for the other"


def test_progress_is_told_while_a_worker_is_busy_and_only_then(pool: Pool, tmp_path: Path) -> None:
    release = tmp_path / "release"
    wait_for(lambda: pool.progress() == 0)
    with ThreadPoolExecutor(1) as caller:
        try:
            answer = caller.submit(pool.call, "work_until", str(release))
            wait_for(lambda: pool.progress() == 2.5)
            assert not answer.done()
        finally:
            release.touch()
        assert answer.result(timeout=PATIENCE_SECONDS) == "released"
    assert pool.progress() == 0


# --- what only a cluster can do -------------------------------------------------------------------


@pytest.mark.ray
def test_a_killed_worker_is_told_to_its_caller_alone_and_comes_back(two_actors: RayPool, tmp_path: Path) -> None:
    release = tmp_path / "release"
    with ThreadPoolExecutor(1) as caller:
        try:
            neighbour = caller.submit(two_actors.call, "work_until", str(release))
            wait_for(lambda: two_actors.progress() == 2.5)
            with pytest.raises(WorkerLostError, match="during die"):
                two_actors.call("die")
        finally:
            release.touch()
        assert neighbour.result(timeout=PATIENCE_SECONDS) == "released"
    wait_for(lambda: two_actors._free.qsize() == 2)  # an actor is lent again only after it has answered
    counts = []
    with ThreadPoolExecutor(2) as callers:
        stays = list(callers.map(lambda _: two_actors.call("stay", 0.3), range(2)))
        counts = list(callers.map(lambda _: two_actors.call("count"), range(2)))
    assert len({stay.process for stay in stays}) == 2
    assert sum(counts) in (2, 3)  # new workers count from 1


@pytest.mark.ray
def test_a_factory_that_always_raises_leaves_no_worker(cluster: None) -> None:
    def broken() -> Clerk:
        raise FileNotFoundError("weights.pt is not on this machine")

    pool = RayPool(broken, num_workers=1)
    try:
        with pytest.raises(NoWorkerLeftError, match=r"no worker is left of 1: .*weights\.pt is not on this machine"):
            within_patience(lambda: pool.call("count"))
    finally:
        pool.close()


@pytest.mark.ray
def test_a_worker_that_never_gets_ready_is_given_up(cluster: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "READY_TIMEOUT_SECONDS", 1.0)
    monkeypatch.setattr(pool_module, "POLL_SECONDS", 0.2)

    def endless() -> Clerk:
        time.sleep(3600)
        return Clerk()

    pool = RayPool(endless, num_workers=1)
    try:
        with pytest.raises(NoWorkerLeftError, match="did not answer within 1 s"):
            within_patience(lambda: pool.call("count"))
    finally:
        pool.close()


@pytest.mark.ray
def test_a_share_of_a_gpu_is_asked_for(cluster: None) -> None:
    pool = RayPool(Clerk, num_workers=1, gpus_per_worker=0.5)
    try:
        assert pool.call("resources") == {"GPU": 0.5}  # and no CPU: GPU machines have few for each GPU
    finally:
        pool.close()


@pytest.mark.ray
def test_a_pool_ends_the_cluster_that_it_started(cluster: None) -> None:
    ray.shutdown()
    pool = RayPool(Clerk, num_workers=1)
    assert ray.is_initialized()
    pool.close()  # at once, while the actor is still being made
    assert not ray.is_initialized()
    time.sleep(pool_module.POLL_SECONDS)
    assert not ray.is_initialized()  # nobody woke it up again
