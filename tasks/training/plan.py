"""Everything before the first step of a training: files, images, folder and anchor, checked before work is spent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from lsap_core.presets import recorded
from tasks.errors import SourceError
from tasks.training.data import check_usable, hold_out, list_source, listing_digest
from tasks.training.spec import FirstNetworks, TrainingRequest, TrainingSpec
from tasks.training.store import TrainingStore
from tasks.weights.generators import LoadedGenerator
from tasks.weights.networks import network_digest


@dataclass(frozen=True)
class PreparedTraining:
    """What there is to do.

    Attributes:
        num_images: images to train on.
        num_held_out: images to validate on.
        num_parameters: of what is trained.
        step: steps already taken.
        is_finished: whether nothing is left to do.
        notes: sentences about the files of weights, to be shown.
    """

    num_images: int
    num_held_out: int
    num_parameters: int
    step: int
    is_finished: bool
    notes: tuple[str, ...]


def prepare_training(spec: TrainingSpec, *, dry: bool = False) -> PreparedTraining:
    """Check everything, claim the folder, keep the listings and what workers share.

    Args:
        spec: what to train.
        dry: check only; nothing is written.

    Raises:
        SourceError: a source cannot be read, holds too few images, or none that can be used.
        CheckpointError, MissingWeightsError, ConfigError: a network is not there or does not fit.
        OtherRunError: the folder holds another run.
    """
    loaded = spec.generator.load()
    spec.networks.check(loaded.config)
    train, held_out, notes = _list_images(spec, loaded)
    first = spec.first(loaded)
    for source, listing in ((spec.source, train), (spec.held_out_source, held_out)):
        check_usable(source, listing, first.view)
        spec.check_listing(source, listing)
    store = TrainingStore(spec.output)
    identity = _identity(spec, loaded, first, train, held_out)
    store.check(identity)
    if not dry:
        store.claim(identity, {"output": store.url, "num_steps": spec.method.settings.num_steps})
        store.put_listing("train", train)
        store.put_listing("validation", held_out)
        spec.keep_parts(loaded, store)
    saved = store.latest()
    step = saved.step if saved else 0
    return PreparedTraining(
        num_images=len(train),
        num_held_out=len(held_out),
        num_parameters=first.num_parameters,
        step=step,
        is_finished=step >= spec.method.settings.num_steps and store.has_networks(spec.last_key),
        notes=(*loaded.notes, *first.notes, *notes),
    )


def check(request: TrainingRequest) -> None:
    """Everything that can be refused before any work; nothing is written.

    Raises:
        As `prepare_training`.
    """
    request.spec.check_memory(request.device)
    prepare_training(request.spec, dry=True)


def check_apart(source: str, evaluation_source: str) -> None:
    """Make sure that encoders are compared on images that they were not trained on.

    Raises:
        SourceError: the sources share images, or one cannot be read.
    """
    _refuse_shared(list_source(source), source, list_source(evaluation_source), evaluation_source, verb="compared")


def _refuse_shared(train: pa.Table, source: str, held_out: pa.Table, held_out_source: str, *, verb: str) -> None:
    twice = set(train["uri"].to_pylist()) & set(held_out["uri"].to_pylist())
    if twice:
        raise SourceError(
            f"{len(twice)} images, such as {min(twice)}, are in {source} and in {held_out_source}: encoders are {verb} "
            "on images that they are not trained on; name another source of held-out images"
        )


def _list_images(spec: TrainingSpec, loaded: LoadedGenerator) -> tuple[pa.Table, pa.Table, tuple[str, ...]]:
    """The images to train on, those to validate on, and sentences about those that are left out."""
    listing, notes = spec.choose(list_source(spec.source), loaded)
    if spec.is_for_its_images:
        train, aside = listing, ""
        _, held_out = hold_out(listing, spec.validation_images)
    elif spec.validation_source is None:
        train, held_out = hold_out(listing, min(spec.validation_images, len(listing)))
        aside = f" besides the {len(held_out)} that are held out for validation"
    else:
        train, aside = listing, ""
        _, held_out = hold_out(list_source(spec.validation_source), spec.validation_images)
        _refuse_shared(train, spec.source, held_out, spec.validation_source, verb="validated")
    batch_size = spec.method.settings.batch_size
    if len(train) < batch_size:
        raise SourceError(
            f"{spec.source} holds {len(train)} images{aside}; a batch is {batch_size}: add images, or lower "
            "training.batch_size or validation_images"
        )
    return train, held_out, notes


def _identity(
    spec: TrainingSpec, loaded: LoadedGenerator, first: FirstNetworks, train: pa.Table, held_out: pa.Table
) -> dict[str, Any]:
    """What decides the result, by name. More steps continue a run, so their number is among it only with a decay."""
    settings = recorded(spec.method.settings)
    if settings.get("decay_steps") == 0:
        del settings["num_steps"]
    networks = spec.networks
    names = {"perceptual": networks.perceptual, "identity": networks.identity}
    digests = {
        role: f"{name} {network_digest(name, networks.published)}" for role, name in names.items() if name is not None
    }
    return {
        "generator": loaded.digest,
        "method": spec.method.name,
        **{f"training.{name}": value for name, value in settings.items()},
        **first.identity,
        **digests,
        "seed": spec.seed,
        "augmentation": spec.augmentation,
        "fit": spec.fit,
        "images": f"{len(train)} images, {listing_digest(train)}",
        "validation": f"{len(held_out)} images, {listing_digest(held_out)}",
    }
