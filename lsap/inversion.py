"""An inverted photo and edits of it: what a notebook shows, and what is written to files."""

from __future__ import annotations

import base64
import html
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from domains.domain import Domain
from lsap_core.editing import Edit, compose
from lsap_core.generators.config import GeneratorConfig
from lsap_core.images import to_uint8
from tasks.archived.rendering import Stored
from tasks.pictures.folders import write_whole
from tasks.pictures.sheets import as_picture, as_png, draw_sheet, draw_strips

if TYPE_CHECKING:
    from lsap.photos import Photo

STRENGTHS = (-2.0, -1.0, 1.0, 2.0)
SHOWN_MEASURES = {"mse": "MSE", "lpips": "LPIPS", "sncd": "SNCD", "identity_similarity": "identity"}


class OfModel(Protocol):
    """What an inversion asks the model that it was made by."""

    domain: Domain
    config: GeneratorConfig
    digest: str

    @property
    def directions(self) -> tuple[str, ...]:
        """Names of the directions that edits follow by default."""
        ...

    def build_edit(
        self, direction: str | Mapping[str, Any], strength: float | None, options: Mapping[str, Any]
    ) -> Edit:
        """An edit of the generator's codes."""
        ...


class _Shown(ABC):
    """A picture that shows itself in a notebook, and can be saved."""

    @property
    @abstractmethod
    def _images(self) -> Tensor:
        """What is shown, [1, C, h, w] in about [-1, 1]."""

    @property
    def pixels(self) -> NDArray[np.uint8]:
        """uint8 [h, w, C]."""
        pixels: NDArray[np.uint8] = to_uint8(self._images)[0]
        return pixels

    @property
    def image(self) -> Image.Image:
        """As Pillow has it."""
        return as_picture(self.pixels)

    def save(self, path: str | Path) -> Path:
        """Write the picture; the suffix decides the format, such as .png or .jpg."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        self.image.save(target)
        return target


class Inversion(_Shown):
    """A photo, and the codes that a method found for it.

    Attributes:
        photo: as it was inverted.
        method: name of the method, such as "lsap_o_w_plus", or with a refiner "lsap_e/hfgi".
        title: what the paper calls it.
        measures: what was measured of the reconstruction by name: mse and lpips (lower is closer), sncd (lower is
            better aligned), w_distance and, where the domain has networks for it, identity_similarity and lpips_judge.
        warnings: sentences about a photo that is unlike what the generator makes; none is the usual.
        seconds: that it took.
    """

    def __init__(
        self,
        model: OfModel,
        photo: Photo,
        stored: Stored,
        *,
        method: str,
        title: str,
        measures: Mapping[str, float],
        warnings: Sequence[str],
        seconds: float,
    ):
        self.photo, self.method, self.title = photo, method, title
        self.measures, self.warnings, self.seconds = dict(measures), tuple(warnings), seconds
        self._model, self._stored = model, stored

    @property
    def name(self) -> str:
        """Of the photo."""
        return self.photo.name

    @property
    def notes(self) -> tuple[str, ...]:
        """What was done to the photo beside decoding."""
        return self.photo.notes

    @property
    def original(self) -> Image.Image:
        """The photo as it was inverted."""
        return as_picture(to_uint8(self.photo.shown(self._model.config))[0])

    @property
    def codes(self) -> NDArray[np.float32]:
        """W+ code, [K, D]."""
        return self._stored.codes[0].cpu().numpy()

    @property
    def noise(self) -> tuple[NDArray[np.float32], ...]:
        """Its own noise maps, each [side, side]; none where the generator's belong to it."""
        return (
            () if isinstance(self._stored.noise, str) else tuple(one[0, 0].cpu().numpy() for one in self._stored.noise)
        )

    @cached_property
    def _images(self) -> Tensor:
        return self._stored.show().cpu()

    def edit(self, direction: str | Mapping[str, Any], strength: float | None = None, **options: Any) -> Edited:
        """The photo edited along a direction.

        Args:
            direction: one of the domain's by name, a file, one of many in it as FILE#NAME, or a whole edit as run files
                have it, such as {"sequence": [...]}.
            strength: how far; 0 gives the inversion bit for bit.
            options: as run files have them: layers, component, mode, any_generator.

        Raises:
            ConfigError: there is no such direction, or it has no such option.
            CheckpointError: its file does not fit the generator.
        """
        told = _EditOf.parse(self._model, direction, strength, options)
        return Edited(self, (told,))

    def strip(self, directions: Sequence[str] | None = None, strengths: Sequence[float] = STRENGTHS) -> Image.Image:
        """Original, inversion and edits side by side, a row for each direction.

        Args:
            directions: names or files; all of the domain by default.
            strengths: of the edits, from left to right.
        """
        chosen = self._model.directions if directions is None else tuple(directions)
        original = self.photo.shown(self._model.config)
        first = [to_uint8(original)[0], self.pixels]
        middle = sum(strength < 0 for strength in strengths)
        rows = []
        for direction in chosen:
            edits = [self.edit(direction, strength).pixels for strength in strengths]
            rows.append([first[0], *edits[:middle], first[1], *edits[middle:]])
        labels = [*(f"{strength:+g}" for strength in strengths)]
        labels.insert(middle, "inversion")
        names = [short_name(name).replace("_", " ") for name in chosen]
        if not rows:
            return draw_sheet([first], column_labels=["original", "inversion"], largest=512)
        return draw_sheet(rows, column_labels=["original", *labels], row_labels=names, largest=512)

    def save_codes(self, path: str | Path) -> Path:
        """Write codes and noise as .npz: `w` [1, K, D], and `noise_00`, ... [1, side, side] where there are some.

        `lsap archive import` takes it into an archive, and `w` is what NVlabs' projector calls it too.
        """
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        maps: dict[str, Any] = {f"noise_{index:02d}": one[None] for index, one in enumerate(self.noise)}
        with target.open("wb") as file:
            np.savez(file, w=self.codes[None], **maps)
        return target

    def describe(self) -> dict[str, Any]:
        """What is known of it, in values that JSON has."""
        return {
            "photo": self.name,
            "method": self.method,
            "domain": self._model.domain.name,
            "generator": self._model.digest,
            "measures": self.measures,
            "altered": list(self.notes),
            "warnings": list(self.warnings),
            "seconds": round(self.seconds, 3),
        }

    def __repr__(self) -> str:
        shown = ", ".join(
            f"{title} {self.measures[name]:.4f}" for name, title in SHOWN_MEASURES.items() if name in self.measures
        )
        return f"Inversion({self.name!r}, {self.method!r}: {shown})"

    def _repr_html_(self) -> str:
        told = [repr(self), *self.warnings]
        return _figure(as_png(self.strip()), told)


class Edited(_Shown):
    """An inverted photo after one edit or more; `edit` goes on from here."""

    def __init__(self, inversion: Inversion, edits: Sequence[_EditOf]):
        self.inversion, self._edits = inversion, tuple(edits)

    @cached_property
    def _images(self) -> Tensor:
        return self.inversion._stored.edited(self._edit).cpu()

    @property
    def _edit(self) -> Edit:
        return self._edits[0].edit if len(self._edits) == 1 else compose(*(one.edit for one in self._edits))

    @property
    def codes(self) -> NDArray[np.float32]:
        """Edited W+ code, [K, D]."""
        with torch.no_grad():
            return self._edit(self.inversion._stored.codes)[0].cpu().numpy()

    def edit(self, direction: str | Mapping[str, Any], strength: float | None = None, **options: Any) -> Edited:
        """A further edit on top; see `Inversion.edit`."""
        return Edited(
            self.inversion, (*self._edits, _EditOf.parse(self.inversion._model, direction, strength, options))
        )

    def __repr__(self) -> str:
        return (
            f"Edited({self.inversion.name!r}, {self.inversion.method!r}: {', '.join(one.told for one in self._edits)})"
        )

    def _repr_html_(self) -> str:
        before = self.inversion
        columns = [before.photo.shown(before._model.config), before._images, self._images]
        return _figure(draw_strips(columns, ["original", "inversion", "edited"], [""]), [repr(self)])


@dataclass(frozen=True)
class _EditOf:
    """An edit for a generator, and how it was asked for."""

    told: str
    edit: Edit

    @classmethod
    def parse(
        cls, model: OfModel, direction: str | Mapping[str, Any], strength: float | None, options: Mapping[str, Any]
    ) -> _EditOf:
        edit = model.build_edit(direction, strength, options)
        if isinstance(direction, str):
            return cls(f"{direction} {strength:+g}", edit)
        return cls(str(next(iter(direction))), edit)


def _figure(png: bytes, told: Sequence[str]) -> str:
    picture = base64.b64encode(png).decode()
    lines = "".join(f"<div>{html.escape(line)}</div>" for line in told)
    return f'<div><img src="data:image/png;base64,{picture}" style="max-width:100%">{lines}</div>'


def short_name(direction: str) -> str:
    """What a direction is called on a strip and in names of files: its name, or that of its file without the folder.

    Example:
        >>> short_name("slant"), short_name("from/elsewhere/many.pt#smile")
        ('slant', 'many_smile')
    """
    file, sign, entry = direction.partition("#")
    return Path(file).stem + (f"_{entry.replace('/', '_')}" if sign else "")


def write_folder(inversion: Inversion, folder: Path, *, directions: Sequence[str], strengths: Sequence[float]) -> None:
    """Write reconstruction.png, original.png, codes.npz and, where there are directions, edits.png and each edit."""
    folder.mkdir(parents=True, exist_ok=True)
    inversion.save(folder / "reconstruction.png")
    inversion.original.save(folder / "original.png")
    inversion.save_codes(folder / "codes.npz")
    write_whole(folder / "inversion.json", (json.dumps(inversion.describe(), indent=2) + "\n").encode())
    write_whole(folder / "strip.png", as_png(inversion.strip(directions, strengths)))
    for direction in directions:
        for strength in strengths:
            inversion.edit(direction, strength).save(folder / f"{short_name(direction)}{strength:+g}.png")
