"""The photos that codes were made from, read once more to be compared with."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
from torch import Tensor

from lsap_core.generators.config import GeneratorConfig
from lsap_core.images import from_uint8
from tasks.errors import BadImageError
from tasks.pictures.decoding import Fit, decode_image, place_content
from tasks.sources.items import SourceItem
from tasks.sources.source import digest_bytes, open_source

logger = logging.getLogger(__name__)

CHANGED = "changed"
NOT_IN_SOURCE = "not_in_source"
READ_TOGETHER = 8  # images, while the others wait for their storage


def fit_of(config: Mapping[str, Any], otherwise: Fit = "refuse") -> Fit:
    """What an inversion did with images of another shape, as its run has it: runs of one method may differ in it.

    Args:
        config: of a run or an evaluation.
        otherwise: where it does not say.
    """
    fit: Fit = config.get("fit", otherwise)
    return fit


class Originals:
    """A source whose images are placed where the generator has its picture.

    Attributes:
        source: where they are.
        config: of the generator.
        fit: what is done with images of another shape, unless a call says otherwise.
    """

    def __init__(self, spec: str, config: GeneratorConfig, fit: Fit):
        self.source = open_source(spec)
        self.config = config
        self.fit = fit

    def read(self, record: Mapping[str, Any], fit: Fit | None = None) -> np.ndarray:
        """Pixels uint8 [R, R, C] of an image of the archive: its row's image_id, uri and digest, and its run's fit.

        Raises:
            BadImageError: it is not there any more, is another one, or cannot be used.
            SourceError: the storage does not answer.
        """
        data = self.source.read(SourceItem(record["image_id"], record["uri"]))
        if digest_bytes(data) != record["digest"]:
            raise BadImageError(CHANGED, f"{record['image_id']} is not the image that was inverted: invert it again")
        return self._decode(data, fit)

    def batches(self, size: int) -> Iterator[Tensor]:
        """All usable images, [n, C, R, R] in [-1, 1], so many at a time; the log counts those that are left out."""
        waiting: list[np.ndarray] = []
        left_out: list[str] = []
        for item in self.source.items():
            try:
                waiting.append(self._decode(self.source.read(item)))
            except BadImageError as error:
                left_out.append(f"{item.image_id}: {error}")
                continue
            if len(waiting) == size:
                yield from_uint8(np.stack(waiting))
                waiting = []
        if waiting:
            yield from_uint8(np.stack(waiting))
        if left_out:
            logger.warning("%d images of %s cannot be used (%s)", len(left_out), self.source.spec, left_out[0])

    def ahead(
        self, batches: Sequence[Sequence[Mapping[str, Any]]], fit: Fit | None = None
    ) -> Iterator[tuple[Tensor | None, list[str | None]]]:
        """As `batch`, one batch after the other; while one is used the next one is read and decoded, in threads."""
        with ThreadPoolExecutor(READ_TOGETHER, thread_name_prefix="read-originals") as readers:
            begun: deque[list[Future[np.ndarray]]] = deque()
            for records in batches:
                begun.append([readers.submit(self._read_if_there, record, fit) for record in records])
                if len(begun) > 1:
                    yield _gathered(begun.popleft())
            while begun:
                yield _gathered(begun.popleft())

    def batch(
        self, records: Sequence[Mapping[str, Any]], fit: Fit | None = None
    ) -> tuple[Tensor | None, list[str | None]]:
        """Images [n, C, R, R] in [-1, 1] of those that can be read (None without any), and the others' reasons.

        They are fitted as their run fitted them. A record whose uri is None is not in the source.
        """
        ((original, problems),) = self.ahead([records], fit)
        return original, problems

    def _read_if_there(self, record: Mapping[str, Any], fit: Fit | None) -> np.ndarray:
        if record["uri"] is None:
            raise BadImageError(NOT_IN_SOURCE, f"{self.source.spec} has no image {record['image_id']}")
        return self.read(record, fit)

    def _decode(self, data: bytes, fit: Fit | None = None) -> np.ndarray:
        config = self.config
        image = decode_image(data, size=config.content_size, channels=config.image_channels, fit=fit or self.fit)
        placed: np.ndarray = place_content(image.pixels, size=config.size, content_box=config.content_box)
        return placed


def _gathered(reading: Sequence[Future[np.ndarray]]) -> tuple[Tensor | None, list[str | None]]:
    """Images [n, C, R, R] of those that could be read, None without any, and the others' reasons."""
    pixels: list[np.ndarray] = []
    problems: list[str | None] = []
    for one in reading:
        try:
            pixels.append(one.result())
            problems.append(None)
        except BadImageError as error:
            problems.append(error.reason)
    return (from_uint8(np.stack(pixels)) if pixels else None), problems
