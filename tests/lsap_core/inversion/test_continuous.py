"""Images that end where they are near enough, and batches that stay full: what an image gets it gets anywhere."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lsap_core.alignment import estimate_anchor
from lsap_core.errors import ConfigError
from lsap_core.generators import Generator
from lsap_core.inversion import Inversion, OptimizationEmbedder, OptimizationSettings, RefilledBatch
from lsap_core.inversion.by_optimization import TRACE_TERMS
from lsap_core.perceptual.features import FeatureDistance, FeatureNet, FeatureNetConfig

Numbers = Callable[..., Tensor]
Image = tuple[int, Tensor, int]

SETTINGS = OptimizationSettings(num_steps=14, record_every=4, learning_rate=0.3)
LPIPS = TRACE_TERMS.index("lpips")


@pytest.fixture(scope="module")
def embedder(random_generator: Callable[..., Generator]) -> OptimizationEmbedder:
    generator = random_generator().freeze()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = FeatureNet(FeatureNetConfig(32, 3, channels=(6, 8, 8)))
    perceptual = FeatureDistance(network.requires_grad_(False).eval())
    return OptimizationEmbedder(generator, estimate_anchor(generator, num_samples=500), perceptual, SETTINGS)


@pytest.fixture(scope="module")
def images(embedder: OptimizationEmbedder, numbers: Numbers) -> list[Image]:
    with torch.no_grad():
        made = embedder.generator.synthesize(embedder.generator.map(numbers(7, 16, seed=5)))
    made = made / made.abs().amax(dim=(1, 2, 3), keepdim=True)
    return [(place, image, 40 + place) for place, image in enumerate(made)]


@pytest.fixture(scope="module")
def all_steps(embedder: OptimizationEmbedder, images: list[Image]) -> Inversion:
    """All of them at once, to the end."""
    return embedder(torch.stack([image for _, image, _ in images]), [seed for _, _, seed in images])


@pytest.fixture(scope="module")
def stopping(embedder: OptimizationEmbedder, all_steps: Inversion) -> OptimizationEmbedder:
    """Ends where some images are on the way, and others never."""
    lowest = all_steps.trace[:, :-1, LPIPS].amin(dim=1)
    return stopping_at(embedder, float(lowest.sort().values[3]))


def stopping_at(embedder: OptimizationEmbedder, lpips: float) -> OptimizationEmbedder:
    settings = replace(SETTINGS, stop_at_lpips=lpips)
    return OptimizationEmbedder(embedder.generator, embedder.anchor, embedder.perceptual, settings)


def refilled(embedder: OptimizationEmbedder, images: list[Image], batch_size: int) -> dict[int, Inversion]:
    """What each image gets, alone in its inversion."""
    batch = RefilledBatch[int](embedder, batch_size)
    left, found = list(images), dict[int, Inversion]()
    while left or batch.under_way:
        free = batch.num_free
        batch.put(left[:free])
        left = left[free:]
        places, inversion = batch.advance()
        found |= {place: one_of(inversion, row) for row, place in enumerate(places)}
    return found


def one_of(inversion: Inversion, row: int) -> Inversion:
    one = slice(row, row + 1)
    names = ("w_plus", "reconstruction", "trace", "stopped_at", "num_steps")
    noise = tuple(maps[one] for maps in inversion.noise)
    return replace(inversion, noise=noise, **{name: getattr(inversion, name)[one] for name in names})


def assert_same_bits(found: Inversion, wanted: Inversion) -> None:
    assert torch.equal(found.num_steps, wanted.num_steps) and torch.equal(found.w_plus, wanted.w_plus)
    torch.testing.assert_close(found.trace, wanted.trace, rtol=0, atol=0, equal_nan=True)
    assert all(torch.equal(a, b) for a, b in zip(found.noise, wanted.noise, strict=True))


def test_an_image_ends_where_it_records_that_it_is_near_enough(
    stopping: OptimizationEmbedder, images: list[Image], all_steps: Inversion
) -> None:
    """In a batch that is not filled again, too: the others go on to what they get without a limit."""
    target, seeds = torch.stack([image for _, image, _ in images]), [seed for _, _, seed in images]
    found, limit = stopping(target, seeds), stopping.settings.stop_at_lpips
    assert limit is not None
    for row, lpips in enumerate(all_steps.trace[..., LPIPS].tolist()):
        reached = [step for step, value in zip(SETTINGS.trace_steps, lpips, strict=True) if value <= limit]
        wanted = reached[0] if reached else 14
        assert found.num_steps[row] == wanted
        num_recorded = sum(step <= wanted for step in SETTINGS.trace_steps)
        torch.testing.assert_close(found.trace[row, :num_recorded], all_steps.trace[row, :num_recorded], rtol=0, atol=0)
        assert found.trace[row, num_recorded:].isnan().all()
        if not reached:
            assert torch.equal(found.w_plus[row], all_steps.w_plus[row])
    assert {14} < set(found.num_steps.tolist())
    state = stopping.start(seeds, target=target)
    row = int(found.num_steps.argmin())
    stopping.advance(state, target, at_most=int(found.num_steps[row]))  # before it records that it is there
    assert torch.equal(stopping.finish(state).w_plus[row], found.w_plus[row])


def test_rows_that_are_filled_again_give_every_image_what_it_gets_otherwise_bit_for_bit(
    stopping: OptimizationEmbedder, images: list[Image], all_steps: Inversion
) -> None:
    """Among batches of one size: rounding depends on the size."""
    together = refilled(stopping, images, 3)
    assert sorted(together) == list(range(7))
    for first in (0, 4):
        target = torch.stack([image for _, image, _ in images[first : first + 3]])
        alone = stopping(target, [seed for _, _, seed in images[first : first + 3]])
        for row in range(3):
            if first + row < 5:  # the last ones end in a batch that has become smaller
                assert_same_bits(together[first + row], one_of(alone, row))
            torch.testing.assert_close(together[first + row].w_plus[0], alone.w_plus[row], rtol=0, atol=1e-3)


def test_who_goes_on_with_a_state_that_was_kept_ends_with_the_same_bits(
    stopping: OptimizationEmbedder, images: list[Image]
) -> None:
    wanted = refilled(stopping, images, 4)
    batch, left, num_found = RefilledBatch[int](stopping, 4), list(images), 0
    for _ in range(3):
        free = batch.num_free
        batch.put(left[:free])
        left = left[free:]
        num_found += len(batch.advance()[0])
    free = batch.num_free
    batch.put(left[:free])
    left, kept, under_way = left[free:], batch.state().to_tensors(), batch.under_way
    assert num_found + len(under_way) + len(left) == 7
    again = RefilledBatch[int](stopping, 4)
    again.put([images[place] for place in under_way], lambda _, state: state.load_tensors(kept))
    assert (again.under_way, again.steps) == (under_way, batch.steps)
    while again.under_way:
        places, inversion = again.advance()
        for row, place in enumerate(places):
            assert_same_bits(one_of(inversion, row), wanted[place])
        free = again.num_free
        again.put(left[:free])
        left = left[free:]


def test_an_image_that_is_near_enough_at_once_takes_no_step(
    embedder: OptimizationEmbedder, images: list[Image]
) -> None:
    found = refilled(stopping_at(embedder, 1e9), images[:3], 2)
    assert [each.num_steps.tolist() for each in found.values()] == [[0]] * 3
    assert all(torch.equal(each.w_plus[0, 0], embedder.anchor.w_avg) for each in found.values())


def test_what_makes_no_sense_is_refused(embedder: OptimizationEmbedder) -> None:
    with pytest.raises(ConfigError, match="batch_size is 0"):
        RefilledBatch(embedder, 0)
    for value in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="wanted a distance that is not negative, or null for never"):
            replace(SETTINGS, stop_at_lpips=value)
    with pytest.raises(ConfigError, match="no LPIPS is known: set lpips_weight, or stop_at_lpips to null"):
        replace(SETTINGS, stop_at_lpips=0.1, lpips_weight=0.0, mse_weight=1.0)
