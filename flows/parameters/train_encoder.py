"""What a training may be asked for: typed, described, refused before any work when it is wrong."""

from __future__ import annotations

from typing import Any, Literal, get_args

from pydantic import Field

from domains.domain import Domain
from flows.parameters.numbers import MANY_IMAGES, MANY_PROCESSES, MANY_SHOWN, MANY_TRIES, Count, Seed, Share, Whole
from flows.parameters.run_file import ParameterError, Parameters, refused
from flows.parameters.shared import (
    MOST_SAMPLES,
    AnchorParameters,
    PlaceParameters,
    WhenBusy,
    check_workers,
    domain_of,
    generator_of,
    refuse_memory,
)
from lsap_core.encoders.config import Backbone
from lsap_core.presets import TRAININGS
from tasks.archived.anchors import AnchorOptions
from tasks.pictures.decoding import Fit
from tasks.settings import Settings
from tasks.training.data import AUGMENTATIONS
from tasks.training.parts import TrainingRequest, TrainingSpec, TrainingWorkers
from tasks.weights.networks import NetworkChoice
from tasks.weights.published import Published

NONE = "none"


class TrainingAnchorParameters(AnchorParameters):
    """How the anchor of SNCD is estimated."""

    num_samples: Whole = Field(
        100_000, ge=2, le=MOST_SAMPLES, description="codes to sample; LSAP's authors train with 100,000"
    )


class TrainingWorkerParameters(PlaceParameters):
    """How many processes share each batch, and on what."""

    count: Count = Field(1, le=MANY_PROCESSES, description="processes; batch_size has to be a multiple")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where to train; auto takes GPUs if there are")


class TrainEncoderRun(Parameters):
    """Train an encoder for a generator."""

    source: str = Field(description="images to train on: folder, glob, .zip, .npy, manifest, or digits:train")
    output: str = Field(description="path or URL of the training's folder; the same command goes on there")
    validation_source: str | None = Field(None, description="held-out images; by default some of the source's")
    domain: str = Field("full_scale", description="name of a built-in domain, or the path of one's own .yaml")
    generator: str | None = Field(None, description="weights, .pt, .pkl or .safetensors; the domain's by default")
    method: str = Field("lsap_e", description="psp, e4e, lsap_e, restyle_psp or restyle_e4e")
    training: dict[str, Any] = Field(default_factory=dict, description="settings, over the domain's")
    backbone: Backbone | None = Field(None, description="ir_se_50, resnet_34 or small; the domain's by default")
    perceptual: str | None = Field(None, description="network of the LPIPS term; the domain's by default")
    identity: str | None = Field(None, description='network of the identity term, or "none"; the domain\'s by default')
    backbone_weights: str | None = Field(None, description="file that the backbone starts from: model_ir_se50.pth")
    init_from: str | None = Field(None, description="file of an encoder to start from; not needed to resume")
    augmentation: Literal[AUGMENTATIONS] | None = Field(  # type: ignore[valid-type]  # domains bring some of them
        None, description="flip, none or what a domain brings; the domain's by default"
    )
    fit: Fit = Field("refuse", description="what to do with images of another shape")
    seed: Seed = Field(0, description="of everything random")
    anchor: TrainingAnchorParameters = TrainingAnchorParameters()
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

    def resolve(self, settings: Settings) -> TrainingRequest:
        """The run with its domain's presets filled in.

        Raises:
            ParameterError: a field names something that does not exist.
        """
        refuse_memory("output", self.output)
        check_workers(self.workers, self.workers.count, settings)
        domain = domain_of(self.domain, self.generator, settings)
        presets = domain.encoder_training
        if self.method not in TRAININGS:
            raise ParameterError(f'method: "{self.method}" is not known; wanted one of {", ".join(TRAININGS)}')
        if self.init_from is not None and self.backbone_weights is not None:
            raise ParameterError("backbone_weights: init_from gives the whole encoder, its backbone too; leave one out")
        method = refused("training", presets.method, self.method, self.training)
        batch_size, count = method.settings.batch_size, self.workers.count
        if batch_size % count:
            raise ParameterError(
                f"workers.count: {count} workers cannot share a batch of {batch_size} equally; wanted a divisor of it"
            )
        perceptual = self.perceptual or presets.perceptual or domain.perceptual
        identity = self._identity(domain, method.settings.identity_weight)
        names = (perceptual, perceptual, identity, None)
        networks = refused("perceptual", NetworkChoice, *names, Published(settings.backbones))
        spec = TrainingSpec(
            output=self.output,
            source=self.source,
            validation_source=self.validation_source,
            validation_images=self.validation_images,
            generator=generator_of(domain),
            method=method,
            backbone=self.backbone or _one_of("backbone", presets.backbone, get_args(Backbone)),
            networks=networks,
            anchor=AnchorOptions(**self.anchor.model_dump()),
            seed=self.seed,
            augmentation=self.augmentation or _one_of("augmentation", presets.augmentation, AUGMENTATIONS),
            fit=self.fit,
            backbone_weights=self.backbone_weights,
            init_from=self.init_from,
            log_every=self.log_every,
            validate_every=self.validate_every,
            checkpoint_every=self.checkpoint_every,
            keep_checkpoints=self.keep_checkpoints,
            sheet_images=self.sheet_images,
            loader_workers=self.loader_workers,
            max_failed_share=self.max_failed_share,
        )
        return TrainingRequest(spec, self._workers(settings), self.workers.device)

    def _identity(self, domain: Domain, weight: float) -> str | None:
        identity = self.identity or domain.encoder_training.identity
        if weight > 0 and identity in (None, NONE):
            raise ParameterError(
                f'identity: none is chosen, and identity_weight is {weight}; wanted "arcface" (faces), "moco" (other '
                "images, with training.identity_weight=0.5), or training.identity_weight=0"
            )
        return None if weight == 0 or identity == NONE else identity

    def _workers(self, settings: Settings) -> TrainingWorkers:
        workers = self.workers
        if workers.device == "cuda" and workers.gpus_each is None:
            gpus: float | None = 1.0
        else:
            gpus = 0.0 if workers.device == "cpu" else workers.gpus_each
        return TrainingWorkers(workers.count, settings.ray_address, gpus, workers.threads, self.max_failures)


def _one_of(field: str, value: str, known: tuple[str, ...]) -> Any:
    """A domain's choice, if it exists."""
    if value not in known:
        raise ParameterError(f'{field}: the domain has "{value}"; wanted one of {", ".join(known)}')
    return value
