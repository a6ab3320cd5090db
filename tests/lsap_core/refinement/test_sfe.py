"""Refinement by StyleFeatureEditor: batches, interruption, edits, what is kept, and images that give no numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from lsap_core.errors import ConfigError, ShapeError
from lsap_core.generators import Generator, GeneratorConfig
from lsap_core.perceptual.features import FeatureDistance, FeatureNet, FeatureNetConfig
from lsap_core.refinement import Embedded, RefinementParts, RefinementSettings, as_stored
from lsap_core.refinement.sfe import RefinedBySfe, SfeRefiner, SfeSettings, SfeState
from lsap_core.refinement.sfe_networks import SfeConfig, SfeNetworks

GRAY = GeneratorConfig(32, (20, 16, 12, 8), z_dim=16, w_dim=24, num_mapping_layers=3, image_channels=1)
WIDE = GeneratorConfig(32, (20, 16, 12, 8), z_dim=16, w_dim=24, num_mapping_layers=3, content_box=(4, 28, 0, 32))
SEEDS = (0, 1, 2)


def make_refiner(generator: Generator, *, seed: int = 0, has_finer_shift: bool = False) -> SfeRefiner:
    """A refiner with random networks, whose batch statistics differ from 0 and 1."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = SfeConfig.for_generator(generator.config, backbone="small", has_finer_shift=has_finer_shift)
        networks = SfeNetworks(config)
        for name, buffer in networks.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(0, 0.1)
            elif name.endswith("running_var"):
                buffer.uniform_(0.8, 1.2)
    return SfeRefiner(generator, networks=networks, settings=SfeSettings())


@pytest.fixture(scope="module")
def generator(random_generator: Callable[..., Generator]) -> Generator:
    return with_mean(random_generator())


def with_mean(generator: Generator) -> Generator:
    generator.mapping.w_avg.fill_(0.1)
    return generator.freeze()


@pytest.fixture(scope="module")
def refiner(generator: Generator) -> SfeRefiner:
    return make_refiner(generator)


@pytest.fixture(scope="module")
def target(numbers: Callable[..., Tensor]) -> Tensor:
    return numbers(3, 3, 32, 32, seed=1).clamp(-1, 1)


@pytest.fixture(scope="module")
def embedded(numbers: Callable[..., Tensor]) -> Embedded:
    return Embedded(numbers(3, 8, 24, seed=2))


def run(refiner: SfeRefiner, embedded: Embedded, target: Tensor) -> SfeState:
    state = refiner.start(embedded, target, range(len(target)))
    refiner.advance(state, target)
    return state


def test_code_and_features_come_from_the_image_and_edits_from_the_embedding(
    refiner: SfeRefiner, embedded: Embedded, target: Tensor, numbers: Callable[..., Tensor]
) -> None:
    one = refiner.finish(run(refiner, embedded, target)).refined
    other = refiner.finish(run(refiner, Embedded(numbers(3, 8, 24, seed=3)), target)).refined
    assert torch.equal(one.synthesize(), other.synthesize())
    edited = one.w_plus + 0.5
    assert (one.synthesize(edited) - other.synthesize(edited)).abs().max() > 1e-3
    mirrored = refiner.finish(run(refiner, embedded, target.flip(3))).refined
    assert (mirrored.w_plus - one.w_plus).abs().max() > 1e-3


def test_edits_below_and_above_the_layer_of_the_features_show(
    refiner: SfeRefiner, embedded: Embedded, target: Tensor
) -> None:
    refined = refiner.finish(run(refiner, embedded, target)).refined
    inversion = refined.synthesize()
    for rows in (slice(0, 2), slice(6, 8)):  # below and above the layer
        edited = refined.w_plus.clone()
        edited[:, rows] += 1.0
        assert (refined.synthesize(edited) - inversion).abs().amax(dim=(1, 2, 3)).min() > 1e-3


def test_the_edit_of_the_guide_reaches_the_features(refiner: SfeRefiner, embedded: Embedded, target: Tensor) -> None:
    refined = refiner.finish(run(refiner, embedded, target)).refined
    edited = refined.w_plus + 1.0
    styles = refiner.generator.styles(edited)
    with_the_same_features = refined.synthesize_styles(styles)
    assert (refined.synthesize(edited) - with_the_same_features).abs().max() > 1e-3
    everywhere = torch.ones(1, 1, 32, 32)
    guide_styles = refiner.generator.styles(refined.guide_w_plus + 1.0)
    assert torch.equal(refined.synthesize_styles(styles, guide_styles, mask=everywhere), with_the_same_features)


def test_the_variant_for_cars_takes_the_shift_at_twice_the_side(
    generator: Generator, embedded: Embedded, target: Tensor
) -> None:
    cars = make_refiner(generator, has_finer_shift=True)
    refined = cars.finish(run(cars, embedded, target)).refined
    assert isinstance(refined, RefinedBySfe) and refined.features.shape == (3, 16, 8, 8)
    styles = generator.styles(embedded.w_plus)
    finer = generator.synthesize_styles(styles, collect={4}).states[4].features  # the second convolution of side 16
    torch.testing.assert_close(refined.guide_features, finer)
    assert torch.equal(refined.synthesize(refined.w_plus), refined.synthesize())
    assert cars.networks.reducer is not None
    shift = refined.guide_features - 1
    wanted = cars.editing.editor(torch.cat([refined.features, cars.networks.reducer(shift)], dim=1))
    torch.testing.assert_close(refined.editing(refined.features, shift), wanted)
    config = cars.networks.config
    assert (config.shift_channels, SfeConfig.from_dict(config.to_dict())) == (12, config)
    large = SfeConfig.for_generator(GeneratorConfig.config_f(512), backbone="iresnet_50", has_finer_shift=True)
    assert (large.shift_channels, large.feature_channels, large.feature_side) == (256, 512, 64)
    assert "shift_channels" not in replace(config, shift_channels=None).to_dict()  # digests of others stay


def test_half_precision_of_what_is_kept_changes_little(refiner: SfeRefiner, embedded: Embedded, target: Tensor) -> None:
    refined = refiner.finish(run(refiner, embedded, target)).refined
    edited = refined.w_plus + 0.5
    stored = as_stored(refiner, refined, "constant")
    assert stored.arrays()["features"].dtype == torch.float32
    assert 0 < (stored.synthesize() - refined.synthesize()).abs().max() < 0.01
    assert 0 < (stored.synthesize(edited) - refined.synthesize(edited)).abs().max() < 0.02


def test_a_state_of_another_batch_is_refused(refiner: SfeRefiner, embedded: Embedded, target: Tensor) -> None:
    state = refiner.start(Embedded(embedded.w_plus[:2]), target[:2], SEEDS[:2])
    with pytest.raises(ShapeError, match=r"saved w_plus is \[3, 8, 24\]; this refinement has \[2, 8, 24\]"):
        state.load_tensors(run(refiner, embedded, target).to_tensors())


def test_an_image_without_numbers_stops_and_its_neighbours_do_not(
    refiner: SfeRefiner, embedded: Embedded, target: Tensor
) -> None:
    damaged = target.clone()
    damaged[1, 0, 3, 4] = torch.nan
    found = refiner.finish(run(refiner, embedded, damaged))
    assert found.stopped_at.tolist() == [-1, 0, -1]
    assert found.num_steps.tolist() == [1, 0, 1]
    assert torch.equal(found.refined.w_plus[1], embedded.w_plus[1])
    assert found.refined.synthesize().isfinite().all()
    good = refiner.finish(run(refiner, embedded, target)).refined
    assert torch.equal(found.refined.w_plus[::2], good.w_plus[::2])
    reason, message = refiner.settings.why_stopped(0)
    assert reason == "non_finite_features" and "are not finite" in message


@pytest.mark.parametrize("config", [GRAY, WIDE], ids=["gray", "wide"])
def test_other_images_are_refined_too(
    config: GeneratorConfig, random_generator: Callable[..., Generator], numbers: Callable[..., Tensor]
) -> None:
    generator = with_mean(random_generator(config))
    refiner = make_refiner(generator)
    images = numbers(2, config.image_channels, 32, 32).clamp(-1, 1)
    refined = refiner.finish(run(refiner, Embedded(numbers(2, 8, 24)), images)).refined
    assert refined.synthesize().shape == images.shape
    assert refined.arrays()["features"].shape == (2, 16, 8, 8)


def test_noise_of_the_embedding_is_not_that_of_this_code(
    refiner: SfeRefiner, embedded: Embedded, target: Tensor, numbers: Callable[..., Tensor]
) -> None:
    maps = [numbers(3, 1, *size) for size in refiner.generator.config.noise_sizes]
    one = refiner.finish(run(refiner, embedded, target)).refined
    other = refiner.finish(run(refiner, Embedded(embedded.w_plus, maps), target)).refined
    restored = refiner.restore(Embedded(other.w_plus, maps), other.arrays())
    assert torch.equal(one.synthesize(), other.synthesize())
    assert torch.equal(one.synthesize(), restored.synthesize())


def test_settings_say_what_is_kept_before_any_file_is_opened() -> None:
    settings: RefinementSettings = SfeSettings()
    assert (settings.kind, settings.num_steps, settings.needs_networks, settings.goes_back) == ("sfe", 1, True, False)
    features, guide = settings.state_arrays(GeneratorConfig.config_f(1024))
    assert (features.name, features.shape) == ("features", (512, 64, 64))
    assert (guide.name, guide.shape) == ("guide_w_plus", (18, 512))
    assert 2 * sum(torch.Size(one.shape).numel() for one in (features, guide)) == 2 * (512 * 64 * 64 + 18 * 512)


def test_parts_that_do_not_fit_are_refused(generator: Generator, refiner: SfeRefiner) -> None:
    perceptual = FeatureDistance(FeatureNet(FeatureNetConfig(32, 3, channels=(4, 4, 4, 4))))
    parts = RefinementParts(generator, perceptual, refiner.networks)
    assert isinstance(SfeSettings().refiner(parts), SfeRefiner)
    with pytest.raises(ConfigError, match="the networks are NoneType; wanted those of StyleFeatureEditor"):
        SfeSettings().refiner(replace(parts, networks=None))
    with pytest.raises(ConfigError, match="the networks are Linear"):
        SfeSettings().refiner(replace(parts, networks=nn.Linear(1, 1)))
    config = refiner.networks.config
    for changed, message in (
        (replace(config, has_editor=False), "have no Feature Editor"),
        (replace(config, num_ws=10), "num_ws of the networks of StyleFeatureEditor is 10; their generator wants 8"),
    ):
        with pytest.raises(ConfigError, match=message):
            SfeSettings().refiner(replace(parts, networks=SfeNetworks(changed)))
    with pytest.raises(ConfigError, match="no mean code"):
        SfeSettings().refiner(replace(parts, generator=Generator(generator.config)))


def test_shapes_that_do_not_fit_are_refused(refiner: SfeRefiner, embedded: Embedded, target: Tensor) -> None:
    with pytest.raises(ShapeError, match=r"target images are \[3, 3, 32, 16\]"):
        refiner.start(embedded, target[..., :16], SEEDS)
    with pytest.raises(ShapeError, match=r"codes are \[3, 7, 24\]; wanted \[3, 8, 24\]"):
        refiner.start(Embedded(embedded.w_plus[:, :7]), target, SEEDS)
    with pytest.raises(ShapeError, match="0 noise maps; this generator wants 7"):
        refiner.start(Embedded(embedded.w_plus, ()), target, SEEDS)
    refined = refiner.finish(run(refiner, embedded, target)).refined
    with pytest.raises(ShapeError, match=r"edited codes are \[1, 8, 24\]; wanted \[3, 8, 24\]"):
        refined.synthesize(refined.w_plus[:1])
    with pytest.raises(ShapeError, match=r"the array features is None; wanted \[3, 16, 8, 8\]"):
        refiner.restore(embedded, {"guide_w_plus": embedded.w_plus})
