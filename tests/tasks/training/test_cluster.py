"""What becomes of a worker's error: some are tried again, some end the training at once. Without a cluster."""

from __future__ import annotations

import uuid
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import ray.train

import tasks.training.cluster
from lsap_core.errors import ConfigError, TrainingDivergedError
from tasks.errors import SourceError
from tasks.training.cluster import WorkersLostError, check_room, fit_watched, run_worker
from tasks.training.store import TrainingStore


@pytest.fixture
def store() -> TrainingStore:
    return TrainingStore(f"memory://training-{uuid.uuid4().hex}")


@pytest.fixture
def work(store: TrainingStore, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs one worker of a launch, in which the training raises an error."""
    context = SimpleNamespace(get_world_rank=lambda: 0, get_world_size=lambda: 1)
    monkeypatch.setattr(ray.train, "get_context", lambda: context)

    def run(error: Exception) -> Any:
        def fail(*_: Any, **__: Any) -> None:
            raise error

        monkeypatch.setattr(tasks.training.cluster, "train_networks", fail)
        return run_worker({"spec": SimpleNamespace(output=store.url), "launch": "a", "threads": 1, "gpus": 0.0})

    return run


class Trainer:
    """Ends as it is told."""

    def __init__(self, end: Any):
        self._end = end

    def fit(self) -> Any:
        if isinstance(self._end, Exception):
            raise self._end
        return self._end


def fit(store: TrainingStore, end: Any) -> Any:
    return fit_watched(Trainer(end), store, "a", lambda: None)  # type: ignore[arg-type]


def test_what_the_data_broke_is_told_to_the_others_and_raised_as_it_was(store: TrainingStore, work: Any) -> None:
    error = TrainingDivergedError("step 3: not finite")
    with pytest.raises(TrainingDivergedError):
        work(error)
    assert store.failure("a") == {"kind": "TrainingDivergedError", "message": "step 3: not finite"}
    assert work(error) is None  # whom Ray starts again ends at once
    with pytest.raises(TrainingDivergedError, match="step 3: not finite"):
        fit(store, SimpleNamespace(return_value=None))
    assert store.failure("a") is None


@pytest.mark.parametrize("error", [OSError("disk"), SourceError("does not answer", is_transient=True)])
def test_what_a_machine_broke_is_left_to_ray(error: Exception, store: TrainingStore, work: Any) -> None:
    with pytest.raises(type(error)):
        work(error)
    assert store.failure("a") is None


def test_workers_that_are_lost_too_often_leave_a_sentence(store: TrainingStore) -> None:
    end = ray.train.WorkerGroupError("all", {1: RuntimeError("trace\nConnection closed by peer")})
    with pytest.raises(WorkersLostError, match=r"Connection closed by peer; .* run the same command again"):
        fit(store, end)


def test_a_training_that_ended_well_gives_what_its_first_worker_returned(store: TrainingStore) -> None:
    assert fit(store, SimpleNamespace(return_value="outcome")) == "outcome"


def test_workers_for_which_there_is_no_room_are_refused_here_and_announced_on_a_cluster(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 4.0})
    check_room(4, 0.0, is_local=True)
    with pytest.raises(ConfigError, match=r"4 CPUs and 0 GPUs, and 2 workers want a CPU and 0.5 GPU each"):
        check_room(2, 0.5, is_local=True)
    check_room(8, 0.0, is_local=False)
    assert "waits until there are more" in caplog.text
