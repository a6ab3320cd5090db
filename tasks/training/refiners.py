"""What the training of a refiner's networks consists of, and how it is built from a small description that travels.

They are trained on the codes of a frozen encoder, which are computed from each batch on its way, in eval mode. (HFGI's
published code leaves its encoder in training mode, so that the batch statistics drift and the encoder beside the
released networks is no longer the one that they are named after. That is not repeated here.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lsap_core.errors import ConfigError
from lsap_core.inversion.by_encoder import EncoderEmbedder, EncoderSettings
from lsap_core.perceptual.curricular_face import FaceIdentity
from lsap_core.presets import RefinerTraining, recorded
from lsap_core.refinement.hfgi_checkpoints import HFGI
from lsap_core.refinement.hfgi_fusion import Fusion
from lsap_core.refinement.hfgi_networks import HfgiConfig, HfgiNetworks
from lsap_core.training.hfgi_step import HfgiTraining
from lsap_core.training.random_numbers import derived_seed
from tasks.training.data import EncoderView
from tasks.training.spec import FirstNetworks, Opened, TrainingSpec, check_planned, load_planned_generator
from tasks.training.store import TrainingStore
from tasks.weights.devices import bytes_of_image, check_room, place
from tasks.weights.encoders import LoadedEncoder, check_generator, load_encoder
from tasks.weights.generators import LoadedGenerator
from tasks.weights.networks import load_networks
from tasks.weights.refiners import encode_networks


@dataclass(frozen=True, kw_only=True)
class RefinerTrainingSpec(TrainingSpec):
    """How the networks of a refiner are trained.

    Attributes:
        method: how to train.
        encoder: file of the encoder whose codes are refined.
        encoder_name: what configurations call it.
        embedding: how it is asked for codes.
    """

    method: RefinerTraining
    encoder: str
    encoder_name: str
    embedding: EncoderSettings
    what = "networks"

    @property
    def last_key(self) -> str:
        """Named after the refiner."""
        return f"{self.method.name}.safetensors"

    def first(self, loaded: LoadedGenerator) -> FirstNetworks:
        """The first networks, and which encoder they are trained with.

        Raises:
            CheckpointError: there is no such encoder, or it is one of another generator.
            ConfigError: it cannot be asked like that, or looks at images of another size.
        """
        encoder = load_its_encoder(self, loaded)
        networks = build_first_networks(self, loaded)
        return FirstNetworks(
            view=view_of(self, loaded, encoder),
            num_parameters=sum(parameter.numel() for parameter in networks.parameters()),
            identity={"encoder": encoder.digest, "num_passes": self.embedding.num_passes},
            notes=encoder.notes,
        )

    def keep_parts(self, loaded: LoadedGenerator, store: TrainingStore) -> None:
        """There is nothing to compute once."""

    def open(self, store: TrainingStore, device: torch.device) -> Opened:
        """Networks, losses and optimizer as they are before the first step.

        Raises:
            CheckpointError, MissingWeightsError: a file of weights is missing, of the wrong kind, or another one than
                when the run was prepared.
        """
        loaded = load_planned_generator(self, store)
        encoder = load_its_encoder(self, loaded)
        check_planned("encoder", encoder.digest, self.encoder, store)
        return _opened(self, loaded, encoder, device)

    def probe(self, device: torch.device) -> Opened:
        """The training before its first step: every step costs the same."""
        loaded = self.generator.load()
        return _opened(self, loaded, load_its_encoder(self, loaded), device)

    def check_memory(self, device: str) -> None:
        """A batch that no memory can hold.

        Raises:
            ConfigError: it is that large.
            CheckpointError: the generator's file cannot be read.
        """
        config = self.generator.load().config
        check_room(
            "training.batch_size", self.method.settings.batch_size, bytes_of_image(config, goes_back=True), device
        )


class TrainingOnCodes:
    """A training on the codes of a frozen encoder, which are computed from each batch on its way."""

    def __init__(self, training: HfgiTraining, embedder: EncoderEmbedder):
        self.training = training
        self.embedder = embedder

    @property
    def step(self) -> int:
        """Steps taken."""
        return self.training.step

    def advance(self, images: Tensor, sample_seeds: Sequence[int]) -> dict[str, float]:
        """Take one step; what is logged of it."""
        return self.training.advance(images, self._codes(images), sample_seeds)

    def validate(self, images: Tensor) -> dict[str, Tensor]:
        """The loss and its terms of each image, [N]."""
        return self.training.validate(images, self._codes(images))

    def reconstruct(self, images: Tensor) -> Tensor:
        """What refinement makes of images, the same shape."""
        return self.training.reconstruct(images, self._codes(images))

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on; the encoder stays as it is."""
        return self.training.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        self.training.load_state_dict(state)

    def _codes(self, images: Tensor) -> Tensor:
        return self.embedder.codes_of_view(images.to(self.training.device))


def load_its_encoder(spec: RefinerTrainingSpec, generator: LoadedGenerator) -> LoadedEncoder:
    """The encoder whose codes are refined.

    Raises:
        CheckpointError: there is no such file, or it is an encoder of another generator.
        ConfigError: it cannot be asked as the run says.
    """
    loaded = load_encoder(spec.encoder, generator_config=generator.config)
    check_generator(loaded, generator, spec.encoder)
    EncoderEmbedder(generator.generator, loaded.encoder, spec.embedding)  # raises where it cannot be asked like that
    return loaded


def build_first_networks(spec: RefinerTrainingSpec, generator: LoadedGenerator) -> HfgiNetworks:
    """The networks before the first step; the seed alone decides them."""
    settings = spec.method.settings
    config = HfgiConfig.for_generator(generator.config, widths=settings.widths, view_side=settings.view_side)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed(spec.seed, spec.method.name))
        networks = HfgiNetworks(config)
    return networks.start_without_effect() if settings.starts_without_effect else networks


def view_of(spec: RefinerTrainingSpec, generator: LoadedGenerator, encoder: LoadedEncoder) -> EncoderView:
    """What encoder and networks both read of an image file.

    Raises:
        ConfigError: they want different sizes.
    """
    side = spec.method.settings.view_side
    size = Fusion.of(generator.config, view_side=side).view_size
    if size != encoder.config.input_size:
        raise ConfigError(
            f"training.view_side: {side} gives images of {size} pixels (height, width), and {spec.encoder} reads "
            f"{encoder.config.input_size}: leave view_side out, so that both look at the same images"
        )
    return EncoderView(size, generator.config.image_channels, spec.fit)


def assemble(
    spec: RefinerTrainingSpec, loaded: LoadedGenerator, encoder: LoadedEncoder, device: torch.device
) -> TrainingOnCodes:
    """A training of the parts, on a device."""
    networks = load_networks(spec.networks, device)
    assert not isinstance(networks.identity, FaceIdentity)  # `NetworkChoice` refuses it
    generator = place(loaded.generator, device).freeze()
    training = HfgiTraining(
        place(build_first_networks(spec, loaded), device),
        generator,
        networks.perceptual,
        networks.identity,
        spec.method.settings,
        seed=spec.seed,
    )
    frozen = place(encoder.encoder, device).requires_grad_(False)
    return TrainingOnCodes(training, EncoderEmbedder(generator, frozen, spec.embedding))


def _opened(spec: RefinerTrainingSpec, loaded: LoadedGenerator, encoder: LoadedEncoder, device: torch.device) -> Opened:
    training = assemble(spec, loaded, encoder, device)
    return Opened(
        training,
        view_of(spec, loaded, encoder),
        columns=lambda step: {"learning_rate": spec.method.settings.learning_rate_at(step)},
        file=lambda: networks_file(spec, training.training, loaded, encoder),
    )


def networks_file(
    spec: RefinerTrainingSpec, training: HfgiTraining, generator: LoadedGenerator, encoder: LoadedEncoder
) -> bytes:
    """The .safetensors file of the networks as they are now."""
    options: dict[str, Any] = {
        "method": spec.method.name,
        "encoder": spec.encoder_name,
        "num_passes": spec.embedding.num_passes,
        "step": training.step,
        "seed": spec.seed,
        "settings": recorded(spec.method.settings),
        "augmentation": spec.augmentation,
        "source": spec.source,
    }
    return encode_networks(
        HFGI,
        training.networks.config,
        training.networks.state_dict(),
        generator_digest=generator.digest,
        encoder_digest=encoder.digest,
        title=f"{spec.method.title}_{{{encoder.title or spec.encoder_name}}}",
        options=options,
    )
