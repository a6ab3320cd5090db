"""Pivotal tuning, beside the published loop and against its own promises."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from lsap_core.errors import ConfigError, ShapeError
from lsap_core.generators import Generator, GeneratorConfig
from lsap_core.generators.checkpoints import build_generator, from_rosinality
from lsap_core.inversion import PerceptualDistance
from lsap_core.objectives.terms import pixel_error
from lsap_core.perceptual.features import FeatureDistance, FeatureNet, FeatureNetConfig
from lsap_core.refinement import Embedded, RefinementParts, RefinementSettings, as_stored
from lsap_core.refinement.pti import PtiRefiner, PtiSettings
from lsap_core.refinement.pti_loss import at_distance
from lsap_core.refinement.pti_state import TRACE_TERMS, PtiState
from lsap_core.refinement.refined_by_pti import tuned_weights

Numbers = Callable[..., Tensor]
Refine = Callable[..., PtiRefiner]

SEEDS = (11, 12, 13)
SHORT = PtiSettings(num_steps=6, learning_rate=3e-3, stop_at_lpips=None, record_every=1)
PIXELS_ONLY = replace(SHORT, lpips_weight=0.0)
WITH_LOCALITY = replace(SHORT, regularizes_locality=True, locality_alpha=3.0)


class NoPerceptualDistance:
    """For runs that compare pixels alone."""

    def features(self, images: Tensor) -> list[Tensor]:
        """Never needed."""
        raise AssertionError("no term looks at features")

    def distance(self, features: list[Tensor], target_features: list[Tensor]) -> Tensor:
        """Never needed."""
        raise AssertionError("no term looks at features")


class PixelDistance:
    """The squared difference of pixels, spoiled for the image whose target is `bad` from the call after `after` on."""

    def __init__(self, bad: Tensor, after: int, spoil: Callable[[Tensor], Tensor]):
        self.bad, self.remaining, self.spoil = bad, after, spoil

    def features(self, images: Tensor) -> list[Tensor]:
        """The images."""
        return [images]

    def distance(self, features: list[Tensor], target_features: list[Tensor]) -> Tensor:
        """One distance for each image."""
        self.remaining -= 1
        pairs = zip(features[0], target_features[0], strict=True)
        return torch.stack([self._of_one(image, target) for image, target in pairs])

    def _of_one(self, image: Tensor, target: Tensor) -> Tensor:
        distance = (image - target).square().mean()
        return self.spoil(distance) if self.remaining < 0 and torch.equal(target, self.bad) else distance


def becomes_nan(distance: Tensor) -> Tensor:
    return distance * torch.nan


def has_no_gradient(distance: Tensor) -> Tensor:
    """Finite, but with the derivative of a root at 0."""
    return distance + (0.0 * distance).sqrt()


@pytest.fixture(scope="module")
def generator(random_generator: Callable[..., Generator], numbers: Numbers) -> Generator:
    made = random_generator()
    made.mapping.w_avg.copy_(made.map(numbers(500, 16)).detach().mean(dim=0))
    return made.freeze()


@pytest.fixture(scope="module")
def generator64(generator: Generator) -> Generator:
    return copy.deepcopy(generator).double()


@pytest.fixture(scope="module")
def embedded(generator: Generator, numbers: Numbers) -> Embedded:
    """Codes of three images, with noise of each image's own."""
    codes = generator.expand(generator.map(numbers(3, 16, seed=4))).contiguous()
    noise = [numbers(3, 1, *size, seed=size[0]) for size in generator.config.noise_sizes]
    return Embedded(codes.detach(), noise)


@pytest.fixture(scope="module")
def target(generator: Generator, embedded: Embedded, numbers: Numbers) -> Tensor:
    """Images of other codes nearby: what the pivots do not reach."""
    codes = embedded.w_plus + 0.3 * numbers(3, 8, 24, seed=6)
    return generator.synthesize(codes).detach()


@pytest.fixture(scope="module")
def features() -> FeatureDistance:
    """A perceptual distance with random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = FeatureNet(FeatureNetConfig(32, 3, channels=(6, 8, 8)))
    return FeatureDistance(network.requires_grad_(False).eval())


@pytest.fixture(scope="module")
def refine(generator: Generator, features: FeatureDistance) -> Refine:
    """A refiner of the small generator."""

    def make(settings: PtiSettings = SHORT, perceptual: PerceptualDistance | None = None, **changes: Any) -> PtiRefiner:
        parts = RefinementParts(generator, perceptual or features)
        return replace(settings, **changes).refiner(parts)

    return make


@pytest.fixture(scope="module")
def finished(refine: Refine, embedded: Embedded, target: Tensor) -> Any:
    """A refinement of the three images, its refiner with it."""
    refiner = refine()
    return refiner, run(refiner, embedded, target)


def run(refiner: PtiRefiner, embedded: Embedded, target: Tensor) -> Any:
    state = refiner.start(embedded, target, SEEDS[: len(target)])
    refiner.advance(state, target)
    return refiner.finish(state)


def only(embedded: Embedded, row: int) -> Embedded:
    assert not isinstance(embedded.noise, str)
    return Embedded(embedded.w_plus[row : row + 1], [maps[row : row + 1] for maps in embedded.noise])


# --- the published loop ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def published64(published_generator: Callable[[int], Generator]) -> Generator:
    return copy.deepcopy(published_generator(32)).double()


def our_name(published: str) -> str:
    """Our name of a parameter of the published generator."""
    if published == "input.input":
        return "const"
    layer, _, rest = published.partition(".")
    if layer in ("convs", "to_rgbs"):
        index, _, rest = rest.partition(".")
        layer = f"{layer}.{int(index) + 1}"
    else:
        layer = {"conv1": "convs.0", "to_rgb1": "to_rgbs.0"}[layer]
    names = {"noise.weight": "noise_strength", "activate.bias": "bias", "conv.weight": "weight", "bias": "bias"}
    return f"{layer}.{names.get(rest) or rest.replace('conv.modulation', 'affine')}"


@pytest.mark.slow
def test_five_steps_in_float64_are_the_published_ones(reference: Callable[[str], Any], published64: Generator) -> None:
    numbers = reference("pti_tuning")
    settings = PtiSettings(num_steps=5, lpips_weight=0.0, stop_at_lpips=None, record_every=1)
    refiner = PtiRefiner(published64, perceptual=NoPerceptualDistance(), settings=settings)
    target = numbers["target"].double()
    found = run(refiner, Embedded(numbers["pivot"].double()), target)
    numbers.check("loss", found.trace[0, :, TRACE_TERMS.index("loss")])
    numbers.check("image", found.refined.synthesize())
    before = dict(published64.synthesis.named_parameters())
    after = {name: value[0] for name, value in tuned_weights(refiner.tuned, found.refined.differences).items()}
    names = [our_name(name) for name in PUBLISHED_PARAMETERS]
    assert sorted(names) == sorted(after)
    numbers.check("change_norms", torch.stack([(after[name] - before[name]).norm() for name in names]))
    numbers.check("conv1_corner", after["convs.0.weight"][:4, :4])
    numbers.check("noise_strengths", torch.stack([after[f"convs.{conv}.noise_strength"] for conv in range(7)]))
    numbers.check("to_rgb1_bias", after["to_rgbs.0.bias"].view(1, 3, 1, 1))


MODULATED = ("conv.weight", "conv.modulation.weight", "conv.modulation.bias")
PUBLISHED_PARAMETERS = (
    "input.input",
    *(f"conv1.{name}" for name in (*MODULATED, "noise.weight", "activate.bias")),
    *(f"to_rgb1.{name}" for name in ("bias", *MODULATED)),
    *(f"convs.{conv}.{name}" for conv in range(6) for name in (*MODULATED, "noise.weight", "activate.bias")),
    *(f"to_rgbs.{layer}.{name}" for layer in range(3) for name in ("bias", *MODULATED)),
)


def test_locality_is_the_published_one(
    reference: Callable[[str], Any], published_generator: Callable[[int], Generator], fill: Any, filled: Any
) -> None:
    numbers, generator = reference("pti_regularizer"), copy.deepcopy(published_generator(32))
    keys = filled("rosinality_generator_32", "stylegan2")
    shapes = {name: tuple(value.shape) for name, value in keys.items()}
    other = build_generator(from_rosinality(fill.fill_dict(shapes, "stylegan2", "tuned:")))
    weights = {
        name: (value + 0.05 * (other.synthesis.get_parameter(name) - value)).detach()[None]
        for name, value in generator.synthesis.named_parameters()
    }
    generator.mapping.w_avg.copy_(numbers["w_avg"])
    settings = PtiSettings(lpips_weight=0.0, stop_at_lpips=None, regularizes_locality=True, locality_lpips_weight=0.0)
    refiner = PtiRefiner(generator, perceptual=NoPerceptualDistance(), settings=settings)
    fixed, z = numbers["fixed_w"], numbers["z"].float()
    w_avg = generator.mapping.w_avg
    numbers.check("morphed", at_distance(fixed, numbers["new_w"], float(numbers["alpha"])))
    numbers.check("w_samples", w_avg + 0.5 * (generator.map(z) - w_avg))
    codes = refiner.loss.codes_around(fixed.expand(2, -1, -1), z)
    losses = [
        refiner.loss.locality(code[None], lambda one, noise: refiner.tuned.synthesize(one, weights, noise=noise))
        for code in codes
    ]
    numbers.check("loss", torch.stack(losses).mean())
    numbers.check("old_image_0", generator.synthesize(codes[:1], noise="none"))
    numbers.check("new_image_0", refiner.tuned.synthesize(codes[:1], weights, noise="none"))


# --- an image is refined -------------------------------------------------------------------------------------------


def test_tuned_images_are_closer_and_pivots_stay(
    finished: Any, generator: Generator, embedded: Embedded, target: Tensor
) -> None:
    _, found = finished
    before = pixel_error(generator.synthesize(embedded.w_plus, noise=embedded.noise), target)
    after = pixel_error(found.refined.synthesize(), target)
    assert (after < 0.8 * before).all(), (before, after)
    assert torch.equal(found.refined.w_plus, embedded.w_plus)
    assert found.num_steps.tolist() == [6, 6, 6]
    assert found.stopped_at.tolist() == [-1, -1, -1]


def test_the_first_loss_is_that_of_the_embedding_and_the_sum_of_its_terms(
    refine: Refine, generator: Generator, embedded: Embedded, target: Tensor, features: FeatureDistance
) -> None:
    found = run(refine(num_steps=1, mse_weight=0.3, lpips_weight=0.7), embedded, target)
    trace = dict(zip(TRACE_TERMS, found.trace[:, 0].unbind(1), strict=True))
    image = generator.synthesize(embedded.w_plus, noise=embedded.noise)
    torch.testing.assert_close(trace["mse"], pixel_error(image, target))
    torch.testing.assert_close(trace["lpips"], features(image, target))
    torch.testing.assert_close(trace["loss"], 0.3 * trace["mse"] + 0.7 * trace["lpips"])
    assert trace["locality"].isnan().all()


def test_half_precision_of_the_weights_changes_little(finished: Any, embedded: Embedded) -> None:
    refiner, found = finished
    stored = as_stored(refiner, found.refined, embedded.noise)
    torch.testing.assert_close(stored.synthesize(), found.refined.synthesize(), rtol=0, atol=2e-3)


def test_weights_are_kept_in_the_order_of_the_parameters(finished: Any, generator: Generator) -> None:
    refiner, found = finished
    flat = torch.cat([value.detach().flatten() for value in generator.synthesis.parameters()])
    weights = tuned_weights(refiner.tuned, found.refined.arrays()["weights"])
    assert torch.equal(
        torch.cat([value.reshape(len(value), -1) for value in weights.values()], dim=1),
        flat + found.refined.differences,
    )
    assert all((value != refiner.tuned.parameter(name)).any() for name, value in weights.items())


# --- a batch is its images -------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [SHORT, WITH_LOCALITY], ids=["plain", "locality"])
def test_a_batch_gives_each_image_what_it_gets_alone_up_to_rounding_in_float64(
    settings: PtiSettings, generator64: Generator, features: FeatureDistance, embedded: Embedded, target: Tensor
) -> None:
    perceptual = copy.deepcopy(features).double()
    refiner = PtiRefiner(generator64, perceptual=perceptual, settings=settings)
    together = run(refiner, embedded, target)
    for row, seed in enumerate(SEEDS):
        state = refiner.start(only(embedded, row), target[row : row + 1], [seed])
        refiner.advance(state, target[row : row + 1])
        alone = refiner.finish(state)
        torch.testing.assert_close(together.refined.synthesize()[row], alone.refined.synthesize()[0], rtol=0, atol=1e-7)
        torch.testing.assert_close(together.trace[row], alone.trace[0], rtol=1e-7, atol=1e-9, equal_nan=True)


def test_a_close_image_stops_and_does_not_move_again(
    refine: Refine, embedded: Embedded, target: Tensor, features: FeatureDistance
) -> None:
    free = run(refine(num_steps=8), embedded, target)
    lpips = free.trace[..., TRACE_TERMS.index("lpips")]
    threshold = float(lpips[1, 2])  # image 1 is as close before step 2
    found = run(refine(num_steps=8, stop_at_lpips=threshold), embedded, target)
    expected = [int((row <= threshold).nonzero()[0]) if (row <= threshold).any() else 8 for row in lpips]
    assert expected[1] == 2 and len(set(expected)) > 1
    assert found.num_steps.tolist() == expected
    assert found.stopped_at.tolist() == [-1, -1, -1]
    by_then = run(refine(num_steps=2), embedded, target)
    assert torch.equal(found.refined.differences[1], by_then.refined.differences[1])
    assert found.trace[1, 3:].isnan().all() and not found.trace[1, 2, 0].isnan()
    seen = features(found.refined.synthesize(), target)
    assert all(seen[row] <= threshold * 1.0001 for row in range(3) if expected[row] < 8)


def test_images_that_are_close_from_the_beginning_keep_the_generators_weights(
    refine: Refine, embedded: Embedded, target: Tensor
) -> None:
    refiner, seen = refine(stop_at_lpips=1e9), []
    state = refiner.start(embedded, target, SEEDS)
    refiner.advance(state, target, after_step=lambda each: seen.append(each.step))
    found = refiner.finish(state)
    assert found.num_steps.tolist() == [0, 0, 0]
    assert not found.refined.differences.any()
    assert seen == [1, 6]  # nothing is left to do after the first look


@pytest.mark.parametrize("spoil", [becomes_nan, has_no_gradient])
def test_an_image_that_diverges_stops_where_it_was_and_disturbs_no_other(
    spoil: Callable[[Tensor], Tensor], refine: Refine, embedded: Embedded, target: Tensor
) -> None:
    def distance(after: int) -> PixelDistance:
        return PixelDistance(target[1], after, spoil)

    found = run(refine(perceptual=distance(2)), embedded, target)
    healthy = run(refine(perceptual=distance(100)), embedded, target)
    until_then = run(refine(perceptual=distance(100), num_steps=2), embedded, target)
    assert found.stopped_at.tolist() == [-1, 2, -1]
    assert found.num_steps.tolist() == [6, 2, 6]
    assert torch.equal(found.refined.differences[1], until_then.refined.differences[1])
    assert found.trace[1, 2:].isnan().all()
    images = found.refined.synthesize()
    torch.testing.assert_close(images[[0, 2]], healthy.refined.synthesize()[[0, 2]], rtol=0, atol=0.01)


# --- interruption ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [WITH_LOCALITY, replace(SHORT, stop_at_lpips=0.085)], ids=["locality", "stops"])
def test_an_interrupted_refinement_goes_on_bit_for_bit(
    settings: PtiSettings, generator: Generator, features: FeatureDistance, embedded: Embedded, target: Tensor
) -> None:
    refiner = PtiRefiner(generator, perceptual=features, settings=settings)
    states: list[dict[str, Tensor]] = []
    state = refiner.start(embedded, target, SEEDS)
    refiner.advance(state, target, after_step=lambda each: states.append(each.to_tensors()))
    expected = refiner.finish(state)
    assert settings.regularizes_locality or len(set(expected.num_steps.tolist())) > 1, expected.trace[..., 1]
    for saved in states:
        again = refiner.start(embedded, target, (1, 2, 3))
        again.load_tensors(saved)
        refiner.advance(again, target)
        found = refiner.finish(again)
        assert torch.equal(found.refined.differences, expected.refined.differences)
        torch.testing.assert_close(found.trace, expected.trace, rtol=0, atol=0, equal_nan=True)
        assert torch.equal(found.num_steps, expected.num_steps)


def test_a_state_of_another_batch_is_refused(refine: Refine, embedded: Embedded, target: Tensor) -> None:
    refiner = refine()
    saved = refiner.start(only(embedded, 0), target[:1], [0]).to_tensors()
    with pytest.raises(ShapeError, match=r"saved weights is .* another batch"):
        refiner.start(embedded, target, SEEDS).load_tensors(saved)
    assert isinstance(refiner.start(embedded, target, SEEDS), PtiState)


# --- locality, sizes, settings -------------------------------------------------------------------------------------


def test_locality_holds_other_codes(refine: Refine, embedded: Embedded, target: Tensor, numbers: Numbers) -> None:
    moved = []
    for weight in (0.0, 30.0):
        refiner = refine(WITH_LOCALITY, num_steps=12, locality_mse_weight=weight, locality_lpips_weight=1e-9)
        found = run(refiner, embedded, target)
        codes = refiner.loss.codes_around(embedded.w_plus, numbers(3, 16, seed=77))
        weights = tuned_weights(refiner.tuned, found.refined.differences)
        after = refiner.tuned.synthesize(codes, weights, noise="none")
        moved.append(pixel_error(after, refiner.generator.synthesize(codes, noise="none")))
    assert (moved[1] < moved[0]).all(), moved


def test_one_channel_and_a_content_box(random_generator: Callable[..., Generator], numbers: Numbers) -> None:
    config = GeneratorConfig(
        32, (12, 10, 8, 6), z_dim=6, w_dim=8, num_mapping_layers=2, image_channels=1, content_box=(4, 28, 0, 32)
    )
    generator = random_generator(config).freeze()
    refiner = PtiRefiner(generator, perceptual=NoPerceptualDistance(), settings=PIXELS_ONLY)
    embedded, target = Embedded(numbers(2, 8, 8)), numbers(2, 1, 32, 32)
    found = run(refiner, embedded, target)
    outside = target.clone()
    outside[:, :, :4] = 100.0  # what nobody looks at
    assert torch.equal(run(refiner, embedded, outside).refined.differences, found.refined.differences)
    first, last = found.trace[:, 0, 0], found.trace[:, -1, 0]
    assert (last < first).all()


def test_refining_leaves_the_generator_and_the_global_random_state_alone(
    refine: Refine, generator: Generator, embedded: Embedded, target: Tensor
) -> None:
    before = {name: value.clone() for name, value in generator.state_dict().items()}
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    run(refine(WITH_LOCALITY, num_steps=2), embedded, target)
    assert torch.equal(torch.rand(1), expected)
    assert all(parameter.grad is None for parameter in generator.parameters())
    assert all(torch.equal(value, before[name]) for name, value in generator.state_dict().items())


def test_what_does_not_fit_is_named(refine: Refine, embedded: Embedded, target: Tensor) -> None:
    refiner = refine()
    with pytest.raises(ShapeError, match=r"codes are \[3, 24\] with 3 seeds"):
        refiner.start(Embedded(embedded.w_plus[:, 0]), target, SEEDS)
    with pytest.raises(ShapeError, match=r"target images are \[2, 3, 32, 32\]; wanted \[3, 3, 32, 32\]"):
        refiner.start(embedded, target[:2], SEEDS)
    with pytest.raises(ShapeError, match="weights are missing"):
        refiner.restore(embedded, {})
    with pytest.raises(ShapeError, match=r"weights are \[3, 4\]; wanted"):
        refiner.restore(embedded, {"weights": torch.zeros(3, 4)})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_steps": 0}, "num_steps is 0"),
        ({"learning_rate": 0.0}, "learning_rate is 0"),
        ({"mse_weight": -1.0}, "mse_weight is -1"),
        ({"mse_weight": 0.0, "lpips_weight": 0.0}, "nothing would pull"),
        ({"stop_at_lpips": float("nan")}, "stop_at_lpips is nan"),
        ({"locality_alpha": 0.0}, "locality_alpha is 0"),
        ({"num_steps": 10**8, "record_every": 1}, "raise record_every"),
        (
            {"regularizes_locality": True, "locality_mse_weight": 0.0, "locality_lpips_weight": 0.0},
            "regularizes_locality is true",
        ),
    ],
)
def test_settings_that_cannot_run_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(PtiSettings(), **changes)


def test_published_settings_are_the_defaults() -> None:
    settings = PtiSettings()
    assert isinstance(settings, RefinementSettings)
    assert (settings.num_steps, settings.learning_rate, settings.stop_at_lpips) == (350, 3e-4, 0.06)
    assert (settings.mse_weight, settings.lpips_weight, settings.regularizes_locality) == (1, 1, False)
    assert settings.goes_back and not settings.needs_networks
    assert settings.why_stopped(3)[0] == "non_finite_loss"
    assert settings.trace_steps[:2] == (0, 10) and settings.trace_steps[-1] == 349


def test_locality_needs_the_mean_of_w(random_generator: Callable[..., Generator], features: FeatureDistance) -> None:
    with pytest.raises(ConfigError, match="no mean of W"):
        PtiRefiner(random_generator().freeze(), perceptual=features, settings=WITH_LOCALITY)
    PtiRefiner(random_generator().freeze(), perceptual=features, settings=SHORT)
