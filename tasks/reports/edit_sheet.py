"""Some images and their edits: a row for each method, the edits as columns; on pages, and as one picture."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lsap_archive import OK, Archive, RunInfo
from tasks.archived.runs import title_of
from tasks.archived.shown_images import ORIGINAL, Pictures
from tasks.pictures.decoding import decode_photo
from tasks.pictures.sheets import SMALLEST_TILE, Pixels, as_png, draw_sheet
from tasks.reports.text import as_number
from tasks.workers.pool import Pool

INVERSION = "inversion"
LARGEST_TILE = 128
"""Of one picture, pixels, on a page and when it is drawn; small ones are magnified to at least SMALLEST_TILE."""


@dataclass(frozen=True)
class SheetColumn:
    """An edit of the sheet.

    Attributes:
        edit: its name, or "" for the inversion.
        title: what stands above it.
        detail: its strength, where it is the same for all methods.
    """

    edit: str
    title: str
    detail: str = ""

    @property
    def label(self) -> str:
        """Title and detail in a line."""
        return ", ".join(filter(None, (self.title, self.detail)))


@dataclass(frozen=True)
class SheetCell:
    """One picture: a PNG file, or None where there is none; and its edit's strength where that differs by method."""

    png: bytes | None
    detail: str = ""


@dataclass(frozen=True)
class SheetRow:
    """What one method made of an image: its title, the SNCD of its code in words, and a cell for each column."""

    title: str
    sncd: str
    cells: tuple[SheetCell, ...]


@dataclass(frozen=True)
class SheetImage:
    """One image: its id, the original as a PNG file if it could be read, and the rows of the methods that have it."""

    image_id: str
    original: bytes | None
    rows: tuple[SheetRow, ...]


@dataclass(frozen=True)
class EditSheet:
    """Some images with their edits.

    Attributes:
        columns: the inversion, then the edits.
        images: in order.
        width: of each picture on a page, pixels.
        is_pixelated: whether pictures are magnified there.
        absent: ids that were asked for and of which no method has a code of its own.
    """

    columns: tuple[SheetColumn, ...]
    images: tuple[SheetImage, ...]
    width: int
    is_pixelated: bool
    absent: tuple[str, ...] = ()

    @property
    def has_originals(self) -> bool:
        """Whether any original could be read."""
        return any(image.original is not None for image in self.images)


@dataclass(frozen=True)
class ShownMethod:
    """An inversion or a refinement whose edits are shown.

    Attributes:
        name: such as "lsap_e" or "lsap_e/hfgi".
        title: for people.
        strengths: of its edits by name; None where an edit has none.
    """

    name: str
    title: str
    strengths: Mapping[str, float | None]


def shown_methods(archive: Archive, edited: Sequence[str], methods: Sequence[str] = ()) -> list[ShownMethod]:
    """The methods of these edits with the strengths that readers see, and further methods, in the order of both.

    Args:
        archive: where they are.
        edited: edits of methods, such as "lsap_e/slant".
        methods: shown also if nothing of them is edited.
    """
    newest: dict[str, RunInfo] = {run.method: run for run in archive.runs}  # the oldest comes first
    strengths: dict[str, dict[str, float | None]] = {name: {} for name in methods}
    for name in edited:
        subject = newest[name].subject
        assert subject is not None and subject.edit is not None, f"{name} is an edit"
        strengths.setdefault(subject.method, {})[subject.edit] = subject.strength
    return [ShownMethod(name, title_of(newest[name]), of_edits) for name, of_edits in strengths.items()]


def make_sheet(
    archive: Archive, methods: Sequence[ShownMethod], wanted: int | Sequence[str], open_pool: Callable[[], Pool]
) -> EditSheet:
    """Originals, inversions and edits of some images, rendered by a worker.

    Args:
        archive: where they are.
        methods: rows of each image.
        wanted: how many images, taken from those that most of the methods have, in the order of the source; or ids.
        open_pool: gives workers that have `preview`; asked if there is anything to show.
    """
    columns = _columns(methods)
    images = _images(archive, [one.name for one in methods], wanted)
    names = [name for one in methods for name in (one.name, *(f"{one.name}/{edit}" for edit in one.strengths))]
    told = [{name: image[name] for name in ("image_id", "uri", "digest", "run_id")} for image in images]
    made: Pictures = {ORIGINAL: {}}
    if told:
        made = open_pool().call("preview", told, names, about="pictures for the report")
    shown = []
    for image in images:
        image_id, sncd = image["image_id"], {row["method"]: row["sncd"] for row in image["made"]}
        rows = [
            SheetRow(one.title, _sncd(sncd[one.name]), _cells(one, columns, image_id, made))
            for one in methods
            if one.name in sncd
        ]
        shown.append(SheetImage(image_id, made[ORIGINAL].get(image_id), tuple(rows)))
    pictures = [png for of_name in made.values() for png in of_name.values()]
    asked = () if isinstance(wanted, int) else tuple(dict.fromkeys(wanted))
    absent = tuple(image_id for image_id in asked if all(one.image_id != image_id for one in shown))
    return EditSheet(columns, tuple(shown), *_on_page(pictures[0] if pictures else None), absent)


def draw_edits(sheet: EditSheet) -> bytes | None:
    """The sheet as a PNG file: a row for each method of each image, SNCD beside it; None where there is no picture."""
    rows: list[list[Pixels | None]] = []
    labels = []
    for image in sheet.images:
        for place, row in enumerate(image.rows):
            pictures = [image.original if place == 0 else None, *(cell.png for cell in row.cells)]
            rows.append([None if png is None else _pixels(png) for png in pictures])
            labels.append("   ".join(filter(None, (row.title, row.sncd))))
    if not any(picture is not None for row in rows for picture in row):
        return None
    heads = [ORIGINAL, *(column.label for column in sheet.columns)]
    if not sheet.has_originals:
        rows, heads = [row[1:] for row in rows], heads[1:]
    return as_png(draw_sheet(rows, column_labels=heads, row_labels=labels, largest=LARGEST_TILE))


def signed(strength: float) -> str:
    """A strength with its sign.

    Example:
        >>> signed(-2.0), signed(0.5)
        ('−2', '+0.5')
    """
    return f"{strength:+.3g}".replace("-", "−")


def _columns(methods: Sequence[ShownMethod]) -> tuple[SheetColumn, ...]:
    edits = list(dict.fromkeys(edit for one in methods for edit in one.strengths))
    columns = [SheetColumn("", INVERSION)]
    for edit in edits:
        strengths = {one.strengths[edit] for one in methods if edit in one.strengths}
        (strength,) = strengths if len(strengths) == 1 else (None,)
        columns.append(SheetColumn(edit, edit.replace("_", " "), "" if strength is None else signed(strength)))
    return tuple(columns)


def _cells(
    method: ShownMethod, columns: Sequence[SheetColumn], image_id: str, made: Mapping[str, Mapping[str, bytes]]
) -> tuple[SheetCell, ...]:
    cells = []
    for column in columns:
        name = f"{method.name}/{column.edit}" if column.edit else method.name
        strength = method.strengths.get(column.edit)
        told = "" if strength is None or column.detail else signed(strength)
        cells.append(SheetCell(made.get(name, {}).get(image_id), told))
    return tuple(cells)


def _images(archive: Archive, methods: Sequence[str], wanted: int | Sequence[str]) -> list[dict[str, Any]]:
    """Images to show: where each lies, and which methods have it with which SNCD."""
    if not wanted or not methods:
        return []
    ids, limit = ([], wanted) if isinstance(wanted, int) else (list(wanted), len(wanted))
    found: list[dict[str, Any]] = archive.sql(
        "select image_id, arg_min(uri, place) as uri, arg_min(digest, place) as digest, "
        'arg_min(run_id, place) as run_id, min("row") as first, list({method: method, sncd: sncd}) as made '
        "from (select *, list_position($methods, method) as place from latest where status = $ok "
        "and list_contains($methods, method) and (len($ids) = 0 or list_contains($ids, image_id))) "
        "group by image_id order by count(*) desc, first, image_id limit $limit",
        methods=list(methods),
        ids=ids,
        ok=OK,
        limit=limit,
    ).to_pylist()
    if not ids:
        return found
    there = {image["image_id"]: image for image in found}
    return [there[image_id] for image_id in dict.fromkeys(ids) if image_id in there]


def _on_page(png: bytes | None) -> tuple[int, bool]:
    """How wide a picture stands on a page, and whether it is magnified."""
    if png is None:
        return LARGEST_TILE, False
    height, width, _ = _pixels(png).shape
    longer = max(height, width)
    if longer <= SMALLEST_TILE:
        return width * -(-SMALLEST_TILE // longer), True
    return min(width, width * LARGEST_TILE // longer), False


def _sncd(value: float | None) -> str:
    return "" if value is None or not np.isfinite(value) else f"SNCD {as_number(value)}"


def _pixels(png: bytes) -> Pixels:
    return decode_photo(png, min_side=1).pixels
