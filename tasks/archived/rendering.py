"""Images of what an archive holds: codes and noise in, pictures out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from lsap_core.editing import Edit
from lsap_core.generators.generator import Generator, Noise
from lsap_core.images import crop


@dataclass(frozen=True)
class RunPart:
    """Consecutive rows of a run, with their codes and noise.

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

    def noise(self, places: Sequence[int]) -> list[Tensor] | None:
        """The inversion's noise maps of rows, each [N, 1, r, r]; None where the generator's constant ones belong to it.

        Only what lies between the first and the last of the rows is read: the maps of a whole shard fill a memory.
        """
        first, last = min(places), max(places)
        maps = self.reader.noise(range(self.rows[first], self.rows[last] + 1))
        if maps is None:
            return None
        chosen = [at - first for at in places]
        return [torch.from_numpy(one)[chosen][:, None] for one in maps]

    def batches(self, size: int) -> list[list[int]]:
        """Places of the good rows, so many at a time: always the same, so that images are too."""
        good = self.good
        return [good[start : start + size] for start in range(0, len(good), size)]

    @torch.no_grad()
    def render(self, generator: Generator, places: Sequence[int], codes: Tensor | None = None) -> Tensor:
        """Images [N, C, R, R] of rows, unclamped, with the noise of their inversion.

        Args:
            generator: on any device.
            places: of the rows.
            codes: in the place of the rows' own, [N, K, D].
        """
        device = generator.mapping.w_avg.device
        chosen = self.codes[list(places)] if codes is None else codes
        noise = self.noise(places)
        if noise is None:
            return generator.synthesize(chosen.to(device))
        return generator.synthesize(chosen.to(device), noise=[maps.to(device) for maps in noise])


@dataclass(frozen=True)
class Preview:
    """PNG files of one image for a contact sheet, at most 256 pixels wide."""

    original: bytes
    reconstruction: bytes
    difference: bytes


def has_noise_maps(config: Mapping[str, Any]) -> bool:
    """Whether images have noise maps of their own, rather than the generator's constant ones."""
    return config.get("noise") != "constant"


def inversion_noise(archive: Archive, image_ids: Sequence[str], method: str, device: torch.device) -> Noise:
    """The noise of published inversions: their own maps, or "constant" where their method keeps none."""
    if not all(has_noise_maps(run.config) for run in archive.runs if method in (run.method, run.method_digest)):
        return "constant"
    return [torch.from_numpy(maps)[:, None].to(device) for maps in archive.noise(image_ids, method)]


@torch.no_grad()
def edited_images(generator: Generator, codes: Tensor, noise: Noise, edits: Sequence[Edit]) -> list[Tensor]:
    """The inversions, then one batch of images for each edit, all with the same noise; content boxes only.

    Args:
        generator: makes the images.
        codes: W+ codes [N, K, D].
        noise: of the inversions.
        edits: each applied to the unedited codes.

    Returns:
        1 + len(edits) batches [N, C, h, w], unclamped.
    """
    box = generator.config.content_box
    return [crop(generator.synthesize(one, noise=noise), box) for one in (codes, *(edit(codes) for edit in edits))]
