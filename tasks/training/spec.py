"""What every training is told, and what its loop needs of it, whatever is trained."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import pyarrow as pa
import torch
from torch import Tensor

from lsap_core.errors import CheckpointError
from lsap_core.presets import RefinerTraining, Training
from tasks.pictures.decoding import Fit
from tasks.training.data import EncoderView, View
from tasks.training.store import TrainingStore
from tasks.weights.generators import GeneratorFile, LoadedGenerator
from tasks.weights.networks import NetworkChoice


class Steps(Protocol):
    """Networks in training. Images are [N, C, h, w] in [-1, 1], as the view of the training gives them.

    After the images comes whatever `Opened.beside` has of them.
    """

    @property
    def step(self) -> int:
        """Steps taken."""

    def advance(self, *images_and_seeds: Any) -> dict[str, float]:
        """Take one step on images and, last, a seed of each; what is logged of it."""

    def validate(self, *images: Any) -> dict[str, Tensor]:
        """The loss and its terms of each image, [N]."""

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on."""

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Take over what `state_dict` returned."""


@dataclass(frozen=True)
class FirstNetworks:
    """What is known of a training before its first step.

    Attributes:
        view: what is read of an image file.
        num_parameters: of the networks.
        identity: what decides the result beside what every training has, by name.
        notes: sentences about the files of weights, to be shown.
    """

    view: EncoderView
    num_parameters: int
    identity: dict[str, Any]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Opened:
    """A training that can be gone on with.

    Attributes:
        training: takes the steps.
        view: what is read of an image.
        columns: what a logged row says of the step that comes after so many, such as its learning rate.
        file: the .safetensors file of the networks as they are now.
        pairs: of images as the view gives them what a sheet shows, and below it what the networks make of them: both
            [N, C, h, w] in [-1, 1].
        beside: what the training takes of images beside their pixels, by their ids, on its device; nothing by default.
    """

    training: Steps
    view: View
    columns: Callable[[int], dict[str, float]]
    file: Callable[[], bytes]
    pairs: Callable[..., tuple[Tensor, Tensor]]
    beside: Callable[[Sequence[str]], tuple[Any, ...]] = field(default=lambda image_ids: ())


@dataclass(frozen=True, kw_only=True)
class TrainingSpec(ABC):
    """Everything that a worker trains by; small, so that it travels.

    Attributes:
        output: URL of the run's folder, which `prepare_training` fills.
        source: where training images are read from.
        validation_source: where held-out images are read from; None holds some of `source` out.
        validation_images: how many images are held out, or taken of `validation_source`.
        generator: the generator's weights.
        method: how to train.
        networks: what compares images.
        seed: of everything random.
        augmentation: what is changed at random in an image.
        fit: what to do with images of another shape.
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
    method: Training | RefinerTraining[Any]
    networks: NetworkChoice
    validation_source: str | None = None
    validation_images: int = 256
    seed: int = 0
    augmentation: str = "none"
    fit: Fit = "refuse"
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

    @property
    @abstractmethod
    def what(self) -> str:
        """What comes out, in a word for people."""

    @property
    @abstractmethod
    def last_key(self) -> str:
        """Where in the folder it lies after the last step."""

    @property
    def is_for_its_images(self) -> bool:
        """Whether what comes out is for the images that are trained on alone, so that these are validated too."""
        return False

    def choose(self, listing: pa.Table, loaded: LoadedGenerator) -> tuple[pa.Table, tuple[str, ...]]:
        """Those images of a listing that can be trained on, by default all, and sentences about others.

        Raises:
            SourceError: there is none, or some lack what is needed.
        """
        return listing, ()

    @abstractmethod
    def first(self, loaded: LoadedGenerator) -> FirstNetworks:
        """What is known before the first step, with every file of weights checked."""

    def check_listing(self, source: str, listing: pa.Table) -> None:
        """Refuse a source's images before any is read; such as they are listed, most trainings take all.

        Raises:
            SourceError: too many of them cannot be used.
        """
        return

    @abstractmethod
    def keep_parts(self, loaded: LoadedGenerator, store: TrainingStore) -> None:
        """Keep in the folder what is computed once for all workers."""

    @abstractmethod
    def open(self, store: TrainingStore, device: torch.device) -> Opened:
        """The training before its first step, from a prepared folder.

        Raises:
            CheckpointError, MissingWeightsError: a file of weights is missing, of the wrong kind, or another one than
                when the run was prepared.
        """

    @abstractmethod
    def probe(self, device: torch.device) -> Opened:
        """A training whose next step costs as much as any, to be timed; without a folder."""

    @abstractmethod
    def check_memory(self, device: str) -> None:
        """Refuse what no memory can hold.

        Raises:
            ConfigError: it is asked for.
            CheckpointError: the generator's file cannot be read.
        """


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


def load_planned_generator(spec: TrainingSpec, store: TrainingStore) -> LoadedGenerator:
    """The generator that a run was prepared with.

    Raises:
        CheckpointError: the file holds another one by now.
    """
    loaded = spec.generator.load()
    check_planned("generator", loaded.digest, spec.generator.place, store)
    return loaded


def check_planned(name: str, digest: str, place: str, store: TrainingStore) -> None:
    """Make sure that a file holds the weights that a run was prepared with.

    Raises:
        CheckpointError: it holds others.
    """
    planned = store.identity()[name]
    if digest != planned:
        raise CheckpointError(
            f"{place} holds {name} {digest}, {store.url} was made with {planned}: put those weights back, or name "
            "another output"
        )
