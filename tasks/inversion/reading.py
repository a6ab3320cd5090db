"""Images of a shard, read and decoded in threads while the ones before them are worked on."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lsap_archive import BETWEEN_WORDS, DUPLICATE, FAILED, OK, UNSETTLED
from lsap_core.generators.config import GeneratorConfig
from tasks.errors import BadImageError
from tasks.inversion.listing import UNREADABLE
from tasks.pictures.decoding import DecodedImage, Fit, decode_image, place_content
from tasks.sources.items import SourceItem
from tasks.sources.shards import place_in_shard
from tasks.sources.source import Source, digest_bytes

READ_TOGETHER = 8  # images, while the others wait for their storage
_OF_PIXELS = ("width", "height", "altered")


@dataclass
class Row:
    """One image of a shard on its way to the archive."""

    columns: dict[str, Any]
    image: DecodedImage | None = None  # until its code is found
    copy_of: Row | None = None  # a row of this shard with the same content

    @property
    def image_id(self) -> str:
        return str(self.columns["image_id"])

    @property
    def pixels(self) -> np.ndarray:
        assert self.image is not None
        return self.image.pixels

    def follow(self) -> None:
        """Become what the row that this one is a copy of has become: failed as it, or its duplicate."""
        if self.copy_of is None:
            return
        original = self.copy_of.columns
        self.columns |= {name: original.get(name) for name in ("status", "reason", "message", *_OF_PIXELS)}
        if original["status"] != FAILED:
            self.columns |= {"status": DUPLICATE, "duplicate_of": original["duplicate_of"] or original["image_id"]}


class ShardReader:
    """Reads the images of shards; its threads are for one shard at a time."""

    def __init__(self, source: Source, config: GeneratorConfig):
        self._source = source
        self._config = config
        self._threads = ThreadPoolExecutor(READ_TOGETHER, thread_name_prefix="read-shard")

    def read_ahead(
        self,
        planned: Sequence[Mapping[str, Any]],
        duplicates: Mapping[str, str],
        fit: Fit,
        *,
        known: Mapping[str, Row],
        ahead: int,
    ) -> Generator[list[Row], None, None]:
        """The rows of a shard as far as reading decides them, those with the same content together; to be closed.

        Of several with the same content the first one that is there is read, and the others follow it: a copy of a bad
        image is bad itself. Where an earlier shard has that content too, it is read here all the same, because nobody
        knows yet what became of it there; if it is good, its code is left to that shard.

        Args:
            planned: image_id, uri and digest of each image.
            duplicates: image id -> id of the image with the same content that comes first in the run.
            fit: what is done with images of another shape.
            known: rows by image id that need not be read.
            ahead: images that are decoded and wait, beside the one that is taken.
        """
        alike: defaultdict[tuple[str, str], list[Mapping[str, Any]]] = defaultdict(list)
        for image in planned:
            digest = image["digest"]
            alike[digest, image["image_id"] if digest.startswith(UNREADABLE) else ""].append(image)
        under_way: deque[Future[list[Row]]] = deque()
        try:
            # In the order in which they lie, where several lie in one file: a shard of images is gone through once.
            for images in sorted(alike.values(), key=lambda images: place_in_shard(images[0]["uri"])):
                under_way.append(self._threads.submit(self._read_alike, images, duplicates, fit, known))
                if len(under_way) > ahead:
                    yield under_way.popleft().result()
            while under_way:
                yield under_way.popleft().result()
        finally:
            for future in under_way:
                future.cancel()

    def read(self, planned: Mapping[str, Any], fit: Fit) -> Row:
        """The row of an image, with its pixels where it is good."""
        columns = _unread(planned)
        item = SourceItem(planned["image_id"], planned["uri"])
        try:
            image = self._decode(self._read_as_planned(item, planned["digest"]), fit)
        except BadImageError as error:
            columns |= {"status": FAILED, "reason": error.reason, "message": str(error)}
            return Row(columns)
        columns |= {"width": image.width, "height": image.height, "altered": BETWEEN_WORDS.join(image.notes)}
        return Row(columns, image)

    def _read_alike(
        self, images: Sequence[Mapping[str, Any]], duplicates: Mapping[str, str], fit: Fit, known: Mapping[str, Row]
    ) -> list[Row]:
        rows: list[Row] = []
        for index, image in enumerate(images):
            row = known.get(image["image_id"]) or self.read(image, fit)
            earlier = {one.image_id for one in rows}
            rows.append(row)
            if row.columns["reason"] in UNSETTLED:  # of this content it says nothing
                continue
            original = duplicates.get(row.image_id)
            if row.image is not None and original is not None and original not in earlier:
                row.image = None
                row.columns |= {"status": DUPLICATE, "duplicate_of": original}
            return rows + [Row(_unread(other), copy_of=row) for other in images[index + 1 :]]
        return rows

    def _read_as_planned(self, item: SourceItem, digest: str) -> bytes:
        """The bytes that the run was planned with. What fails otherwise is planned again by the next command."""
        try:
            data = self._source.read(item)
        except BadImageError as error:
            if digest.startswith(UNREADABLE) or error.reason in UNSETTLED:
                raise
            raise BadImageError("changed", f"{error} (it could be read when the run was planned)") from None
        if digest_bytes(data) != digest:
            raise BadImageError(
                "changed", "the image is not what it was when the run was planned: run the same command again"
            )
        return data

    def _decode(self, data: bytes, fit: Fit) -> DecodedImage:
        config = self._config
        image = decode_image(data, size=config.content_size, channels=config.image_channels, fit=fit)
        pixels = place_content(image.pixels, size=config.size, content_box=config.content_box)
        return replace(image, pixels=pixels)


def _unread(image: Mapping[str, Any]) -> dict[str, Any]:
    """The columns of an image that nobody has looked at."""
    return {"image_id": image["image_id"], "status": OK, "reason": None, "message": None, "duplicate_of": None}
