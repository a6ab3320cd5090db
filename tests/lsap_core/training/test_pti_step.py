"""One generator tuned to many images: what a step computes, as for one image, and what it leaves alone."""

import copy
import io
import json
from collections.abc import Callable
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from lsap_core.errors import CheckpointError, ConfigError, ShapeError, TrainingDivergedError
from lsap_core.generators import Generator, GeneratorConfig
from lsap_core.perceptual.features import FeatureDistance
from lsap_core.refinement import Embedded, RefinementParts
from lsap_core.refinement.network_files import NetworkCheckpoint
from lsap_core.refinement.pti import PtiRefiner, PtiSettings
from lsap_core.refinement.pti_checkpoint import SHARED_WEIGHTS, Group, options_of
from lsap_core.refinement.pti_shared import SharedPtiSettings, SharedWeights
from lsap_core.training.pti_settings import PtiTrainingSettings
from lsap_core.training.pti_step import PtiTraining

SETTINGS = PtiTrainingSettings(num_steps=6, batch_size=3, learning_rate=3e-3)
WITH_LOCALITY = replace(SETTINGS, regularizes_locality=True, locality_alpha=3.0)
SEEDS = (7, 8, 9)
MakeTraining = Callable[..., PtiTraining]


@pytest.fixture(scope="module")
def parts(small: ModuleType) -> tuple[Generator, FeatureDistance]:
    generator, _, network = small.make_parts()
    return generator, FeatureDistance(network)


@pytest.fixture(scope="module")
def make_training(parts: tuple[Generator, FeatureDistance]) -> MakeTraining:
    generator, perceptual = parts

    def make(settings: PtiTrainingSettings = SETTINGS, **changes: Any) -> PtiTraining:
        weights = SharedWeights(generator.config)
        return PtiTraining(weights, generator, perceptual, replace(settings, **changes), seed=5)

    return make


@pytest.fixture(scope="module")
def group(parts: tuple[Generator, FeatureDistance], numbers: Callable[..., Tensor]) -> tuple[Tensor, Embedded]:
    """Three images, and pivots nearby with noise of each image's own."""
    generator, config = parts[0], parts[0].config
    codes = generator.expand(generator.map(numbers(3, config.z_dim, seed=4))).detach()
    noise = [numbers(3, 1, *size, seed=size[0]) for size in config.noise_sizes]
    images = generator.synthesize(codes + 0.3 * numbers(*codes.shape, seed=6)).detach()
    return images, Embedded(codes, noise)


def train(training: PtiTraining, group: tuple[Tensor, Embedded], steps: int) -> list[dict[str, float]]:
    return [training.advance(*group, SEEDS) for _ in range(steps)]


def test_with_one_image_weights_move_as_those_of_one_image_do(
    parts: tuple[Generator, FeatureDistance], group: tuple[Tensor, Embedded]
) -> None:
    """In float64, where rounding does not hide a difference; Adam's first steps magnify it."""
    generator, perceptual = (copy.deepcopy(part).double() for part in parts)
    target, noise = group[0][:1].double(), [maps[:1].double() for maps in group[1].noise]
    embedded = Embedded(group[1].w_plus[:1].double(), noise)
    alone = PtiRefiner(
        generator,
        perceptual=perceptual,
        settings=PtiSettings(num_steps=3, learning_rate=3e-3, stop_at_lpips=None, record_every=1),
    )
    state = alone.start(embedded, target, [0])
    alone.advance(state, target)
    weights = SharedWeights(generator.config).double()
    training = PtiTraining(weights, generator, perceptual, replace(SETTINGS, batch_size=1), seed=0)
    losses = [training.advance(target, embedded, [0])["loss"] for _ in range(3)]
    assert losses == pytest.approx(state.trace[0, :, 0].tolist(), rel=1e-9)
    torch.testing.assert_close(weights.weights.detach(), state.weights[0].detach(), rtol=0, atol=1e-7)
    assert weights.weights.abs().max() > 5e-3


def test_images_of_a_group_come_closer_together_and_the_generator_stays(
    make_training: MakeTraining, parts: tuple[Generator, FeatureDistance], group: tuple[Tensor, Embedded]
) -> None:
    before = {name: value.clone() for name, value in parts[0].state_dict().items()}
    training = make_training(num_steps=12, decay_steps=6)
    first = training.validate(*group)
    torch.testing.assert_close(first["loss"], first["mse"] + first["lpips"])
    logged = train(training, group, 12)
    assert logged[0]["loss"] == pytest.approx(float(first["loss"].mean()), rel=1e-5)
    assert (training.validate(*group)["loss"] < 0.8 * first["loss"]).all()
    assert [training.settings.learning_rate_at(step) for step in (0, 6, 9, 11)] == [3e-3, 3e-3, 1.5e-3, 0.5e-3]
    assert all(torch.equal(value, before[name]) for name, value in parts[0].state_dict().items())
    assert all(parameter.grad is None for parameter in parts[0].parameters())


def test_a_saved_training_goes_on_bit_for_bit(make_training: MakeTraining, group: tuple[Tensor, Embedded]) -> None:
    whole, broken = make_training(WITH_LOCALITY), make_training(WITH_LOCALITY)
    logged = train(whole, group, 4)
    assert {"loss", "mse", "lpips", "locality", "gradient_norm"} == logged[0].keys() and logged[-1]["locality"] > 0
    train(broken, group, 2)
    file = io.BytesIO()
    torch.save(broken.state_dict(), file)
    file.seek(0)
    again = make_training(WITH_LOCALITY)
    again.load_state_dict(torch.load(file, weights_only=True))
    assert train(again, group, 2) == logged[2:]
    assert torch.equal(again.weights.weights, whole.weights.weights)
    with pytest.raises(CheckpointError, match="lacks adam"):
        again.load_state_dict({"step": 1, "networks": {}})
    with pytest.raises(CheckpointError, match="of other weights"):
        again.load_state_dict({**whole.state_dict(), "networks": {"weights": torch.zeros(3)}})


def test_what_is_validated_is_what_its_file_gives(
    make_training: MakeTraining, parts: tuple[Generator, FeatureDistance], group: tuple[Tensor, Embedded]
) -> None:
    training = make_training()
    train(training, group, 3)
    kept = training.kept()
    assert {name: value.dtype for name, value in kept.items()} == {"weights": torch.float16}
    config, whose = parts[0].config, Group("lsap_e", "0123", ("a", "b", "c"))
    state = SHARED_WEIGHTS.canonical(config, kept, what="a test")
    checkpoint = NetworkCheckpoint(config, state, "safetensors", options_of(whose, {"seed": 5}))
    found = SHARED_WEIGHTS.read(kept, json.loads(json.dumps(SHARED_WEIGHTS.metadata(checkpoint))))
    assert Group.of(found) == whose and SHARED_WEIGHTS.digest(found) == SHARED_WEIGHTS.digest(checkpoint)
    refiner = SharedPtiSettings().refiner(RefinementParts(parts[0], parts[1], SHARED_WEIGHTS.build(found)))
    assert torch.equal(refiner.restore(group[1], {}).synthesize(), training.reconstruct(*group))
    for options in ({}, {"group": {"method": "lsap_e", "image_ids": ["a"]}}, {"group": [1]}):
        with pytest.raises(CheckpointError, match="do not say whose they are: tune them again"):
            Group.of(replace(found, options=options))


def test_a_step_that_is_not_finite_changes_nothing(make_training: MakeTraining, group: tuple[Tensor, Embedded]) -> None:
    training = make_training()
    train(training, group, 1)
    before = training.weights.weights.detach().clone()
    with pytest.raises(TrainingDivergedError, match=r"step 1: .*nothing was changed"):
        training.advance(group[0] * torch.nan, group[1], SEEDS)
    assert torch.equal(training.weights.weights, before) and training.step == 1


def test_what_does_not_fit_is_refused(make_training: MakeTraining, group: tuple[Tensor, Embedded]) -> None:
    training = make_training()
    images, embedded = group
    with pytest.raises(ShapeError, match="2 images with 3 seeds; wanted 3 of both"):
        training.advance(images[:2], embedded, SEEDS)
    with pytest.raises(ShapeError, match=r"images are \[3, 3, 16, 32\]; this training wants"):
        training.validate(images[:, :, :16], embedded)
    with pytest.raises(ShapeError, match=r"codes are \[2, 8, "):
        training.validate(images, Embedded(embedded.w_plus[:2]))
    for changes, message in (
        ({"batch_size": 0}, "batch_size is 0"),
        ({"decay_steps": 7}, "decay_steps is 7; wanted 0 to num_steps, 6"),
        ({"weights_type": "int8"}, 'weights_type is "int8"; wanted one of float16, float32'),
        ({"mse_weight": 0.0, "lpips_weight": 0.0}, "nothing would pull"),
    ):
        with pytest.raises(ConfigError, match=message):
            replace(SETTINGS, **changes)


def test_weights_of_another_kind_of_generator_are_refused(parts: tuple[Generator, FeatureDistance]) -> None:
    other = GeneratorConfig(32, (4, 4, 4, 4), z_dim=6, w_dim=8, num_mapping_layers=2)
    with pytest.raises(ConfigError, match=r"whose const is \[4, 4, 4\], here it is .*that they were tuned from"):
        SharedPtiSettings().refiner(RefinementParts(*parts, SharedWeights(other)))
    with pytest.raises(ConfigError, match="needs them, found none"):
        SharedPtiSettings().refiner(RefinementParts(*parts))
    huge = {**other.to_dict(), "channels": [2**40, 4, 4, 4]}
    metadata = {"kind": "pti_shared", "format_version": "1", "config": json.dumps(huge)}
    with pytest.raises(CheckpointError, match=r"parameters; wanted at most"):
        SHARED_WEIGHTS.read({}, metadata)
