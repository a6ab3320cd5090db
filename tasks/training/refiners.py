"""What the training of a refiner's networks consists of, and how it is built from a small description that travels.

Networks that refine the codes of an encoder are trained on them: the encoder is frozen and in eval mode, and codes are
computed from each batch on its way. (HFGI's published code leaves its encoder in training mode, so that the batch
statistics drift and the encoder beside the released networks is no longer the one that they are named after. Here it
stays as it is.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from lsap_core.editing.directions import Direction
from lsap_core.encoders.config import Heads
from lsap_core.errors import ConfigError
from lsap_core.inversion.by_encoder import EncoderEmbedder, EncoderSettings
from lsap_core.perceptual.curricular_face import FaceIdentity
from lsap_core.presets import RefinerTraining, recorded
from lsap_core.training.random_numbers import derived_seed
from lsap_core.training.sfe_edits import PUBLISHED_CHANNELS
from tasks.training.data import EncoderView
from tasks.training.spec import FirstNetworks, Opened, TrainingSpec, check_planned, load_planned_generator
from tasks.training.start_files import check_files, digest_of_file
from tasks.training.store import TrainingStore
from tasks.training.trainable import TRAINABLE, RefinerParts, RefinerSteps, Trainable
from tasks.weights.devices import bytes_of_image, check_room, place
from tasks.weights.directions import load_direction
from tasks.weights.encoders import LoadedEncoder, check_generator, load_encoder
from tasks.weights.generators import LoadedGenerator
from tasks.weights.networks import load_networks
from tasks.weights.refiners import encode_networks


@dataclass(frozen=True, kw_only=True)
class RefinerTrainingSpec(TrainingSpec):
    """How the networks of a refiner are trained.

    Attributes:
        method: how to train.
        encoder: file of the encoder whose codes are refined, or guide edits; None where none are.
        encoder_name: what configurations call it.
        heads: how its heads make rows of W+, where its file does not say it.
        embedding: how it is asked for codes.
        files: what the training starts from, paths by field.
        directions: paths of directions to edit along, by name.
    """

    method: RefinerTraining[Any]
    encoder: str | None
    encoder_name: str
    embedding: EncoderSettings
    files: Mapping[str, str] = field(default_factory=dict)
    directions: Mapping[str, str] = field(default_factory=dict)
    heads: Heads | None = None
    what = "networks"

    @property
    def last_key(self) -> str:
        """Named after what is trained."""
        return f"{self.method.name}.safetensors"

    @property
    def trainable(self) -> Trainable[Any, Any]:
        """How these networks are made, trained and kept."""
        return TRAINABLE[self.method.name]

    def first(self, loaded: LoadedGenerator) -> FirstNetworks:
        """The first networks, and what they are trained with.

        Raises:
            CheckpointError: a file is not there, of the wrong kind, or one of another generator.
            ConfigError: the encoder cannot be asked like that or looks at images of another size, or a file that is
                needed was not named, or one that is not was.
        """
        encoder = load_its_encoder(self, loaded)
        check_files(self.files, known=self.trainable.files, title=self.method.title)
        directions = load_its_directions(self, loaded)
        view = view_of(self, loaded, encoder)
        networks, notes = build_first_networks(self, loaded)
        assemble(self, loaded, encoder, torch.device("cpu"), networks)  # raises where parts do not fit
        return FirstNetworks(
            view=view,
            num_parameters=sum(parameter.numel() for parameter in networks.parameters()),
            identity={
                **({} if encoder is None else {"encoder": encoder.digest, "num_passes": self.embedding.num_passes}),
                **{name: digest_of_file(path) for name, path in self.files.items()},
                **{f"directions.{name}": direction.digest for name, direction in directions.items()},
            },
            notes=(*(() if encoder is None else encoder.notes), *notes),
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
        if encoder is not None:
            check_planned("encoder", encoder.digest, str(self.encoder), store)
        for name, path in self.files.items():
            check_planned(name, digest_of_file(path), path, store)
        for name, direction in load_its_directions(self, loaded).items():
            check_planned(f"directions.{name}", direction.digest, self.directions[name], store)
        return _opened(self, loaded, encoder, device)

    def probe(self, device: torch.device) -> Opened:
        """The training before its first step: every step costs about the same."""
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


def load_its_encoder(spec: RefinerTrainingSpec, generator: LoadedGenerator) -> LoadedEncoder | None:
    """The encoder whose codes are refined, or guide edits; None where none are.

    Raises:
        CheckpointError: there is no such file, or it is an encoder of another generator.
        ConfigError: it cannot be asked as the run says.
    """
    if spec.encoder is None:
        return None
    loaded = load_encoder(spec.encoder, generator_config=generator.config, name=spec.encoder_name, heads=spec.heads)
    check_generator(loaded, generator, spec.encoder)
    EncoderEmbedder(generator.generator, loaded.encoder, spec.embedding)  # raises where it cannot be asked like that
    return loaded


def load_its_directions(spec: RefinerTrainingSpec, generator: LoadedGenerator) -> dict[str, Direction]:
    """The directions of the edits that are trained with, by name.

    Raises:
        CheckpointError: there is no such file, or a direction of another generator.
        ConfigError: an edit has no direction.
    """
    found = {}
    for name in spec.trainable.edits(spec.method.settings):
        if name in spec.directions:
            found[name] = load_direction(
                spec.directions[name], config=generator.config, generator_digest=generator.digest
            )
        elif name not in PUBLISHED_CHANNELS:
            raise ConfigError(
                f"training.edits.{name}: no direction is called so; wanted some of "
                f"{', '.join((*spec.directions, *PUBLISHED_CHANNELS))}, or its file: directions.{name}=..."
            )
    return found


def build_first_networks(spec: RefinerTrainingSpec, generator: LoadedGenerator) -> tuple[nn.Module, tuple[str, ...]]:
    """The networks before the first step, and sentences about where they come from; seed and files alone decide them.

    Raises:
        CheckpointError, ConfigError: a file is not there, or does not fit.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed(spec.seed, spec.method.name))
        networks, notes = spec.trainable.first(
            spec.method.settings, generator.config, spec.files, derived_seed(spec.seed, "backbone")
        )
    return networks, notes


def view_of(spec: RefinerTrainingSpec, generator: LoadedGenerator, encoder: LoadedEncoder | None) -> EncoderView:
    """What encoder and networks read of an image file.

    Raises:
        ConfigError: they want different sizes.
    """
    config, trainable = generator.config, spec.trainable
    size = trainable.view(spec.method.settings, config)
    if encoder is not None and not trainable.lies_in_square and size != encoder.config.input_size:
        side = getattr(spec.method.settings, "view_side", None)
        raise ConfigError(
            f"training.view_side: {side} gives images of {size} pixels (height, width), and {spec.encoder} reads "
            f"{encoder.config.input_size}: leave view_side out, so that both look at the same images"
        )
    return EncoderView(size, config.image_channels, spec.fit, config if trainable.lies_in_square else None)


def assemble(
    spec: RefinerTrainingSpec,
    loaded: LoadedGenerator,
    encoder: LoadedEncoder | None,
    device: torch.device,
    first: nn.Module,
) -> RefinerSteps:
    """A training of the parts, on a device.

    Raises:
        CheckpointError, ConfigError: parts are missing, or do not fit each other.
    """
    compared = load_networks(spec.networks, device)
    assert not isinstance(compared.identity, FaceIdentity)  # `NetworkChoice` refuses it
    generator, embedder = place(loaded.generator, device).freeze(), None
    if encoder is not None:
        frozen = place(encoder.encoder, device).requires_grad_(False)
        embedder = EncoderEmbedder(generator, frozen, spec.embedding)
    parts = RefinerParts(
        networks=place(first, device),
        generator=generator,
        perceptual=compared.perceptual,
        identity=compared.identity,
        settings=spec.method.settings,
        seed=spec.seed,
        embedder=embedder,
        files=spec.files,
        directions=load_its_directions(spec, loaded),
    )
    return spec.trainable.steps(parts)


def _opened(
    spec: RefinerTrainingSpec, loaded: LoadedGenerator, encoder: LoadedEncoder | None, device: torch.device
) -> Opened:
    networks, _ = build_first_networks(spec, loaded)
    steps = assemble(spec, loaded, encoder, device, networks)
    return Opened(
        steps,
        view_of(spec, loaded, encoder),
        columns=lambda step: {"learning_rate": spec.method.settings.learning_rate_at(step)},
        file=lambda: networks_file(spec, networks, steps.step, loaded, encoder),
        pairs=lambda images: (images, steps.reconstruct(images)),
    )


def networks_file(
    spec: RefinerTrainingSpec,
    networks: Any,
    step: int,
    generator: LoadedGenerator,
    encoder: LoadedEncoder | None,
) -> bytes:
    """The .safetensors file of the networks as they are now."""
    of_encoder = {"encoder": spec.encoder_name, "num_passes": spec.embedding.num_passes}
    options: dict[str, Any] = {
        "method": spec.method.name,
        **({} if encoder is None else of_encoder),
        **{name: digest_of_file(path) for name, path in spec.files.items()},
        "step": step,
        "seed": spec.seed,
        "settings": recorded(spec.method.settings),
        "augmentation": spec.augmentation,
        "source": spec.source,
    }
    title = spec.method.title
    return encode_networks(
        spec.trainable.form,
        networks.config,
        networks.state_dict(),
        generator_digest=generator.digest,
        encoder_digest=None if encoder is None else encoder.digest,
        title=title if encoder is None else f"{title}_{{{encoder.title or spec.encoder_name}}}",
        options=options,
    )
