"""A training on Ray: Train starts the workers, connects them, and starts them again when one dies.

Where a training is lies in its own folder, and the loop looks there; so Train keeps no checkpoints, and a restarted
worker, a restarted driver and the same command on another day all go on in the same way.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow.fs
import ray
import ray.train
import ray.train.torch
import torch
from fsspec.implementations.local import LocalFileSystem

from lsap_archive import open_file_system
from lsap_core.errors import (
    CheckpointError,
    ConfigError,
    LsapError,
    MissingWeightsError,
    ShapeError,
    TrainingDivergedError,
)
from tasks.errors import SourceError, TaskError
from tasks.training.data import TooManyBadImagesError
from tasks.training.loop import TrainingOutcome, train_networks
from tasks.training.spec import TrainingSpec, TrainingWorkers
from tasks.training.store import TrainingStore
from tasks.workers.cluster import LOCAL, join_cluster, runtime_environment, share_of_gpus, worker_environment
from tasks.workers.deaths import last_line

logger = logging.getLogger(__name__)

WATCH_SECONDS = 1.0
# What Train reads from the environment of the process that starts it.
TRAIN_ENVIRONMENT = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # how soon it sees that a worker has ended, well or badly
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_STATE_ACTOR_RECONCILIATION": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths start where the command was given
}
# Trying again cannot help: the data or the request have to change.
FINAL = (
    TrainingDivergedError,
    TooManyBadImagesError,
    CheckpointError,
    ConfigError,
    MissingWeightsError,
    ShapeError,
    SourceError,
)


class WorkersLostError(TaskError, RuntimeError):
    """The workers of a training failed more often than the run allows."""


def train_on_cluster(
    spec: TrainingSpec, workers: TrainingWorkers, *, watch: Callable[[], None] = lambda: None
) -> TrainingOutcome:
    """Train a prepared run to its end on Ray.

    Args:
        spec: what to train; its folder is prepared.
        workers: how many processes, and on what.
        watch: called about every second while they train.

    Raises:
        WorkersLostError: workers were lost more often than allowed; what they have committed is kept.
        LsapError, TaskError: as `train_networks`.
    """
    for name, value in TRAIN_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    environment = worker_environment(workers.threads)
    with join_cluster(workers.address, workers.count, environment, wants_gpus=workers.gpus_each != 0):
        gpus = share_of_gpus(workers.count) if workers.gpus_each is None else workers.gpus_each
        check_room(workers.count, gpus, is_local=workers.address == LOCAL)
        launch = uuid.uuid4().hex[:12]
        with _scratch(spec.output, launch, is_local=workers.address == LOCAL) as places:
            trainer = ray.train.torch.TorchTrainer(
                run_worker,  # type: ignore[arg-type]  # the types are those of Ray Train's first version
                train_loop_config={"spec": spec, "launch": launch, "threads": workers.threads, "gpus": gpus},
                # Two processes on one GPU cannot speak over NCCL.
                torch_config=ray.train.torch.TorchConfig(backend="nccl" if gpus >= 1 else "gloo"),
                scaling_config=ray.train.ScalingConfig(
                    num_workers=workers.count,
                    use_gpu=gpus > 0,
                    resources_per_worker={"CPU": 1, "GPU": gpus} if gpus else {"CPU": 1},
                ),
                run_config=ray.train.RunConfig(  # type: ignore[call-arg]
                    name=launch,
                    failure_config=ray.train.FailureConfig(max_failures=workers.max_failures),
                    worker_runtime_env=runtime_environment(environment, workers.address) or None,
                    **places,
                ),
            )
            return fit_watched(trainer, TrainingStore(spec.output), launch, watch)


def check_room(count: int, gpus: float, *, is_local: bool) -> None:
    """Say so where workers would wait for ever: refuse it on this machine; a cluster may grow."""
    has = ray.cluster_resources()
    if gpus * count <= has.get("GPU", 0.0) and count <= has.get("CPU", 0.0):
        return
    found = f"{has.get('CPU', 0.0):g} CPUs and {has.get('GPU', 0.0):g} GPUs"
    wanted = f"{count} workers want a CPU" + (f" and {gpus:g} GPU" if gpus else "") + " each"
    if is_local:
        raise ConfigError(f"this machine has {found}, and {wanted}: lower workers.count or workers.gpus_each")
    logger.warning("the cluster has %s, and %s: the training waits until there are more", found, wanted)


def run_worker(config: dict[str, Any]) -> TrainingOutcome | None:
    """One worker of a launch; when the launch has failed for good, nothing."""
    spec, store = config["spec"], TrainingStore(config["spec"].output)
    if store.failure(config["launch"]) is not None:
        return None
    torch.set_num_threads(config["threads"])
    context = ray.train.get_context()
    try:
        return train_networks(
            spec,
            rank=context.get_world_rank(),
            world_size=context.get_world_size(),
            device=ray.train.torch.get_device() if config["gpus"] else torch.device("cpu"),
        )
    except FINAL as error:
        if not getattr(error, "is_transient", False):
            store.put_failure(config["launch"], type(error).__name__, str(error))
        raise


def fit_watched(
    trainer: ray.train.torch.TorchTrainer, store: TrainingStore, launch: str, watch: Callable[[], None]
) -> TrainingOutcome:
    """Wait for the workers in a thread, so that this one can watch and be interrupted."""
    ended: list[ray.train.Result | BaseException] = []

    def fit() -> None:
        try:
            ended.append(trainer.fit())
        except BaseException as error:  # told by the caller's thread
            ended.append(error)

    thread = threading.Thread(target=fit, name="ray-train", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(WATCH_SECONDS)
        watch()
    (end,) = ended
    if failure := store.failure(launch):
        store.forget_failure(launch)
        kinds: dict[str, type[LsapError | TaskError]] = {kind.__name__: kind for kind in FINAL}
        raise kinds[failure["kind"]](failure["message"])
    if isinstance(end, ray.train.TrainingFailedError):
        raise WorkersLostError(
            f"the workers of the training failed for the last time that is allowed: {_last_failure(end)}; what was "
            "committed is kept: run the same command again once the cause is mended"
        ) from end
    if isinstance(end, BaseException):
        raise end
    outcome: TrainingOutcome = end.return_value  # type: ignore[attr-defined]
    return outcome


def _last_failure(error: BaseException) -> str:
    failures = getattr(error, "worker_failures", None) or {0: error}
    return last_line(next(iter(failures.values())))


@contextlib.contextmanager
def _scratch(output: str, launch: str, *, is_local: bool) -> Iterator[dict[str, Any]]:
    """Where Train may write what it needs: here, or where every machine of a cluster can; gone afterwards."""
    store = TrainingStore(output)
    if is_local:
        with tempfile.TemporaryDirectory(prefix="lsap-ray-train-", ignore_cleanup_errors=True) as folder:
            yield {"storage_path": folder}
    else:
        filesystem, path = open_file_system(f"{store.url}/ray")
        is_file = isinstance(filesystem, LocalFileSystem)
        handler = None if is_file else pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(filesystem))
        try:
            yield {"storage_path": path, "storage_filesystem": handler}
        finally:
            store.store.delete_folder(f"ray/{launch}")
            if is_file:
                _remove_if_empty(path)


def _remove_if_empty(folder: str) -> None:
    """Remove a folder, unless another launch has something in it."""
    try:
        os.rmdir(folder)
    except FileNotFoundError:
        return
    except OSError as error:
        if error.errno != errno.ENOTEMPTY:
            raise
