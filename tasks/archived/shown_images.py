"""Published images as small pictures for a page: originals, and what inversions, refinements and edits made of them."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from lsap_archive import Archive, ArchiveKeyError
from lsap_core.images import to_uint8
from tasks.archived.originals import Originals, fit_of
from tasks.archived.refiners import refiner_of
from tasks.archived.rendering import Renderer, Stored
from tasks.errors import BadImageError
from tasks.pictures.saved import as_picture

ORIGINAL = "original"
LONGEST_SIDE = 256
"""Of a picture on a page, pixels; larger ones are reduced."""

Pictures = dict[str, dict[str, bytes]]
"""PNG files by method, refinement or edit, and by image id; the originals are under "original"."""


@torch.no_grad()
def show_images(
    renderer: Renderer,
    archive: Archive,
    images: Sequence[Mapping[str, Any]],
    names: Sequence[str],
    *,
    originals: Originals | None,
    advance: Callable[[int], None],
) -> Pictures:
    """Pictures of some images, rendered from what the archive holds.

    Args:
        renderer: of the archive.
        archive: where they are.
        images: image_id, uri, digest and run_id of each; an original that cannot be read any more is left out, and is
            fitted as its run fitted it.
        names: of inversions, refinements and edits; an image that one has not is left out there, and so is all of a
            refinement that kept no state.
        originals: their source, or None to leave them out.
        advance: told how many pictures were made.
    """
    fits = {run.run_id: fit_of(run.config) for run in archive.runs}
    found: Pictures = {ORIGINAL: {}}
    box = renderer.generator.config.content_box
    for image in images if originals is not None else ():
        assert originals is not None
        with contextlib.suppress(BadImageError):
            pixels = originals.read(image, fits.get(image["run_id"]))
            shown = pixels if box is None else pixels[box[0] : box[1], box[2] : box[3]]
            found[ORIGINAL][image["image_id"]] = _small_png(shown)
        advance(1)
    for name in names:
        found[name] = {}
        if not _can_be_rendered(archive, name):
            continue
        for image in images:  # one by one: the largest generator leaves room for no more
            with contextlib.suppress(ArchiveKeyError):
                stored = Stored.of_images(renderer, archive, [image["image_id"]], name)
                found[name][image["image_id"]] = _small_png(to_uint8(stored.show())[0])
            advance(1)
    return found


def _can_be_rendered(archive: Archive, name: str) -> bool:
    """Whether what a method is rendered from was kept."""
    newest = [run for run in archive.runs if run.method == name][-1:]
    about = [refiner_of(run.config) for run in newest]
    return all(one is None or one.keep == "state" for one in about)


def _small_png(pixels: np.ndarray) -> bytes:
    picture = as_picture(pixels)
    picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()
