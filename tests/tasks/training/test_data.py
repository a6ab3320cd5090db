"""The stream of training images: what is in it, that the seed alone decides it, that it is never held as a whole."""

from __future__ import annotations

import itertools
import pickle
import threading
import weakref
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import tasks.training.data
from domains.digits.data import load_split
from tasks.errors import SourceError
from tasks.sources.source import Source
from tasks.training.data import (
    BATCHES_AHEAD,
    Batch,
    EncoderView,
    TrainingStream,
    augment,
    check_usable,
    hold_out,
    list_source,
    listing_digest,
    read_images,
)

VIEW = EncoderView((32, 32), 1, "refuse")
NUM_IMAGES, BATCH_SIZE = 22, 4


def stream(source: str = f"digits:train[:{NUM_IMAGES}]", **changes: Any) -> TrainingStream:
    return TrainingStream(source, list_source(source), VIEW, **{"augmentation": "none", "seed": 0, **changes})


def take(
    count: int, of: TrainingStream, *, first_step: int = 0, batch_size: int = BATCH_SIZE, **sizes: Any
) -> list[Batch]:
    batches = of.batches(first_step=first_step, batch_size=batch_size, **sizes)
    try:
        return list(itertools.islice(batches, count))
    finally:
        batches.close()


def images_of(batches: Sequence[Batch]) -> Tensor:
    return torch.cat([batch.images for batch in batches])


# --- the order ----------------------------------------------------------------------------------------


def test_an_epoch_shows_every_image_once_and_a_batch_reaches_into_the_next() -> None:
    steps = NUM_IMAGES * 2 // BATCH_SIZE
    shown = images_of(take(steps, stream()))
    assert len(shown) == 2 * NUM_IMAGES
    digits = load_split("train").images[:NUM_IMAGES]
    wanted = Counter(image.tobytes() for image in digits)
    epochs = shown.split(NUM_IMAGES)
    for epoch in epochs:
        pixels = ((epoch[:, 0] + 1) * 127.5).round().to(torch.uint8).numpy()
        assert Counter(image.tobytes() for image in pixels) == wanted
    assert not torch.equal(*epochs)


def test_the_seed_decides_the_order() -> None:
    one, same, other = (images_of(take(5, stream(seed=seed))) for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_a_stream_that_begins_later_is_the_rest_of_the_stream() -> None:
    whole, rest = take(9, stream(augmentation="digits")), take(3, stream(augmentation="digits"), first_step=6)
    assert torch.equal(images_of(whole[6:]), images_of(rest))
    assert [batch.seeds for batch in whole[6:]] == [batch.seeds for batch in rest]


@pytest.mark.parametrize("world_size", [2, 4])
def test_the_parts_of_several_workers_are_the_batch_of_one(world_size: int) -> None:
    whole = take(7, stream(augmentation="digits"))
    parts = [take(7, stream(augmentation="digits"), rank=rank, world_size=world_size) for rank in range(world_size)]
    for step, batch in enumerate(whole):
        assert torch.equal(batch.images, torch.cat([part[step].images for part in parts]))
        assert batch.seeds == tuple(seed for part in parts for seed in part[step].seeds)


def test_a_stream_travels_to_the_processes_that_read_for_it() -> None:
    """What `loader_workers` does, without the seconds that a process takes to start."""
    there, here = pickle.loads(pickle.dumps(stream(augmentation="digits"))), stream(augmentation="digits")
    for position in (0, 7, NUM_IMAGES + 1):
        assert torch.equal(there[position].image, here[position].image)
        assert there[position].seed == here[position].seed


# --- memory and time ----------------------------------------------------------------------------------


def test_an_epoch_is_never_in_memory_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many images as make an epoch are read from a folder; alive at a time are the few that are read ahead."""
    for number in range(96):
        Image.fromarray(np.full((32, 32), number, np.uint8)).save(tmp_path / f"{number}.png")
    alive: set[int] = set()
    most, read = 0, 0
    real = tasks.training.data.from_uint8

    def counted(pixels: np.ndarray) -> Tensor:
        nonlocal most, read
        images = real(pixels)
        read += 1
        alive.add(read)
        weakref.finalize(images.untyped_storage(), alive.discard, read)
        most = max(most, len(alive))
        return images

    monkeypatch.setattr(tasks.training.data, "from_uint8", counted)
    batches = stream(str(tmp_path)).batches(first_step=0, batch_size=BATCH_SIZE)
    for batch in itertools.islice(batches, 96 // BATCH_SIZE):
        assert len(batch.images) == BATCH_SIZE
    batches.close()
    assert read >= 96
    assert most <= (BATCHES_AHEAD + 2) * BATCH_SIZE


def test_nobody_reads_on_when_the_stream_is_closed() -> None:
    batches = stream().batches(first_step=0, batch_size=BATCH_SIZE)
    next(batches)
    batches.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "read-training-images"]


# --- bad images ---------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Eight digits and two files that are none."""
    digits = load_split("train").images
    for number in range(8):
        Image.fromarray(digits[number]).save(tmp_path / f"{number}.png")
    (tmp_path / "8.png").write_bytes(b"")
    Image.fromarray(np.zeros((32, 64), np.uint8)).save(tmp_path / "9.png")
    return tmp_path


def test_a_bad_image_is_replaced_by_one_that_its_position_decides(folder: Path) -> None:
    once, again = take(5, stream(str(folder)), batch_size=2), take(5, stream(str(folder)), batch_size=2)
    assert torch.equal(images_of(once), images_of(again))
    problems = [problem for batch in once for problem in batch.problems]
    assert {(problem.image_id, problem.reason) for problem in problems} == {("8.png", "empty"), ("9.png", "not_square")}
    assert all("fit: crop" in problem.message for problem in problems if problem.reason == "not_square")
    assert {problem.position for problem in problems} <= set(range(10))


def test_a_source_of_bad_images_only_is_refused_with_the_reason(tmp_path: Path) -> None:
    for number in range(3):
        Image.fromarray(np.zeros((32, 64), np.uint8)).save(tmp_path / f"{number}.png")
    with pytest.raises(SourceError, match=r"none of the first 3 .* 64x32 pixels, a square was wanted.*fit: crop"):
        check_usable(str(tmp_path), list_source(str(tmp_path)), VIEW)
    with pytest.raises(SourceError, match=r"cannot be used, the last one .* a square was wanted"):
        take(1, stream(str(tmp_path)))


def test_images_have_to_have_the_shape_of_the_content_box(tmp_path: Path) -> None:
    """An encoder of cars reads 192 x 256: square pictures are refused, those of the box's shape are read."""
    view = EncoderView((192, 256), 3, "refuse")
    Image.fromarray(np.zeros((256, 256, 3), np.uint8)).save(tmp_path / "0.png")
    with pytest.raises(SourceError, match=r"256x256 pixels, 256x192 or the same aspect ratio was wanted"):
        check_usable(str(tmp_path), list_source(str(tmp_path)), view)
    Image.fromarray(np.zeros((384, 512, 3), np.uint8)).save(tmp_path / "1.png")
    check_usable(str(tmp_path), list_source(str(tmp_path)), view)
    ((rows, images),) = read_images(str(tmp_path), list_source(str(tmp_path)), view, range(2), batch_size=4)
    assert (rows, images.shape) == ([1], (1, 3, 192, 256))


def test_storage_that_fails_for_a_moment_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    real, failures = Source.read, iter([True, True, False])

    def read(self: Source, item: Any) -> bytes:
        if next(failures, False):
            raise SourceError("does not answer", is_transient=True)
        return real(self, item)

    monkeypatch.setattr(tasks.training.data, "RETRY_SECONDS", 0.0)
    monkeypatch.setattr(Source, "read", read)
    assert take(1, stream())[0].problems == ()
    monkeypatch.setattr(Source, "read", lambda self, item: (_ for _ in ()).throw(SourceError("no", is_transient=True)))
    with pytest.raises(SourceError, match="no"):
        take(1, stream())


# --- augmentation and held-out images -----------------------------------------------------------------


def test_augmentation_follows_the_sample_alone() -> None:
    image = torch.linspace(-1, 1, 32 * 32).view(1, 32, 32)
    assert torch.equal(augment(image, "none", 3), image)
    flipped = [not torch.equal(augment(image, "flip", seed), image) for seed in range(200)]
    assert 80 < sum(flipped) < 120
    assert torch.equal(augment(image, "digits", 3), augment(image, "digits", 3))
    assert not torch.equal(augment(image, "digits", 3), augment(image, "digits", 4))


def test_held_out_images_depend_on_the_ids_alone() -> None:
    listing = list_source("digits:train[:100]")
    rest, held = hold_out(listing, 10)
    ids = set(held["image_id"].to_pylist())
    assert len(held) == 10 and len(rest) == 90 and not ids & set(rest["image_id"].to_pylist())
    _, of_half = hold_out(listing.slice(0, 50), 10)
    assert len(ids & set(of_half["image_id"].to_pylist())) >= 1  # those that are there are chosen again
    assert listing_digest(rest) != listing_digest(listing)
