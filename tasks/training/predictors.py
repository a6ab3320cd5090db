"""What the training of SAM's predictor consists of, and how it is built from a small description that travels.

It learns which error an inversion in each latent space alone leaves (Parmar et al. 2022, section 3), from inversions
that an archive holds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from lsap_archive import open_archive
from lsap_core.generators.config import GeneratorConfig
from lsap_core.images import comparison_size
from lsap_core.presets import RefinerTraining, recorded
from lsap_core.refinement.sam_checkpoints import PREDICTOR
from lsap_core.refinement.sam_networks import InvertibilityPredictor, PredictorConfig
from lsap_core.refinement.sam_spaces import Placement
from lsap_core.training.random_numbers import derived_seed, stream
from lsap_core.training.sam_step import (
    PredictorTraining,
    PredictorTrainingSettings,
    SpatialDistance,
    augment,
    error_maps,
)
from tasks.errors import SourceError
from tasks.training.data import EncoderView
from tasks.training.inversions import InvertedView, SpaceInversions, keep_inversions
from tasks.training.spec import FirstNetworks, Opened, TrainingSpec, load_planned_generator
from tasks.training.store import TrainingStore
from tasks.weights.devices import bytes_of_image, check_room, place
from tasks.weights.generators import LoadedGenerator
from tasks.weights.networks import load_networks
from tasks.weights.refiners import encode_networks


@dataclass(frozen=True, kw_only=True)
class PredictorTrainingSpec(TrainingSpec):
    """How SAM's predictor is trained.

    Attributes:
        method: how to train.
        archive: URL of the archive that holds the inversions.
        inversions: by latent space, W+ first, the method or refinement whose images are inverted in it alone.
        placement: where offsets are added in the feature spaces.
    """

    method: RefinerTraining[PredictorTrainingSettings]
    archive: str
    inversions: Mapping[str, str]
    placement: Placement = "block"
    what = "networks"

    @property
    def last_key(self) -> str:
        """Named after the refiner."""
        return f"{self.method.name}.safetensors"

    @property
    def spaces(self) -> tuple[str, ...]:
        """The latent spaces whose errors are learned."""
        return tuple(self.inversions)

    def first(self, loaded: LoadedGenerator) -> FirstNetworks:
        """The first predictor, and which inversions it learns from.

        Raises:
            ArchiveNotFoundError, ArchiveMismatchError: no archive is there, or that of another generator.
            ArchiveKeyError: a space has no run in it.
            ConfigError: a run is none of inversions in that space alone.
        """
        found = self._inversions()
        found.check(loaded.digest, self.placement)
        notes: tuple[str, ...] = ()
        if self.method.settings.base == "deeplab":
            notes = ("the predictor's backbone starts from random numbers, where the published one was a classifier",)
        return FirstNetworks(
            view=view_of(self, loaded.config),
            num_parameters=sum(one.numel() for one in build_first_predictor(self, loaded).parameters()),
            identity={"inversions": found.digests, "placement": self.placement},
            notes=notes,
        )

    def check_listing(self, source: str, listing: pa.Table) -> None:
        """Refuse images that have no inversions.

        Raises:
            SourceError: more of them than the run allows.
        """
        wanted = set(listing["image_id"].to_pylist())
        found = self._inversions()
        for space, name in self.inversions.items():
            missing = wanted - found.images(space).keys()
            if len(missing) > self.max_failed_share * len(wanted):
                raise SourceError(
                    f"{len(missing)} of the {len(wanted)} images of {source}, such as {min(missing)}, have no "
                    f"inversion in {space} ({name}) in {self.archive}: invert and refine them there, or name a source "
                    "of images that are"
                )

    def keep_parts(self, loaded: LoadedGenerator, store: TrainingStore) -> None:
        """Inversions are rendered where the training has its device, in `open`."""

    def open(self, store: TrainingStore, device: torch.device) -> Opened:
        """Predictor and optimizer as they are before the first step; inversions that are not kept yet are rendered.

        Raises:
            CheckpointError: the generator is another one than when the run was prepared.
            ArchiveKeyError, ConfigError: inversions have gone since.
        """
        loaded = load_planned_generator(self, store)
        found, view = self._inversions(), view_of(self, loaded.config)
        found.check(loaded.digest, self.placement)
        generator = place(loaded.generator, device).freeze()
        keep_inversions(found, generator, store, view, batch_size=self.method.settings.batch_size)
        return _opened(self, loaded, device)

    def probe(self, device: torch.device) -> Opened:
        """The training before its first step: every step costs the same."""
        return _opened(self, self.generator.load(), device)

    def check_memory(self, device: str) -> None:
        """A batch that no memory can hold.

        Raises:
            ConfigError: it is that large.
            CheckpointError: the generator's file cannot be read.
        """
        bytes_each = bytes_of_image(self.generator.load().config, goes_back=True)
        check_room("training.batch_size", self.method.settings.batch_size, bytes_each, device)

    def _inversions(self) -> SpaceInversions:
        return SpaceInversions(open_archive(self.archive), self.inversions)


class TrainingOnInversions:
    """A training on images and their inversions, whose errors are computed of each batch on its way."""

    def __init__(self, training: PredictorTraining, perceptual: SpatialDistance, device: torch.device):
        self.training = training
        self.perceptual = perceptual
        self.device = device

    @property
    def step(self) -> int:
        """Steps taken."""
        return self.training.step

    def advance(self, images: Tensor, sample_seeds: Sequence[int]) -> dict[str, float]:
        """Take one step on images and inversions [N, channels of the view, h, w]; what is logged of it."""
        blurred = augment(self._pictures(images), [stream(seed, "blur") for seed in sample_seeds])
        errors = error_maps(self.perceptual, blurred[0], blurred[1:])
        with torch.random.fork_rng():
            torch.manual_seed(derived_seed(*sample_seeds, "dropout"))
            return self.training.advance(blurred[0], errors)

    def validate(self, images: Tensor) -> dict[str, Tensor]:
        """The loss of each image, [N], and what of it is of each space.

        Beside a space's squared difference stand the mean of its errors and that of their squares: the best constant
        leaves mean(errors^2) - mean(errors)^2 of the whole set.
        """
        pictures = self._pictures(images)
        errors = error_maps(self.perceptual, pictures[0], pictures[1:])
        differences = self.training.validate(pictures[0], errors)  # [N, spaces]
        terms = {"loss": differences.mean(dim=1)}
        for index, space in enumerate(self.training.predictor.spaces):
            of_space = errors[:, index].flatten(1)
            terms[space] = differences[:, index]
            terms[f"{space} error"] = of_space.mean(dim=1)
            terms[f"{space} error squared"] = of_space.square().mean(dim=1)
        return terms

    @torch.no_grad()
    def pairs(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images with their maps of errors beside them, and with those that are predicted; [N, C, h, (1 + spaces) w].

        Maps are on one scale for each image: white is its largest error in any space.
        """
        pictures = self._pictures(images)
        errors = error_maps(self.perceptual, pictures[0], pictures[1:])
        predicted = self.training.trained()(pictures[0])
        largest = errors.amax(dim=(1, 2, 3), keepdim=True).clamp_min(torch.finfo(errors.dtype).tiny)
        return _beside(pictures[0], errors / largest), _beside(pictures[0], predicted / largest)

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on; inversions stay as they are."""
        return self.training.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        self.training.load_state_dict(state)

    def _pictures(self, images: Tensor) -> list[Tensor]:
        """The images, then their inversions in each space, each [N, C, h, w]."""
        return list(images.to(self.device).split(self.training.predictor.config.image_channels, dim=1))


def _beside(images: Tensor, maps: Tensor) -> Tensor:
    """Images [N, C, h, w] and maps [N, spaces, h, w] in [0, 1] as pictures, side by side."""
    pictures = [2 * one[:, None].expand_as(images) - 1 for one in maps.unbind(dim=1)]
    return torch.cat([images, *pictures], dim=3)


def build_first_predictor(spec: PredictorTrainingSpec, generator: LoadedGenerator) -> InvertibilityPredictor:
    """The predictor before the first step; the seed alone decides it."""
    config = PredictorConfig(spec.method.settings.base, spec.spaces, generator.config.image_channels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed(spec.seed, spec.method.name))
        return InvertibilityPredictor(config)


def view_of(spec: PredictorTrainingSpec, config: GeneratorConfig) -> EncoderView:
    """What the predictor reads of an image file while it learns: the content box, at most 256 pixels."""
    return EncoderView(comparison_size(*config.content_size), config.image_channels, spec.fit)


def _opened(spec: PredictorTrainingSpec, loaded: LoadedGenerator, device: torch.device) -> Opened:
    networks = load_networks(spec.networks, device)
    predictor = place(build_first_predictor(spec, loaded), device)
    settings = spec.method.settings
    training = TrainingOnInversions(PredictorTraining(predictor, settings), networks.perceptual, device)
    return Opened(
        training,
        InvertedView(view_of(spec, loaded.config), spec.output, spec.spaces),
        columns=lambda step: {"learning_rate": settings.learning_rate_at(step)},
        file=lambda: predictor_file(spec, training.training, loaded),
        pairs=training.pairs,
    )


def predictor_file(spec: PredictorTrainingSpec, training: PredictorTraining, generator: LoadedGenerator) -> bytes:
    """The .safetensors file of the predictor as it is now."""
    options: dict[str, Any] = {
        "method": spec.method.name,
        "inversions": dict(spec.inversions),
        "placement": spec.placement,
        "perceptual": spec.networks.perceptual,
        "step": training.step,
        "seed": spec.seed,
        "settings": recorded(spec.method.settings),
        "augmentation": spec.augmentation,
        "source": spec.source,
    }
    trained = training.trained()
    return encode_networks(
        PREDICTOR,
        trained.config,
        trained.state_dict(),
        generator_digest=generator.digest,
        title=f"predictor of {spec.method.title}",
        options=options,
    )
