"""Inversions in single latent spaces, as SAM's predictor learns from them: found in an archive, and kept as pictures.

They are rendered once, before the first step, into a folder for each space, as the published program reads them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from lsap_archive import DUPLICATE, OK, Archive, ArchiveKeyError, ArchiveMismatchError, RunInfo, StoreUnavailableError
from lsap_core.errors import ConfigError
from lsap_core.generators.generator import Generator
from lsap_core.images import to_uint8
from lsap_core.presets import refinement_settings_of
from lsap_core.refinement.sam import SamSettings
from lsap_core.refinement.sam_spaces import W_PLUS, Placement
from tasks.archived.refiners import refiner_of
from tasks.archived.rendering import Renderer, Stored
from tasks.archived.runs import runs_by_method
from tasks.errors import BadImageError, SourceError
from tasks.pictures.saved import png_file
from tasks.sources.items import SourceItem
from tasks.sources.source import Source, digest_bytes
from tasks.training.data import EncoderView
from tasks.training.store import TrainingStore

NOT_INVERTED = "not_inverted"


class SpaceInversions:
    """The runs of an archive that hold inversions in each latent space.

    Attributes:
        archive: as it is published now.
        digests: of the methods, by space.
    """

    def __init__(self, archive: Archive, names: Mapping[str, str]):
        """The newest runs of these names.

        Args:
            archive: where they are.
            names: by space, of the method or refinement.

        Raises:
            ArchiveKeyError: a space has no run there.
        """
        self.archive = archive
        try:
            runs = runs_by_method(archive, list(dict.fromkeys(names.values())), with_edits=False)
        except ArchiveKeyError as error:
            raise ArchiveKeyError(
                f"{error}; wanted inversions in each latent space alone: refine with spaces: [F4] and so on, or say "
                "where they are, inversions.F4=..."
            ) from error
        self._newest = {space: runs[name][-1] for space, name in names.items()}
        self.digests = {space: run.method_digest for space, run in self._newest.items()}

    def check(self, generator_digest: str, placement: Placement) -> None:
        """Make sure that they are what a predictor can learn from.

        Raises:
            ArchiveMismatchError: they are of another generator.
            ConfigError: a run is none of inversions in its space alone, or cannot be rendered.
        """
        if self.archive.generator["digest"] != generator_digest:
            raise ArchiveMismatchError(
                f"{self.archive.url} holds images of generator {self.archive.generator['digest']}, the predictor is "
                f"trained for {generator_digest}: name that generator, or an archive of this one"
            )
        for space, run in self._newest.items():
            _check_run(space, run, placement)

    def images(self, space: str) -> dict[str, str]:
        """SHA-256 of the file of every image that is inverted in a space, by id."""
        run_ids = {run.run_id for run in self.archive.runs if run.method_digest == self.digests[space]}
        newest = {  # of several rows of an image the last
            image_id: digest if status in (OK, DUPLICATE) else None
            for run_id, image_id, digest, status in zip(*self._columns, strict=True)
            if run_id in run_ids
        }
        return {image_id: digest for image_id, digest in newest.items() if digest is not None}

    @cached_property
    def _columns(self) -> list[list[str]]:
        rows = self.archive.rows(["run_id", "image_id", "digest", "status"], history=True)
        return [column.to_pylist() for column in rows.columns]


def _check_run(space: str, run: RunInfo, placement: Placement) -> None:
    about = refiner_of(run.config)
    if about is None and space == W_PLUS:
        return
    settings = None if about is None else refinement_settings_of(about.settings)
    if about is None or not isinstance(settings, SamSettings) or settings.only != space:
        raise ConfigError(
            f"inversions.{space}: {run.method} is none in {space} alone; wanted a refinement by SAM with spaces: "
            f"[{space}]{', or an inversion' if space == W_PLUS else ''}"
        )
    if space != W_PLUS and settings.placement != placement:
        raise ConfigError(
            f'inversions.{space}: {run.method} has placement "{settings.placement}", the predictor is for '
            f'"{placement}": refine with that placement, or give sam the other one in the domain'
        )
    if about.keep != "state":
        raise ConfigError(
            f"inversions.{space}: {run.method} kept no state (keep: {about.keep}), so its images cannot be made again: "
            "refine once more with keep: state"
        )


def keep_inversions(
    found: SpaceInversions, generator: Generator, store: TrainingStore, view: EncoderView, *, batch_size: int
) -> None:
    """Render the inversions of listed images that a training's folder has not yet, and keep them there.

    Args:
        found: inversions in each space.
        generator: of their archive, frozen, on any device.
        store: the folder.
        view: of what size they are kept.
        batch_size: images rendered together.
    """
    renderer = Renderer(generator)
    listed = [image_id for name in ("train", "validation") for image_id in store.listing(name)["image_id"].to_pylist()]
    for space, method_digest in found.digests.items():
        digests, there = found.images(space), store.inverted(space)
        left = [image_id for image_id in listed if image_id in digests and digests[image_id] not in there]
        for start in range(0, len(left), batch_size):
            together = left[start : start + batch_size]
            images = Stored.of_images(renderer, found.archive, together, method_digest).show()
            for image_id, pixels in zip(together, to_uint8(images), strict=True):
                store.put_inversion(space, digests[image_id], png_file(view.decode(png_file(pixels))))


@dataclass(frozen=True)
class InvertedView:
    """An image and its inversions in every space, one after the other along the channels.

    Attributes:
        image: what is read of the image itself.
        output: URL of the training's folder, where its inversions are.
        spaces: latent spaces.
    """

    image: EncoderView
    output: str
    spaces: tuple[str, ...]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.image.size

    @property
    def channels(self) -> int:
        """Of the image and its inversions together."""
        return self.image.channels * (1 + len(self.spaces))

    def read(self, source: Source, item: SourceItem) -> np.ndarray:
        """Pixels uint8 [h, w, channels]; as `View`.

        Raises:
            BadImageError: the image cannot be used, or is none of those that were inverted.
            SourceError: the storage does not answer.
        """
        data = source.read(item)
        pictures = [self.image.decode(data)]
        for space in self.spaces:
            png = self._kept(space, digest_bytes(data))
            if png is None:
                raise BadImageError(
                    NOT_INVERTED, f"{item.image_id} as it is now has no inversion in {space}: invert and refine it"
                )
            pictures.append(self.image.decode(png))
        return np.concatenate(pictures, axis=2)

    def _kept(self, space: str, digest: str) -> bytes | None:
        try:
            return self._store.inversion(space, digest)
        except StoreUnavailableError as error:
            raise SourceError(str(error), is_transient=error.is_transient) from error

    @cached_property
    def _store(self) -> TrainingStore:
        return TrainingStore(self.output)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_store"}  # opened where it is read
