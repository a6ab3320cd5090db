"""Images of an archive as files under the names of the photos: those that it keeps, and all others rendered."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow.compute as pc

from lsap_archive import FAILED, Archive, ArchiveKeyError, open_archive
from lsap_core.errors import did_you_mean
from lsap_core.images import to_uint8
from tasks.archived.rendering import Renderer, Stored
from tasks.errors import BadImageError
from tasks.pictures.folders import FileNames, write_whole
from tasks.pictures.saved import png_file
from tasks.sources.items import SourceItem

BATCH = 64


def export_images(
    url: str, method: str, out: Path, renderer: Renderer | None = None, *, batch_size: int = 1
) -> tuple[int, dict[str, str]]:
    """Write the image of every photo; `lsap image paste` finds faces under these names.

    Args:
        url: of the archive.
        method: of an inversion, a refinement or an edit, such as "lsap_e" or "lsap_e/smile".
        out: folder; made if it is not there.
        renderer: makes the images that the archive does not keep.
        batch_size: images that are made together.

    Returns:
        How many were written, and by image id why one was not.

    Raises:
        ArchiveKeyError: no such method, or its images are not kept and there is nothing to make them with.
    """
    archive = open_archive(url)
    if method not in (known := [*archive.methods, *archive.edits]):
        raise ArchiveKeyError(
            f"{archive.url} has no {method}; {did_you_mean(method, known)}it has {', '.join(known) or 'nothing yet'}"
        )
    rows = archive.rows(["image_id", "uri", "method", "status", "reason"]).filter(pc.field("method") == method)
    newest = {row["image_id"]: row for row in rows.to_pylist()}
    items = [SourceItem(image_id, row["uri"]) for image_id, row in sorted(newest.items())]
    problems = {image_id: row["reason"] for image_id, row in newest.items() if row["status"] == FAILED}
    names, written = FileNames(items), 0
    good = [item for item in items if item.image_id not in problems]
    for start in range(0, len(good), BATCH):
        batch = good[start : start + BATCH]
        pictures = _pictures(archive, method, [item.image_id for item in batch], renderer, batch_size)
        for item, png in zip(batch, pictures, strict=True):
            try:
                path = out / names.of(item, None)
            except BadImageError as error:
                problems[item.image_id] = str(error)
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, png)
            written += 1
    return written, problems


def _pictures(
    archive: Archive, method: str, image_ids: Sequence[str], renderer: Renderer | None, batch_size: int
) -> list[bytes]:
    """PNG files of images, kept or made."""
    try:
        return archive.images(image_ids, method)
    except ArchiveKeyError as error:  # its run keeps none
        if renderer is None:
            raise ArchiveKeyError(
                f"{archive.url} keeps no images of {method}: name the generator that makes them, --domain NAME or "
                "--generator FILE"
            ) from error
    files: list[bytes] = []
    for start in range(0, len(image_ids), batch_size):
        stored = Stored.of_images(renderer, archive, image_ids[start : start + batch_size], method)
        files += [png_file(pixels) for pixels in to_uint8(stored.show())]
    return files
