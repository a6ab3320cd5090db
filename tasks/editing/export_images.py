"""Kept images of an edit out of the archive, as files under the names of the images."""

from __future__ import annotations

from pathlib import Path

import pyarrow.compute as pc

from lsap_archive import FAILED, ArchiveKeyError, open_archive
from tasks.errors import BadImageError
from tasks.pictures.folders import FileNames, write_whole
from tasks.sources.items import SourceItem

BATCH = 64


def export_images(url: str, method: str, out: Path) -> tuple[int, dict[str, str]]:
    """Write every kept image of an edit; `lsap image paste` finds faces under these names.

    Args:
        url: of the archive.
        method: of the edit, such as "lsap_e/smile".
        out: folder; made if it is not there.

    Returns:
        How many were written, and by image id why one was not.

    Raises:
        ArchiveKeyError: no such edit, or its run kept no images.
    """
    archive = open_archive(url)
    if method not in archive.edits:
        edits = ", ".join(archive.edits) or "none: make one with `lsap run edit`"
        raise ArchiveKeyError(f"{archive.url} has no edit {method}; it has {edits}")
    rows = archive.rows(["image_id", "uri", "method", "status", "reason"]).filter(pc.field("method") == method)
    newest = {row["image_id"]: row for row in rows.to_pylist()}  # the oldest run comes first
    items = [SourceItem(image_id, row["uri"]) for image_id, row in sorted(newest.items())]
    problems = {image_id: row["reason"] for image_id, row in newest.items() if row["status"] == FAILED}
    names, written = FileNames(items), 0
    kept = [item for item in items if item.image_id not in problems]
    for start in range(0, len(kept), BATCH):
        batch = kept[start : start + BATCH]
        for item, png in zip(batch, archive.images([item.image_id for item in batch], method), strict=True):
            try:
                path = out / names.of(item, None)
            except BadImageError as error:
                problems[item.image_id] = str(error)
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, png)
            written += 1
    return written, problems
