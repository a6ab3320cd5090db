"""Fields that every training has."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from domains.domain import Domain
from flows.parameters.numbers import (
    MANY_IMAGES,
    MANY_PROCESSES,
    MANY_SHOWN,
    MANY_TRIES,
    Count,
    Index,
    Seed,
    Share,
    Whole,
)
from flows.parameters.run_file import ParameterError, Parameters, refused
from flows.parameters.shared import (
    LABEL,
    PlaceParameters,
    WhenBusy,
    check_workers,
    domain_of,
    generator_of,
    refuse_memory,
)
from tasks.pictures.decoding import Fit
from tasks.settings import Settings
from tasks.training.data import AUGMENTATIONS
from tasks.training.spec import TrainingWorkers
from tasks.weights.networks import NetworkChoice
from tasks.weights.of_domains import published_of

NONE = "none"


class TrainingWorkerParameters(PlaceParameters):
    """How many processes share each batch, and on what."""

    count: Count = Field(1, le=MANY_PROCESSES, description="processes; batch_size has to be a multiple")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where to train; auto takes GPUs if there are")


class TrainingRun(Parameters):
    """What is trained on, where it is kept, and how often what is done."""

    source: str = Field(
        description="images to train on: folder, glob, .zip, .npy, .tar or .parquet shards, manifest, or digits:train"
    )
    output: str = Field(description="path or URL of the training's folder; the same command goes on there")
    validation_source: str | None = Field(None, description="held-out images; by default some of the source's")
    domain: str = Field("full_scale", description="name of a built-in domain, or the path of one's own .yaml")
    generator: str | None = Field(None, description="weights, .pt, .pkl or .safetensors; the domain's by default")
    label: Index | None = Field(None, description=LABEL)
    training: dict[str, Any] = Field(default_factory=dict, description="settings, over the domain's")
    perceptual: str | None = Field(None, description="network of the LPIPS term; the domain's by default")
    identity: str | None = Field(None, description='network of the identity term, or "none"; the domain\'s by default')
    augmentation: Literal[AUGMENTATIONS] | None = Field(  # type: ignore[valid-type]  # domains bring some of them
        None, description="flip, none or what a domain brings; the domain's by default"
    )
    fit: Fit = Field("refuse", description="what to do with images of another shape")
    seed: Seed = Field(0, description="of everything random")
    checkpoint_every: Count = Field(2000, description="steps from one complete state to the next")
    validate_every: Count = Field(2000, description="steps from one validation to the next")
    log_every: Count = Field(50, description="steps from one logged row to the next")
    keep_checkpoints: Count = Field(2, description="complete states that are kept")
    validation_images: Count = Field(256, le=MANY_IMAGES, description="images to validate on")
    sheet_images: Whole = Field(16, ge=0, le=MANY_SHOWN, description="held-out images on each sheet of samples")
    loader_workers: Whole = Field(
        0, ge=0, le=1024, description="processes that read images, for each worker; 0 for a thread"
    )
    workers: TrainingWorkerParameters = TrainingWorkerParameters()
    max_failures: Whole = Field(3, ge=0, le=MANY_TRIES, description="how often lost workers are started again")
    max_failed_share: Share = Field(0.05, description="the run fails above this share of bad images")
    when_busy: WhenBusy = "wait"

    def resolved_domain(self, settings: Settings) -> Domain:
        """The domain with this run's generator.

        Raises:
            ParameterError: there is no such domain, no generator, or workers cannot be where they should.
        """
        refuse_memory("output", self.output)
        check_workers(self.workers, self.workers.count, settings)
        return domain_of(self.domain, self.generator, settings, label=self.label)

    def shared_fields(self, domain: Domain, identity_weight: float, settings: Settings) -> dict[str, Any]:
        """What the spec of every training is told, with the domain's presets filled in.

        Raises:
            ParameterError: a field names something that does not exist.
        """
        presets = domain.encoder_training
        perceptual = self.perceptual or presets.perceptual or domain.perceptual
        names = (perceptual, perceptual, self._identity(domain, identity_weight), None)
        return {
            "output": self.output,
            "source": self.source,
            "validation_source": self.validation_source,
            "validation_images": self.validation_images,
            "generator": generator_of(domain),
            "networks": refused("perceptual", NetworkChoice, *names, published_of(domain, settings)),
            "seed": self.seed,
            "augmentation": self.augmentation or one_of("augmentation", presets.augmentation, AUGMENTATIONS),
            "fit": self.fit,
            "log_every": self.log_every,
            "validate_every": self.validate_every,
            "checkpoint_every": self.checkpoint_every,
            "keep_checkpoints": self.keep_checkpoints,
            "sheet_images": self.sheet_images,
            "loader_workers": self.loader_workers,
            "max_failed_share": self.max_failed_share,
        }

    def training_workers(self, settings: Settings) -> TrainingWorkers:
        """How many processes train, and on what."""
        workers = self.workers
        if workers.device == "cuda" and workers.gpus_each is None:
            gpus: float | None = 1.0
        else:
            gpus = 0.0 if workers.device == "cpu" else workers.gpus_each
        return TrainingWorkers(workers.count, settings.ray_address, gpus, workers.threads, self.max_failures)

    def _identity(self, domain: Domain, weight: float) -> str | None:
        identity = self.identity or domain.encoder_training.identity
        if weight > 0 and identity in (None, NONE):
            raise ParameterError(
                f'identity: none is chosen, and identity_weight is {weight}; wanted "arcface" (faces), "moco" (other '
                "images, with training.identity_weight=0.5), or training.identity_weight=0"
            )
        return None if weight == 0 or identity == NONE else identity


def one_of(field: str, value: str, known: tuple[str, ...]) -> Any:
    """A domain's choice, if it exists.

    Raises:
        ParameterError: it does not.
    """
    if value not in known:
        raise ParameterError(f'{field}: the domain has "{value}"; wanted one of {", ".join(known)}')
    return value
