"""Both pools keep one contract; what only a cluster can do, a local Ray shows."""

from __future__ import annotations

import itertools
import os
import re
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray

from lsap_archive import ArchiveKeyError
from tasks.errors import BadImageError, SourceError
from tasks.workers import pool as pool_module
from tasks.workers.own_ray import LONGEST_FOLDER
from tasks.workers.pool import LocalPool, NoWorkerLeftError, Pool, RayPool, WorkerLostError

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

    def walk(self, started: str, seconds: float) -> int:
        """Make a step every tenth of a second; the process is told in the file `started`."""
        ends = time.monotonic() + seconds
        Path(started).write_text(str(os.getpid()))
        while time.monotonic() < ends:
            time.sleep(0.1)
            self._progress += 1.0
        return os.getpid()

    def die(self) -> None:
        os._exit(7)

    def resources(self) -> dict[str, float]:
        return dict(ray.get_runtime_context().get_assigned_resources())


@pytest.fixture(scope="module")
def ray_folder() -> Iterator[Path]:
    """Where Ray has its folder; the name is as long as it may be."""
    with tempfile.TemporaryDirectory(prefix="x" * (LONGEST_FOLDER - len("/tmp/") - 8), dir="/tmp") as folder:
        assert len(folder) == LONGEST_FOLDER
        yield Path(folder)


@pytest.fixture(scope="module")
def two_actors(ray_folder: Path) -> Iterator[RayPool]:
    """One Ray for this file, with a CPU to spare and a GPU that only the books know of."""
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import a test
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_OVERRIDE_RESOURCES", '{"CPU": 3, "GPU": 1}')
        patch.setenv("RAY_AUTH_MODE", "disabled")  # as somebody exports it who joins such a cluster at other times
        patch.setenv("RAY_TMPDIR", str(ray_folder))
        pool = RayPool(Clerk, num_workers=2)
        yield pool
        pool.close()
        assert os.environ["RAY_AUTH_MODE"] == "disabled" and "RAY_AUTH_TOKEN" not in os.environ
    ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])
    assert not ray.is_initialized() and list(ray_folder.iterdir()) == []  # a pool ends the cluster that it started


@pytest.fixture(params=["local", pytest.param("ray", marks=pytest.mark.ray)])
def pool(request: pytest.FixtureRequest) -> Pool:
    """Each kind of pool in turn."""
    return LocalPool(Clerk) if request.param == "local" else request.getfixturevalue("two_actors")


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.05)


def all_processes(pool: Pool) -> set[int]:
    """The processes of all workers, once as many callers who come at once are served by as many of them."""
    found: set[int] = set()
    wanted = 1 if isinstance(pool, LocalPool) else 2

    def are_found() -> bool:
        with ThreadPoolExecutor(wanted) as callers:
            stays = callers.map(lambda _: pool.call("stay", 0.2), range(wanted))
            found.clear()
            found.update(stay.process for stay in stays)
        return len(found) == wanted

    wait_for(are_found)
    return found


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
    assert "return a / b" in "".join(traceback.format_exception(caught.value))


def test_callers_never_share_a_worker(pool: Pool) -> None:
    all_processes(pool)  # everybody is there
    num_calls = 8
    with ThreadPoolExecutor(num_calls) as callers:
        stays = list(callers.map(lambda _: pool.call("stay", 0.1), range(num_calls)))
    by_worker = {process: [s for s in stays if s.process == process] for process in {s.process for s in stays}}
    for own in by_worker.values():
        own.sort(key=lambda s: s.began)
        assert all(first.ended <= second.began for first, second in itertools.pairwise(own))
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


# --- a Ray that was started here belongs to nobody else --------------------------------------------


@pytest.mark.ray
def test_a_local_ray_listens_on_the_loopback_address_alone_and_its_folder_is_closed(
    two_actors: RayPool, ray_folder: Path
) -> None:
    all_processes(two_actors)
    (private,) = ray_folder.iterdir()
    assert stat.S_IMODE(private.stat().st_mode) == 0o700
    parents = [one for one in psutil.Process().children() if str(private) in " ".join(one.cmdline())]
    started = {one for parent in parents for one in (parent, *parent.children(recursive=True))}
    addresses = [socket.laddr.ip for one in (psutil.Process(), *started) for socket in listening(one)]
    assert len(addresses) >= 5 and {one.removeprefix("::ffff:") for one in addresses} == {"127.0.0.1"}


def listening(process: psutil.Process) -> list[Any]:
    """Sockets on which a process waits for others."""
    try:
        return [one for one in process.net_connections(kind="inet") if one.status == psutil.CONN_LISTEN]
    except psutil.NoSuchProcess:  # it has ended meanwhile
        return []


@pytest.mark.ray
@pytest.mark.parametrize("has_token", [False, True])
def test_a_local_ray_wants_its_token(two_actors: RayPool, has_token: bool) -> None:
    stranger = {name: value for name, value in os.environ.items() if has_token or not name.startswith("RAY_AUTH")}
    asked = f"GcsClient(address={ray.get_runtime_context().gcs_address!r}).get_all_node_info(timeout=30)"
    asking = [sys.executable, "-c", f"from ray._raylet import GcsClient; print(len({asked}))"]
    answered = subprocess.run(asking, env=stranger, capture_output=True, text=True, timeout=PATIENCE_SECONDS)
    if has_token:
        assert answered.stdout == "1\n"
    else:
        assert answered.returncode == 1 and "AuthenticationError" in answered.stderr


# --- what only a cluster can do -------------------------------------------------------------------


@pytest.mark.ray
def test_a_killed_worker_is_told_to_its_caller_alone_and_comes_back(two_actors: RayPool, tmp_path: Path) -> None:
    before = all_processes(two_actors)
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
    assert len(all_processes(two_actors) & before) == 1


@pytest.mark.ray
def test_a_factory_that_always_raises_leaves_no_worker(two_actors: RayPool) -> None:
    def broken() -> Clerk:
        raise FileNotFoundError("weights.pt is not on this machine")

    pool = RayPool(broken, num_workers=1)
    try:
        with pytest.raises(NoWorkerLeftError, match=r"no worker is left of 1: .*weights\.pt is not on this machine"):
            within_patience(lambda: pool.call("divide", 1, 1))
    finally:
        pool.close()


@pytest.mark.ray
def test_a_worker_that_never_gets_ready_is_given_up(two_actors: RayPool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "READY_TIMEOUT_SECONDS", 1.0)
    monkeypatch.setattr(pool_module, "POLL_SECONDS", 0.2)

    def endless() -> Clerk:
        time.sleep(3600)
        return Clerk()

    pool = RayPool(endless, num_workers=1)
    try:
        with pytest.raises(NoWorkerLeftError, match="did not answer within 1 s"):
            within_patience(lambda: pool.call("divide", 1, 1))
    finally:
        pool.close()


@pytest.mark.ray
@pytest.mark.parametrize(
    ("gpus_per_worker", "num_workers", "share"),
    [pytest.param(0.25, 1, 0.25, id="as asked for"), pytest.param(None, 2, 0.5, id="the cluster's shared out")],
)
def test_a_share_of_a_gpu_is_asked_for(
    two_actors: RayPool, gpus_per_worker: float | None, num_workers: int, share: float
) -> None:
    pool = RayPool(Clerk, num_workers=num_workers, gpus_per_worker=gpus_per_worker)
    try:
        assert pool.call("resources") == {"GPU": share}  # and no CPU: GPU machines have few for each GPU
    finally:
        pool.close()
    assert two_actors.call("divide", 6, 2) == 3  # a pool that joined a cluster leaves it to the others


@pytest.mark.ray
def test_a_pool_grows_with_its_callers_and_shrinks_when_they_are_gone(
    two_actors: RayPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_module, "IDLE_SECONDS", 0.5)
    release = tmp_path / "release"
    pool = RayPool(Clerk, num_workers=2, min_workers=1, gpus_per_worker=0.5)
    try:
        wait_for(lambda: pool.num_workers == 1)
        with ThreadPoolExecutor(3) as callers:
            try:
                answers = [callers.submit(pool.call, "work_until", str(release)) for _ in range(3)]
                wait_for(lambda: pool.progress() == 2 * 2.5)  # two at work, and no more than two
                assert pool.num_workers == 2
            finally:
                release.touch()
            assert [answer.result(timeout=PATIENCE_SECONDS) for answer in answers] == ["released"] * 3
        wait_for(lambda: pool.num_workers == 1)
        assert pool.call("divide", 6, 3) == 2
    finally:
        pool.close()


@pytest.mark.ray
def test_workers_without_room_wait_for_it_while_others_work(
    two_actors: RayPool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(pool_module, "TELL_SECONDS", 0.1)
    told = "1 of 1 workers wait for room: Ray has 1 node with 3 CPUs and 1 GPUs in all"
    first = RayPool(Clerk, num_workers=1, gpus_per_worker=1.0)  # there is one GPU
    try:
        assert [first.call("divide", number, 1) for number in range(3)] == [0, 1, 2]
        assert "wait for room" not in caplog.text, "its process only had to start"
        second = RayPool(Clerk, num_workers=1, gpus_per_worker=1.0)
        try:
            with ThreadPoolExecutor(1) as caller:
                answer = caller.submit(second.call, "divide", 1, 1)
                wait_for(lambda: told in caplog.text)
                assert not answer.done()
                first.close()  # as a node that comes
                assert answer.result(timeout=PATIENCE_SECONDS) == 1
        finally:
            second.close()
    finally:
        first.close()
    assert caplog.text.count("wait for room") == 1


@pytest.mark.ray
def test_this_machine_refuses_at_once_what_it_can_never_hold(two_actors: RayPool) -> None:
    with pytest.raises(NoWorkerLeftError, match=r"Ray has 1 node with 3 CPUs and 1 GPUs .* wants 2 GPU: end what"):
        RayPool(Clerk, num_workers=1, gpus_per_worker=2.0)


@pytest.mark.ray
def test_where_the_system_kills_for_memory_whatever_starts_memory_is_told_soon(
    two_actors: RayPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray would start processes again and again, and the pool wait for room for a quarter of an hour."""
    kills = itertools.count()
    first = RayPool(Clerk, num_workers=1, gpus_per_worker=1.0)  # there is one GPU
    try:
        assert first.call("divide", 6, 2) == 3
        monkeypatch.setattr(pool_module, "num_killed_for_memory", lambda: next(kills))
        second = RayPool(Clerk, num_workers=1, gpus_per_worker=1.0)
        try:
            told = r"memory ran out: the system has killed \d+ processes .* GiB of memory are free now\): make "
            with pytest.raises(NoWorkerLeftError, match=told):
                within_patience(lambda: second.call("divide", 6, 2))
        finally:
            second.close()
        first.give_up("enough")
        with pytest.raises(NoWorkerLeftError, match="enough"):
            within_patience(lambda: [first.call("divide", 6, 2) for _ in range(2)])
    finally:
        first.close()


@pytest.mark.ray
def test_a_worker_that_died_while_it_was_free_is_not_lent(two_actors: RayPool) -> None:
    processes = all_processes(two_actors)
    for process in processes:
        os.kill(process, signal.SIGKILL)
    assert within_patience(lambda: two_actors.call("divide", 9, 3)) == 3  # and no caller hears of it
    assert not all_processes(two_actors) & processes


@pytest.mark.ray
def test_a_worker_whose_storage_is_away_is_built_later(
    two_actors: RayPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_module, "POLL_SECONDS", 0.2)

    def unlucky() -> Clerk:
        if not (tmp_path / "tried").exists():
            (tmp_path / "tried").touch()
            raise SourceError("the storage is away", is_transient=True)
        return Clerk()

    pool = RayPool(unlucky, num_workers=1, gpus_per_worker=0.25)
    try:
        assert within_patience(lambda: pool.call("divide", 8, 2)) == 4
        assert (tmp_path / "tried").exists()
    finally:
        pool.close()


# --- workers that hang without dying --------------------------------------------------------------


@pytest.fixture(scope="module")
def impatient(two_actors: RayPool) -> Iterator[RayPool]:
    """Two workers, of which each may make no step for two seconds, or three times the slowest call of a method."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pool_module, "POLL_SECONDS", 0.2)
        pool = RayPool(Clerk, num_workers=2, gpus_per_worker=0.25, patience_seconds=2.0)
        yield pool
        pool.close()


def process_in(file: Path) -> int:
    """The process that is told in a file, once it is."""
    wait_for(lambda: file.exists() and file.read_text() != "")
    return int(file.read_text())


@pytest.mark.ray
def test_a_worker_that_makes_no_step_is_told_of_and_ended_and_one_that_goes_on_in_time_is_left_alone(
    impatient: RayPool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with ThreadPoolExecutor(2) as callers:
        hangs = callers.submit(impatient.call, "walk", str(tmp_path / "hangs"), 60.0, about="shard 3 of a run")
        pauses = callers.submit(impatient.call, "walk", str(tmp_path / "pauses"), 3.0)
        for_good, for_a_while = process_in(tmp_path / "hangs"), process_in(tmp_path / "pauses")
        os.kill(for_good, signal.SIGSTOP)
        os.kill(for_a_while, signal.SIGSTOP)
        time.sleep(0.7)
        os.kill(for_a_while, signal.SIGCONT)
        ended = (
            rf"shard 3 of a run has made no step for \d+ s on .*{for_good}.*raise workers\.patience_seconds, which is 2"
        )
        with pytest.raises(WorkerLostError, match=ended):
            hangs.result(timeout=PATIENCE_SECONDS)
        assert pauses.result(timeout=PATIENCE_SECONDS) == for_a_while
    assert re.search(r"shard 3 of a run has made no step for \d+ s on .* is ended after 2 s of that", caplog.text)
    assert len(all_processes(impatient) - {for_good}) == 2  # another one has its place
    wait_for(lambda: not Path(f"/proc/{for_good}").exists())


@pytest.mark.ray
def test_where_every_worker_answers_and_makes_no_step_every_caller_is_told_and_others_come(
    impatient: RayPool, tmp_path: Path
) -> None:
    with ThreadPoolExecutor(2) as callers:
        answers = [callers.submit(impatient.call, "work_until", str(tmp_path / "never")) for _ in range(2)]
        for answer in answers:
            with pytest.raises(WorkerLostError, match=r"work_until has made no step for \d+ s"):
                answer.result(timeout=PATIENCE_SECONDS)
    assert within_patience(lambda: impatient.call("divide", 6, 2)) == 3


@pytest.mark.ray
def test_patience_is_measured_against_the_work_that_was_done(impatient: RayPool) -> None:
    impatient.call("stay", 1.0)
    impatient.call("stay", 2.8)  # up to three times the slowest so far


@pytest.mark.ray
def test_a_worker_that_was_stopped_while_it_was_free_is_not_lent_and_not_waited_for(
    impatient: RayPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    processes = all_processes(impatient)
    monkeypatch.setattr(pool_module, "READY_TIMEOUT_SECONDS", 1.0)
    for process in processes:
        os.kill(process, signal.SIGSTOP)
    assert within_patience(lambda: impatient.call("divide", 9, 3)) == 3
    assert not all_processes(impatient) & processes
