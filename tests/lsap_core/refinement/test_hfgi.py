"""HFGI refines codes: the published numbers, each image for itself, and edits that search nothing again."""

from collections.abc import Callable
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lsap_core.errors import ConfigError, ShapeError
from lsap_core.generators import Generator, GeneratorConfig
from lsap_core.refinement import Embedded, RefinementParts, RefinementSettings, as_stored
from lsap_core.refinement.hfgi import HfgiRefiner, HfgiSettings
from lsap_core.refinement.hfgi_checkpoints import HFGI, from_hfgi_document
from lsap_core.refinement.hfgi_networks import HfgiConfig, HfgiNetworks

Numbers = Callable[..., Tensor]
RandomGenerator = Callable[..., Generator]

COLOUR = GeneratorConfig(32, (20, 16, 12, 8), z_dim=16, w_dim=24, num_mapping_layers=3)
BOXED_GRAY = replace(COLOUR, image_channels=1, content_box=(4, 28, 0, 32))
CARS = GeneratorConfig(256, (4,) * 7, z_dim=4, w_dim=6, num_mapping_layers=1, content_box=(32, 224, 0, 256))
SEEDS = (0, 1, 2)


def random_networks(config: GeneratorConfig, **sizes: Any) -> HfgiNetworks:
    """Small networks whose batch normalization has seen images."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        networks = HfgiNetworks(HfgiConfig.for_generator(config, widths="small", **sizes))
        with torch.no_grad():
            networks.train()(*torch.randn(2, 4, config.image_channels, 16, 16))
    return networks.eval()


@pytest.fixture(scope="module")
def refiner_of(random_generator: RandomGenerator) -> Callable[..., HfgiRefiner]:
    def make(config: GeneratorConfig, **settings: Any) -> HfgiRefiner:
        networks = random_networks(config, **settings)
        return HfgiRefiner(random_generator(config).freeze(), networks=networks, settings=HfgiSettings(**settings))

    return make


@pytest.fixture(scope="module")
def refiner(refiner_of: Callable[..., HfgiRefiner]) -> HfgiRefiner:
    return refiner_of(COLOUR)


def example(refiner: HfgiRefiner, numbers: Numbers, *, num_images: int = 3) -> tuple[Embedded, Tensor]:
    """Codes, noise maps of each image's own, and photos."""
    config = refiner.generator.config
    noise = [numbers(num_images, 1, *size, seed=index) for index, size in enumerate(config.noise_sizes)]
    codes = numbers(num_images, config.num_ws, config.w_dim, seed=50)
    photos = numbers(num_images, config.image_channels, config.resolution, config.resolution, seed=51)
    return Embedded(codes, noise), photos.clamp(-1, 1)


def edited(codes: Tensor) -> Tensor:
    return codes + 0.5 * codes.roll(1, dims=2)


# --- the published numbers ----------------------------------------------------------------------------


@torch.no_grad()
def test_images_are_the_published_ones(
    reference: Callable[[str], Any],
    fill: ModuleType,
    filled: Callable[..., dict[str, Tensor]],
    published_generator: Callable[[int], Generator],
) -> None:
    """A 64-pixel generator whose images are enlarged to the 256 pixels that the networks want."""
    expected, generator = reference("hfgi_pipeline"), published_generator(64)
    tables = {"align": filled("hfgi_residual_aligner", "plain"), "res": filled("hfgi_residual_encoder", "plain")}
    refiner = HfgiRefiner(
        generator, networks=HFGI.build(from_hfgi_document(tables)), settings=HfgiSettings(view_side=256)
    )
    assert refiner.fusion.conv == 7
    embedded = Embedded(expected["codes"])
    photo = fill.image_to_float(expected["hfgi_dev_a"].numpy())

    plain = generator.synthesize(embedded.w_plus)
    seen, residual = refiner.fusion.view(plain), refiner.residual(embedded, photo)
    used: list[Tensor] = []
    refiner.networks.register_forward_hook(lambda *arguments: used.extend(arguments[-1]))
    image = refiner.restore(embedded, {"residual": residual}).synthesize()
    aligned, scale, shift = used
    expected.check("initial_image", plain)
    expected.check("initial_resized_sub", seen[:, :, ::4, ::4])
    expected.check("residual_sub", residual[:, :, ::4, ::4])
    expected.check("aligned_sub", aligned[:, :, ::4, ::4])
    expected.check("delta_sub", (aligned - residual)[:, :, ::4, ::4])
    for name, condition in (("scale", scale), ("shift", shift)):
        expected.check(f"{name}_sub", condition[:, ::64, ::2, ::2])
        expected.check(f"{name}_mean", condition.mean(dim=(2, 3)))
    expected.check("image", image)


# --- what comes back ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "settings"),
    [(COLOUR, {}), (COLOUR, {"view_side": 48}), (BOXED_GRAY, {}), (CARS, {})],
    ids=["colour", "enlarged", "boxed_gray", "cars"],
)
def test_the_kept_residual_gives_the_inversion_and_its_edits(
    refiner_of: Callable[..., HfgiRefiner], numbers: Numbers, config: GeneratorConfig, settings: dict[str, int]
) -> None:
    refiner = refiner_of(config, **settings)
    embedded, photos = example(refiner, numbers, num_images=2)
    refinement = refiner(embedded, photos)
    assert refinement.num_steps.tolist() == [1, 1]
    assert refinement.stopped_at.tolist() == [-1, -1]
    refined = refinement.refined
    inversion, smile = refined.synthesize(), edited(refined.w_plus)
    assert inversion.shape == photos.shape
    assert torch.equal(refined.synthesize(refined.w_plus.clone()), inversion)
    plain = refiner.generator.synthesize(embedded.w_plus, noise=embedded.noise)
    assert (inversion - plain).abs().amax() > 0.01  # something was brought back
    assert (refined.synthesize(smile) - inversion).abs().amax() > 0.01
    assert (refined.synthesize(smile) - refiner.generator.synthesize(smile, noise=embedded.noise)).abs().amax() > 0.01

    arrays = refined.arrays()
    assert {name: (tuple(kept.shape[1:]), kept.dtype) for name, kept in arrays.items()} == {
        declared.name: (declared.shape, torch.float32) for declared in refiner.state_arrays
    }
    restored = refiner.restore(Embedded(refined.w_plus, embedded.noise), arrays)
    assert torch.equal(restored.synthesize(), inversion)
    assert torch.equal(restored.synthesize(smile), refined.synthesize(smile))


def test_half_precision_of_what_is_kept_changes_little(refiner: HfgiRefiner, numbers: Numbers) -> None:
    embedded, photos = example(refiner, numbers)
    refined = refiner(embedded, photos).refined
    stored = as_stored(refiner, refined, embedded.noise)
    error = (stored.synthesize() - refined.synthesize()).abs().amax()
    assert 0 < error < 0.01
    assert 2 * sum(torch.Size(one.shape).numel() for one in refiner.state_arrays) == 2 * 3 * 32 * 32


@torch.no_grad()
def test_an_edit_realigns_the_residual(refiner: HfgiRefiner, numbers: Numbers) -> None:
    """Every step written out: X0, D, Y, D', scale and shift, and the image with one feature replaced."""
    embedded, photos = example(refiner, numbers)
    generator, fusion, smile = refiner.generator, refiner.fusion, edited(embedded.w_plus)
    residual = photos - generator.synthesize(embedded.w_plus, noise=embedded.noise).clamp(-1, 1)
    plain = generator.synthesize(smile, noise=embedded.noise).clamp(-1, 1)
    scale, shift = refiner.networks.encoder(refiner.networks.aligner(torch.cat([residual, plain], dim=1)))
    styles = generator.styles(smile)
    state = generator.synthesize_styles(styles, noise=embedded.noise, collect=(1,)).states[1]
    assert (fusion.conv, state.features.shape[-1]) == (1, 8)
    fused = replace(state, features=state.features * (1 + scale) + shift)
    wanted = generator.synthesize_styles(styles, noise=embedded.noise, start=fused).image
    torch.testing.assert_close(refiner(embedded, photos).refined.synthesize(smile), wanted)


def test_the_generators_constant_noise_works_too(refiner: HfgiRefiner, numbers: Numbers) -> None:
    embedded, photos = example(refiner, numbers)
    constant = Embedded(embedded.w_plus)
    maps = [maps.expand(1, 1, -1, -1) for maps in refiner.generator.noise_maps("constant")]
    found = refiner(constant, photos).refined.synthesize()
    torch.testing.assert_close(found, refiner(Embedded(embedded.w_plus, maps), photos).refined.synthesize())
    assert not torch.allclose(found, refiner(embedded, photos).refined.synthesize())


# --- images that cannot be refined --------------------------------------------------------------------


def test_an_image_that_is_not_finite_stops_and_disturbs_nobody(refiner: HfgiRefiner, numbers: Numbers) -> None:
    embedded, photos = example(refiner, numbers)
    whole = refiner(embedded, photos)
    broken = photos.clone()
    broken[1, 0, 3, 4] = torch.nan
    refinement = refiner(embedded, broken)
    assert refinement.stopped_at.tolist() == [-1, 0, -1]
    assert refinement.num_steps.tolist() == [1, 0, 1]
    assert all(kept.isfinite().all() for kept in refinement.refined.arrays().values())
    found, wanted = refinement.refined.synthesize(), whole.refined.synthesize()
    assert torch.equal(found[[0, 2]], wanted[[0, 2]])
    plain = refiner.generator.synthesize(embedded.w_plus, noise=embedded.noise)
    torch.testing.assert_close(found[1], plain[1])  # its code alone
    reason, message = refiner.settings.why_stopped(0)
    assert reason == "non_finite_residual" and "not finite" in message


def test_nothing_is_brought_back_where_nothing_was_lost(refiner: HfgiRefiner, numbers: Numbers) -> None:
    embedded, _ = example(refiner, numbers)
    refined = refiner.restore(embedded, {"residual": torch.zeros(3, 3, 32, 32)})
    smile = edited(embedded.w_plus)
    torch.testing.assert_close(refined.synthesize(smile), refiner.generator.synthesize(smile, noise=embedded.noise))


# --- steps and interruption ---------------------------------------------------------------------------


def test_a_state_of_another_batch_is_refused(refiner: HfgiRefiner, numbers: Numbers) -> None:
    state = refiner.start(*example(refiner, numbers), SEEDS)
    other = refiner.start(*example(refiner, numbers, num_images=2), (0, 1))
    with pytest.raises(ShapeError, match="another batch"):
        other.load_tensors(state.to_tensors())
    with pytest.raises(ShapeError, match="saved residual is None"):
        other.load_tensors({"step": torch.tensor(1)})


# --- what is refused ----------------------------------------------------------------------------------


def test_what_does_not_fit_is_refused(refiner: HfgiRefiner, numbers: Numbers) -> None:
    embedded, photos = example(refiner, numbers)
    for wrong, target, seeds in (
        (embedded, photos[:2], SEEDS),
        (embedded, photos[:, :1], SEEDS),
        (embedded, photos, (0, 1)),
        (Embedded(embedded.w_plus[:, :3]), photos, SEEDS),
        (Embedded(embedded.w_plus[:, 0]), photos, SEEDS),
        (Embedded(embedded.w_plus, embedded.noise[:-1]), photos, SEEDS),
    ):
        with pytest.raises(ShapeError, match=r"wanted|wants"):
            refiner.start(wrong, target, seeds)
    with pytest.raises(ShapeError, match="target"):
        refiner.advance(refiner.start(embedded, photos, SEEDS), photos[:2])
    with pytest.raises(ShapeError, match="edited codes"):
        refiner(embedded, photos).refined.synthesize(embedded.w_plus[:1])
    for arrays in ({}, {"residual": torch.zeros(3, 3, 16, 16)}, {"residual": torch.zeros(3, 3, 32, 32).long()}):
        with pytest.raises(ShapeError, match="the kept residual"):
            refiner.restore(embedded, arrays)


def test_networks_of_another_generator_are_refused(random_generator: RandomGenerator) -> None:
    generator, settings = random_generator().freeze(), HfgiSettings()
    parts = RefinementParts(generator, perceptual=None, networks=random_networks(COLOUR))  # type: ignore[arg-type]
    assert settings.refiner(parts).settings == settings
    for networks, message in (
        (None, "found none"),
        (nn.Linear(1, 1), "found Linear"),
        (random_networks(BOXED_GRAY), "images of 1 channels"),
        (HfgiNetworks(HfgiConfig(3, 17, "small")), "of 8 x 8 16"),
    ):
        with pytest.raises(ConfigError, match=message):
            settings.refiner(replace(parts, networks=networks))
    with pytest.raises(ConfigError, match="view_side"):
        HfgiSettings(view_side=64).refiner(parts)  # side 16, of 12 channels


def test_settings_say_what_would_be_kept() -> None:
    settings = HfgiSettings()
    assert isinstance(settings, RefinementSettings)
    assert (settings.kind, settings.num_steps, settings.needs_networks, settings.goes_back) == ("hfgi", 1, True, False)
    assert [kept.shape for kept in settings.state_arrays(CARS)] == [(3, 192, 256)]
    assert [kept.shape for kept in HfgiSettings(view_side=64).state_arrays(BOXED_GRAY)] == [(1, 48, 64)]
    with pytest.raises(ConfigError, match="view_side is 2"):
        HfgiSettings(view_side=2)
