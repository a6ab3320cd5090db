"""Refinement by HyperStyle, beside the published passes and against its own promises."""

import gc
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lsap_core.encoders.checkpoints import build_encoder, from_encoder_document
from lsap_core.errors import ConfigError, ShapeError
from lsap_core.generators import Generator, GeneratorConfig
from lsap_core.perceptual.features import FeatureDistance, FeatureNet, FeatureNetConfig
from lsap_core.refinement import Embedded, RefinementParts, RefinementSettings, as_stored
from lsap_core.refinement.hyperstyle import (
    HyperStyleRefiner,
    HyperStyleSettings,
    changed_weights,
    hyper_view,
)
from lsap_core.refinement.hyperstyle_checkpoint import from_hyperstyle_document
from lsap_core.refinement.hyperstyle_networks import HyperNetwork, HyperStyleConfig
from lsap_core.refinement.tuned_weights import TunedGenerator

KEYS = Path(__file__).parents[2] / "reference" / "keys"
SEEDS = (1, 2, 3)
SMALL = HyperStyleSettings(num_passes=4, backbone="small", layers=(0, 3, 4, 5, 8, 9))

Numbers = Callable[..., Tensor]
Reference = Callable[[str], Any]


# --- the published generator, network and passes ---------------------------------------------------------------


def test_offsets_change_the_image_as_published(
    reference: Reference, fill: Any, published_in_both_forms: Callable[[int], Generator]
) -> None:
    numbers, generator = reference("hyperstyle_generator"), published_in_both_forms(64)
    tuned = TunedGenerator(generator)
    layers = (0, 5, 8, 9, 13)
    config = HyperStyleConfig.for_generator(generator.config, layers=layers)
    shapes = {13: (2, 3, 512, 1, 1)}
    offsets = {
        index: torch.from_numpy(
            fill.array(f"in/hyperstyle_generator/offsets_{index}", shapes.get(index, (2, 512, 512, 3, 3)), 0.3)
        )
        for index in layers
    }

    def image(chosen: dict[int, Tensor]) -> Tensor:
        return tuned.synthesize(numbers["w"], changed_weights(tuned, config, chosen))[:, :, ::2, ::2]

    with torch.no_grad():
        numbers.check("plain_sub", image({}))
        numbers.check("offset_sub", image(offsets))
        numbers.check("only_8_sub", image({8: offsets[8][..., :1, :1]}))


@pytest.fixture(scope="session")
def published_network(fill: Any) -> Iterator[Callable[..., HyperNetwork]]:
    """The network that the published program ran, through the form of its files; matrices are drawn once."""
    shared: dict[str, Tensor] = {}

    def make(layers: tuple[int, ...], config: GeneratorConfig) -> HyperNetwork:
        keys = json.loads((KEYS / "hyperstyle_hypernet_all_convs_1024.json").read_text())["keys"]
        keys = {name: tuple(shape) for name, shape in keys.items() if _is_of(name, layers)}
        own = {name: shape for name, shape in keys.items() if "hypernet." not in name}
        state = fill.fill_dict(own, "plain")
        for name in state:
            if name.startswith("body.") and name.endswith(".conv2.weight"):
                state[name] *= 0.25
            if ".output." in name and name.endswith(".weight"):
                state[name] *= 0.1
        for name in (name for name in keys if name.startswith("shared_weight_hypernet.")):
            if name not in shared:
                shared[name] = torch.from_numpy(fill.array(name, keys[name], 0.05))
        for name in (name for name in keys if "hypernet." in name):
            state[name] = shared[f"shared_weight_hypernet.{name.rpartition('.')[2]}"]
        document = {"state_dict": {f"hypernet.{name}": value for name, value in state.items()}}
        return from_hyperstyle_document(document, generator_config=config).network

    yield make
    shared.clear()
    gc.collect()


def _is_of(name: str, layers: tuple[int, ...]) -> bool:
    return not name.startswith("refinement_blocks.") or int(name.split(".")[1]) in layers


def moments(values: Tensor) -> Tensor:
    """Mean, deviation and largest magnitude."""
    return torch.stack([values.mean(), values.std(correction=0), values.abs().max()])


@pytest.mark.slow
def test_the_hypernetwork_gives_the_published_offsets(
    reference: Reference, fill: Any, published_network: Callable[..., HyperNetwork]
) -> None:
    numbers = reference("hyperstyle_hypernet")
    network = published_network((12, 18, 24), GeneratorConfig.config_f(1024))
    pair = torch.cat([fill.image_to_float(numbers[f"hyperstyle_dev_{name}"].numpy()) for name in "ab"], dim=1)
    with torch.no_grad():
        features, offsets = network.features(pair), network(pair)
        numbers.check("code", network.heads["12"](features))
    numbers.check("feature_sub", features[:, ::32])
    numbers.check("feature_mean", features.mean(dim=(2, 3)))
    numbers.check("feature_std", features.std(dim=(2, 3), correction=0))
    assert list(offsets) == [12, 18, 24]
    numbers.check("offsets_12_sub", offsets[12][:, ::32, ::32])
    numbers.check("offsets_18_sub", offsets[18][:, ::4, ::4, 0, 0])
    numbers.check("offsets_24_sub", offsets[24][..., 0, 0])
    for index, values in offsets.items():
        numbers.check(f"offsets_{index}_moments", moments(values))


@pytest.mark.slow
def test_passes_and_edits_are_the_published_ones(
    reference: Reference,
    fill: Any,
    filled: Any,
    published_network: Callable[..., HyperNetwork],
    published_generator: Callable[[int], Generator],
) -> None:
    numbers, generator = reference("hyperstyle_pipeline"), published_generator(64)
    image = fill.image_to_float(numbers["hyperstyle_dev_c"].numpy())
    keys = json.loads((KEYS / "w_encoder.json").read_text())["keys"]
    state = fill.fill_dict({name: tuple(shape) for name, shape in keys.items()}, "plain", "w:")
    document = {
        "state_dict": {f"encoder.{name}": value for name, value in state.items()},
        "latent_avg": numbers["latent_avg"],
        "opts": {"encoder_type": "WEncoder"},
    }
    encoder = build_encoder(from_encoder_document(document, generator_config=generator.config))
    with torch.no_grad():  # the mean code is the one of HyperStyle's file, row by row
        codes = numbers["latent_avg"] + encoder.offsets(image)
    numbers.check("w", codes[:, 0])
    numbers.check("codes_last", codes[:, -1])

    network = published_network((9, 12), generator.config)
    refiner = HyperStyleRefiner(generator, network=network, settings=HyperStyleSettings(layers=(9, 12)))
    state = refiner.start_at(Embedded(codes))
    numbers.check("first_image_sub", hyper_view(generator.synthesize(codes), network.config)[:, :, ::8, ::8])
    images, statistics = [], []
    for _ in range(5):
        refiner.make_pass(state, image)
        images.append(refiner.finish(state).refined.synthesize()[0, :, ::2, ::2])
        statistics.append(torch.stack([moments(offsets) for offsets in state.offsets.values()]))
    numbers.check("images_sub", torch.stack(images))
    numbers.check("offset_moments", torch.stack(statistics))
    for index in (9, 12):
        numbers.check(f"offsets_{index}_sub", state.offsets[index][0, ::32, ::32])
    refined = refiner.finish(state).refined
    edited = [refined.synthesize(codes + strength * numbers["direction"]) for strength in (-2, 0, 2)]
    numbers.check("edited_sub", torch.cat(edited)[:, :, ::2, ::2])
    assert torch.equal(edited[1], refined.synthesize())


# --- an image is refined ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def generator(random_generator: Callable[..., Generator]) -> Generator:
    return random_generator().freeze()


def small_network(config: GeneratorConfig, settings: HyperStyleSettings = SMALL) -> HyperNetwork:
    """A network with random weights and statistics."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        network = HyperNetwork(settings.config(config))
        for name, buffer in network.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(0, 0.1)
        for name, parameter in network.named_parameters():
            if name.endswith(("output.weight", "shared.w1")):  # 0 in a new one
                nn.init.normal_(parameter, 0, 0.3)
    return network.eval()


@pytest.fixture(scope="module")
def refiner(generator: Generator) -> HyperStyleRefiner:
    return HyperStyleRefiner(generator, network=small_network(generator.config), settings=SMALL)


@pytest.fixture(scope="module")
def embedded(generator: Generator, numbers: Numbers) -> Embedded:
    """Codes of three images, with noise of each image's own."""
    codes = generator.expand(generator.map(numbers(3, 16, seed=4))).contiguous()
    noise = [numbers(3, 1, *size, seed=size[0]) for size in generator.config.noise_sizes]
    return Embedded(codes.detach(), noise)


@pytest.fixture(scope="module")
def target(numbers: Numbers) -> Tensor:
    return numbers(3, 3, 32, 32, seed=8).clamp(-1, 1)


def run(refiner: HyperStyleRefiner, embedded: Embedded, target: Tensor) -> Any:
    state = refiner.start(embedded, target, SEEDS[: len(target)])
    refiner.advance(state, target)
    return refiner.finish(state)


@pytest.fixture(scope="module")
def found(refiner: HyperStyleRefiner, embedded: Embedded, target: Tensor) -> Any:
    return run(refiner, embedded, target)


def test_offsets_of_all_passes_are_summed_and_each_pass_sees_the_one_before(
    refiner: HyperStyleRefiner, generator: Generator, embedded: Embedded, target: Tensor, found: Any
) -> None:
    image = generator.synthesize(embedded.w_plus, noise=embedded.noise)
    total: dict[int, Tensor] = {}
    for _ in range(4):
        with torch.no_grad():
            added = refiner.network(torch.cat([target, image], dim=1))
        total = {index: total.get(index, 0.0) + values for index, values in added.items()}
        weights = changed_weights(refiner.tuned, refiner.network.config, total)
        image = refiner.tuned.synthesize(embedded.w_plus, weights, noise=embedded.noise)
    for index, offsets in found.refined.offsets.items():
        torch.testing.assert_close(offsets, total[index], rtol=1e-5, atol=1e-6)
        assert offsets.abs().max() > 1e-3
    torch.testing.assert_close(found.refined.synthesize(), image, rtol=0, atol=1e-4)
    assert found.num_steps.tolist() == [4, 4, 4] and found.trace.shape == (3, 0, 0)
    assert torch.equal(found.refined.w_plus, embedded.w_plus)


def test_offsets_are_kept_by_layer_and_half_precision_changes_little(
    refiner: HyperStyleRefiner, embedded: Embedded, found: Any
) -> None:
    declared = {array.name: array.shape for array in refiner.state_arrays}
    assert declared["offsets_00"] == (20, 20, 1, 1) and declared["offsets_04"] == (3, 16, 1, 1)
    stored = as_stored(refiner, found.refined, embedded.noise)
    torch.testing.assert_close(stored.synthesize(), found.refined.synthesize(), rtol=0, atol=5e-3)


def test_an_image_whose_offsets_are_not_finite_keeps_the_last_ones_and_disturbs_no_other(
    refiner: HyperStyleRefiner, embedded: Embedded, target: Tensor, found: Any
) -> None:
    state = refiner.start(embedded, target, SEEDS)
    refiner.advance(state, target, until=2)
    spoiled = target.clone()
    spoiled[1] = torch.nan
    after_two = refiner.finish(state).refined.synthesize()
    refiner.advance(state, spoiled, until=3)
    refiner.advance(state, target)
    stopped = refiner.finish(state)
    assert stopped.stopped_at.tolist() == [-1, 2, -1] and stopped.num_steps.tolist() == [4, 2, 4]
    images = stopped.refined.synthesize()
    assert torch.equal(images[1], after_two[1])
    assert torch.equal(images[[0, 2]], found.refined.synthesize()[[0, 2]])


def test_one_channel_and_a_content_box(random_generator: Callable[..., Generator], numbers: Numbers) -> None:
    config = GeneratorConfig(
        32, (12, 10, 8, 6), z_dim=6, w_dim=8, num_mapping_layers=2, image_channels=1, content_box=(4, 28, 0, 32)
    )
    generator, settings = random_generator(config).freeze(), replace(SMALL, layers=None)
    refiner = HyperStyleRefiner(generator, network=small_network(config, settings), settings=settings)
    embedded, target = Embedded(numbers(2, 8, 8)), numbers(2, 1, 32, 32)
    image = run(refiner, embedded, target).refined.synthesize()
    assert (image - generator.synthesize(embedded.w_plus)).abs().max() > 0.01
    outside = target.clone()
    outside[:, :, 28:] = 100.0  # what nobody looks at
    assert torch.equal(run(refiner, embedded, outside).refined.synthesize(), image)


def test_cars_are_looked_at_in_their_box() -> None:
    config = HyperStyleConfig.for_generator(GeneratorConfig.config_f(512, content_box=(64, 448, 0, 512)))
    images = torch.rand(1, 3, 512, 512)
    averaged = nn.functional.adaptive_avg_pool2d(images[:, :, 64:448], (192, 256))
    torch.testing.assert_close(hyper_view(images, config), averaged)
    torch.testing.assert_close(hyper_view(images, config), nn.functional.adaptive_avg_pool2d(images, 256)[:, :, 32:224])


# --- what does not fit -----------------------------------------------------------------------------------------


def test_another_network_is_refused(generator: Generator) -> None:
    with torch.random.fork_rng(devices=[]):
        perceptual = FeatureDistance(FeatureNet(FeatureNetConfig(32, 3)))
    network = small_network(generator.config)

    def build(settings: HyperStyleSettings, networks: nn.Module | None) -> HyperStyleRefiner:
        return settings.refiner(RefinementParts(generator, perceptual, networks))

    assert build(SMALL, network).settings is SMALL
    with pytest.raises(ConfigError, match="networks are a NoneType"):
        build(SMALL, None)
    with pytest.raises(ConfigError, match=r"layers of the hypernetwork: \(0, 3, 4, 5, 8, 9\)"):
        build(replace(SMALL, layers=None), network)
    with pytest.raises(ConfigError, match="was made for"):
        build(SMALL, small_network(replace(generator.config, content_box=(0, 32, 0, 32))))


def test_arrays_and_states_of_others_are_refused(
    refiner: HyperStyleRefiner, embedded: Embedded, target: Tensor, found: Any
) -> None:
    arrays = found.refined.arrays()
    with pytest.raises(ShapeError, match="offsets_03 are missing"):
        refiner.restore(embedded, {name: value for name, value in arrays.items() if name != "offsets_03"})
    with pytest.raises(ShapeError, match=r"offsets_00 are \[2, 20, 20, 1, 1\]"):
        refiner.restore(embedded, {name: value[:2] for name, value in arrays.items()})
    with pytest.raises(ShapeError, match="target images are"):
        refiner.start(embedded, target[:, :, :16], SEEDS)
    with pytest.raises(ShapeError, match="codes are"):
        refiner.start(Embedded(embedded.w_plus[:, :4]), target, SEEDS)


@pytest.mark.parametrize(
    ("changes", "message"), [({"num_passes": 0}, "num_passes is 0"), ({"backbone": "large"}, 'backbone is "large"')]
)
def test_settings_that_cannot_run_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(HyperStyleSettings(), **changes)


def test_published_settings_are_the_defaults() -> None:
    settings = HyperStyleSettings()
    assert isinstance(settings, RefinementSettings)
    assert settings.num_steps == 5 and settings.needs_networks and not settings.goes_back
    assert settings.why_stopped(1) == (
        "non_finite_offsets",
        "the offsets of the generator's weights were no longer finite in pass 2 of 5: take this image out, or another "
        "hypernetwork",
    )
    shapes = [array.shape for array in settings.state_arrays(GeneratorConfig.config_f(1024))]
    assert shapes[0] == (512, 512, 3, 3) and shapes[-1] == (32, 32, 1, 1) and len(shapes) == 14
