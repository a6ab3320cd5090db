"""The anchor: mean of normalized styles over synthetic codes."""

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import lsap_core.alignment.anchor as anchor_module
from lsap_core.alignment import Anchor, estimate_anchor
from lsap_core.alignment.anchor import anchor_digest
from lsap_core.errors import ConfigError, ShapeError
from lsap_core.generators import Generator
from lsap_core.spaces.styles import normalize, select


class PublishedSamples:
    """A generator whose codes are those that a published program drew, in their order."""

    def __init__(self, generator: Generator, z: Tensor):
        self.config, self.mapping, self.has_w_avg = generator.config, generator.mapping, generator.has_w_avg
        self.styles = generator.styles
        self.generator, self.remaining = generator, z

    def map(self, z: Tensor) -> Tensor:
        """Codes of the next published z, as many as were asked for."""
        given, self.remaining = self.remaining[: len(z)], self.remaining[len(z) :]
        assert given.shape == z.shape
        return self.generator.map(given)


@pytest.mark.parametrize("resolution", [32, 1024])
def test_anchor_of_published_samples(
    resolution: int,
    reference: Callable[[str], Any],
    published_generator: Callable[[int], Generator],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(anchor_module, "SAMPLE_BATCH", 300)
    expected = reference(f"sncd{resolution}")
    count = int(expected["n_samples"])
    z = np.random.RandomState(int(expected["z_seed"])).standard_normal((count, 512)).astype(np.float32)
    samples = PublishedSamples(published_generator(resolution), torch.from_numpy(z))
    found = estimate_anchor(samples, num_samples=count)  # type: ignore[arg-type]
    assert len(samples.remaining) == 0
    assert len(found.directions) == samples.config.num_ws
    for layer, direction in enumerate(found.directions):
        expected.check(f"anchor_{layer:02d}", direction[None])


@pytest.fixture(scope="module")
def generator(random_generator: Callable[..., Generator]) -> Generator:
    return random_generator(dtype=torch.float64).freeze()


def sampled_codes(generator: Generator, count: int, seed: int = 0) -> Tensor:
    z = torch.randn(count, generator.config.z_dim, generator=torch.Generator().manual_seed(seed))
    return generator.map(z.double())


def test_anchor_is_the_mean_of_unit_vectors_and_not_a_unit_vector(generator: Generator) -> None:
    found = estimate_anchor(generator, num_samples=500)
    units = normalize(select(generator.styles(sampled_codes(generator, 500)), generator.config, "authors"))
    for direction, unit in zip(found.directions, units, strict=True):
        torch.testing.assert_close(direction.double(), unit.mean(dim=0), rtol=0, atol=1e-7)
    assert (found.lengths() < 0.99).all()
    assert torch.equal(found.lengths(), torch.stack([d.double().norm() for d in found.directions]))


def test_normalizing_before_averaging_differs_from_averaging_before_normalizing(generator: Generator) -> None:
    found = estimate_anchor(generator, num_samples=500)
    raw = select(generator.styles(sampled_codes(generator, 500)), generator.config, "authors")
    swapped = normalize([style.mean(dim=0, keepdim=True) for style in raw])
    assert max((a - b[0]).abs().max() for a, b in zip(found.directions, swapped, strict=True)) > 0.01


@pytest.mark.parametrize("batch", [16, 100, 999, 4096])
def test_the_size_of_the_pieces_does_not_matter(
    batch: int, generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = estimate_anchor(generator, num_samples=2000)
    monkeypatch.setattr(anchor_module, "SAMPLE_BATCH", batch)
    pieces = estimate_anchor(generator, num_samples=2000)
    # float32 sums would be wrong by 1e-6 after 125 pieces.
    for a, b in zip(pieces.directions, whole.directions, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=6e-8)
    torch.testing.assert_close(pieces.w_avg, whole.w_avg, rtol=1e-6, atol=1e-7)
    assert pieces.code_deviation == pytest.approx(whole.code_deviation, rel=1e-12)


def test_a_constant_style_is_averaged_without_rounding(
    random_generator: Callable[..., Generator], monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = random_generator()
    with torch.no_grad():
        for layer in (*generator.synthesis.conv_layers(), *generator.synthesis.to_rgb_layers()):
            layer.affine.weight.zero_()
    monkeypatch.setattr(anchor_module, "SAMPLE_BATCH", 16)
    found = estimate_anchor(generator, num_samples=20_000)
    units = normalize(select(generator.styles(torch.zeros(1, 24)), generator.config, "authors"))
    # In float32 the 1250 partial sums would lose several units of the last place.
    for direction, unit in zip(found.directions, units, strict=True):
        assert torch.equal(direction, unit[0])


def test_the_same_seed_gives_the_same_anchor_and_another_seed_another(generator: Generator) -> None:
    torch.manual_seed(1)
    first = estimate_anchor(generator, num_samples=64, seed=3)
    torch.manual_seed(2)
    again, other = (estimate_anchor(generator, num_samples=64, seed=seed) for seed in (3, 4))
    assert all(torch.equal(a, b) for a, b in zip(first.directions, again.directions, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first.directions, other.directions, strict=True))


def test_estimating_leaves_the_global_random_state_alone(generator: Generator) -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    estimate_anchor(generator, num_samples=16)
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize(("style_set", "layers"), [("authors", 8), ("conv", 7), ("full", 11)])
def test_there_is_one_direction_for_each_vector_of_the_style_set(
    style_set: str, layers: int, generator: Generator
) -> None:
    found = estimate_anchor(generator, num_samples=16, style_set=style_set)  # type: ignore[arg-type]
    assert len(found.directions) == layers and found.style_set == style_set


def test_the_mean_code_is_the_sampled_one_unless_the_checkpoint_has_its_own(
    random_generator: Callable[..., Generator],
) -> None:
    generator = random_generator(dtype=torch.float64).freeze()
    codes = sampled_codes(generator, 300)
    sampled = estimate_anchor(generator, num_samples=300)
    torch.testing.assert_close(sampled.w_avg.double(), codes.mean(dim=0), rtol=1e-6, atol=1e-6)
    expected = (codes - codes.mean(dim=0)).square().sum(dim=1).mean().sqrt().item()
    assert sampled.code_deviation == pytest.approx(expected, rel=1e-9)
    generator.mapping.w_avg.fill_(0.25)
    own = estimate_anchor(generator, num_samples=300)
    assert torch.equal(own.w_avg, torch.full((24,), 0.25, dtype=torch.float64))
    generator.mapping.w_avg.fill_(0.5)
    assert own.w_avg[0] == 0.25  # a copy


def test_floor_and_self_score_are_those_of_the_lengths() -> None:
    found = Anchor((torch.tensor([0.6, 0.0]), torch.tensor([0.0, 0.8])), torch.zeros(2), 1.0, "authors", 2)
    assert found.floor() == pytest.approx(0.3)
    assert found.self_score() == pytest.approx((0.64 + 0.36) / 2)


def test_an_anchor_survives_storage_bit_for_bit(generator: Generator) -> None:
    found = estimate_anchor(generator, num_samples=64, style_set="full")
    stored = io.BytesIO()
    np.savez(stored, **found.to_arrays())
    stored.seek(0)
    with np.load(stored, allow_pickle=False) as arrays:
        back = Anchor.from_arrays(dict(arrays))
    assert len(back.directions) == 11
    assert all(torch.equal(a, b) for a, b in zip(found.directions, back.directions, strict=True))
    assert torch.equal(found.w_avg, back.w_avg)
    assert (back.code_deviation, back.style_set, back.num_samples) == (found.code_deviation, "full", 64)


def test_moving_an_anchor_keeps_every_number(generator: Generator) -> None:
    found = estimate_anchor(generator, num_samples=16)
    moved = found.to("cpu")
    assert moved.to_arrays().keys() == found.to_arrays().keys()
    for name, values in moved.to_arrays().items():
        np.testing.assert_array_equal(values, found.to_arrays()[name])


def test_the_digest_changes_with_every_option() -> None:
    options: dict[str, Any] = {"num_samples": 50_000, "style_set": "authors", "seed": 0}
    changed = [{"num_samples": 50_001}, {"style_set": "conv"}, {"style_set": "full"}, {"seed": 1}]
    digests = [anchor_digest("a", **options), anchor_digest("b", **options)]
    digests += [anchor_digest("a", **{**options, **change}) for change in changed]
    assert len(set(digests)) == len(digests)
    assert anchor_digest("a", **options) == digests[0]


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_samples_are_refused(count: int, generator: Generator) -> None:
    with pytest.raises(ShapeError, match=f"{count} samples for the anchor; wanted at least 2"):
        estimate_anchor(generator, num_samples=count)


def test_another_style_set_is_refused(generator: Generator) -> None:
    with pytest.raises(ConfigError, match="all"):
        estimate_anchor(generator, num_samples=16, style_set="all")  # type: ignore[arg-type]
