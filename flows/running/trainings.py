"""How a training of any kind runs on Prefect: check and prepare, train on Ray, report."""

from __future__ import annotations

import time
from collections.abc import Callable

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from flows.parameters.shared import WhenBusy
from flows.running.artifacts import ProgressArtifact, publish_artifacts
from flows.running.exclusive import writing
from flows.running.results import kept
from flows.running.retries import retried
from lsap_archive import StoreUnavailableError
from tasks.reports.training import TrainingReport, report_training
from tasks.training.cluster import train_on_cluster
from tasks.training.loop import TrainingOutcome
from tasks.training.plan import PreparedTraining, prepare_training
from tasks.training.spec import TrainingRequest
from tasks.training.store import TrainingStore

TELL_EVERY_SECONDS = 15.0


def train_through(request: TrainingRequest, when_busy: WhenBusy) -> TrainingReport:
    """Train to the last step, from wherever the folder says.

    Args:
        request: what to train, on which images, and where to keep it.
        when_busy: what to do while another run writes there.
    """
    started = time.monotonic()
    spec = request.spec
    with writing(spec.output, "training", when_busy):
        prepared = prepare(request)
        if prepared.is_finished:
            get_run_logger().info("%s is finished at step %d; nothing is left to do", spec.output, prepared.step)
        else:
            train(request)
    written = report(request, time.monotonic() - started)
    done = f"step {written.step}, nothing was left to do" if prepared.is_finished else f"step {written.step}"
    publish_artifacts(
        "training",
        f"{spec.method.title}: {done}",
        written.table,
        links={"folder": written.output, spec.what: written.last_file, f"best {spec.what}": written.best_file},
        sheet=written.sheet,
    )
    return kept(written)


@retried("prepare")
def prepare(request: TrainingRequest) -> PreparedTraining:
    """Check every file, list the images, claim the folder, estimate the anchor once."""
    prepared = prepare_training(request.spec)
    logger = get_run_logger()
    for note in prepared.notes:
        logger.warning(note)
    logger.info(
        "%d images to train on, %d held out; %.1f million parameters; step %d of %d",
        prepared.num_images,
        prepared.num_held_out,
        prepared.num_parameters / 1e6,
        prepared.step,
        request.spec.method.settings.num_steps,
    )
    return prepared


@task(name="train", cache_policy=NO_CACHE)
def train(request: TrainingRequest) -> TrainingOutcome:
    """Train to the last step; lost workers are started again by Ray and go on from the newest complete state."""
    artifact = ProgressArtifact(f"steps of {request.spec.method.title}")
    outcome = train_on_cluster(request.spec, request.workers, watch=_teller(request, artifact))
    artifact.finish(1.0, f"step {outcome.step}")
    get_run_logger().info("step %d; the last start was at step %d", outcome.step, outcome.resumed_at)
    return outcome


@retried("report")
def report(request: TrainingRequest, seconds: float) -> TrainingReport:
    """The curves and the numbers of the folder."""
    return report_training(request.spec, seconds)


def _teller(request: TrainingRequest, artifact: ProgressArtifact) -> Callable[[], None]:
    """Tells now and then where the training is, as its folder says: a line in the log, a bar on the run's page."""
    store, logger = TrainingStore(request.spec.output), get_run_logger()
    told_at, told = time.monotonic(), -1

    def tell() -> None:
        nonlocal told_at, told
        if time.monotonic() - told_at < TELL_EVERY_SECONDS:
            return
        told_at = time.monotonic()
        try:
            progress = store.progress()
        except StoreUnavailableError:  # the workers will say so if it lasts
            return
        if progress is None or progress["step"] == told:
            return
        told = progress["step"]
        speed = progress.get("images_per_second")
        left = (progress["num_steps"] - told) * request.spec.method.settings.batch_size
        numbers = "" if speed is None else f", {speed:.1f} images/s, about {left / speed / 60:.0f} min left"
        loss = "" if "loss" not in progress else f", loss {progress['loss']:.4f}"
        logger.info("step %d of %d%s%s", told, progress["num_steps"], loss, numbers)
        artifact.show(told / progress["num_steps"], f"step {told}{loss}{numbers}")

    return tell
