"""Images of what an archive holds: codes and noise in, pictures out."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Annotated, Any, cast

import torch
from pydantic import Field
from torch import Tensor

from lsap_archive import OK, Archive, RunReader, typed
from lsap_core.editing import Edit, add_shifts, style_shift
from lsap_core.errors import ConfigError
from lsap_core.generators.generator import Generator, Noise, StyleShift
from lsap_core.images import crop
from lsap_core.inversion.kept_noise import KeepNoise
from lsap_core.refinement import Embedded, Refined, Refiner
from tasks.archived.refiners import RefinerOfRun, build_refiner, refiner_of

W_PLUS = "w_plus"


class Renderer:
    """Makes images of what an archive holds: a generator, and the refiners that its refinements were made by.

    Attributes:
        generator: of the archive, frozen, on any device.
    """

    def __init__(self, generator: Generator, refiners: Mapping[str, str] | None = None):
        """For images of this generator.

        Args:
            generator: of the archive.
            refiners: paths or URLs of the networks of refiners, by name.
        """
        self.generator = generator
        self._files = dict(refiners or {})
        self._refiners: dict[str, Refiner[Any]] = {}  # the one that was needed last: their networks may be large

    def refiner(self, about: RefinerOfRun) -> Refiner[Any]:
        """The refiner of a refinement, to restore what it found.

        Raises:
            ConfigError: it is not known where its networks lie, or they are others.
            CheckpointError: they are no networks of this generator.
        """
        key = about.key
        if key not in self._refiners:
            self._refiners = {key: build_refiner(about, self.generator, self._files)}
        return self._refiners[key]


@dataclass(frozen=True)
class Stored:
    """Images as an archive keeps them: their codes, and whatever else of theirs is needed to make them again.

    Attributes:
        generator: on any device.
        codes: W+ codes [N, K, D], on its device.
        noise: the maps of the inversion, each [N, 1, r, r], there too; or "constant": the generator's.
        refiner: of refined images and their edits; None of others.
        kept: what the refinement keeps of them, its codes among it, by the names of its arrays, each [N, ...].
        style_shift: what an edit in S adds to their styles; nothing of all others.
    """

    generator: Generator
    codes: Tensor
    noise: Noise
    refiner: Refiner[Any] | None = None
    kept: Mapping[str, Tensor] = field(default_factory=dict)
    style_shift: StyleShift = field(default_factory=dict)

    @classmethod
    def of_arrays(
        cls,
        renderer: Renderer,
        codes: Tensor,
        maps: Sequence[Tensor] | None,
        about: RefinerOfRun | None = None,
        kept: Mapping[str, Tensor] | None = None,
        style_shift: StyleShift | None = None,
    ) -> Stored:
        """What the arrays of an archive hold of N images.

        Args:
            renderer: of the archive.
            codes: [N, K, D].
            maps: of noise, each [N, r, r], or None where none are kept.
            about: by which refiner they are refined, or None.
            kept: what the refinement keeps of them.
            style_shift: what an edit in S adds to their styles.
        """
        device = renderer.generator.mapping.w_avg.device
        noise: Noise = "constant" if maps is None else [one[:, None].to(device) for one in maps]
        refiner = None if about is None else renderer.refiner(about)
        on_device = {name: values.to(device) for name, values in (kept or {}).items()}
        shift = {at: added.to(device) for at, added in (style_shift or {}).items()}
        return cls(renderer.generator, codes.to(device), noise, refiner, on_device if refiner else {}, shift)

    @classmethod
    def of_images(cls, renderer: Renderer, archive: Archive, image_ids: Sequence[str], method: str) -> Stored:
        """Published images by id, as a method, a refinement or an edit left them; the noise is that of the inversion.

        Args:
            renderer: of the archive.
            archive: where they are.
            image_ids: N ids, in any order.
            method: name or digest of the method, the refinement or the edit.

        Raises:
            ArchiveKeyError: the archive has not all of them.
            ConfigError: their refinement kept no state.
        """
        codes = torch.from_numpy(archive.codes(image_ids, method))
        runs = [run for run in archive.runs if method in (run.method, run.method_digest)]
        maps = _maps_of(renderer.generator, archive, image_ids, method)
        shift = shift_of(runs[-1].config)
        if (about := refiner_of(runs[-1].config)) is None:
            return cls.of_arrays(renderer, codes, maps, style_shift=shift)
        kept = archive.refined(image_ids, method)
        return cls.of_arrays(
            renderer, codes, maps, about, {name: torch.from_numpy(values) for name, values in kept.items()}, shift
        )

    def one_by_one(self) -> Iterator[Stored]:
        """Each image for itself, so that the largest generator fits."""
        for at in range(len(self.codes)):
            noise = self.noise if isinstance(self.noise, str) else [maps[at : at + 1] for maps in self.noise]
            kept = {name: values[at : at + 1] for name, values in self.kept.items()}
            yield Stored(self.generator, self.codes[at : at + 1], noise, self.refiner, kept, self.style_shift)

    @torch.no_grad()
    def render(self, codes: Tensor | None = None, style_shift: StyleShift | None = None) -> Tensor:
        """Images [N, C, R, R], unclamped.

        Args:
            codes: in the place of their own, [N, K, D], such as edited ones; on any device.
            style_shift: what an edit in S adds to their styles, besides what was added before; on any device.
        """
        chosen = self.codes if codes is None else codes.to(self.codes.device)
        given = {at: added.to(self.codes.device) for at, added in (style_shift or {}).items()}
        shift = add_shifts(self.style_shift, given)
        if self._refined is not None:
            return self._refined.synthesize(chosen, shift)
        return self.generator.synthesize(chosen, noise=self.noise, style_shift=shift)

    def of(self, index: int) -> Stored:
        """One of the images alone."""
        one = slice(index, index + 1)
        noise: Noise = self.noise if isinstance(self.noise, str) else [maps[one] for maps in self.noise]
        kept = {name: values[one] for name, values in self.kept.items()}
        return replace(self, codes=self.codes[one], noise=noise, kept=kept)

    def show(self, codes: Tensor | None = None, style_shift: StyleShift | None = None) -> Tensor:
        """What the images show, [N, C, h, w]: as `render`, without what lies around the content box."""
        return crop(self.render(codes, style_shift), self.generator.config.content_box)

    def edited(self, edit: Edit) -> Tensor:
        """What the edited images show, [N, C, h, w], whichever spaces the edit is in."""
        return self.show(edit(self.codes), style_shift(edit, self.codes))

    @cached_property
    def _refined(self) -> Refined | None:
        if self.refiner is None:
            return None
        arrays = {name: values for name, values in self.kept.items() if name != W_PLUS}
        return self.refiner.restore(Embedded(self.kept[W_PLUS], self.noise), arrays)


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

    def batches(self, size: int, *, without: Collection[int] = ()) -> list[list[int]]:
        """Places of the good rows, so many at a time: always the same, so that images are too.

        Args:
            size: of a batch.
            without: places that are done.
        """
        good = [place for place in self.good if place not in without]
        return [good[start : start + size] for start in range(0, len(good), size)]

    def stored(self, renderer: Renderer, places: Sequence[int]) -> Stored:
        """The images of some rows.

        Of all but codes only what lies between the first and the last of them is read: that of a whole shard fills a
        memory.

        Raises:
            ConfigError: their refinement kept no state.
        """
        first, last = min(places), max(places)
        part = range(self.rows[first], self.rows[last] + 1)
        chosen = [at - first for at in places]
        maps = self.reader.noise(part)
        noise = None if maps is None else [torch.from_numpy(one)[chosen] for one in maps]
        codes = self.codes[list(places)]
        shift = shift_of(self.reader.manifest.config)
        if (about := refiner_of(self.reader.manifest.config)) is None:
            return Stored.of_arrays(renderer, codes, noise, style_shift=shift)
        kept = self.reader.refined(part) or {}
        arrays = {name: torch.from_numpy(values)[chosen] for name, values in kept.items()}
        return Stored.of_arrays(renderer, codes, noise, about, arrays, shift)


@dataclass(frozen=True)
class Preview:
    """PNG files of one image for a contact sheet, at most 256 pixels wide."""

    original: bytes
    reconstruction: bytes
    difference: bytes


def _maps_of(generator: Generator, archive: Archive, image_ids: Sequence[str], method: str) -> list[Tensor] | None:
    """Noise maps [N, r, r] of images, the generator's for those that have none of their own; None where none has."""
    has_own = archive.has_noise(image_ids, method)
    if not any(has_own):
        return None
    if all(has_own):
        return [torch.from_numpy(one) for one in archive.noise(image_ids, method)]
    kept = archive.noise([one for one, has in zip(image_ids, has_own, strict=True) if has], method)
    constant = (cast(Tensor, one) for one in generator.noise_maps("constant"))
    maps = [one.detach().cpu().repeat(len(image_ids), 1, 1) for one in constant]
    for together, own in zip(maps, kept, strict=True):
        together[torch.tensor(has_own)] = torch.from_numpy(own)
    return maps


FULL_NOISE, CONSTANT_NOISE = "float32", "constant"
"""The noise of runs whose configuration does not tell of it, and that of images without maps of their own."""


STYLE_SHIFT = "style_shift"
"""What the configuration of an edit in S says that it adds to styles: see `told_shift`."""


WIDEST_STYLE, MOST_STYLES = 2**16, 2**8  # far beyond any generator; who may write an archive may write any number


@dataclass(frozen=True)
class _ShiftedStyle:
    """What is added to one layer's style vector; what has been written by others is read as this.

    Attributes:
        channels: that change, from 0.
        values: what is added to each.
        width: of the vector.
    """

    channels: Annotated[list[Annotated[int, Field(strict=True, ge=0)]], Field(max_length=WIDEST_STYLE)]
    values: Annotated[list[Annotated[float, Field(allow_inf_nan=False)]], Field(max_length=WIDEST_STYLE)]
    width: Annotated[int, Field(strict=True, ge=1, le=WIDEST_STYLE)]

    def __post_init__(self) -> None:
        if len(self.channels) != len(self.values) or max(self.channels, default=0) >= self.width:
            raise ValueError("channels, values and width do not go together")

    def vector(self) -> Tensor:
        """What is added, [1, width]."""
        added = torch.zeros(1, self.width)
        added[0, self.channels] = torch.tensor(self.values)
        return added


_ShiftedStyles = Annotated[
    dict[Annotated[int, Field(ge=0, lt=MOST_STYLES)], _ShiftedStyle], Field(max_length=MOST_STYLES)
]


def told_shift(shift: StyleShift) -> dict[str, Any]:
    """A shift of styles in values that JSON has: of each layer the channels that change, and by how much.

    Args:
        shift: one for all images, each [1, width].
    """
    told: dict[str, Any] = {}
    for at, added in sorted(shift.items()):
        if channels := added[0].nonzero()[:, 0].tolist():
            told[str(at)] = {"channels": channels, "values": added[0][channels].tolist(), "width": added.shape[1]}
    return told


def shift_of(config: Mapping[str, Any]) -> dict[int, Tensor]:
    """What an edit in S adds to the styles of its images, by layer, [1, width]; empty for any other run.

    Raises:
        CorruptArchiveError: the configuration makes no sense.
    """
    found: dict[int, _ShiftedStyle] = typed(_ShiftedStyles, config.get(STYLE_SHIFT, {}), "the style shift of an edit")
    return {at: one.vector() for at, one in found.items()}


def noise_of(config: Mapping[str, Any]) -> str:
    """What the images of a run are rendered with: maps of their own, "float32" or "float16", or "constant" ones."""
    return str(config.get("noise", FULL_NOISE))


def kept_noise_of(config: Mapping[str, Any]) -> KeepNoise:
    """What a run keeps of the noise maps that its method gives.

    Raises:
        ConfigError: of a kind that this package does not have.
    """
    noise = noise_of(config)
    kept: dict[str, KeepNoise] = {FULL_NOISE: "float32", "float16": "float16", CONSTANT_NOISE: "none"}
    if noise not in kept:
        raise ConfigError(
            f'a run has noise "{noise}"; this package knows {", ".join(kept)}: take the one that wrote it'
        )
    return kept[noise]


def has_noise_maps(config: Mapping[str, Any]) -> bool:
    """Whether images have noise maps of their own, rather than the generator's constant ones."""
    return noise_of(config) != CONSTANT_NOISE
