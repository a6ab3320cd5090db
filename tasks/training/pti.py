"""One generator tuned to a group of images: which images, their pivots, and how the weights become a file.

Pivots are codes of any embedding, with the noise that belongs to them, as an archive has them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import safetensors.torch
import torch

from lsap_archive import FAILED, Archive, ArchiveKeyError, ArchiveMismatchError, RunInfo, open_archive
from lsap_core.generators.generator import Generator
from lsap_core.presets import RefinerTraining, recorded
from lsap_core.refinement import Embedded
from lsap_core.refinement.network_files import NetworkCheckpoint
from lsap_core.refinement.pti_checkpoint import SHARED_WEIGHTS, Group, options_of
from lsap_core.refinement.pti_shared import SharedWeights
from lsap_core.refinement.refined_by_pti import num_parameters
from lsap_core.training.pti_settings import PtiTrainingSettings
from lsap_core.training.pti_step import PtiTraining
from tasks.archived.originals import CHANGED, fit_of
from tasks.archived.rendering import Renderer, Stored
from tasks.archived.runs import inversions_by_method
from tasks.errors import BadImageError, SourceError
from tasks.sources.source import digest_bytes
from tasks.training.data import EncoderView
from tasks.training.spec import FirstNetworks, Opened, TrainingSpec, load_planned_generator
from tasks.training.store import TrainingStore
from tasks.weights.devices import FLOAT_BYTES, bytes_of_image, check_room, place
from tasks.weights.generators import LoadedGenerator
from tasks.weights.networks import load_networks

KEPT_BYTES = 2**28
"""Of pivots and noise that are in memory between steps; those of a larger group are read whenever they are needed."""
ADAM_TENSORS = 4
"""Weights, gradient and two averages."""


@dataclass(frozen=True, kw_only=True)
class PtiTrainingSpec(TrainingSpec):
    """How one generator is tuned to the images of a source.

    Attributes:
        method: how to tune.
        archive: URL of the archive that has their inversions.
        subject: which inversions, by the name of their method; the newest of its configurations counts.
    """

    method: RefinerTraining[PtiTrainingSettings]
    archive: str
    subject: str
    what = "networks"
    is_for_its_images = True

    @property
    def settings(self) -> PtiTrainingSettings:
        """How to tune."""
        return self.method.settings

    @property
    def last_key(self) -> str:
        """Named after the refiner."""
        return f"{self.method.name}.safetensors"

    def choose(self, listing: pa.Table, loaded: LoadedGenerator) -> tuple[pa.Table, tuple[str, ...]]:
        """The images that have a code; those that could not be inverted are left out and told.

        Raises:
            ArchiveNotFoundError, ArchiveKeyError: there is no such archive, or it has no such inversions.
            ArchiveMismatchError: it is the archive of another generator.
            SourceError: images were never inverted, or none of them with success.
        """
        archive = open_archive(self.archive)
        if (of_archive := archive.generator["digest"]) != loaded.digest:
            raise ArchiveMismatchError(
                f"{self.archive} holds codes of generator {of_archive}, and {self.generator.place} holds "
                f"{loaded.digest}: name that archive's generator, or another archive"
            )
        rows = _rows_of(archive, _inversions(archive, self.subject), "image_id", "status")
        status = dict(zip(rows["image_id"].to_pylist(), rows["status"].to_pylist(), strict=True))  # the newest counts
        found = [status.get(image_id) for image_id in listing["image_id"].to_pylist()]
        if (missing := found.count(None)) > 0:
            raise SourceError(
                f"{self.archive} has no {self.subject} of {missing} of the {len(found)} images of {self.source}, such "
                f"as {listing['image_id'][found.index(None)]}: invert them (lsap run invert), or name a source without "
                "them"
            )
        if (failed := found.count(FAILED)) == len(found):
            raise SourceError(f"no image of {self.source} could be inverted: the rows of {self.archive} say why")
        chosen = listing.filter(pa.array([one != FAILED for one in found]))
        return chosen, (f"left out: {failed} images of {self.source} that could not be inverted",) if failed else ()

    def first(self, loaded: LoadedGenerator) -> FirstNetworks:
        """Weights that have not moved, and which inversions they are tuned to."""
        archive = open_archive(self.archive)
        runs = _inversions(archive, self.subject)
        return FirstNetworks(
            view=_view(self, loaded, archive, runs),
            num_parameters=num_parameters(loaded.config),
            identity={"subject": runs[-1].method_digest},
        )

    def keep_parts(self, loaded: LoadedGenerator, store: TrainingStore) -> None:
        """There is nothing to compute once."""

    def open(self, store: TrainingStore, device: torch.device) -> Opened:
        """Weights, losses and optimizer as they are before the first step.

        Raises:
            CheckpointError, MissingWeightsError: a file of weights is missing, of the wrong kind, or another one than
                when the run was prepared.
            ArchiveNotFoundError, ArchiveKeyError: the inversions are not there any more.
        """
        loaded = load_planned_generator(self, store)
        archive, digest = open_archive(self.archive), store.identity()["subject"]
        runs = tuple(run for run in archive.runs if run.method_digest == digest)
        if not runs:
            raise ArchiveKeyError(
                f"{self.archive} has no {self.subject} {digest} any more, which {store.url} is tuned to: bring it "
                "back, or name another output"
            )
        generator = place(loaded.generator, device).freeze()
        pivots = _Pivots(Renderer(generator), archive, digest)
        image_ids = tuple(store.listing("train")["image_id"].to_pylist())
        view = _view(self, loaded, archive, runs)
        return _opened(self, loaded, generator, view, Group(self.subject, digest, image_ids), pivots.of_images)

    def probe(self, device: torch.device) -> Opened:
        """The training before its first step, on codes of zeros: every step costs the same."""
        loaded = self.generator.load()
        generator, config = place(loaded.generator, device).freeze(), loaded.config
        archive = open_archive(self.archive)
        runs = _inversions(archive, self.subject)

        def no_pivots(image_ids: Sequence[str]) -> Embedded:
            return Embedded(torch.zeros(len(image_ids), config.num_ws, config.w_dim, device=device))

        group = Group(self.subject, runs[-1].method_digest, ())
        return _opened(self, loaded, generator, _view(self, loaded, archive, runs), group, no_pivots)

    def check_memory(self, device: str) -> None:
        """A batch, or weights with their optimizer, that no memory can hold.

        Raises:
            ConfigError: it is that large.
            CheckpointError: the generator's file cannot be read.
        """
        config = self.generator.load().config
        check_room("training.batch_size", self.settings.batch_size, bytes_of_image(config, goes_back=True), device)
        check_room("tensors of all weights", ADAM_TENSORS, FLOAT_BYTES * num_parameters(config), device)


@dataclass(frozen=True, kw_only=True)
class UnchangedView(EncoderView):
    """Images as they were inverted: one whose file has changed since is no image of its pivot.

    Attributes:
        digests: of the files that were inverted.
    """

    digests: frozenset[str]

    def decode(self, data: bytes) -> np.ndarray:
        """Pixels uint8 [h, w, C] of a file.

        Raises:
            BadImageError: it is another file than was inverted; else as `decode_image`.
        """
        if digest_bytes(data) not in self.digests:
            raise BadImageError(CHANGED, "it is not the image that was inverted: invert it again")
        return super().decode(data)


class _Pivots:
    """Pivots of images, and the noise that belongs to them, as an archive has them."""

    def __init__(self, renderer: Renderer, archive: Archive, method_digest: str):
        self._renderer = renderer
        self._archive = archive
        self._method_digest = method_digest
        self._kept: dict[str, Stored] = {}
        config = renderer.generator.config
        numbers = config.num_ws * config.w_dim + sum(map(math.prod, config.noise_sizes))
        self._most_kept = KEPT_BYTES // (FLOAT_BYTES * numbers)

    def of_images(self, image_ids: Sequence[str]) -> Embedded:
        """Those of some images, on the generator's device.

        Raises:
            ArchiveKeyError, CorruptArchiveError: they are not there any more, or damaged.
        """
        found = {image_id: self._kept[image_id] for image_id in image_ids if image_id in self._kept}
        if new := [image_id for image_id in dict.fromkeys(image_ids) if image_id not in found]:
            stored = Stored.of_images(self._renderer, self._archive, new, self._method_digest)
            found |= dict(zip(new, stored.one_by_one(), strict=True))
            room = max(0, self._most_kept - len(self._kept))
            self._kept |= {image_id: found[image_id] for image_id in new[:room]}
        each = [found[image_id] for image_id in image_ids]
        noise = each[0].noise
        if not isinstance(noise, str):
            noise = [torch.cat(maps) for maps in zip(*(one.noise for one in each), strict=True)]
        return Embedded(torch.cat([one.codes for one in each]), noise)


def _inversions(archive: Archive, subject: str) -> tuple[RunInfo, ...]:
    return inversions_by_method(archive, (subject,))[subject]


def _view(spec: PtiTrainingSpec, loaded: LoadedGenerator, archive: Archive, runs: tuple[RunInfo, ...]) -> UnchangedView:
    """Images at the generator's full size, fitted as they were when they were inverted."""
    rows = _rows_of(archive, runs, "digest")
    fit = fit_of(runs[-1].config, spec.fit)
    digests = frozenset(rows["digest"].to_pylist())
    return UnchangedView(loaded.config.content_size, loaded.config.image_channels, fit, digests=digests)


def _rows_of(archive: Archive, runs: tuple[RunInfo, ...], *columns: str) -> pa.Table:
    """Columns of the rows of some runs, the oldest run first."""
    rows = archive.rows(["run_id", *columns], history=True)
    return rows.filter(pc.is_in(rows["run_id"], pa.array([run.run_id for run in runs])))


def _opened(
    spec: PtiTrainingSpec,
    loaded: LoadedGenerator,
    generator: Generator,
    view: UnchangedView,
    group: Group,
    pivots: Callable[[Sequence[str]], Embedded],
) -> Opened:
    device = generator.mapping.w_avg.device
    training = PtiTraining(
        SharedWeights(loaded.config).to(device),
        generator,
        load_networks(spec.networks, device).perceptual,
        spec.settings,
        seed=spec.seed,
    )
    return Opened(
        training,
        view,
        columns=lambda step: {"learning_rate": spec.settings.learning_rate_at(step)},
        file=lambda: _weights_file(spec, training, group, loaded.digest),
        pairs=lambda images, embedded: (images, training.reconstruct(images, embedded)),
        beside=lambda ids: (pivots(ids),),
    )


def _weights_file(spec: PtiTrainingSpec, training: PtiTraining, group: Group, generator_digest: str) -> bytes:
    """The .safetensors file of the weights as they are now, in the type that they are kept in."""
    options: dict[str, Any] = {
        "method": spec.method.name,
        "step": training.step,
        "seed": spec.seed,
        "settings": recorded(spec.method.settings),
        "source": spec.source,
    }
    kept = training.kept()
    config = training.weights.config
    checkpoint = NetworkCheckpoint(
        config,
        SHARED_WEIGHTS.canonical(config, kept, what=SHARED_WEIGHTS.what),
        layout="safetensors",
        options=options_of(group, options),
        generator_digest=generator_digest,
        title=f"{spec.method.title} of {len(group.image_ids)} images",
    )
    return safetensors.torch.save(kept, SHARED_WEIGHTS.metadata(checkpoint))
