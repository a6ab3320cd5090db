"""Embedding by optimization, beside the published loop and against its own promises."""

import copy
import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from lsap_core.alignment import Anchor, SncdLoss, estimate_anchor
from lsap_core.errors import ConfigError, ShapeError
from lsap_core.generators import Generator, GeneratorConfig
from lsap_core.inversion import (
    Inversion,
    OptimizationEmbedder,
    OptimizationSettings,
    OptimizationState,
    PerceptualDistance,
)
from lsap_core.inversion.by_optimization import TRACE_TERMS
from lsap_core.inversion.precision import Precision, tensor_cores
from lsap_core.objectives.terms import mean_code_distance, noise_regularization, pixel_error
from lsap_core.perceptual.features import FeatureDistance, FeatureNet, FeatureNetConfig
from lsap_core.presets import method

Numbers = Callable[..., Tensor]
Embed = Callable[..., OptimizationEmbedder]

SEEDS = (11, 12, 13)
PIXELS_ONLY = OptimizationSettings(num_steps=12, lpips_weight=0.0, mse_weight=1.0, record_every=1)


class NoPerceptualDistance:
    """For runs that compare pixels alone."""

    def features(self, images: Tensor) -> list[Tensor]:
        """Nothing."""
        return []

    def distance(self, features: list[Tensor], target_features: list[Tensor]) -> Tensor:
        """Never needed."""
        raise AssertionError("lpips_weight is 0")


class PixelDistance:
    """The squared difference of pixels as a perceptual distance that turns bad for one image after some calls."""

    def __init__(self, *, bad_image: int, after: int, spoil: Callable[[Tensor], Tensor]):
        self.bad_image, self.remaining, self.spoil = bad_image, after, spoil

    def features(self, images: Tensor) -> list[Tensor]:
        """The images."""
        return [images]

    def distance(self, features: list[Tensor], target_features: list[Tensor]) -> Tensor:
        """One distance for each image; from the call after the `after`-th on, one of them is spoiled."""
        difference = features[0] - target_features[0]
        distances = difference.square().mean(dim=(1, 2, 3))
        self.remaining -= 1
        if self.remaining >= 0:
            return distances
        spoiled = self.spoil(difference[self.bad_image])
        return torch.cat([distances[: self.bad_image], spoiled[None], distances[self.bad_image + 1 :]])


def becomes_nan(difference: Tensor) -> Tensor:
    return difference.square().mean() * torch.nan


def becomes_infinite(difference: Tensor) -> Tensor:
    return difference.square().mean() / 0.0


def has_no_gradient(difference: Tensor) -> Tensor:
    """Finite, but with the derivative of a root at 0."""
    return difference.square().mean() + (0.0 * difference.sum()).square().sqrt()


@pytest.fixture(scope="module")
def generator(random_generator: Callable[..., Generator]) -> Generator:
    return random_generator().freeze()


@pytest.fixture(scope="module")
def generator64(random_generator: Callable[..., Generator]) -> Generator:
    return random_generator(dtype=torch.float64).freeze()


@pytest.fixture(scope="module")
def anchor(generator: Generator) -> Anchor:
    return estimate_anchor(generator, num_samples=2000)


@pytest.fixture(scope="module")
def target(generator: Generator, numbers: Numbers) -> Tensor:
    """Images of other codes of the same generator, in the range of images."""
    image = generator.synthesize(generator.map(numbers(3, 16, seed=5)))
    return (image / image.abs().amax(dim=(1, 2, 3), keepdim=True)).detach()


@pytest.fixture(scope="module")
def features() -> FeatureDistance:
    """A perceptual distance with random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = FeatureNet(FeatureNetConfig(32, 3, channels=(6, 8, 8)))
    return FeatureDistance(network.requires_grad_(False).eval())


@pytest.fixture(scope="module")
def embed(generator: Generator, anchor: Anchor) -> Embed:
    """An embedder for the small generator; pixels alone unless told otherwise."""

    def make(
        settings: OptimizationSettings = PIXELS_ONLY, perceptual: PerceptualDistance | None = None, **changes: Any
    ) -> OptimizationEmbedder:
        return OptimizationEmbedder(
            generator, anchor, perceptual or NoPerceptualDistance(), replace(settings, **changes)
        )

    return make


def assert_equal_results(found: Inversion, expected: Inversion, rows: Sequence[int] = (0, 1, 2)) -> None:
    """Bit for bit, for some images of the batch."""
    chosen = list(rows)
    assert torch.equal(found.w_plus[chosen], expected.w_plus[chosen])
    assert torch.equal(found.reconstruction[chosen], expected.reconstruction[chosen])
    for a, b in zip(found.noise, expected.noise, strict=True):
        assert torch.equal(a[chosen], b[chosen])
    torch.testing.assert_close(found.trace[chosen], expected.trace[chosen], rtol=0, atol=0, equal_nan=True)
    assert torch.equal(found.stopped_at[chosen], expected.stopped_at[chosen])


# --- the published loop ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def published_generator64(published_generator: Callable[[int], Generator]) -> Generator:
    return copy.deepcopy(published_generator(32)).double()


@pytest.mark.parametrize("space", ["w", "w_plus"])
def test_ten_steps_in_float64_are_the_published_ones(
    space: str, reference: Callable[[str], Any], published_generator64: Generator
) -> None:
    numbers = reference(f"opt_trajectory_{space.replace('_', '')}")
    rate, steps, noise_weight = numbers["lr_steps_regweight"].tolist()
    settings = OptimizationSettings(
        space=space,  # type: ignore[arg-type]
        num_steps=int(steps),
        learning_rate=rate,
        lpips_weight=0.0,
        mse_weight=1.0,
        noise_weight=noise_weight,
        exploration=0.0,
        record_every=1,
    )
    anchor = estimate_anchor(published_generator64, num_samples=2)
    embedder = OptimizationEmbedder(published_generator64, anchor, NoPerceptualDistance(), settings)
    start = numbers["start"].double()
    first = start[None] if space == "w" else start.expand(1, 8, 512)
    state = embedder.start([0], codes=first, noise=numbers.noise())
    codes = []
    embedder.advance(
        state, numbers["target"].double(), after_step=lambda each: codes.append(each.codes.detach()[0].clone())
    )
    numbers.check("latent", torch.stack(codes))
    assert torch.equal(codes[0], first[0])  # the first step has no learning rate
    found = embedder.finish(state)
    assert found.trace_steps == tuple(range(10))
    for name, term in (("loss", "loss"), ("mse", "mse"), ("reg", "noise_regularization")):
        numbers.check(name, found.trace[0, :, TRACE_TERMS.index(term)])
    for index, maps in enumerate(found.noise):
        numbers.check(f"final_noise_{index}", maps)
    numbers.check("final_image", found.reconstruction)


# --- a batch is its images -------------------------------------------------------------------------------------


@pytest.mark.parametrize("space", ["w", "w_plus"])
def test_a_batch_gives_each_image_what_it_gets_alone(
    space: str, embed: Embed, target: Tensor, features: FeatureDistance
) -> None:
    embedder = embed(perceptual=features, space=space, lpips_weight=1.0, sncd_weight=5.0, mean_code_weight=0.1)
    together = embedder(target, SEEDS)
    for row, seed in enumerate(SEEDS):
        alone = embedder(target[row : row + 1], [seed])
        torch.testing.assert_close(together.w_plus[row], alone.w_plus[0], rtol=0, atol=1e-3)
        torch.testing.assert_close(together.reconstruction[row], alone.reconstruction[0], rtol=0, atol=1e-3)
        for a, b in zip(together.noise, alone.noise, strict=True):
            torch.testing.assert_close(a[row], b[0], rtol=0, atol=1e-3)


@pytest.mark.parametrize("space", ["w", "w_plus"])
def test_a_batch_gives_each_image_what_it_gets_alone_up_to_rounding_in_float64(
    space: str, generator64: Generator, target: Tensor
) -> None:
    anchor = estimate_anchor(generator64, num_samples=500)
    settings = replace(PIXELS_ONLY, space=space, sncd_weight=20.0)  # type: ignore[arg-type]
    embedder = OptimizationEmbedder(generator64, anchor, NoPerceptualDistance(), settings)
    together = embedder(target.double(), SEEDS)
    assert (together.w_plus - anchor.w_avg.double()).abs().max() > 0.1
    for row, seed in enumerate(SEEDS):
        alone = embedder(target[row : row + 1].double(), [seed])
        torch.testing.assert_close(together.w_plus[row], alone.w_plus[0], rtol=0, atol=1e-9)
        torch.testing.assert_close(together.trace[row], alone.trace[0], rtol=1e-8, atol=1e-9, equal_nan=True)


def test_the_order_of_a_batch_does_not_matter(embed: Embed, target: Tensor) -> None:
    embedder, order = embed(sncd_weight=5.0), [2, 0, 1]
    straight = embedder(target, SEEDS)
    shuffled = embedder(target[order], [SEEDS[row] for row in order])
    torch.testing.assert_close(shuffled.w_plus, straight.w_plus[order], rtol=0, atol=1e-3)
    torch.testing.assert_close(shuffled.reconstruction, straight.reconstruction[order], rtol=0, atol=1e-3)


def test_the_same_seed_gives_the_same_result_and_another_seed_another(embed: Embed, target: Tensor) -> None:
    embedder = embed(num_steps=5)
    torch.manual_seed(1)
    first = embedder(target, SEEDS)
    torch.manual_seed(2)
    assert_equal_results(embedder(target, SEEDS), first)
    other = embedder(target, (11, 12, 99))
    assert_equal_results(other, first, rows=(0, 1))
    assert not torch.allclose(other.w_plus[2], first.w_plus[2])


def test_embedding_leaves_the_images_the_weights_and_the_global_random_state_alone(
    embed: Embed, generator: Generator, target: Tensor
) -> None:
    images, before = target.clone(), {name: value.clone() for name, value in generator.state_dict().items()}
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    embed(num_steps=3, sncd_weight=1.0)(images, SEEDS)
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(images, target)
    assert all(parameter.grad is None for parameter in generator.parameters())
    for name, value in generator.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0, equal_nan=True)


# --- the terms of the loss -------------------------------------------------------------------------------------


def test_the_loss_is_the_weighted_sum_of_its_terms(
    embed: Embed, generator: Generator, anchor: Anchor, target: Tensor, features: FeatureDistance
) -> None:
    weights = {"lpips": 0.7, "sncd": 3.0, "mse": 0.3, "mean_code_distance": 0.2, "noise_regularization": 1e3}
    embedder = embed(
        perceptual=features,
        exploration=0.0,
        num_steps=6,
        lpips_weight=0.7,
        sncd_weight=3.0,
        mse_weight=0.3,
        mean_code_weight=0.2,
        noise_weight=1e3,
    )
    state = embedder.start(SEEDS)
    embedder.advance(state, target, until=5)
    before = embedder.finish(state)
    embedder.advance(state, target)
    trace = dict(zip(TRACE_TERMS, embedder.finish(state).trace[:, 5].unbind(1), strict=True))
    expected = {
        "lpips": features(before.reconstruction, target),
        "sncd": SncdLoss(generator, anchor)(before.w_plus),
        "mse": pixel_error(before.reconstruction, target),
        "mean_code_distance": mean_code_distance(before.w_plus, anchor.w_avg, anchor.code_deviation),
        "noise_regularization": noise_regularization(before.noise),
    }
    for name, value in expected.items():
        torch.testing.assert_close(trace[name], value, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(trace["loss"], sum(weights[name] * value for name, value in expected.items()))


@pytest.mark.parametrize(("lsap_o", "base"), [("lsap_o_w", "stylegan2_w"), ("lsap_o_w_plus", "stylegan2_w_plus")])
def test_lsap_o_with_lambda_0_is_its_base_method_bit_for_bit(
    lsap_o: str, base: str, embed: Embed, target: Tensor, features: FeatureDistance
) -> None:
    short = {"num_steps": 10, "record_every": 1}
    zero = embed(method(lsap_o, sncd_weight=0.0, **short).settings, features)(target, SEEDS)
    assert_equal_results(zero, embed(method(base, **short).settings, features)(target, SEEDS))


def test_lambda_changes_no_random_number(embed: Embed, target: Tensor, features: FeatureDistance) -> None:
    # The first step moves no code, so the images of the first two steps differ only by what was drawn.
    traces = [
        embed(perceptual=features, lpips_weight=1.0, sncd_weight=weight, num_steps=3)(target, SEEDS).trace
        for weight in (0.0, 20.0)
    ]
    seen = [TRACE_TERMS.index(name) for name in ("lpips", "mse", "sncd", "noise_regularization")]
    assert torch.equal(traces[0][:, :2][..., seen], traces[1][:, :2][..., seen])
    assert not torch.equal(traces[0][..., 0], traces[1][..., 0])


@pytest.fixture(scope="module")
def by_lambda(
    embed: Embed, generator: Generator, anchor: Anchor, target: Tensor, features: FeatureDistance
) -> list[tuple[float, float]]:
    """Mean SNCD and mean perceptual distance after 60 steps, for growing weights of SNCD."""
    outcomes = []
    for weight in (0.0, 1.0, 20.0, 3000.0):
        embedder = embed(perceptual=features, lpips_weight=1.0, mse_weight=0.0, sncd_weight=weight, num_steps=60)
        found = embedder(target, SEEDS)
        sncd = SncdLoss(generator, anchor)(found.w_plus).mean().item()
        outcomes.append((sncd, features(found.reconstruction, target).mean().item()))
    return outcomes


def test_sncd_falls_as_its_weight_grows(by_lambda: list[tuple[float, float]]) -> None:
    sncd = [outcome[0] for outcome in by_lambda]
    assert all(a > b for a, b in itertools.pairwise(sncd)), sncd


def test_perceptual_distance_does_not_fall_as_the_weight_of_sncd_grows(by_lambda: list[tuple[float, float]]) -> None:
    lpips = [outcome[1] for outcome in by_lambda]
    assert all(a < b for a, b in itertools.pairwise(lpips)), lpips


def test_a_very_large_weight_leads_to_the_floor_of_sncd(by_lambda: list[tuple[float, float]], anchor: Anchor) -> None:
    assert anchor.floor() <= by_lambda[-1][0] < anchor.floor() + 0.1 * (by_lambda[0][0] - anchor.floor())


def test_the_plain_penalty_pulls_codes_toward_the_mean_code(embed: Embed, anchor: Anchor, target: Tensor) -> None:
    distances = [
        mean_code_distance(
            embed(mean_code_weight=weight, num_steps=30)(target, SEEDS).w_plus, anchor.w_avg, anchor.code_deviation
        ).mean()
        for weight in (0.0, 1.0, 100.0)
    ]
    assert distances[0] > distances[1] > distances[2]


def test_embedding_brings_images_nearer_to_their_targets(embed: Embed, target: Tensor) -> None:
    mse = embed(num_steps=60)(target, SEEDS).trace[..., TRACE_TERMS.index("mse")]
    assert (mse[:, -1] < 0.5 * mse[:, 0]).all()


def test_sncd_can_be_measured_on_explored_codes(
    embed: Embed, generator: Generator, anchor: Anchor, target: Tensor
) -> None:
    column = TRACE_TERMS.index("sncd")
    clean, explored = (
        embed(sncd_weight=5.0, sncd_on=on, num_steps=4)(target, SEEDS).trace[..., column]
        for on in ("clean", "explored")
    )
    mean_code = SncdLoss(generator, anchor)(anchor.w_avg[None])
    torch.testing.assert_close(clean[:, 0], mean_code.expand(3))
    assert (explored[:, 0] > clean[:, 0] + 1e-4).all()  # noise around the mean code is farther from the anchor


def test_without_exploration_clean_and_explored_codes_are_the_same(embed: Embed, target: Tensor) -> None:
    clean, explored = (
        embed(sncd_weight=5.0, sncd_on=on, num_steps=4, exploration=0.0)(target, SEEDS) for on in ("clean", "explored")
    )
    assert_equal_results(clean, explored)


def test_only_the_content_box_is_compared(
    random_generator: Callable[..., Generator], small_config: GeneratorConfig, anchor: Anchor, target: Tensor
) -> None:
    boxed = random_generator(replace(small_config, content_box=(4, 28, 0, 32))).freeze()
    embedder = OptimizationEmbedder(boxed, anchor, NoPerceptualDistance(), replace(PIXELS_ONLY, num_steps=4))
    outside, inside = target.clone(), target.clone()
    outside[:, :, :4] = 0.5
    inside[:, :, 4] = 0.5
    expected = embedder(target, SEEDS)
    assert_equal_results(embedder(outside, SEEDS), expected)
    assert not torch.equal(embedder(inside, SEEDS).w_plus, expected.w_plus)


# --- noise maps ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("normalization", "correction"), [("unbiased", 1), ("biased", 0)])
def test_noise_maps_of_every_image_end_with_mean_0_and_deviation_1(
    normalization: str, correction: int, embed: Embed, target: Tensor
) -> None:
    for maps in embed(noise_normalization=normalization, num_steps=5)(target, SEEDS).noise:
        assert maps.shape[0] == 3
        torch.testing.assert_close(maps.mean(dim=(1, 2, 3)), torch.zeros(3), rtol=0, atol=1e-5)
        torch.testing.assert_close(maps.std(dim=(1, 2, 3), correction=correction), torch.ones(3), rtol=0, atol=1e-5)


def test_maps_of_strength_0_are_left_out_without_changing_anything_else(
    random_generator: Callable[..., Generator], anchor: Anchor, target: Tensor
) -> None:
    generator = random_generator()
    with torch.no_grad():
        for conv in (2, 5):
            generator.synthesis.conv_layers()[conv].noise_strength.zero_()
    generator.freeze()
    short, every = (OptimizationEmbedder(generator, anchor, NoPerceptualDistance(), PIXELS_ONLY) for _ in range(2))
    assert short.noisy_convs == [0, 1, 3, 4, 6]
    every.noisy_convs = list(range(7))
    found, expected = short(target, SEEDS), every(target, SEEDS)
    assert torch.equal(found.w_plus, expected.w_plus)
    assert torch.equal(found.reconstruction, expected.reconstruction)
    assert [bool(maps.any()) for maps in found.noise] == [conv in short.noisy_convs for conv in range(7)]
    for conv in short.noisy_convs:
        assert torch.equal(found.noise[conv], expected.noise[conv])


def test_a_generator_without_any_noise_can_be_searched(
    random_generator: Callable[..., Generator], anchor: Anchor, target: Tensor
) -> None:
    generator = random_generator()
    with torch.no_grad():
        for layer in generator.synthesis.conv_layers():
            layer.noise_strength.zero_()
    embedder = OptimizationEmbedder(generator.freeze(), anchor, NoPerceptualDistance(), PIXELS_ONLY)
    found = embedder(target, SEEDS)
    torch.testing.assert_close(found.reconstruction, generator.synthesize(found.w_plus, noise="none"))
    mse = found.trace[..., TRACE_TERMS.index("mse")]
    assert (mse[:, -1] < mse[:, 0]).all()


def test_the_result_is_the_image_of_its_clean_codes_with_its_noise_maps(
    embed: Embed, generator: Generator, target: Tensor
) -> None:
    for space in ("w", "w_plus"):
        found = embed(space=space, num_steps=5)(target, SEEDS)
        assert found.w_plus.shape == (3, 8, 24)
        assert torch.equal(found.w_plus[:, 0], found.w_plus[:, 7]) == (space == "w")
        assert torch.equal(generator.synthesize(found.w_plus, noise=found.noise), found.reconstruction)
        assert found.num_steps.tolist() == [5, 5, 5] and torch.equal(found.stopped_at, torch.full((3,), -1))


# --- interruptions ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["w", "w_plus"])
def uninterrupted(
    request: pytest.FixtureRequest, embed: Embed, target: Tensor, features: FeatureDistance
) -> tuple[Callable[[], OptimizationEmbedder], Inversion]:
    """What makes an embedder of a space, and what it finds in one go."""

    def embedder() -> OptimizationEmbedder:
        return embed(perceptual=features, space=request.param, lpips_weight=1.0, sncd_weight=5.0)

    return embedder, embedder()(target, SEEDS)


@pytest.mark.parametrize("step", [0, 1, 7, 11, 12])
def test_an_interrupted_run_ends_like_one_that_was_not(
    step: int, uninterrupted: tuple[Callable[[], OptimizationEmbedder], Inversion], target: Tensor
) -> None:
    embedder, whole = uninterrupted
    first = embedder()
    state = first.start(SEEDS)
    first.advance(state, target, until=step)
    stored = safetensors.torch.save(state.to_tensors())
    second = embedder()
    resumed = second.start([0, 0, 0])  # nothing of this start may be left
    resumed.load_tensors(safetensors.torch.load(stored))
    assert resumed.step == step
    second.advance(resumed, target)
    assert_equal_results(second.finish(resumed), whole)


def test_a_stored_state_does_not_change_while_the_run_goes_on(embed: Embed, target: Tensor) -> None:
    embedder = embed()
    state = embedder.start(SEEDS)
    embedder.advance(state, target, until=3)
    stored = state.to_tensors()
    kept = {name: tensor.clone() for name, tensor in stored.items()}
    embedder.advance(state, target, until=6)
    for name, tensor in stored.items():
        torch.testing.assert_close(tensor, kept[name], rtol=0, atol=0, equal_nan=True)


def test_a_state_loaded_twice_starts_twice_from_the_same_place(embed: Embed, target: Tensor) -> None:
    embedder = embed()
    state = embedder.start(SEEDS)
    embedder.advance(state, target, until=5)
    stored = state.to_tensors()
    results = []
    for _ in range(2):
        resumed = embedder.start(SEEDS)
        resumed.load_tensors(stored)
        embedder.advance(resumed, target)
        results.append(embedder.finish(resumed))
    assert_equal_results(results[0], results[1])


@pytest.mark.parametrize("other", [{"space": "w"}, {"batch": 2}])
def test_a_state_of_another_space_or_batch_is_refused(other: dict[str, Any], embed: Embed, target: Tensor) -> None:
    embedder = embed()
    state = embedder.start(SEEDS)
    embedder.advance(state, target, until=1)
    resumed = embed(space=other.get("space", "w_plus")).start(SEEDS[: other.get("batch", 3)])
    with pytest.raises(ShapeError, match=r"saved parameter.00 is \[3, 8, 24\]; this optimization has"):
        resumed.load_tensors(state.to_tensors())


def test_every_step_is_reported(embed: Embed, target: Tensor) -> None:
    steps: list[int] = []
    embedder = embed(num_steps=4)
    state = embedder.start(SEEDS)
    embedder.advance(state, target, until=2, after_step=lambda each: steps.append(each.step))
    embedder.advance(state, target, after_step=lambda each: steps.append(each.step))
    embedder.advance(state, target, after_step=lambda each: steps.append(each.step))
    assert steps == [1, 2, 3, 4]


def test_a_state_is_stored_as_of_its_step_however_far_random_numbers_were_read_ahead(
    embed: Embed, target: Tensor
) -> None:
    embedder = embed()
    whole = embedder(target, SEEDS)
    stored: list[dict[str, Tensor]] = []
    embedder.advance(embedder.start(SEEDS), target, after_step=lambda each: stored.append(each.to_tensors()))
    for saved in (stored[0], stored[4], stored[10]):
        resumed = embedder.start([0, 0, 0])
        resumed.load_tensors(saved)
        embedder.advance(resumed, target)
        assert_equal_results(embedder.finish(resumed), whole)


def test_states_of_earlier_versions_have_one_step_for_all_images(embed: Embed, target: Tensor) -> None:
    embedder = embed()
    state = embedder.start(SEEDS)
    embedder.advance(state, target, until=5)
    earlier = {**state.to_tensors(), "step": torch.tensor(5), "adam.00.step": torch.tensor(5.0)}
    resumed = embedder.start([0, 0, 0])
    resumed.load_tensors(earlier)
    assert resumed.steps.tolist() == [5, 5, 5]
    embedder.advance(resumed, target)
    assert_equal_results(embedder.finish(resumed), embedder(target, SEEDS))


# --- precision -------------------------------------------------------------------------------------------------


def test_bfloat16_is_of_convolutions_alone(embed: Embed, target: Tensor, features: FeatureDistance) -> None:
    """Terms that no convolution is in stay as they are, bit for bit; the others differ by what bfloat16 rounds."""
    rounded, exact = (
        embed(perceptual=features, lpips_weight=1.0, sncd_weight=5.0, num_steps=4, precision=precision)(target, SEEDS)
        for precision in ("bfloat16", "float32")
    )
    first, wanted = rounded.trace[:, 0], exact.trace[:, 0]
    columns = [TRACE_TERMS.index(name) for name in ("sncd", "mean_code_distance", "noise_regularization")]
    assert torch.equal(first[:, columns], wanted[:, columns])
    for name in ("lpips", "mse"):
        column = TRACE_TERMS.index(name)
        torch.testing.assert_close(first[:, column], wanted[:, column], rtol=0.03, atol=0)
        assert not torch.equal(first[:, column], wanted[:, column])
    assert {rounded.w_plus.dtype, rounded.reconstruction.dtype, rounded.trace.dtype} == {torch.float32}


@pytest.mark.parametrize("precision", ["float32", "tf32"])
def test_tensor_cores_round_only_where_they_are_asked_to(precision: Precision) -> None:
    def flags() -> tuple[bool, bool]:
        return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32

    before = flags()
    with tensor_cores(precision):
        assert flags() == (precision == "tf32",) * 2
    assert flags() == before


# --- images at their own pace ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def at_own_pace(embed: Embed, target: Tensor, features: FeatureDistance) -> OptimizationEmbedder:
    return embed(perceptual=features, lpips_weight=1.0, sncd_weight=5.0, record_every=5)


@pytest.fixture(scope="module")
def without_a_change(at_own_pace: OptimizationEmbedder, target: Tensor) -> tuple[Inversion, Inversion]:
    """What a batch gets, and what it gets with another image in its second row."""
    other = torch.cat([target[:1], target.flip(-1)[:1], target[2:]])
    return at_own_pace(target, SEEDS), at_own_pace(other, (11, 99, 13))


@pytest.mark.parametrize("met_at", [3, 9, 12])
def test_a_row_that_is_filled_again_in_the_middle_gives_what_its_image_gets_otherwise(
    met_at: int, at_own_pace: OptimizationEmbedder, target: Tensor, without_a_change: tuple[Inversion, Inversion]
) -> None:
    """The one that comes begins at its first step; those that were there go on, and rest when they are done."""
    embedder, late = at_own_pace, target.flip(-1)[:1]
    wanted, wanted_late = without_a_change
    state = embedder.start(SEEDS)
    embedder.advance(state, target, at_most=met_at)
    left = embedder.finish(state.rows([1]))
    state.replace_rows([1], embedder.start([99], target=late))
    assert state.steps.tolist() == [met_at, 0, met_at] and state.step == 0
    mixed = torch.cat([target[:1], late, target[2:]])
    embedder.advance(state, mixed, until=8)
    embedder.advance(state, mixed)
    assert state.steps.tolist() == [12, 12, 12]
    found = embedder.finish(state)
    assert_equal_results(found, wanted, rows=(0, 2))
    assert_equal_results(found, wanted_late, rows=(1,))
    if met_at == 12:  # done: what was taken away is its result
        assert torch.equal(left.w_plus[0], wanted.w_plus[1])
        torch.testing.assert_close(left.trace[0], wanted.trace[1], rtol=0, atol=0, equal_nan=True)


def test_rows_of_a_state_can_be_stored_whatever_step_each_is_at(
    at_own_pace: OptimizationEmbedder, target: Tensor
) -> None:
    embedder = at_own_pace
    state = embedder.start(SEEDS)
    embedder.advance(state, target, at_most=4)
    state.replace_rows([0, 2], embedder.start([21, 22]))
    embedder.advance(state, target, at_most=3)
    resumed = embedder.start([0, 0, 0])
    resumed.load_tensors(safetensors.torch.load(safetensors.torch.save(state.to_tensors())))
    assert resumed.steps.tolist() == [3, 7, 3]
    for each in (state, resumed):
        embedder.advance(each, target)
    assert_equal_results(embedder.finish(resumed), embedder.finish(state))


def test_rows_that_do_not_fit_are_refused(embed: Embed) -> None:
    state = embed().start(SEEDS)
    for rows, other in (([0], embed().start(SEEDS)), ([0], embed(space="w").start([1]))):
        with pytest.raises(ShapeError, match="wanted as many images as rows, started by the same embedder"):
            state.replace_rows(rows, other)


# --- images that break -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def breaks(embed: Embed, target: Tensor) -> Callable[..., Inversion]:
    """A run whose second image breaks after some steps, in a way; until a step."""

    def run(after: int, spoil: Callable[[Tensor], Tensor], until: int | None = None) -> Inversion:
        perceptual = PixelDistance(bad_image=1, after=after, spoil=spoil)
        embedder = embed(perceptual=perceptual, lpips_weight=1.0, mse_weight=0.0, sncd_weight=1.0)
        state = embedder.start(SEEDS)
        embedder.advance(state, target, until=until)
        return embedder.finish(state)

    return run


@pytest.fixture(scope="module")
def healthy(breaks: Callable[..., Inversion]) -> dict[int | None, Inversion]:
    """The same without a break, until some steps and to the end."""
    return {until: breaks(10**9, becomes_nan, until) for until in (0, 1, 8, None)}


@pytest.mark.parametrize("spoil", [becomes_nan, becomes_infinite, has_no_gradient])
@pytest.mark.parametrize("step", [0, 1, 8])
def test_an_image_whose_loss_or_gradient_is_not_finite_stops_alone(
    step: int,
    spoil: Callable[[Tensor], Tensor],
    breaks: Callable[..., Inversion],
    healthy: dict[int | None, Inversion],
) -> None:
    broken = breaks(step, spoil)
    assert_equal_results(broken, healthy[None], rows=(0, 2))
    assert broken.stopped_at.tolist() == [-1, step, -1]
    # The stopped image keeps the codes and noise maps that it had before the step that failed.
    until_then = healthy[step]
    assert torch.equal(broken.w_plus[1], until_then.w_plus[1])
    for a, b in zip(broken.noise, until_then.noise, strict=True):
        assert torch.equal(a[1], b[1])
    assert broken.reconstruction[1].isfinite().all()
    loss = broken.trace[1, :, TRACE_TERMS.index("loss")]
    assert loss[:step].isfinite().all() and loss[step:].isnan().all()


def test_a_target_that_is_not_a_number_stops_at_once_and_alone(
    embed: Embed, target: Tensor, features: FeatureDistance
) -> None:
    damaged = target.clone()
    damaged[1, 0, 3, 3] = torch.nan
    embedder = embed(perceptual=features, lpips_weight=1.0)
    found, healthy = embedder(damaged, SEEDS), embedder(target, SEEDS)
    assert found.stopped_at.tolist() == [-1, 0, -1]
    assert_equal_results(found, healthy, rows=(0, 2))
    assert found.w_plus.isfinite().all() and found.reconstruction.isfinite().all()


def test_an_image_stays_stopped_when_its_loss_becomes_finite_again(embed: Embed, target: Tensor) -> None:
    class BadOnce(PixelDistance):
        def distance(self, features: list[Tensor], target_features: list[Tensor]) -> Tensor:
            distances = super().distance(features, target_features)
            self.remaining = 10**9 if self.remaining < 0 else self.remaining
            return distances

    embedder = embed(
        perceptual=BadOnce(bad_image=0, after=3, spoil=becomes_nan), lpips_weight=1.0, mse_weight=0.0, num_steps=8
    )
    state = embedder.start(SEEDS)
    embedder.advance(state, target, until=4)
    kept = state.codes.detach()[0].clone()
    embedder.advance(state, target)
    assert torch.equal(state.codes.detach()[0], kept)
    assert state.stopped_at.tolist() == [3, -1, -1] and state.is_active.tolist() == [False, True, True]


def test_a_stopped_image_stays_stopped_after_an_interruption(embed: Embed, target: Tensor) -> None:
    damaged = target.clone()
    damaged[2] = torch.inf
    embedder = embed()
    whole = embedder(damaged, SEEDS)
    state = embedder.start(SEEDS)
    embedder.advance(state, damaged, until=6)
    resumed = embedder.start([0, 0, 0])
    resumed.load_tensors(safetensors.torch.load(safetensors.torch.save(state.to_tensors())))
    embedder.advance(resumed, damaged)
    assert_equal_results(embedder.finish(resumed), whole)
    assert whole.stopped_at.tolist() == [-1, -1, 0]


# --- starts, traces and what is refused ------------------------------------------------------------------------


@pytest.mark.parametrize(("space", "shape"), [("w", (3, 24)), ("w_plus", (3, 8, 24))])
def test_the_search_starts_at_the_mean_code_with_the_noise_of_the_seeds(
    space: str, shape: tuple[int, ...], embed: Embed, anchor: Anchor
) -> None:
    state = embed(space=space).start(SEEDS)
    assert torch.equal(state.codes.detach(), anchor.w_avg.expand(shape))
    for index, maps in enumerate(state.noise):
        alone = embed(space=space).start([SEEDS[2]]).noise[index]
        assert torch.equal(maps.detach()[2], alone.detach()[0])


def test_given_codes_and_maps_are_copied(embed: Embed, target: Tensor, numbers: Numbers) -> None:
    embedder = embed(num_steps=4)
    codes = numbers(3, 8, 24)
    noise = [numbers(3, 1, *size, seed=size[0]) for size in embedder.generator.config.noise_sizes]
    kept = [codes.clone(), *(maps.clone() for maps in noise)]
    state = embedder.start(SEEDS, codes=codes, noise=noise)
    assert torch.equal(state.codes.detach(), codes)
    assert all(torch.equal(a.detach(), b) for a, b in zip(state.noise, noise, strict=True))
    embedder.advance(state, target)
    assert all(torch.equal(a, b) for a, b in zip([codes, *noise], kept, strict=True))


@pytest.mark.parametrize(
    ("num_steps", "every", "steps"), [(10, 4, (0, 4, 8, 9)), (9, 4, (0, 4, 8)), (1, 10, (0,)), (3, 1, (0, 1, 2))]
)
def test_the_last_step_is_always_recorded(num_steps: int, every: int, steps: tuple[int, ...]) -> None:
    assert replace(PIXELS_ONLY, num_steps=num_steps, record_every=every).trace_steps == steps


def test_terms_that_cost_nothing_are_recorded_though_they_have_no_weight(embed: Embed, target: Tensor) -> None:
    found = embed(num_steps=5, record_every=2)(target, SEEDS)
    assert found.trace.shape == (3, 3, len(TRACE_TERMS)) and found.trace_steps == (0, 2, 4)
    recorded = {
        name for name, column in zip(TRACE_TERMS, found.trace.unbind(2), strict=True) if column.isfinite().all()
    }
    assert recorded == set(TRACE_TERMS) - {"lpips"}
    assert found.trace_terms == TRACE_TERMS


def test_recording_changes_nothing(embed: Embed, target: Tensor) -> None:
    often, seldom = (embed(num_steps=6, record_every=every)(target, SEEDS) for every in (1, 100))
    assert torch.equal(often.w_plus, seldom.w_plus)
    torch.testing.assert_close(often.trace[:, [0, 5]], seldom.trace, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("shape", [(2, 3, 32, 32), (3, 1, 32, 32), (3, 3, 16, 16), (3, 32, 32)])
def test_targets_of_another_shape_are_refused(shape: tuple[int, ...], embed: Embed) -> None:
    with pytest.raises(ShapeError) as caught:
        embed()(torch.zeros(shape), SEEDS)
    assert str(list(shape)) in str(caught.value) and "wanted [3, 3, 32, 32]" in str(caught.value)


@pytest.mark.parametrize(("space", "shape"), [("w", (3, 8, 24)), ("w_plus", (3, 24)), ("w_plus", (2, 8, 24))])
def test_first_codes_of_another_shape_are_refused(space: str, shape: tuple[int, ...], embed: Embed) -> None:
    wanted = [3, 24] if space == "w" else [3, 8, 24]
    with pytest.raises(ShapeError) as caught:
        embed(space=space).start(SEEDS, codes=torch.zeros(shape))
    assert f"first codes are {list(shape)}; wanted {wanted}" in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("space", "z"),
        ("num_steps", 0),
        ("record_every", 0),
        ("learning_rate", 0.0),
        ("learning_rate", -0.1),
        ("learning_rate", float("nan")),
        ("lpips_weight", -1.0),
        ("sncd_weight", -5.0),
        ("sncd_weight", float("nan")),
        ("mse_weight", -1.0),
        ("mean_code_weight", -1.0),
        ("noise_weight", -1.0),
        ("exploration", -0.05),
        ("sncd_on", "dirty"),
        ("noise_normalization", "pooled"),
        ("downsampling", "nearest"),
        ("precision", "float16"),
    ],
)
def test_a_bad_setting_is_refused_with_its_name_and_value(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f'{field} is "?{value}"?') as caught:
        replace(PIXELS_ONLY, **{field: value})
    assert "wanted" in str(caught.value)


def test_settings_that_compare_nothing_are_refused() -> None:
    with pytest.raises(ConfigError, match="lpips_weight and mse_weight are both 0"):
        replace(PIXELS_ONLY, mse_weight=0.0)


def test_a_state_names_everything_that_it_depends_on(embed: Embed, target: Tensor) -> None:
    embedder = embed(num_steps=3)
    state = embedder.start(SEEDS)
    embedder.advance(state, target, until=1)
    assert isinstance(state, OptimizationState)
    parameters = [f"{index:02d}" for index in range(8)]
    assert set(state.to_tensors()) == {
        *("step", "is_active", "stopped_at", "trace", "streams"),
        *(f"parameter.{index}" for index in parameters),
        *(f"adam.{index}.{name}" for index in parameters for name in ("exp_avg", "exp_avg_sq")),
    }
