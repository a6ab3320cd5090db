"""Batches that stay full: what an image gets is what it gets anywhere else."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from lsap_core.alignment import estimate_anchor
from lsap_core.errors import ConfigError
from lsap_core.generators import Generator
from lsap_core.inversion import Inversion, OptimizationEmbedder, OptimizationSettings, embed_continuously
from lsap_core.inversion.continuous import LPIPS
from lsap_core.perceptual.features import FeatureDistance, FeatureNet, FeatureNetConfig

Numbers = Callable[..., Tensor]

SETTINGS = OptimizationSettings(num_steps=14, record_every=4, learning_rate=0.3)


@pytest.fixture(scope="module")
def embedder(random_generator: Callable[..., Generator]) -> OptimizationEmbedder:
    generator = random_generator().freeze()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = FeatureNet(FeatureNetConfig(32, 3, channels=(6, 8, 8)))
    perceptual = FeatureDistance(network.requires_grad_(False).eval())
    return OptimizationEmbedder(generator, estimate_anchor(generator, num_samples=500), perceptual, SETTINGS)


@pytest.fixture(scope="module")
def images(embedder: OptimizationEmbedder, numbers: Numbers) -> list[tuple[Tensor, int]]:
    with torch.no_grad():
        made = embedder.generator.synthesize(embedder.generator.map(numbers(7, 16, seed=5)))
    return list(zip(made / made.abs().amax(dim=(1, 2, 3), keepdim=True), range(40, 47), strict=True))


@pytest.fixture(scope="module")
def all_steps(embedder: OptimizationEmbedder, images: list[tuple[Tensor, int]]) -> Inversion:
    """All of them at once, to the end."""
    return embedder(torch.stack([image for image, _ in images]), [seed for _, seed in images])


def near_enough(whole: Inversion) -> float:
    """What some reach on the way, and others do not."""
    lowest = whole.trace[:, :-1, LPIPS].amin(dim=1)
    return float(lowest.sort().values[3])


def test_every_image_gets_what_it_gets_alone_bit_for_bit(
    embedder: OptimizationEmbedder, images: list[tuple[Tensor, int]], all_steps: Inversion
) -> None:
    """For batches of one size: their rounding is their own."""
    stop = near_enough(all_steps)
    together = dict(embed_continuously(embedder, images, batch_size=3, stop_at_lpips=stop))
    assert sorted(together) == list(range(7))
    for place in (0, 3, 4, 6):
        ((_, alone),) = embed_continuously(embedder, [images[place]], batch_size=3, stop_at_lpips=stop)
        found = together[place]
        assert found.num_steps == alone.num_steps
        for name in ("w_plus", "reconstruction"):
            assert torch.equal(getattr(found, name), getattr(alone, name))
        torch.testing.assert_close(found.trace, alone.trace, rtol=0, atol=0, equal_nan=True)
        assert all(torch.equal(a, b) for a, b in zip(found.noise, alone.noise, strict=True))
    steps = {found.num_steps for found in together.values()}
    assert 14 in steps and min(steps) < 14 and steps <= {4, 8, 12, 14}


def test_an_image_that_is_near_enough_ends_with_what_it_has_at_that_step(
    embedder: OptimizationEmbedder, images: list[tuple[Tensor, int]], all_steps: Inversion
) -> None:
    stop = near_enough(all_steps)
    for place, found in embed_continuously(embedder, images, batch_size=3, stop_at_lpips=stop):
        recorded = [step for step in SETTINGS.trace_steps if step < found.num_steps]
        lpips = all_steps.trace[place, :, LPIPS].tolist()
        reached = [step for step, value in zip(SETTINGS.trace_steps, lpips, strict=True) if value <= stop]
        if found.num_steps < SETTINGS.num_steps:
            assert recorded[-1] == reached[0]
        assert found.trace[0, : len(recorded)].isfinite().all() and found.trace[0, len(recorded) :].isnan().all()
    (found,) = (each for place, each in embed_continuously(embedder, images[:1], batch_size=4, stop_at_lpips=1e9))
    assert found.num_steps == SETTINGS.record_every


def test_without_a_stop_everything_is_done_and_images_are_read_when_a_row_is_free(
    embedder: OptimizationEmbedder, images: list[tuple[Tensor, int]]
) -> None:
    """Each image gets what it gets in another batch of this size; one of another size would round in another way."""
    wanted = {}
    for places in ((0, 1, 2), (3, 4, 5), (4, 5, 6)):
        batch = embedder(torch.stack([images[place][0] for place in places]), [images[place][1] for place in places])
        wanted |= dict(zip(places, batch.w_plus, strict=True))
    read: list[int] = []

    def source() -> Iterator[tuple[Tensor, int]]:
        for image, seed in images:
            read.append(seed)
            yield image, seed

    found = embed_continuously(embedder, source(), batch_size=3)
    first, inversion = next(found)
    assert (first, read, inversion.num_steps) == (0, [40, 41, 42], 14)
    for place, each in found:
        assert torch.equal(each.w_plus[0], wanted[place])
    assert read == [seed for _, seed in images]
    assert not list(embed_continuously(embedder, [], batch_size=3))


@pytest.mark.parametrize(
    ("batch_size", "stop", "message"),
    [(0, None, "batch_size is 0"), (1, 0.0, "stop_at_lpips is 0.0"), (1, float("nan"), "wanted a positive number")],
)
def test_what_makes_no_sense_is_refused(
    batch_size: int, stop: float | None, message: str, embedder: OptimizationEmbedder, images: list[tuple[Tensor, int]]
) -> None:
    with pytest.raises(ConfigError, match=message):
        next(embed_continuously(embedder, images, batch_size=batch_size, stop_at_lpips=stop))
