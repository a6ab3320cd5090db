"""What a training consists of, and how it is built from a small description that travels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from lsap_core.alignment.anchor import Anchor
from lsap_core.encoders.checkpoints import load_backbone
from lsap_core.encoders.config import Backbone, EncoderConfig
from lsap_core.encoders.encoder import Encoder
from lsap_core.errors import CheckpointError
from lsap_core.generators.checkpoints import read_torch
from lsap_core.generators.config import GeneratorConfig
from lsap_core.perceptual.curricular_face import FaceIdentity
from lsap_core.presets import Training, recorded
from lsap_core.training.encoder_step import EncoderTraining
from lsap_core.training.random_numbers import derived_seed
from tasks.archived.anchors import AnchorOptions
from tasks.pictures.decoding import Fit
from tasks.training.data import EncoderView
from tasks.training.store import TrainingStore
from tasks.weights.devices import place
from tasks.weights.encoders import check_generator, encode_encoder, load_encoder
from tasks.weights.files import check_torch_zip, describe_other, is_torch_file, read_bytes
from tasks.weights.generators import GeneratorFile, LoadedGenerator
from tasks.weights.networks import NetworkChoice, load_networks


@dataclass(frozen=True)
class TrainingSpec:
    """Everything that a worker trains by; small, so that it travels.

    Attributes:
        output: URL of the run's folder, which `prepare_training` fills.
        source: where training images are read from.
        validation_source: where held-out images are read from; None holds some of `source` out.
        validation_images: how many images are held out, or taken of `validation_source`.
        generator: the generator's weights.
        method: how to train.
        backbone: of the encoder.
        networks: what compares images.
        anchor: how the anchor is estimated.
        seed: of everything random.
        augmentation: what is changed at random in an image.
        fit: what to do with images of another shape.
        backbone_weights: file of a trained backbone to start from, or None.
        init_from: file of an encoder to start from, or None.
        log_every: steps from one logged row to the next.
        validate_every: steps from one validation to the next.
        checkpoint_every: steps from one complete state to the next.
        keep_checkpoints: states that are kept.
        sheet_images: held-out images on a sheet of samples.
        loader_workers: processes that read images, for each worker; 0 for a thread.
        max_failed_share: the run fails when more than this share of the images cannot be used.
    """

    output: str
    source: str
    generator: GeneratorFile
    method: Training
    networks: NetworkChoice
    anchor: AnchorOptions
    validation_source: str | None = None
    validation_images: int = 256
    backbone: Backbone = "ir_se_50"
    seed: int = 0
    augmentation: str = "none"
    fit: Fit = "refuse"
    backbone_weights: str | None = None
    init_from: str | None = None
    log_every: int = 50
    validate_every: int = 2000
    checkpoint_every: int = 2000
    keep_checkpoints: int = 2
    sheet_images: int = 8
    loader_workers: int = 0
    max_failed_share: float = 0.05

    @property
    def held_out_source(self) -> str:
        """Where held-out images are read from."""
        return self.validation_source or self.source

    def encoder_config(self, generator: GeneratorConfig) -> EncoderConfig:
        """The sizes of the encoder for a generator."""
        settings = self.method.settings
        return EncoderConfig.for_generator(
            generator,
            heads=settings.heads,
            backbone=self.backbone,
            is_iterative=settings.is_iterative,
            has_pyramid=self.method.has_pyramid,
        )


@dataclass(frozen=True)
class TrainingWorkers:
    """How many processes train, and on what.

    Attributes:
        count: processes that share each batch.
        address: Ray cluster to join, or "local" to start a small one.
        gpus_each: GPUs, or the share of one, for each; None shares out what the cluster has, 0 trains on the CPU.
        threads: CPU threads of each.
        max_failures: how often lost workers are started again.
    """

    count: int = 1
    address: str = "local"
    gpus_each: float | None = 0.0
    threads: int = 1
    max_failures: int = 3


@dataclass(frozen=True)
class TrainingRequest:
    """A training as it was asked for.

    Attributes:
        spec: what is trained, and how.
        workers: how many processes train, and on what.
        device: "auto", "cpu" or "cuda".
    """

    spec: TrainingSpec
    workers: TrainingWorkers
    device: str


def view_of(config: EncoderConfig, spec: TrainingSpec) -> EncoderView:
    """What the encoder reads of an image file."""
    return EncoderView(config.input_size, config.image_channels, spec.fit)


def build_training(spec: TrainingSpec, store: TrainingStore, device: torch.device) -> EncoderTraining:
    """Encoder, losses and optimizer as they are before the first step.

    Raises:
        CheckpointError, MissingWeightsError: a file of weights is missing, of the wrong kind, or another one than
            when the run was prepared.
    """
    loaded = spec.generator.load()
    planned = store.identity()["generator"]
    if loaded.digest != planned:
        raise CheckpointError(
            f"{spec.generator.place} holds generator {loaded.digest}, {store.url} was made with {planned}: put those "
            "weights back, or name another output"
        )
    anchor = store.anchor(spec.anchor.digest(loaded.digest))
    if anchor is None:
        raise CheckpointError(f"{store.url} has lost its anchor: run the same command again")
    encoder, _ = build_first_encoder(spec, loaded, anchor)
    return assemble(spec, encoder, loaded, anchor, device)


def assemble(
    spec: TrainingSpec, encoder: Encoder, loaded: LoadedGenerator, anchor: Anchor, device: torch.device
) -> EncoderTraining:
    """A training of the parts, on a device."""
    networks = load_networks(spec.networks, device)
    assert not isinstance(
        networks.identity, FaceIdentity
    )  # it has no value without a face, and `NetworkChoice` refuses it
    return EncoderTraining(
        place(encoder, device),
        place(loaded.generator, device).freeze(),
        anchor.to(device),
        networks.perceptual,
        networks.identity,
        spec.method.settings,
        seed=spec.seed,
    )


def build_first_encoder(
    spec: TrainingSpec, generator: LoadedGenerator, anchor: Anchor | None
) -> tuple[Encoder, tuple[str, ...]]:
    """The encoder before the first step, and sentences about where it comes from.

    Args:
        spec: what is trained.
        generator: what it is trained for.
        anchor: gives the mean code that codes start from; None leaves it out.

    Raises:
        CheckpointError: `init_from` or `backbone_weights` is of the wrong kind.
    """
    config = spec.encoder_config(generator.config)
    if spec.init_from is not None:
        return _encoder_of_file(spec.init_from, config, generator)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed(spec.seed, "encoder"))
        encoder = Encoder(config)
    if anchor is not None:
        encoder.w_avg.copy_(anchor.w_avg.expand_as(encoder.w_avg))
    if spec.backbone_weights is not None:
        return encoder, load_backbone_file(encoder, spec.backbone_weights, seed=derived_seed(spec.seed, "backbone"))
    if spec.backbone != "small":
        return encoder, (
            f"the {spec.backbone} backbone starts from random numbers, with which trainings of this size are known to "
            "fail (losses that are not finite): name a trained one as backbone_weights, such as model_ir_se50.pth",
        )
    return encoder, ()


def _encoder_of_file(path: str, config: EncoderConfig, generator: LoadedGenerator) -> tuple[Encoder, tuple[str, ...]]:
    found = load_encoder(path, generator_config=generator.config)
    check_generator(found, generator, path)
    if found.config != config:
        ours, theirs = config.to_dict(), found.config.to_dict()
        apart = "; ".join(
            f"{name} is {theirs[name]}, wanted {ours[name]}" for name in ours if ours[name] != theirs[name]
        )
        raise CheckpointError(
            f"{path} holds another kind of encoder ({apart}): choose the method and the backbone that it has, or leave "
            "init_from out"
        )
    return found.encoder, found.notes


def load_backbone_file(encoder: Encoder, path: str, *, seed: int) -> tuple[str, ...]:
    """Start an encoder's backbone from a file; returns sentences about what the file did not hold.

    Raises:
        CheckpointError: the file holds something else.
    """
    wanted = "a .pth of ArcFace's IR-SE-50 (model_ir_se50.pth) or of torchvision's ResNet-34"
    data = read_bytes(path, None, wanted=wanted)
    try:
        if not is_torch_file(data):
            raise CheckpointError(f"it is {describe_other(data)}; wanted {wanted}")
        check_torch_zip(data, wanted=wanted)
        return load_backbone(encoder, read_torch(data), seed=seed)
    except CheckpointError as error:
        raise CheckpointError(f"backbone_weights {path}: {error}") from error


def encoder_file(spec: TrainingSpec, training: EncoderTraining) -> bytes:
    """The .safetensors file of the encoder as it is now."""
    options: dict[str, Any] = {
        "method": spec.method.name,
        "step": training.step,
        "seed": spec.seed,
        "settings": recorded(spec.method.settings),
        "augmentation": spec.augmentation,
        "source": spec.source,
    }
    digest = TrainingStore(spec.output).identity()["generator"]
    return encode_encoder(training.encoder, generator_digest=digest, title=spec.method.title, options=options)
