"""SAM's refiner: its loop by the published equations, and what every refinement promises."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lsap_core.errors import ConfigError, ShapeError
from lsap_core.generators import Generator, GeneratorConfig
from lsap_core.inversion.schedule import learning_rate
from lsap_core.perceptual.features import FeatureDistance, FeatureNet, FeatureNetConfig
from lsap_core.refinement import Embedded, Refinement, RefinementParts, as_stored
from lsap_core.refinement.sam import SAM_TOOLBOX, SamRefiner, SamSettings
from lsap_core.refinement.sam_loss import TRACE_TERMS
from lsap_core.refinement.sam_networks import InvertibilityPredictor, PredictorConfig, SamNetworks
from lsap_core.refinement.sam_prior import GaussianPrior
from lsap_core.refinement.sam_state import SamState

Numbers = Callable[..., Tensor]
Make = Callable[..., SamRefiner]

SHORT = SamSettings(num_steps=12, prior_samples=300, record_every=1)
SEEDS = (1, 2, 3)


class KnownErrors:
    """A predictor whose errors are how much brighter an image is than what a space can invert."""

    LIMITS = (-0.4, 0.15, 0.5, 1.0)

    def __init__(self, spaces: tuple[str, ...] = ("W+", "F2", "F4", "F6")):
        self.spaces = spaces

    def __call__(self, images: Tensor) -> Tensor:
        """Errors [N, spaces, h, w]."""
        brightness = images.mean(dim=1, keepdim=True)
        return 10 * (brightness - torch.tensor(self.LIMITS[: len(self.spaces)])[:, None, None])


def quarters(images: Tensor) -> Tensor:
    """Labels of four quarters."""
    height, width = images.shape[2:]
    rows, columns = torch.arange(height) * 2 // height, torch.arange(width) * 2 // width
    return (rows[:, None] * 2 + columns).expand(len(images), -1, -1)


class SpoiledPixels:
    """Squared pixel differences as a perceptual distance that turns bad for image 1 after some calls."""

    def __init__(self, *, after: int, value: float):
        self.remaining, self.value = after, value

    def features(self, images: Tensor) -> list[Tensor]:
        """The images."""
        return [images]

    def distance(self, features: list[Tensor], target_features: list[Tensor]) -> Tensor:
        """One for each image."""
        distances = (features[0] - target_features[0]).square().mean(dim=(1, 2, 3))
        self.remaining -= 1
        if self.remaining >= 0:
            return distances
        return distances * torch.tensor([1.0, self.value, 1.0])


@pytest.fixture(scope="module")
def generator(random_generator: Callable[..., Generator]) -> Generator:
    """Its images are in about [-1, 1], so that clamping hides few pixels."""
    generator = random_generator()
    with torch.no_grad():
        for layer in generator.synthesis.to_rgb_layers():
            layer.weight *= 0.1
    return generator.freeze()


@pytest.fixture(scope="module")
def perceptual() -> FeatureDistance:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = FeatureNet(FeatureNetConfig(32, 3, channels=(6, 8, 8)))
    return FeatureDistance(network.requires_grad_(False).eval())


@pytest.fixture(scope="module")
def embedded(generator: Generator, numbers: Numbers) -> Embedded:
    noise = [0.3 * numbers(3, 1, *size, seed=size[0]) for size in generator.config.noise_sizes]
    return Embedded(generator.expand(generator.map(numbers(3, 16))).clone(), noise)


@pytest.fixture(scope="module")
def target(generator: Generator, embedded: Embedded, numbers: Numbers) -> Tensor:
    """Quarters of different brightness, over images of other codes."""
    image = generator.synthesize(generator.map(numbers(3, 16, seed=5))) * 0.2
    light = F.interpolate(torch.tensor([[-0.8, 0.0], [0.3, 0.7]])[None, None], size=(32, 32), mode="nearest")
    shifts = torch.tensor([0.0, 0.05, -0.05])[:, None, None, None]
    return (image + light + shifts).clamp(-1, 1)


@pytest.fixture(scope="module")
def make(generator: Generator, perceptual: FeatureDistance) -> Make:
    def build(settings: SamSettings = SHORT, **changes: Any) -> SamRefiner:
        parts: dict[str, Any] = {"predictor": KnownErrors(), "segment": quarters, "perceptual": perceptual}
        parts |= {name: changes.pop(name) for name in list(changes) if name in parts}
        return SamRefiner(generator, **parts, settings=replace(settings, **changes))

    return build


def refine(refiner: SamRefiner, embedded: Embedded, target: Tensor) -> Refinement:
    state = refiner.start(embedded, target, SEEDS[: len(target)])
    refiner.advance(state, target)
    return refiner.finish(state)


@pytest.fixture(scope="module")
def refinement(make: Make, embedded: Embedded, target: Tensor) -> Refinement:
    return refine(make(), embedded, target)


def some(embedded: Embedded, rows: list[int]) -> Embedded:
    assert not isinstance(embedded.noise, str)
    return Embedded(embedded.w_plus[rows], [maps[rows] for maps in embedded.noise])


# --- masks and steps -------------------------------------------------------------------------------------------


def test_every_segment_gets_the_most_editable_space_that_can_invert_it(
    make: Make, embedded: Embedded, target: Tensor
) -> None:
    refiner = make()
    choice = refiner.choose(target)
    assert [choice[0, row, column].item() for row in (0, 31) for column in (0, 31)] == [0, 1, 2, 2]
    state = refiner.start(embedded, target, SEEDS)
    assert [tuple(mask.shape) for mask in state.masks] == [(3, 1, 8, 8), (3, 1, 16, 16)]
    assert state.masks[0][0, 0, 1, 6] > 0.95 and state.masks[0][0, 0, 6, 6] < 0.05  # F2: upper right alone
    assert state.masks[1][0, 0, 13, 3] > 0.95 and state.masks[1][0, 0, 3, 3] < 0.05  # F4: below
    whole = refiner.choose(target, torch.zeros(3, 32, 32, dtype=torch.long))
    assert not torch.equal(whole, choice) and all(len(one.unique()) == 1 for one in whole)
    given = refiner.start(embedded, target, SEEDS, choice=choice)
    assert all(torch.equal(a, b) for a, b in zip(given.masks, state.masks, strict=True))


@pytest.mark.parametrize("settings", [SHORT, replace(SHORT, placement="up_conv", pixels_on="full", weighs_codes=True)])
def test_steps_are_those_of_the_published_equations(
    settings: SamSettings,
    make: Make,
    generator: Generator,
    perceptual: FeatureDistance,
    embedded: Embedded,
    target: Tensor,
) -> None:
    """One image, four steps, written down once more from the equations."""
    settings = replace(settings, num_steps=4, learning_rate=0.02)
    one, image = some(embedded, [0]), target[:1]
    refiner = make(settings)
    state = refiner.start(one, image, SEEDS[:1])
    masks = [mask.clone() for mask in state.masks]
    refiner.advance(state, image)

    codes = one.w_plus.clone().requires_grad_()
    offsets = [torch.zeros_like(offset).requires_grad_() for offset in state.offsets]
    prior = GaussianPrior.estimate(generator, num_samples=300)
    optimizer = torch.optim.Adam([codes, *offsets])
    for step in range(4):
        optimizer.param_groups[0]["lr"] = learning_rate(step / 4, 0.02)
        styles = generator.styles(codes)
        start = None
        for offset, mask, space in zip(offsets, masks, refiner.spaces, strict=True):
            part = generator.synthesize_styles(
                styles, noise=one.noise, start=start, until=space.conv, collect=(space.conv,)
            )
            reached = part.block_end(space.conv) if settings.placement == "block" else part.states[space.conv]
            start = replace(reached, features=reached.features + mask * offset)
        inversion = generator.synthesize_styles(styles, noise=one.noise, start=start).image
        seen = inversion.clamp(-1, 1)
        pixels = seen if settings.pixels_on == "comparison" else inversion
        loss = (pixels - image).square().mean() + perceptual(seen, image).sum()
        loss = loss + 1e-8 * prior.distance(codes).sum() + 1e-3 * (codes[0, 1:] - codes[0, 0]).norm(dim=1).sum()
        moves = [*offsets, codes - one.w_plus] if settings.weighs_codes else offsets
        loss = loss + 5 * sum(move.square().mean() for move in moves)
        torch.testing.assert_close(state.trace[0, step, 0], loss.float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.testing.assert_close(state.codes, codes)
    for found, expected in zip(state.offsets, offsets, strict=True):
        torch.testing.assert_close(found, expected)
        assert found.abs().max() > 0


def test_a_single_space_is_asked_of_nobody_and_covers_the_image(make: Make, embedded: Embedded, target: Tensor) -> None:
    refiner = make(predictor=None, segment=None, spaces=("F4",), num_steps=4)
    assert not refiner.settings.needs_networks
    state = refiner.start(embedded, target, SEEDS)
    assert len(state.masks) == 1 and torch.equal(state.masks[0], torch.ones(3, 1, 16, 16))
    refiner.advance(state, target)
    assert (state.offsets[0] != 0).float().mean() > 0.9
    none = make(predictor=None, segment=None, spaces=("W+",)).start(embedded, target, SEEDS)
    assert none.masks == none.offsets == []


def test_refined_images_are_closer_and_offsets_stay_within_their_masks(
    refinement: Refinement, generator: Generator, embedded: Embedded, target: Tensor
) -> None:
    before = generator.synthesize(embedded.w_plus, noise=embedded.noise)
    after = refinement.refined.synthesize()
    errors = [(image - target).square().mean(dim=(1, 2, 3)) for image in (before, after)]
    assert (errors[1] < 0.8 * errors[0]).all()
    arrays = refinement.refined.arrays()
    for name in ("f2", "f4"):
        outside = arrays[f"offset_{name}"] * (arrays[f"mask_{name}"] == 0)[:, None]
        assert outside.abs().max() == 0 and arrays[f"offset_{name}"].abs().max() > 0
    assert refinement.trace_terms == TRACE_TERMS and refinement.trace.shape == (3, 12, len(TRACE_TERMS))
    assert refinement.trace.isfinite().all()
    assert refinement.num_steps.tolist() == [12] * 3 and refinement.stopped_at.tolist() == [-1] * 3


# --- what every refinement promises ----------------------------------------------------------------------------


@pytest.mark.parametrize("step", [7, 12])
def test_an_interrupted_run_goes_on_bit_for_bit(
    step: int, make: Make, refinement: Refinement, embedded: Embedded, target: Tensor
) -> None:
    first = make()
    state = first.start(embedded, target, SEEDS)
    first.advance(state, target, until=step)
    assert state.step == step
    saved = state.to_tensors()
    second = make()
    again = second.start(embedded, target, SEEDS, choice=second.everywhere("F4", 3))
    again.load_tensors(saved)  # the masks too
    seen: list[int] = []
    second.advance(again, target, after_step=lambda moved: seen.append(moved.step))
    assert seen == list(range(step + 1, 13))
    found = second.finish(again)
    assert torch.equal(found.refined.w_plus, refinement.refined.w_plus)
    assert torch.equal(found.refined.synthesize(), refinement.refined.synthesize())
    torch.testing.assert_close(found.trace, refinement.trace, rtol=0, atol=0)


def test_a_state_of_another_batch_is_refused(make: Make, embedded: Embedded, target: Tensor) -> None:
    refiner = make()
    saved = refiner.start(some(embedded, [0]), target[:1], (1,)).to_tensors()
    with pytest.raises(ShapeError, match="another batch"):
        refiner.start(embedded, target, SEEDS).load_tensors(saved)


def test_an_image_that_is_not_edited_stays_bit_for_bit_among_others_that_are(
    refinement: Refinement, numbers: Numbers
) -> None:
    refined = refinement.refined
    image = refined.synthesize()
    edited = refined.w_plus + 0.3 * numbers(*refined.w_plus.shape, seed=9)
    edit = refined.synthesize(edited)
    mixed = edited.clone()
    mixed[1] = refined.w_plus[1]  # one image of three is not edited
    found = refined.synthesize(mixed)
    assert torch.equal(found[1], image[1]) and torch.equal(found[0], edit[0]) and torch.equal(found[2], edit[2])
    found.zero_()
    refined.synthesize().zero_()
    assert torch.equal(refined.synthesize(), image)  # what is kept is not what was given away


def test_edits_do_not_compute_the_inversion_again(
    make: Make, refinement: Refinement, embedded: Embedded, generator: Generator
) -> None:
    refined = make().restore(Embedded(refinement.refined.w_plus, embedded.noise), refinement.refined.arrays())
    runs: list[int] = []
    hook = generator.synthesis.register_forward_hook(lambda *_: runs.append(1))
    counts = []
    for strength in (0.1, 0.2, 0.3):
        refined.synthesize(refined.w_plus + strength)
        counts.append(len(runs))
    hook.remove()
    assert counts == [6, 9, 12]  # two spaces: three parts of a synthesis


def test_images_are_restored_without_networks_and_nearly_so_from_half_precision(
    make: Make, refinement: Refinement, embedded: Embedded, numbers: Numbers
) -> None:
    refined = refinement.refined
    refiner = SHORT.refiner(RefinementParts(make().generator, make().perceptual))  # without networks
    restored = refiner.restore(Embedded(refined.w_plus, embedded.noise), refined.arrays())
    edited = refined.w_plus + 0.2 * numbers(*refined.w_plus.shape, seed=2)
    assert torch.equal(restored.synthesize(), refined.synthesize())
    assert torch.equal(restored.synthesize(edited), refined.synthesize(edited))
    for name, values in restored.arrays().items():
        assert values.dtype == torch.float32 and torch.equal(values, refined.arrays()[name])
    stored = as_stored(refiner, refined, embedded.noise)
    assert (stored.synthesize() - refined.synthesize()).abs().max() < 2e-3
    assert (stored.synthesize(edited) - refined.synthesize(edited)).abs().max() < 2e-3


@pytest.mark.parametrize(
    "change",
    [
        lambda arrays: arrays.pop("mask_f2"),
        lambda arrays: arrays.update(offset_f4=arrays["offset_f4"][:, :, :8]),
        lambda arrays: arrays.update(offset_f4=arrays["offset_f4"][:2]),
    ],
)
def test_other_arrays_are_refused(
    change: Callable[[dict[str, Tensor]], object], make: Make, refinement: Refinement, embedded: Embedded
) -> None:
    arrays = refinement.refined.arrays()
    change(arrays)
    with pytest.raises(ShapeError, match="these settings"):
        make().restore(Embedded(refinement.refined.w_plus, embedded.noise), arrays)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_an_image_that_diverges_stops_and_disturbs_no_other(
    value: float, make: Make, embedded: Embedded, target: Tensor
) -> None:
    whole = refine(make(perceptual=SpoiledPixels(after=100, value=value)), embedded, target)
    until_then = make(perceptual=SpoiledPixels(after=100, value=value))
    state = until_then.start(embedded, target, SEEDS)
    until_then.advance(state, target, until=5)
    found = refine(make(perceptual=SpoiledPixels(after=5, value=value)), embedded, target)
    assert found.stopped_at.tolist() == [-1, 5, -1] and found.num_steps.tolist() == [12, 5, 12]
    assert torch.equal(found.refined.w_plus[1], state.codes[1])
    assert torch.equal(found.refined.arrays()["offset_f4"][1], state.offsets[1][1])
    assert found.trace[1, 5:].isnan().all() and found.trace[1, :5].isfinite().all()
    for index in (0, 2):
        assert torch.equal(found.refined.w_plus[index], whole.refined.w_plus[index])
        assert torch.equal(found.trace[index], whole.trace[index])
    assert found.refined.synthesize().isfinite().all()


def test_a_step_out_of_the_finite_numbers_is_taken_back(make: Make, embedded: Embedded, target: Tensor) -> None:
    refiner = make()
    state = refiner.start(embedded, target, SEEDS)
    refiner.advance(state, target, until=3)
    before = copy.deepcopy(state.to_tensors())
    state.optimizer.state[state.codes]["exp_avg"][2] = torch.inf
    refiner.advance(state, target)
    assert state.stopped_at.tolist() == [-1, -1, 3]
    assert torch.equal(state.codes[2], before["parameter.0"][2])
    assert not torch.equal(state.codes[0], before["parameter.0"][0])


# --- other generators ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("channels", "box", "resolution"), [(1, None, 32), (3, (4, 28, 0, 32), 32), (1, (0, 16, 2, 14), 16), (1, None, 8)]
)
def test_any_generator_can_be_refined(
    channels: int,
    box: tuple[int, int, int, int] | None,
    resolution: int,
    random_generator: Callable[..., Generator],
    numbers: Numbers,
) -> None:
    depth = resolution.bit_length() - 2
    config = GeneratorConfig(
        resolution, (8,) * depth, z_dim=6, w_dim=8, num_mapping_layers=2, image_channels=channels, content_box=box
    )
    generator = random_generator(config).freeze()
    settings = replace(SHORT, num_steps=5, lpips_weight=0.0, placement="block", threshold=0.0)
    predictor = InvertibilityPredictor(PredictorConfig.for_generator(config, base="small"))
    for head in predictor.heads.values():
        torch.nn.init.constant_(head.m[3].bias, 5.0)  # no space is good enough: the least editable is taken
    parts = RefinementParts(generator, SpoiledPixels(after=0, value=1.0), SamNetworks(predictor, quarters))
    refiner = settings.refiner(parts)
    target = numbers(2, channels, resolution, resolution, seed=4).clamp(-1, 1)
    codes = generator.expand(generator.map(numbers(2, 6))).clone()
    state = refiner.start(Embedded(codes), target, (0, 1))
    refiner.advance(state, target)
    refined = refiner.finish(state).refined
    assert refined.synthesize().shape == target.shape
    assert torch.equal(refined.synthesize(refined.w_plus), refined.synthesize())
    if box is not None:
        top, bottom, _, _ = box
        mask = state.masks[-1]
        scale = mask.shape[-1] / resolution
        inside = mask[..., int(top * scale) : int(bottom * scale), :].sum()
        assert 0 < mask.mean() < 1 and inside > 0.8 * mask.sum()


# --- segments that are given -----------------------------------------------------------------------------------


def test_given_segments_are_taken_as_those_that_are_found(make: Make, embedded: Embedded, target: Tensor) -> None:
    refiner = make(segment=None)
    assert refiner.segments_size == tuple(target.shape[2:])
    given = refiner.start(embedded, target, SEEDS, segments=quarters(target))
    found = make().start(embedded, target, SEEDS)
    for one, other in zip(given.masks, found.masks, strict=True):
        assert torch.equal(one, other)
    with pytest.raises(ShapeError, match="segment the images that the errors were predicted of, in their size"):
        refiner.start(embedded, target, SEEDS, segments=quarters(target)[:, :16])


def test_segments_have_the_size_that_errors_are_predicted_in() -> None:
    with torch.device("meta"):
        cars = Generator(GeneratorConfig.config_f(512, content_box=(64, 448, 0, 512)))
    parts = RefinementParts(cars, SpoiledPixels(after=0, value=0))
    assert SamSettings().refiner(parts).segments_size == (384, 512)
    assert SamSettings(predicted_on="comparison").refiner(parts).segments_size == (192, 256)


# --- settings --------------------------------------------------------------------------------------------------


def test_defaults_are_the_published_values() -> None:
    settings = SamSettings()
    assert (settings.kind, settings.num_steps, settings.threshold, settings.placement) == ("sam", 500, 0.225, "block")
    assert settings.needs_networks and settings.goes_back and settings.restores_alone
    faces = GeneratorConfig.config_f(1024)
    assert [space.name for space in settings.feature_spaces(faces)] == ["F4", "F6", "F8", "F10"]
    assert [space.conv for space in SAM_TOOLBOX.feature_spaces(faces)] == [3, 5, 9]
    assert [array.name for array in SAM_TOOLBOX.state_arrays(faces)][:2] == ["offset_f4", "mask_f4"]
    reason, message = settings.why_stopped(7)
    assert reason == "non_finite_loss" and "step 7 of 500" in message


def test_spaces_from_a_file_are_the_same_settings() -> None:
    assert replace(SamSettings(), spaces=["F6", "W+"]) == replace(SamSettings(), spaces=("F6", "W+"))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_steps": 0}, "num_steps is 0"),
        ({"record_every": 1, "num_steps": 10**6}, "raise record_every"),
        ({"learning_rate": 0.0}, "positive"),
        ({"prior_weight": -1.0}, "not negative"),
        ({"threshold": float("nan")}, "not negative"),
        ({"prior_samples": 1}, "at least 2"),
        ({"mse_weight": 0.0, "lpips_weight": 0.0}, "both 0"),
        ({"placement": "conv"}, '"block" or "up_conv"'),
        ({"predicted_on": "half"}, '"comparison" or "full"'),
        ({"spaces": ("F4", "F6")}, "each once, or one space alone"),
        ({"spaces": ("W+", "F4", "F4")}, "each once"),
    ],
)
def test_settings_that_cannot_run_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(SamSettings(), **changes)


def test_parts_that_do_not_fit_are_refused(
    make: Make, generator: Generator, perceptual: FeatureDistance, embedded: Embedded, target: Tensor
) -> None:
    with pytest.raises(ConfigError, match="leave it out"):
        make(spaces=("W+", "F6"))  # nothing reads features after the last block
    with pytest.raises(ConfigError, match="spaces name G4"):
        make(spaces=("W+", "G4"))
    with pytest.raises(ConfigError, match="the predictor knows W\\+"):
        make(predictor=KnownErrors(("W+", "F2")))
    with pytest.raises(ConfigError, match="wanted SamNetworks"):
        SHORT.refiner(RefinementParts(generator, perceptual, perceptual))
    with pytest.raises(ConfigError, match="name a segmenter"):
        make(segment=None).start(embedded, target, SEEDS)
    refiner = make()
    with pytest.raises(ShapeError, match="target images"):
        refiner.start(embedded, target[:2], SEEDS)
    with pytest.raises(ShapeError, match="in their size"):
        refiner.choose(target, torch.zeros(3, 16, 16, dtype=torch.long))
    with pytest.raises(ShapeError, match="choice of spaces"):
        refiner.start(embedded, target, SEEDS, choice=refiner.everywhere("F2", 2))
    with pytest.raises(ConfigError, match="wanted one of W\\+, F2, F4"):
        refiner.everywhere("F6", 3)
    with pytest.raises(ConfigError, match="nothing predicts errors"):
        make(predictor=None).choose(target)
    with pytest.raises(ShapeError, match="codes are"):
        refiner.start(Embedded(embedded.w_plus[:, :3], embedded.noise), target, SEEDS)


def test_terms_without_weight_are_not_computed(make: Make, embedded: Embedded, target: Tensor) -> None:
    refiner = make(
        prior_weight=0.0, delta_weight=0.0, features_weight=0.0, num_steps=2, perceptual=None, lpips_weight=0.0
    )
    state: SamState = refiner.start(embedded, target, SEEDS)
    refiner.advance(state, target)
    computed = ["loss", "mse"]
    for column, name in enumerate(TRACE_TERMS):
        assert bool(state.trace[..., column].isfinite().all()) == (name in computed)
