"""The runs of an archive that a further run works on, and their codes and images shard by shard."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from lsap_archive import Archive, ArchiveKeyError, RunInfo, RunReader
from lsap_archive.format.rows import OK
from lsap_core.generators.generator import Generator


def runs_by_method(
    archive: Archive, names: Sequence[str], *, with_edits: bool, versions: Mapping[str, str] | None = None
) -> dict[str, tuple[RunInfo, ...]]:
    """The runs of each method, the oldest first: of several configurations with one name the newest counts.

    Args:
        archive: as it is published now.
        names: of methods; empty for all.
        with_edits: whether edits are methods too, such as "lsap_e/slant".
        versions: by name, digest of the configuration that counts instead of the newest.

    Raises:
        ArchiveKeyError: the archive has no such method or configuration, or none at all.
    """
    known = [*archive.methods, *(archive.edits if with_edits else ())]
    if not known:
        raise ArchiveKeyError(f"{archive.url} has no published inversion: run `lsap run invert` first")
    chosen = {}
    for name in names or known:
        if name not in known:
            raise ArchiveKeyError(f"{archive.url} has no method {name}: it has {', '.join(known)}")
        runs = [run for run in archive.runs if run.method == name]
        newest = max(runs, key=lambda run: run.order).method_digest
        wanted = (versions or {}).get(name, newest)
        chosen[name] = tuple(run for run in runs if run.method_digest == wanted)
        if not chosen[name]:
            digests = ", ".join(sorted({run.method_digest for run in runs}))
            raise ArchiveKeyError(f"{archive.url} has no version {wanted} of method {name}: it has {digests}")
    return chosen


def title_of(run: RunInfo) -> str:
    """What a method is called for people."""
    return str(run.config.get("title", run.method))


def id_part(method: str) -> str:
    """A method's name as a part of an id, such as "lsap_e.slant" for "lsap_e/slant"."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", method.replace("/", "."))


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
