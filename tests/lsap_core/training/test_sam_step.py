"""Training SAM's predictor: steps by their definition, augmentation, and maps of errors."""

import copy
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from torch import Tensor

from lsap_core.errors import CheckpointError, ConfigError, ShapeError, TrainingDivergedError
from lsap_core.perceptual.features import FeatureDistance, FeatureNet, FeatureNetConfig
from lsap_core.refinement.sam_networks import InvertibilityPredictor, PredictorConfig
from lsap_core.training.sam_step import (
    PredictorTraining,
    PredictorTrainingSettings,
    augment,
    blurred,
    error_maps,
    gaussian_kernel,
)

Numbers = Callable[..., Tensor]
CONFIG = PredictorConfig("small", ("W+", "F2", "F4"), 1)
SETTINGS = PredictorTrainingSettings(num_steps=40, learning_rate=3e-3)


@pytest.fixture(autouse=True)
def same_weights() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.fixture
def batch(numbers: Numbers) -> tuple[Tensor, Tensor]:
    """Dark and bright halves, of which the bright one is hard to invert."""
    images = torch.full((4, 1, 16, 16), -0.5)
    for index in range(4):
        images[index, :, :, 4 * index :] = 0.5
    noisy = images + 0.1 * numbers(4, 1, 16, 16)
    hard = (images > 0).float() * torch.tensor([0.6, 0.4, 0.2])[:, None, None]
    return noisy, hard


def streams(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def test_a_step_is_that_of_sgd_on_the_mean_squared_difference(batch: tuple[Tensor, Tensor]) -> None:
    images, errors = batch
    training = PredictorTraining(InvertibilityPredictor(CONFIG), SETTINGS)
    other = copy.deepcopy(training.predictor).train()
    velocity = {name: torch.zeros_like(value) for name, value in other.named_parameters()}
    for step in range(3):
        logged = training.advance(images, errors)
        loss = torch.nn.functional.mse_loss(other(images), errors)
        other.zero_grad()
        loss.backward()
        rate = 10 * 3e-3 * (1 - step / 40) ** 0.9
        with torch.no_grad():
            for name, parameter in other.named_parameters():
                assert parameter.grad is not None
                velocity[name] = 0.9 * velocity[name] + parameter.grad + 5e-4 * parameter
                parameter -= rate * velocity[name]
        assert logged["loss"] == pytest.approx(loss.item(), rel=1e-5)
        assert logged["loss"] == pytest.approx(sum(logged[name] for name in CONFIG.spaces) / 3, rel=1e-5)
    for name, parameter in training.predictor.named_parameters():
        torch.testing.assert_close(parameter, other.get_parameter(name))


def test_the_backbone_of_deeplab_moves_ten_times_slower() -> None:
    with torch.device("meta"):
        predictor = InvertibilityPredictor(PredictorConfig("deeplab", ("W+",)))
    training = PredictorTraining(predictor, SETTINGS)
    slow, fast = training.optimizer.param_groups
    assert (slow["factor"], fast["factor"]) == (1.0, 10.0)
    names = {id(parameter): name for name, parameter in predictor.named_parameters()}
    assert {names[id(one)].split(".")[1] for one in slow["params"]} == {"backbone"}
    assert {names[id(one)].split(".")[1] for one in fast["params"]} == {"aspp", "decoder", "W+"}


def test_errors_are_learned_where_they_are(batch: tuple[Tensor, Tensor]) -> None:
    training = PredictorTraining(InvertibilityPredictor(CONFIG), SETTINGS)
    before = training.validate(*batch)
    assert before.shape == (4, 3)
    for _ in range(40):
        training.advance(*batch)
    after = training.validate(*batch)
    assert after.mean() < 0.3 * before.mean()
    predicted = training.predictor(batch[0])
    bright = batch[1] > 0
    assert predicted[bright].mean() > 3 * predicted[~bright].mean()


def test_a_saved_training_goes_on_bit_for_bit(batch: tuple[Tensor, Tensor]) -> None:
    whole = PredictorTraining(InvertibilityPredictor(CONFIG), SETTINGS)
    first = PredictorTraining(copy.deepcopy(whole.predictor), SETTINGS)
    for _ in range(6):
        whole.advance(*batch)
    for _ in range(3):
        first.advance(*batch)
    saved = copy.deepcopy(first.state_dict())
    second = PredictorTraining(InvertibilityPredictor(CONFIG), SETTINGS)
    second.load_state_dict(saved)
    for _ in range(3):
        second.advance(*batch)
    assert second.step == 6
    for name, value in whole.predictor.state_dict().items():
        assert torch.equal(second.predictor.state_dict()[name], value), name
    with pytest.raises(CheckpointError, match="lacks optimizer"):
        second.load_state_dict({"step": 1, "predictor": {}})
    with pytest.raises(CheckpointError, match="another predictor"):
        PredictorTraining(InvertibilityPredictor(PredictorConfig("small", ("W+",))), SETTINGS).load_state_dict(saved)


def test_scaled_errors_are_learned_and_predicted_as_they_are(batch: tuple[Tensor, Tensor]) -> None:
    images, errors = batch
    plain = PredictorTraining(InvertibilityPredictor(CONFIG), SETTINGS)
    scaled = PredictorTraining(
        copy.deepcopy(plain.predictor), PredictorTrainingSettings(num_steps=40, learning_rate=3e-3, error_scale=20.0)
    )
    for _ in range(3):
        one, other = plain.advance(images, errors), scaled.advance(images, errors / 20)
        assert one["W+"] == pytest.approx(400 * other["W+"], rel=1e-4)
    torch.testing.assert_close(plain.validate(images, errors), 400 * scaled.validate(images, errors / 20))
    before = copy.deepcopy(scaled.predictor.state_dict())
    torch.testing.assert_close(scaled.trained()(images), plain.trained()(images) / 20)
    assert all(torch.equal(value, before[name]) for name, value in scaled.predictor.state_dict().items())


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_step_that_diverges_changes_nothing(value: float, batch: tuple[Tensor, Tensor]) -> None:
    training = PredictorTraining(InvertibilityPredictor(CONFIG), SETTINGS)
    training.advance(*batch)
    before = copy.deepcopy(training.state_dict())
    images, errors = batch
    with pytest.raises(TrainingDivergedError, match="step 1"):
        training.advance(images, errors.index_fill(0, torch.tensor([2]), value))
    assert training.step == 1
    for name, kept in before["predictor"].items():
        assert torch.equal(training.predictor.state_dict()[name], kept), name


def test_pictures_are_changed_alike_each_by_its_own_stream(numbers: Numbers) -> None:
    images, inversions = numbers(40, 3, 10, 12), numbers(40, 1, 10, 12, seed=1)
    seeds = tuple(range(40))
    found = augment([images, inversions], streams(*seeds))
    again = augment([images], streams(*seeds))
    assert torch.equal(found[0], again[0])
    alone = augment([images[5:6]], streams(5))
    assert torch.equal(alone[0][0], found[0][5])
    kinds = set()
    for index in range(40):
        pairs = ((images[index], found[0][index]), (inversions[index], found[1][index]))
        changes = {not torch.equal(before, after) for before, after in pairs}
        assert len(changes) == 1
        kinds |= changes
    assert len(kinds) == 2
    with pytest.raises(ShapeError, match="wanted as many"):
        augment([images], streams(1, 2))


@pytest.mark.parametrize("deviation", [0.0, 0.3, 0.7, 0.999])
def test_the_blur_is_nearly_that_of_the_published_program(deviation: float, numbers: Numbers) -> None:
    """PIL's is a chain of boxes of the same variance, rounded to 8 bits."""
    kernel, offsets = gaussian_kernel(deviation), torch.arange(-4, 5)
    assert (kernel * offsets.square()).sum().item() == pytest.approx(deviation**2, abs=1e-2)
    picture = (numbers(24, 20) * 40 + 128).clamp(0, 255).to(torch.uint8)
    expected = Image.fromarray(picture.numpy()).filter(ImageFilter.GaussianBlur(radius=deviation))
    found = blurred(picture[None].float(), deviation)[0]
    difference = np.abs(found.numpy() - np.asarray(expected, dtype=np.float32))
    assert difference.mean() < (2.0 if deviation else 1e-4)  # of 40 levels' deviation


def test_maps_of_errors_average_to_the_distance(numbers: Numbers) -> None:
    network = FeatureNet(FeatureNetConfig(16, 1, channels=(4, 6))).requires_grad_(False).eval()
    perceptual = FeatureDistance(network)
    images = numbers(2, 1, 16, 16)
    near, far = images + 0.05 * numbers(2, 1, 16, 16, seed=1), images.flip(0)
    maps = error_maps(perceptual, images, [near, images, far])
    assert maps.shape == (2, 3, 16, 16)
    assert torch.equal(maps[:, 1], torch.zeros(2, 16, 16))
    torch.testing.assert_close(maps[:, 0].mean(dim=(1, 2)), perceptual(near, images), rtol=0.1, atol=1e-3)
    assert (maps[:, 2].mean(dim=(1, 2)) > maps[:, 0].mean(dim=(1, 2))).all()
    half = images.clone()
    half[..., 8:] += 0.5
    left, right = error_maps(perceptual, images, [half])[:, 0].split(8, dim=2)
    assert right.mean() > 4 * left.mean()
    with pytest.raises(ShapeError, match="as the images"):
        error_maps(perceptual, images, [near[:1]])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base": "tiny"}, 'base is "tiny"'),
        ({"error_scale": 0.0}, "positive"),
        ({"num_steps": 0}, "at least 1"),
        ({"batch_size": 0}, "at least 1"),
        ({"batch_size": 1}, "wanted at least 2"),
        ({"learning_rate": 0.0}, "positive"),
        ({"new_factor": math.inf}, "positive"),
        ({"momentum": 1.0}, "below 1"),
        ({"weight_decay": -1.0}, "not negative"),
    ],
)
def test_settings_that_cannot_run_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PredictorTrainingSettings(**{"num_steps": 10, **changes})


def test_batches_that_do_not_fit_are_refused(batch: tuple[Tensor, Tensor]) -> None:
    images, errors = batch
    training = PredictorTraining(InvertibilityPredictor(CONFIG), SETTINGS)
    for bad in ((images, errors[:, :2]), (images.expand(-1, 3, -1, -1), errors), (images[:0], errors[:0])):
        with pytest.raises(ShapeError, match="an error map for each of W"):
            training.advance(*bad)
