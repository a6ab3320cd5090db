"""The images that an encoder is trained on: an endless stream that the seed alone decides.

Position p of the stream is image `permutation(seed, p // N)[p % N]` of the N images. Step s takes the positions
from s B to (s + 1) B, and every worker its part of them. So a batch may reach over the end of an epoch, no image is
left out, and the state of the sampler is the number of the step. The samples are read ahead, a few batches at a time,
and forgotten: memory does not grow with the data set.
"""

from __future__ import annotations

import functools
import hashlib
import queue
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from domains.embedded import embedded_augmentations
from lsap_core.generators.config import GeneratorConfig
from lsap_core.images import from_uint8
from tasks.errors import BadImageError, SourceError, TaskError
from tasks.pictures.decoding import Fit, decode_image, place_content
from tasks.sources.items import SourceItem
from tasks.sources.source import Source, open_source

EMBEDDED = embedded_augmentations()
AUGMENTATIONS = ("none", "flip", *EMBEDDED)
BATCHES_AHEAD = 2
MAX_SUBSTITUTES = 64
READ_TRIES = 6  # of one image, when its storage does not answer
RETRY_SECONDS = 1.0

LISTING_SCHEMA = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("reason", pa.string()),  # why it is not to be opened at all, or null
        pa.field("message", pa.string()),
    ]
)


class TooManyBadImagesError(TaskError, RuntimeError):
    """The share of images that cannot be used is above the run's limit."""


# --- which images ------------------------------------------------------------------------------------


def list_source(spec: str) -> pa.Table:
    """Every image of a source by id (`LISTING_SCHEMA`); no image is read.

    Raises:
        SourceError: the source cannot be read, or holds no image.
    """
    columns: dict[str, list[str | None]] = {name: [] for name in LISTING_SCHEMA.names}
    with open_source(spec) as source:
        for item in source.items():
            columns["image_id"].append(item.image_id)
            columns["uri"].append(item.uri)
            columns["reason"].append(item.problem.reason if item.problem else None)
            columns["message"].append(str(item.problem) if item.problem else None)
    return pa.table(columns, schema=LISTING_SCHEMA)


def hold_out(listing: pa.Table, count: int) -> tuple[pa.Table, pa.Table]:
    """What is left of a listing, and `count` images of it: those whose ids have the smallest digests.

    The choice depends on the ids alone, and is spread evenly over folders and classes.
    """
    digests = [hashlib.sha256(image_id.encode()).digest() for image_id in listing["image_id"].to_pylist()]
    order = sorted(range(len(listing)), key=digests.__getitem__)
    held, rest = (pa.array(sorted(rows), pa.int64()) for rows in (order[:count], order[count:]))
    return listing.take(rest), listing.take(held)


def listing_digest(listing: pa.Table) -> str:
    """SHA-256 of the ids in their order, 16 hexadecimal digits: equal for equal sets, wherever they lie."""
    digest = hashlib.sha256()
    for image_id in listing["image_id"].to_pylist():
        digest.update(f"{image_id}\n".encode())
    return digest.hexdigest()[:16]


def listed_item(listing: pa.Table, row: int) -> SourceItem:
    """The item in a row of a listing."""
    image_id, uri, reason, message = (listing[name][row].as_py() for name in LISTING_SCHEMA.names)
    return SourceItem(image_id, uri, None if reason is None else BadImageError(reason, message))


# --- one image ---------------------------------------------------------------------------------------


class View(Protocol):
    """What a training reads of an image."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""

    @property
    def channels(self) -> int:
        """Of what is read."""

    def read(self, source: Source, item: SourceItem) -> np.ndarray:
        """Pixels uint8 [h, w, channels].

        Raises:
            BadImageError: the image cannot be used.
            SourceError: the storage does not answer.
        """


@dataclass(frozen=True)
class EncoderView:
    """What an encoder reads of an image file.

    Attributes:
        size: height and width.
        channels: 1, 3 or 4.
        fit: what to do with an image of another shape.
        square: the generator in whose square, black around its content box, images are to lie; None for images alone.
    """

    size: tuple[int, int]
    channels: int
    fit: Fit
    square: GeneratorConfig | None = None

    def decode(self, data: bytes) -> np.ndarray:
        """Pixels uint8 [h, w, C] of a file, or [R, R, C] where they lie in a square.

        Raises:
            BadImageError: as `decode_image`.
        """
        pixels = decode_image(data, size=self.size, channels=self.channels, fit=self.fit).pixels
        if self.square is None:
            return pixels
        return place_content(pixels, size=self.square.size, content_box=self.square.content_box)

    def read(self, source: Source, item: SourceItem) -> np.ndarray:
        """Pixels uint8 [h, w, C] of an image; as `View`."""
        return self.decode(source.read(item))


def read_pixels(source: Source, item: SourceItem, view: View) -> np.ndarray:
    """Pixels uint8 [h, w, C] of one image; storage that does not answer is asked again a few times.

    Raises:
        BadImageError: the image cannot be used.
        SourceError: the storage does not answer.
    """
    for attempt in range(READ_TRIES):
        try:
            return view.read(source, item)
        except SourceError as error:
            if not error.is_transient or attempt == READ_TRIES - 1:
                raise
            time.sleep(RETRY_SECONDS * 2**attempt)
    raise AssertionError("unreachable")


def sample_seed(seed: int, position: int) -> int:
    """The random state of one sample of the stream, 63 bits."""
    digest = hashlib.sha256(f"{seed}:{position}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def augment(image: Tensor, augmentation: str, seed: int) -> Tensor:
    """One image [C, h, w], changed at random: "flip" mirrors every other one, and domains bring others."""
    stream = torch.Generator().manual_seed(seed)
    if augmentation == "flip":
        return image.flip(-1) if torch.rand((), generator=stream) < 0.5 else image
    return image if augmentation == "none" else EMBEDDED[augmentation](image, stream)


# --- the stream --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ImageProblem:
    """A position of the stream whose image could not be used; another one took its place."""

    position: int
    image_id: str
    reason: str
    message: str


@dataclass(frozen=True)
class Sample:
    """One position of the stream: an image [C, h, w] in [-1, 1], its random state, and which it is."""

    image: Tensor
    seed: int
    image_id: str
    problems: tuple[ImageProblem, ...] = ()


@dataclass(frozen=True)
class Batch:
    """One worker's part of a step: images [n, C, h, w] in [-1, 1], a random state of each, and which they are."""

    images: Tensor
    seeds: tuple[int, ...]
    image_ids: tuple[str, ...]
    problems: tuple[ImageProblem, ...]


class TrainingStream(Dataset[Sample]):
    """Samples by position. Small enough to travel: the source is opened where the first sample is read."""

    def __init__(self, source: str, listing: pa.Table, view: View, *, augmentation: str, seed: int):
        self._spec = source
        self._listing = listing
        self._view = view
        self._augmentation = augmentation
        self._seed = seed
        self._source: Source | None = None

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_source": None}

    def row(self, position: int) -> int:
        """Which image is at a position."""
        epoch, place = divmod(position, len(self._listing))
        return int(permutation(len(self._listing), self._seed, epoch)[place])

    def __getitem__(self, position: int) -> Sample:
        """The sample at a position. An image that cannot be used is replaced by one that the position decides.

        Raises:
            SourceError: the storage does not answer, or no usable image was found in many tries.
        """
        if self._source is None:
            self._source = open_source(self._spec)
        seed = sample_seed(self._seed, position)
        draws = np.random.default_rng(seed)
        row = self.row(position)
        problems: list[ImageProblem] = []
        for _ in range(MAX_SUBSTITUTES):
            item = listed_item(self._listing, row)
            try:
                pixels = read_pixels(self._source, item, self._view)
            except BadImageError as error:
                problems.append(ImageProblem(position, item.image_id, error.reason, str(error)))
                row = int(draws.integers(len(self._listing)))
                continue
            image = augment(from_uint8(pixels[None])[0], self._augmentation, seed)
            return Sample(image, seed, item.image_id, tuple(problems))
        raise SourceError(
            f"{MAX_SUBSTITUTES} images in a row of {self._spec} cannot be used, the last one ({problems[-1].image_id}) "
            f"because {problems[-1].message}"
        )

    def batches(
        self, *, first_step: int, batch_size: int, rank: int = 0, world_size: int = 1, num_loaders: int = 0
    ) -> Generator[Batch, None, None]:
        """One worker's part of every step from `first_step` on, without an end; read ahead by `BATCHES_AHEAD`.

        Args:
            first_step: steps already taken.
            batch_size: images of a step, over all workers; a multiple of world_size.
            rank: which worker.
            world_size: how many workers.
            num_loaders: processes that read and decode; 0 uses a thread of this one.
        """
        loader = DataLoader(
            self,
            batch_sampler=_Positions(first_step, batch_size, rank, world_size),
            num_workers=num_loaders,
            prefetch_factor=BATCHES_AHEAD if num_loaders else None,
            multiprocessing_context="forkserver" if num_loaders else None,
            collate_fn=_collate,
            generator=torch.Generator(),  # its own, so that nobody else's random numbers are touched
        )
        yield from iter(loader) if num_loaders else _read_ahead(iter(loader), BATCHES_AHEAD)


@functools.lru_cache(maxsize=2)
def permutation(num_images: int, seed: int, epoch: int) -> Tensor:
    """The order of an epoch: every image once, [N]."""
    digest = hashlib.sha256(f"{seed}:epoch:{epoch}".encode()).digest()
    stream = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    return torch.randperm(num_images, generator=stream)


def positions_of(step: int, batch_size: int, rank: int, world_size: int) -> range:
    """One worker's positions of a step."""
    share = batch_size // world_size
    start = step * batch_size + rank * share
    return range(start, start + share)


class _Positions:
    """Positions of every step, for a loader."""

    def __init__(self, first_step: int, batch_size: int, rank: int, world_size: int):
        self._first_step = first_step
        self._sizes = (batch_size, rank, world_size)

    def __iter__(self) -> Iterator[list[int]]:
        step = self._first_step
        while True:
            yield list(positions_of(step, *self._sizes))
            step += 1


def _collate(samples: Sequence[Sample]) -> Batch:
    return Batch(
        torch.stack([sample.image for sample in samples]),
        tuple(sample.seed for sample in samples),
        tuple(sample.image_id for sample in samples),
        tuple(problem for sample in samples for problem in sample.problems),
    )


def _read_ahead(batches: Iterator[Batch], count: int) -> Iterator[Batch]:
    """The same batches, made by a thread that is at most `count` ahead; it ends with the iterator."""
    waiting: queue.Queue[Batch | BaseException] = queue.Queue(maxsize=count)
    ended = threading.Event()

    def give(value: Batch | BaseException) -> None:
        while not ended.is_set():
            try:
                return waiting.put(value, timeout=0.2)
            except queue.Full:
                continue

    def read() -> None:
        try:
            for batch in batches:
                give(batch)
                if ended.is_set():
                    return
        except BaseException as error:  # told to whoever waits for the batch
            give(error)

    thread = threading.Thread(target=read, name="read-training-images", daemon=True)
    thread.start()
    try:
        while True:
            value = waiting.get()
            if isinstance(value, BaseException):
                raise value
            yield value
    finally:
        ended.set()
        thread.join()


# --- some images, in their order --------------------------------------------------------------------------------------


def read_images(
    source: str, listing: pa.Table, view: View, rows: Sequence[int], batch_size: int
) -> Iterator[tuple[list[int], Tensor]]:
    """Images [n, C, h, w] in [-1, 1] of some rows of a listing, batch by batch, with those rows; without bad ones."""
    with open_source(source) as opened:
        good: list[int] = []
        pixels: list[np.ndarray] = []
        for row in rows:
            try:
                pixels.append(read_pixels(opened, listed_item(listing, row), view))
            except BadImageError:
                continue
            good.append(row)
            if len(good) == batch_size:
                yield good, from_uint8(np.stack(pixels))
                good, pixels = [], []
        if good:
            yield good, from_uint8(np.stack(pixels))


def check_usable(source: str, listing: pa.Table, view: View, *, num_tries: int = 8) -> None:
    """Make sure before any work that the source's images are such as the encoder reads.

    Raises:
        SourceError: none of the first images can be used.
    """
    problem: BadImageError | None = None
    with open_source(source) as opened:
        for row in range(min(num_tries, len(listing))):
            item = listed_item(listing, row)
            try:
                read_pixels(opened, item, view)
                return
            except BadImageError as error:
                problem = problem or BadImageError(error.reason, f"{item.image_id}: {error}")
    raise SourceError(f"{source}: none of the first {min(num_tries, len(listing))} images can be used ({problem})")
