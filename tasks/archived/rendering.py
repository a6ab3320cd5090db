"""Images of what an archive holds: codes and noise in, pictures out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from lsap_archive import (
    OK,
    Archive,
    RunReader,
)
from lsap_core.generators.generator import Generator, Noise
from lsap_core.images import crop


@dataclass(frozen=True)
class Stored:
    """Images as an archive keeps them: their codes, and whatever else of theirs the generator needs to make them again.

    Attributes:
        generator: on any device.
        codes: W+ codes [N, K, D], on its device.
        noise: the maps of the inversion, each [N, 1, r, r], there too; or "constant": the generator's.
    """

    generator: Generator
    codes: Tensor
    noise: Noise

    @classmethod
    def of_arrays(cls, generator: Generator, codes: Tensor, maps: Sequence[Tensor] | None) -> Stored:
        """What the arrays of an archive hold of N images.

        Args:
            generator: of the archive.
            codes: [N, K, D].
            maps: of noise, each [N, r, r], or None where none are kept.
        """
        device = generator.mapping.w_avg.device
        noise: Noise = "constant" if maps is None else [one[:, None].to(device) for one in maps]
        return cls(generator, codes.to(device), noise)

    @classmethod
    def of_images(cls, generator: Generator, archive: Archive, image_ids: Sequence[str], method: str) -> Stored:
        """Published images by id, as a method or an edit left them; an edit has the noise of its inversion.

        Args:
            generator: of the archive.
            archive: where they are.
            image_ids: N ids, in any order.
            method: name or digest of the method or the edit.

        Raises:
            ArchiveKeyError: the archive has not all of them.
        """
        codes = torch.from_numpy(archive.codes(image_ids, method))
        runs = [run for run in archive.runs if method in (run.method, run.method_digest)]
        if not all(has_noise_maps(run.config) for run in runs):
            return cls.of_arrays(generator, codes, None)
        return cls.of_arrays(generator, codes, [torch.from_numpy(maps) for maps in archive.noise(image_ids, method)])

    def one_by_one(self) -> Iterator[Stored]:
        """Each image for itself, so that the largest generator fits."""
        for at in range(len(self.codes)):
            noise = self.noise if isinstance(self.noise, str) else [maps[at : at + 1] for maps in self.noise]
            yield Stored(self.generator, self.codes[at : at + 1], noise)

    @torch.no_grad()
    def render(self, codes: Tensor | None = None) -> Tensor:
        """Images [N, C, R, R], unclamped.

        Args:
            codes: in the place of their own, [N, K, D], such as edited ones; on any device.
        """
        chosen = self.codes if codes is None else codes.to(self.codes.device)
        return self.generator.synthesize(chosen, noise=self.noise)

    def show(self, codes: Tensor | None = None) -> Tensor:
        """What the images show, [N, C, h, w]: as `render`, without what lies around the content box."""
        return crop(self.render(codes), self.generator.config.content_box)


@dataclass(frozen=True)
class RunPart:
    """Consecutive rows of a run, with their codes.

    Attributes:
        reader: the run.
        rows: which.
    """

    reader: RunReader
    rows: range

    @cached_property
    def records(self) -> list[dict[str, Any]]:
        """The rows as the archive has them."""
        found: list[dict[str, Any]] = self.reader.rows(self.rows).to_pylist()
        return found

    @property
    def good(self) -> list[int]:
        """Places of the rows that have a code of their own, counted from 0."""
        return [place for place, record in enumerate(self.records) if record["status"] == OK]

    @cached_property
    def codes(self) -> Tensor:
        """W+ codes, [n, K, D]; NaN where a row is not ok."""
        return torch.from_numpy(self.reader.codes(self.rows))

    def batches(self, size: int) -> list[list[int]]:
        """Places of the good rows, so many at a time: always the same, so that images are too."""
        good = self.good
        return [good[start : start + size] for start in range(0, len(good), size)]

    def stored(self, generator: Generator, places: Sequence[int]) -> Stored:
        """The images of some rows.

        Of the noise only what lies between the first and the last of them is read: the maps of a whole shard fill a
        memory.
        """
        first, last = min(places), max(places)
        maps = self.reader.noise(range(self.rows[first], self.rows[last] + 1))
        chosen = [at - first for at in places]
        noise = None if maps is None else [torch.from_numpy(one)[chosen] for one in maps]
        return Stored.of_arrays(generator, self.codes[list(places)], noise)


@dataclass(frozen=True)
class Preview:
    """PNG files of one image for a contact sheet, at most 256 pixels wide."""

    original: bytes
    reconstruction: bytes
    difference: bytes


def has_noise_maps(config: Mapping[str, Any]) -> bool:
    """Whether images have noise maps of their own, rather than the generator's constant ones."""
    return config.get("noise") != "constant"
