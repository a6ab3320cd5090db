"""What the training of an encoder consists of, and how it is built from a small description that travels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
from torch import Tensor

from lsap_core.alignment.anchor import Anchor, estimate_anchor
from lsap_core.encoders.checkpoints import load_backbone
from lsap_core.encoders.config import Backbone, EncoderConfig
from lsap_core.encoders.encoder import Encoder
from lsap_core.errors import CheckpointError
from lsap_core.generators.config import GeneratorConfig
from lsap_core.perceptual.curricular_face import FaceIdentity
from lsap_core.presets import Training, recorded
from lsap_core.training.encoder_step import EncoderTraining
from lsap_core.training.random_numbers import derived_seed
from tasks.archived.anchors import AnchorOptions
from tasks.training.data import EncoderView
from tasks.training.spec import FirstNetworks, Opened, TrainingSpec, load_planned_generator
from tasks.training.start_files import digest_of_file, from_torch_file
from tasks.training.store import LAST_KEY, TrainingStore
from tasks.weights.devices import FLOAT_BYTES, bytes_of_image, check_room, place
from tasks.weights.encoders import check_generator, encode_encoder, load_encoder
from tasks.weights.generators import LoadedGenerator
from tasks.weights.networks import load_networks

PROBE_ANCHOR_SAMPLES = 1024


@dataclass(frozen=True, kw_only=True)
class EncoderTrainingSpec(TrainingSpec):
    """How an encoder is trained.

    Attributes:
        method: how to train.
        anchor: how the anchor is estimated.
        backbone: of the encoder.
        backbone_weights: file of a trained backbone to start from, or None.
        init_from: file of an encoder to start from, or None.
    """

    method: Training
    anchor: AnchorOptions
    backbone: Backbone = "ir_se_50"
    backbone_weights: str | None = None
    init_from: str | None = None
    what = "encoder"
    last_key = LAST_KEY

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

    def first(self, loaded: LoadedGenerator) -> FirstNetworks:
        """The first encoder, and which files and anchor it is trained with.

        Raises:
            CheckpointError: `init_from` or `backbone_weights` is of the wrong kind.
        """
        encoder, notes = build_first_encoder(self, loaded, anchor=None)
        files = {
            name: digest_of_file(path)
            for name, path in (("backbone_weights", self.backbone_weights), ("init_from", self.init_from))
            if path is not None
        }
        return FirstNetworks(
            view=view_of(encoder.config, self),
            num_parameters=sum(parameter.numel() for parameter in encoder.parameters()),
            identity={"backbone": self.backbone, **files, "anchor": asdict(self.anchor)},
            notes=notes,
        )

    def keep_parts(self, loaded: LoadedGenerator, store: TrainingStore) -> None:
        """Estimate the anchor once."""
        options, digest = self.anchor, self.anchor.digest(loaded.digest)
        if store.anchor(digest) is None:
            store.put_anchor(
                digest,
                estimate_anchor(
                    loaded.generator, num_samples=options.num_samples, style_set=options.style_set, seed=options.seed
                ),
            )

    def open(self, store: TrainingStore, device: torch.device) -> Opened:
        """Encoder, losses and optimizer as they are before the first step.

        Raises:
            CheckpointError, MissingWeightsError: a file of weights is missing, of the wrong kind, or another one than
                when the run was prepared.
        """
        loaded = load_planned_generator(self, store)
        anchor = store.anchor(self.anchor.digest(loaded.digest))
        if anchor is None:
            raise CheckpointError(f"{store.url} has lost its anchor: run the same command again")
        encoder, _ = build_first_encoder(self, loaded, anchor)
        return _opened(self, assemble(self, encoder, loaded, anchor, device), loaded)

    def probe(self, device: torch.device) -> Opened:
        """A training with all heads and the anchor of a few codes."""
        loaded = self.generator.load()
        anchor = estimate_anchor(loaded.generator, num_samples=PROBE_ANCHOR_SAMPLES)
        encoder, _ = build_first_encoder(self, loaded, anchor)
        training = assemble(self, encoder, loaded, anchor, device)
        training.step = max(training.schedule.stages())  # from here on every head is active
        return _opened(self, training, loaded)

    def check_memory(self, device: str) -> None:
        """A batch, or the latent discriminator's pools, that no memory can hold.

        Raises:
            ConfigError: they are that large.
            CheckpointError: the generator's file cannot be read.
        """
        config, settings = self.generator.load().config, self.method.settings
        together = -(-settings.batch_size // settings.accumulate)
        check_room("training.batch_size", together, bytes_of_image(config, goes_back=True), device)
        check_room("training.pool_size", 2 * settings.pool_size, FLOAT_BYTES * config.num_ws * config.w_dim, device)


def view_of(config: EncoderConfig, spec: EncoderTrainingSpec) -> EncoderView:
    """What the encoder reads of an image file."""
    return EncoderView(config.input_size, config.image_channels, spec.fit)


def assemble(
    spec: EncoderTrainingSpec, encoder: Encoder, loaded: LoadedGenerator, anchor: Anchor, device: torch.device
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
    spec: EncoderTrainingSpec, generator: LoadedGenerator, anchor: Anchor | None
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
    return from_torch_file(
        "backbone_weights",
        path,
        lambda state: load_backbone(encoder, cast(Mapping[str, Tensor], state), seed=seed),
        wanted=wanted,
    )


def _opened(spec: EncoderTrainingSpec, training: EncoderTraining, loaded: LoadedGenerator) -> Opened:
    schedule, settings = training.schedule, spec.method.settings
    return Opened(
        training,
        view_of(training.encoder.config, spec),
        columns=lambda step: {"stage": schedule.stage(step), "learning_rate": settings.learning_rate_at(step)},
        file=lambda: encoder_file(spec, training, loaded.digest),
        pairs=lambda images: (images, training.reconstruct(images)),
    )


def encoder_file(spec: EncoderTrainingSpec, training: EncoderTraining, generator_digest: str) -> bytes:
    """The .safetensors file of the encoder as it is now."""
    options: dict[str, Any] = {
        "method": spec.method.name,
        "step": training.step,
        "seed": spec.seed,
        "settings": recorded(spec.method.settings),
        "augmentation": spec.augmentation,
        "source": spec.source,
    }
    return encode_encoder(training.encoder, generator_digest=generator_digest, title=spec.method.title, options=options)
