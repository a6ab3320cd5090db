"""Previews of a shard on their way to the archive: made of what is rendered anyway, kept for who has to go on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from lsap_archive import OK, Preview
from lsap_core.images import ContentBox
from tasks.pictures.previews import preview_files


class ShardPreviews:
    """Previews of a shard's images, by place in it.

    Args:
        side: pixels of the longer side of each, at most; 0 keeps none.
        content_box: rows and columns of the generator's images that carry the picture, or None for all.
    """

    def __init__(self, side: int, content_box: ContentBox | None) -> None:
        self.side = side
        self._box = content_box
        self._files: dict[int, tuple[bytes, bytes]] = {}  # picture and original, empty where none is kept

    def __bool__(self) -> bool:
        """Whether any are kept."""
        return self.side > 0

    def add(self, places: Sequence[int], pictures: np.ndarray, originals: Sequence[np.ndarray] | None = None) -> None:
        """Take what a method made of some images, and the images themselves where it is an inversion.

        Args:
            places: of the images in the shard.
            pictures: pixels uint8 [n, R, R, C]; what lies around the content box is left out.
            originals: pixels of each, the same; None where they are not kept.
        """
        if not self:
            return
        files = preview_files(map(self._cut, [*pictures, *(originals or ())]), self.side)
        before = files[len(pictures) :] or [b""] * len(pictures)
        self._files |= dict(zip(places, zip(files, before, strict=False), strict=True))

    def of(self, places: Sequence[int]) -> list[tuple[bytes, bytes]]:
        """Picture and original of some images, to be kept while the shard is worked on."""
        return [self._files.get(at, (b"", b"")) for at in places] if self else []

    def take_up(self, places: Sequence[int], kept: Sequence[tuple[bytes, bytes]]) -> None:
        """What an earlier attempt had kept; nothing, where it kept none."""
        if self:
            self._files |= {at: pair for at, pair in zip(places, kept, strict=False) if pair[0]}

    def files(self, rows: range, records: Sequence[Mapping[str, object]]) -> Iterator[Preview]:
        """What the archive keeps of them: those of rows that are ok.

        Args:
            rows: of the shard.
            records: of each, with status.
        """
        for at, (picture, original) in sorted(self._files.items()):
            if records[at]["status"] == OK:
                yield Preview(rows[at], picture, original or None)

    def _cut(self, pixels: np.ndarray) -> np.ndarray:
        if self._box is None:
            return pixels
        top, bottom, left, right = self._box
        return pixels[top:bottom, left:right]
